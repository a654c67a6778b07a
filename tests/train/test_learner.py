"""The learner: a dict's parts in the loss and the log, errors in one line, nothing left behind."""
from dataclasses import replace

import pytest
import torch
from fastai.basics import Callback
from fastai.metrics import accuracy
from fastai.optimizer import Adam as FastaiAdam
from matplotlib import pyplot as plt

from grefel.base.core import GrefelError
from grefel.measure.answers import flip_average
from grefel.method.losses import GReFELLoss
from grefel.method.model import create_model
from grefel.train.learner import LossPart, TrainLoss, face_splitter, grefel_learner
from grefel.train.loader import check_classes, face_dls
from grefel.train.optimiser import spared
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
    def certain(probs, labels): return probs.amax(-1).mean()
    learn = quiet(learner(n=70, metrics=certain), 1, 0.)  # validation batches of 64 and 6 faces
    found = logged(learn)
    probs, labels = learn.get_preds()
    assert torch.equal(labels, faces.targets[:70].argmax(-1))
    assert found['accuracy'] == pytest.approx((probs.argmax(-1) == labels).float().mean().item())
    assert found['certain'] == pytest.approx(probs.amax(-1).mean().item())
    by_hand = -(faces.targets[:70]*probs.log()).sum(-1).mean().item()
    assert found['cls'] == pytest.approx(by_hand, abs=1e-5)


def test_a_metric_that_is_there_already_is_logged_once(learner):
    assert [m.name for m in learner(metrics=accuracy).metrics] == ['accuracy', 'cls']


@pytest.mark.parametrize('own', [False, True])
def test_the_loss_of_each_face_is_what_it_would_be_alone(nano, faces, own):
    if own: nano.extra_loss = lambda out, y: dict(own=(out['embedding']**2).mean())
    loss = TrainLoss(GReFELLoss(), nano.eval())
    y, known = faces.targets[:4], faces.landmarks[:4]
    images = torch.randn(4, 3, 32, 32)
    loss.out, loss.reduction = nano(images), 'none'
    each = loss(None, y, known)
    loss.reduction = 'mean'
    for i in range(4):
        loss.out = nano(images[i:i + 1])
        torch.testing.assert_close(each[i], loss(None, y[i:i + 1], known[i:i + 1]),
                                   rtol=1e-4, atol=1e-4)


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
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(24, 3e-2)
    first, *_, last = (row[2] for row in learn.recorder.values)  # accuracy on the same faces
    assert last > first + .15, (first, last)


def test_show_results_shows_at_most_what_it_was_asked(learner):
    learner().show_results(max_n=3)
    assert len(plt.gcf().axes) == 3
    plt.close('all')


# --- classes, by name ---

@pytest.mark.parametrize('change, message', [
    (dict(classes=lambda own: own[::-1]), 'in another order than the data.*classes=model.classes'),
    (dict(num_classes=7), 'other classes than.*num_classes=8'),
    (dict(classes=lambda own: [*own[:-1], 'boredom']), 'other classes than the data')])
def test_a_model_of_other_classes_is_refused_by_name(faces, change, message):
    change = {k: v(faces.classes) if callable(v) else v for k, v in change.items()}
    model = create_model('plain', widths=(8,)*4, img_size=32, **change)
    with pytest.raises(GrefelError, match=message) as caught: face_dls(faces, faces, model)
    assert '\n' not in str(caught.value)
    dls = face_dls(faces, faces, create_model('plain', widths=(8,)*4, img_size=32))
    with pytest.raises(GrefelError, match=message): grefel_learner(dls, model)


def test_validation_faces_are_compared_as_well(faces, plain):
    fewer = replace(faces, classes=faces.classes[:7], targets=faces.targets[:, :7])
    with pytest.raises(GrefelError, match='other classes'): face_dls(faces, fewer, plain)


def test_what_names_no_classes_is_not_compared(faces):
    check_classes(torch.nn.Linear(1, 1), faces)


# --- groups of layers ---

@pytest.mark.parametrize('size, groups', [
    ('nano', 3), ('plain', 2), ('vgg13', 2), ('resnet18', 2), ('mad', 3), ('lanet', 2), ('eac', 2)])
def test_groups_are_trunk_fusion_and_heads_and_hold_every_weight_once(size, groups):
    model = create_model(size)
    found = face_splitter(model)
    names = {id(p): name for name, p in model.named_parameters()}
    assert len(found) == groups
    assert sorted(names[id(p)] for group in found for p in group) == sorted(names.values())
    assert any(p.shape[0] == 8 for p in found[-1])  # the classes
    assert not any(p.shape[0] == 8 and p.ndim == 2 for p in found[0])
    assert found[0][0] is next(model.parameters())


# --- no numbers any more ---

class Poison(Callback):
    "Makes the loss of one step NaN, or the weights after it."
    order = 1

    def __init__(self, at, weights=False): self.at, self.weights, self.steps = at, weights, 0

    def after_loss(self):
        if not self.training: return
        if self.steps == self.at and not self.weights: self.learn.loss = self.loss*float('nan')
        self.steps += 1

    def after_step(self):
        if self.weights and self.steps == self.at + 1:
            with torch.no_grad(): next(self.model.parameters()).fill_(float('nan'))


@pytest.mark.parametrize('at, message', [(0, 'epoch 0, step 0: the loss'),
                                         (4, 'epoch 1, step 1: the loss')])
def test_a_loss_that_is_no_number_ends_the_training_in_one_line(learner, quiet, at, message):
    learn = learner(cbs=[Poison(at)])
    with pytest.raises(GrefelError, match=f'^{message} is not a finite number; try') as caught:
        quiet(learn, 3)
    assert '\n' not in str(caught.value)
    assert all(p.isfinite().all() for p in learn.model.parameters())


def test_weights_that_are_no_numbers_are_found_in_validation_at_the_latest(learner, quiet):
    with pytest.raises(GrefelError, match='^epoch 0: the validation loss is not a finite'):
        quiet(learner(cbs=[Poison(2, weights=True)]), 3)


def test_a_search_for_the_learning_rate_may_go_where_the_loss_ends(learner, tmp_path):
    learn = learner(path=tmp_path, cbs=[Poison(3)])
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=6, show_plot=False)


def test_fastais_own_optimisers_spare_the_same_parameters(faces):
    model = create_model('nano')
    learn = grefel_learner(face_dls(faces, faces, model, bs=96), model, ema=None,
                           opt_func=FastaiAdam)
    learn.create_opt()
    learn.opt.set_hypers(wd=.5, lr=.1)
    with torch.no_grad():
        for p in model.parameters(): p.fill_(1.), setattr(p, 'grad', torch.zeros_like(p))
    learn.opt.step()                                          # decay is all there is
    spares = {id(p) for p in spared(model)}
    assert {id(p) for p in model.parameters() if (p == 1).all()} == spares and spares
