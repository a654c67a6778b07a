"""The learner: a dict's parts in the loss and the log, errors in one line, nothing left behind."""
import pytest
import torch
from fastai.basics import Callback

from grefel.base.core import GrefelError
from grefel.measure.answers import flip_average
from grefel.method.losses import GReFELLoss
from grefel.method.model import create_model
from grefel.train.learner import LossPart, ProbMetric, TrainLoss, grefel_learner
from grefel.train.loader import face_dls
from grefel.train.precision import BFloat16


@pytest.fixture
def learner(faces, plain):
    def make(model=plain, n=96, bs=32, augment='light', **kw):
        some = faces.subset(range(n))
        dls = face_dls(some, some, model, bs=bs, augment=augment)
        return grefel_learner(dls, model, **dict(ema=None) | kw)
    return make


@pytest.fixture
def nano(): return create_model('nano', img_size=32)


def logged(learn):
    return dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))


def test_the_loss_is_the_weighed_sum_of_its_parts_and_has_all_of_them(nano, faces):
    loss = TrainLoss(GReFELLoss(lambda_anchor=2., lambda_landmark=.5), nano)
    images = torch.randn(8, 3, 32, 32)
    loss.out = nano(images)
    total = loss(loss.out['final_probs'], faces.targets[:8], faces.landmarks[:8])
    weights = dict(cls=1., source=.25, anchor=2., center=1., landmark=.5)
    assert loss.parts.keys() == weights.keys() | {'total'}
    torch.testing.assert_close(total, sum(w*loss.parts[k] for k, w in weights.items()))
    assert loss.parts['landmark'] > 0 and loss.parts['center'] > 0


def test_a_models_own_terms_are_added(plain, faces):
    plain.extra_loss = lambda out, targets: dict(own=out['final_probs'].sum()*0 + 7.)
    loss = TrainLoss(GReFELLoss(), plain)
    loss.out = plain(torch.randn(8, 3, 32, 32))
    total = loss(loss.out['final_probs'], faces.targets[:8], None)
    torch.testing.assert_close(total, loss.parts['cls'] + 7.)
    assert loss.parts['own'] == 7


def test_the_log_has_the_parts_that_the_model_has(learner, nano):
    names = [[m.name for m in learner(model).metrics] for model in (nano, learner().model)]
    assert names == [['accuracy', 'cls', 'source', 'anchor', 'center', 'landmark'],
                     ['accuracy', 'cls']]


def test_to_ask_for_the_parts_changes_neither_mode_nor_averages(learner, plain):
    before = {k: v.clone() for k, v in plain.train().state_dict().items()}
    learner(plain)
    assert plain.training
    assert all(torch.equal(v, before[k]) for k, v in plain.state_dict().items())


def test_metrics_are_means_over_faces_not_over_batches(learner, quiet, faces):
    # validation batches of 64 and 6 faces
    learn = quiet(learner(n=70, metrics=[ProbMetric('certain', lambda p, t: p.amax(-1))]), 1, 0.)
    found = logged(learn)
    probs, (targets, _) = learn.get_preds()
    assert torch.equal(targets, faces.targets[:70])
    right = (probs.argmax(-1) == targets.argmax(-1)).float().mean().item()
    assert found['accuracy'] == pytest.approx(right)
    assert found['certain'] == pytest.approx(probs.amax(-1).mean().item())
    by_hand = -(targets*probs.log()).sum(-1).mean().item()
    assert found['cls'] == pytest.approx(by_hand, abs=1e-5)


def test_a_part_that_a_batch_lacks_counts_as_zero(learner):
    learn = learner()
    part = LossPart('anchor')
    part.reset()
    learn.pred = torch.zeros(4, 8)
    part.accumulate(learn)
    assert part.value == 0


@pytest.mark.parametrize('flip', [False, True])
def test_mirror_images_are_looked_at_in_validation_if_asked(learner, faces, flip):
    learn = learner(flip_test=flip)
    found = learn.get_preds()[0]
    with torch.no_grad():
        images = torch.cat([b[0] for b in learn.dls.valid])
        out = learn.model.eval()(images)
        expected = (flip_average(learn.model, images, out=out) if flip else out)['final_probs']
    torch.testing.assert_close(found, expected)


def test_training_looks_at_no_mirror_images(learner, quiet):
    calls = []
    learn = learner(flip_test=True)
    learn.model.register_forward_hook(lambda m, *_: calls.append(m.training))
    quiet(learn, 1)
    assert calls.count(True) == 3 and calls.count(False) == 2*2  # two validation batches, twice


def test_the_model_remembers_what_its_faces_were(learner):
    metadata = learner().model.metadata
    assert {k: metadata[k] for k in ('grey', 'face_size')} == dict(grey=True, face_size=32)


class Stop(Callback):
    "Ctrl-C in the middle of a forward pass."
    order = 15

    def after_pred(self): raise KeyboardInterrupt


class Guest(Callback):
    "Changes something around the training, and counts how often it is told to leave."
    left = 0

    def leave(self): self.left += 1


@pytest.mark.parametrize('own', [True, False])
def test_callbacks_with_leave_are_told_however_a_fit_ends(learner, quiet, own):
    guest = Guest()
    learn = learner(cbs=[guest]) if own else learner()
    cbs = [] if own else [guest]
    quiet(learn, 1, cbs=cbs)
    assert guest.left == 1
    with pytest.raises(KeyboardInterrupt): quiet(learn, 1, cbs=[*cbs, Stop()])
    assert guest.left == 2


def test_an_interrupted_fit_casts_no_more(learner, quiet):
    with pytest.raises(KeyboardInterrupt): quiet(learner(cbs=[BFloat16()]), 1, cbs=Stop())
    assert not torch.is_autocast_enabled('cpu')


def test_an_error_of_ours_stays_one_line(learner, quiet):
    class Complain(Callback):
        def before_fit(self): raise GrefelError('in one line')
    with pytest.raises(GrefelError) as caught: quiet(learner(), 1, cbs=Complain())
    assert str(caught.value) == 'in one line'


def test_it_learns(learner):
    learn = learner(bs=16, augment='none')
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(8, 3e-2)
    first, *_, last = (row[2] for row in learn.recorder.values)  # accuracy on the same faces
    assert last > first + .1


def test_show_results_shows_at_most_what_it_was_asked(learner):
    assert len(learner().show_results(3).axes) == 3
