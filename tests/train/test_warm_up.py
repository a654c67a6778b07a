"""Learning before labels: the loss by hand, the trunk learns, labels and heads take no part."""
from dataclasses import replace

import pytest
import torch
from fastai.basics import DataLoaders

from grefel.base.core import GrefelError, set_seed
from grefel.data.augment import make_transform
from grefel.data.stream import ShardDataset
from grefel.method.model import create_model
from grefel.train import runs
from grefel.train.learner import grefel_learner
from grefel.train.loader import FaceLoader, face_dls
from grefel.train.warm_up import barlow_twins_loss, warm_up


@pytest.fixture
def learner(faces):
    def make(augment='light', **change):
        set_seed(0)
        model, changed = create_model('nano', img_size=32), replace(faces, **change)
        return grefel_learner(face_dls(changed, changed, model, bs=16, augment=augment), model)
    return make


def test_the_loss_is_the_papers(faces):
    a, b = torch.randn(50, 6), torch.randn(50, 6)
    c = torch.corrcoef(torch.cat([a, b], 1).T)[:6, 6:]
    expected = sum((1 - c[i, j])**2 if i == j else .1*c[i, j]**2
                   for i in range(6) for j in range(6))
    torch.testing.assert_close(barlow_twins_loss(a, b, .1), expected, rtol=1e-3, atol=1e-4)


def test_to_say_nothing_costs_most_and_to_say_much_costs_least():
    z, alike, nothing = torch.randn(4096, 8), torch.randn(4096, 1).repeat(1, 8), torch.zeros(9, 8)
    rich, repeated, silent = (barlow_twins_loss(x, x).item() for x in (z, alike, nothing))
    assert rich < .01 < repeated < silent
    assert (repeated, silent) == (pytest.approx(.005*8*7, rel=.01), pytest.approx(8))


def test_the_trunk_learns_and_the_heads_do_not(learner):
    learn = learner()
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    losses = warm_up(learn, 3, bs=24, width=32)
    assert len(losses) == 3*4 and sum(losses[-4:]) < sum(losses[:4])
    after = learn.model.state_dict()
    heads = [k for k in before if k.startswith(('head.', 'balancing.'))]
    assert heads and all(torch.equal(before[k], after[k]) for k in heads)
    stem = 'extractor.pyramid.stem.0.0.weight'
    assert not torch.equal(before[stem], after[stem])
    assert all(p.grad is None or not p.grad.any() for p in learn.model.parameters())


def test_no_label_is_read(learner, faces):
    unknown = torch.full_like(faces.targets, float('nan'))
    with_labels, without = (warm_up(learner(targets=targets), 1, bs=24, width=32)
                            for targets in (faces.targets, unknown))
    assert with_labels == without


@pytest.mark.parametrize('augment', ['none', 'light'])
def test_two_views_of_the_same_faces_are_compared(learner, augment):
    seen, learn = [], learner(augment)
    learn.model.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    warm_up(learn, 1, bs=24, width=8)
    pairs = list(zip(seen[1::2], seen[2::2], strict=True))  # the first asks for a size
    assert len(pairs) == 4
    # without augmentation both views are the face itself
    assert all(torch.equal(a, b) is (augment == 'none') for a, b in pairs)


def test_progress_counts_batches(learner):
    heard = []
    warm_up(learner(), 2, bs=48, width=8, progress=lambda *args: heard.append(args))
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_stream_is_refused(data):
    model = create_model('plain', widths=(8, 8, 8, 8), img_size=32)
    tfm = make_transform('none', 32)
    loader = FaceLoader(ShardDataset(data, bs=8), tfm)
    learn = grefel_learner(DataLoaders(loader, loader), model)
    with pytest.raises(GrefelError, match='warm_up: needs faces in memory'): warm_up(learn)


def test_a_run_warms_up_once_before_its_first_epoch(recipe, run, monkeypatch):
    real, asked = runs.warm_up, []
    def spying(learn, epochs, **kw):
        asked.append((epochs, learn.opt))
        return real(learn, epochs, bs=32, width=8, **kw)
    monkeypatch.setattr(runs, 'warm_up', spying)
    warm = recipe(warm_up=2)
    assert run('cut', warm, cut=0) is None
    assert asked == [(2, None)]  # nothing is trained yet
    run('cut', warm)
    assert len(asked) == 1  # a run that goes on
    run('cold', recipe())
    assert len(asked) == 1
