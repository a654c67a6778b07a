"""Label noise: exactly the share that was asked for, as its kind says, known to nobody but us."""
import numpy as np
import pytest
import torch
from dataclasses import replace

from grefel.base.core import GrefelError
from grefel.data.faces import load_faces
from grefel.data.noise import (
    cleanlab_doubt, confusion, flip_labels, flip_list, found_flips, label_doubt, noisy_faces,
    symmetric)


@pytest.fixture(scope='module')
def crowd(): return load_faces('synth', n=4000, targets='hard')


@pytest.mark.parametrize('kind', (lambda crowd: symmetric(8), confusion))
def test_chances_are_distributions_over_the_other_classes(crowd, kind):
    q = kind(crowd)
    torch.testing.assert_close(q.sum(1), torch.ones(8))
    assert q.diagonal().abs().sum() == 0 and (q >= 0).all()


def test_confusion_is_what_the_crowd_said(crowd):
    q = confusion(crowd)
    votes = crowd.votes[crowd.labels == 6][:, :8].sum(0).float()  # of all faces of fear
    votes[6] = 0
    torch.testing.assert_close(q[6], votes/votes.sum(), atol=1e-4, rtol=0)
    with pytest.raises(GrefelError, match='needs votes'): confusion(replace(crowd, votes=None))


@pytest.mark.parametrize('share, wrong', [(0., 0), (.1, 400), (.3, 1200), (1., 4000)])
@pytest.mark.parametrize('seed', (0, 1))
def test_exactly_the_share_is_wrong(crowd, share, wrong, seed):
    assert (flip_labels(crowd.labels, symmetric(8), share, seed) != crowd.labels).sum() == wrong


def test_more_noise_adds_to_less(crowd):
    tenth, third = (flip_labels(crowd.labels, symmetric(8), s) for s in (.1, .3))
    few = tenth != crowd.labels
    assert (tenth == third)[few].all()


def test_a_seed_repeats_the_noise(crowd):
    a, b, c = (flip_labels(crowd.labels, symmetric(8), .1, seed) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_wrong_labels_follow_the_chances(crowd):
    q, n = confusion(crowd), torch.bincount(crowd.labels)
    wrong = flip_labels(crowd.labels, q, 1.)
    became = torch.stack([torch.bincount(wrong[crowd.labels == c], minlength=8)/n[c]
                          for c in range(8)])
    assert (became - q).abs().max() < 4*(.25/n.min())**.5  # four standard errors


@pytest.mark.parametrize('share', (30, -.1, float('nan')))
def test_a_share_is_no_percentage(crowd, share):
    with pytest.raises(GrefelError, match='0 to 1'):
        flip_labels(crowd.labels, symmetric(8), share)


def test_no_labels_no_noise(crowd):
    assert len(flip_labels(crowd.labels[:0], symmetric(8), .3)) == 0


@pytest.mark.parametrize('kind', ('symmetric', 'confusion'))
@pytest.mark.parametrize('share', (.1, .2))
def test_noisy_faces_flip_that_share_and_keep_the_truth(crowd, kind, share):
    before = crowd.labels.clone()
    bad = noisy_faces(crowd, kind, share, seed=3)
    assert (bad.labels != crowd.labels).sum() == round(share*4000)
    assert torch.equal(bad.targets.argmax(1), bad.labels) and bad.targets.sum(1).eq(1).all()
    assert torch.equal(bad.extra['true_label'], before) and torch.equal(crowd.labels, before)
    assert torch.equal(bad.images, crowd.images)
    assert bad.notes['noise'] == dict(kind=kind, share=share, seed=3)
    assert len(bad.subset([0, 2]).extra['true_label']) == 2


def test_noise_of_other_kinds(crowd):
    with pytest.raises(GrefelError, match='symmetric or confusion'): noisy_faces(crowd, 'pink', .1)
    with pytest.raises(GrefelError, match='hard targets'):
        noisy_faces(load_faces('synth', n=50, targets='votes'), 'symmetric', .1)


def test_the_list_names_the_wrong_labels_and_no_others(crowd):
    bad = noisy_faces(crowd, 'confusion', .2, seed=3)
    table = flip_list(bad)
    assert len(table) == 800 and (table.true != table.given).all()
    i = bad.names.index(table.name[5])
    assert (table.true[5], table.given[5]) == (crowd.classes[crowd.labels[i]],
                                               crowd.classes[bad.labels[i]])
    assert len(flip_list(noisy_faces(crowd, 'symmetric', 0.))) == 0


# doubts

@pytest.fixture(scope='module')
def bad(crowd): return noisy_faces(crowd, 'confusion', .2, seed=3)

@pytest.fixture(scope='module')
def models(bad):
    uniform = np.full((len(bad), 8), 1/8)
    return dict(knows=.2*uniform + .8*np.eye(8)[bad.extra['true_label']],
                memorised=.2*uniform + .8*np.eye(8)[bad.labels], blind=uniform)


@pytest.mark.parametrize('model, auroc', [('knows', 1.), ('memorised', .5), ('blind', .5)])
def test_who_can_point_at_wrong_labels(bad, models, model, auroc):
    wrong = (bad.labels != bad.extra['true_label']).numpy()
    found = found_flips(label_doubt(models[model], bad.labels), wrong)
    assert found['auroc'] == auroc and found['rate'] == .2
    if model == 'knows': assert found['precision'] == 1


@pytest.mark.parametrize('model, auroc', [('knows', 1.), ('blind', .5)])
def test_cleanlab_agrees_in_the_extremes(bad, models, model, auroc):
    pytest.importorskip('cleanlab')
    wrong = (bad.labels != bad.extra['true_label']).numpy()
    assert found_flips(cleanlab_doubt(models[model], bad.labels), wrong)['auroc'] == auroc


def test_a_class_that_nobody_was_given_does_not_count_for_cleanlab():
    pytest.importorskip('cleanlab')
    rng = np.random.default_rng(0)
    probs, given = rng.dirichlet(np.ones(4), 50), rng.integers(0, 3, 50)
    rest = probs[:, :3]/probs[:, :3].sum(1, keepdims=True)
    np.testing.assert_allclose(cleanlab_doubt(probs, given), cleanlab_doubt(rest, given))


def test_area_under_the_curve_of_two_normal_distributions():
    rng = np.random.default_rng(0)
    doubts = np.r_[rng.normal(0, 1, 20000), rng.normal(1, 1, 20000)]
    found = found_flips(doubts, np.repeat([False, True], 20000))
    assert abs(found['auroc'] - 0.7602) < .01  # Φ(1/√2)


def test_precision_is_that_of_the_most_doubted():
    found = found_flips([.9, .8, .1, .2], [True, False, True, False])
    assert (found['precision'], found['auroc'], found['rate']) == (.5, .5, .5)


def test_nothing_wrong_nothing_found():
    found = found_flips(np.zeros(4), np.zeros(4, bool))
    assert found['rate'] == 0 and np.isnan(found['auroc'])
