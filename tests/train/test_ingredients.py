"""Ingredients: each does to images, targets and weights what it says, and only in training."""
from types import SimpleNamespace

import pytest
import torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner, SGD

from grefel.base.core import GrefelError
from grefel.data.stream import ShardDataset
from grefel.measure.answers import predict_data
from grefel.method.anchors import anchors_of
from grefel.method.model import create_model
from grefel.method.window import DropPath
from grefel.train.averaging import EMA
from grefel.train.ingredients import Distil, Mix, PlaceAnchors, SAM, set_drop_path
from grefel.train.learner import grefel_learner
from grefel.train.loader import face_dls


# --- mixed faces ---

def batch_of_plain_colours(n=64, side=32):
    "Three classes; an image is red, green or blue as its class is, so it shows its own target."
    targets = torch.eye(3)[torch.arange(n) % 3]                               # (n, 3)
    images = targets[:, :, None, None].expand(n, 3, side, side).contiguous()  # (n, 3, S, S)
    return images, torch.zeros(n, 68, 2), targets, torch.ones(n, 68, 2)


def mixed(batch, training=True, **kw):
    mix = Mix(**kw)
    mix.learn = learn = SimpleNamespace(xb=batch[:2], yb=batch[2:], training=training)
    mix.before_batch()
    return *learn.xb, *learn.yb


@pytest.mark.parametrize('kw', [dict(mixup=.4), dict(mixup=1.), dict(cutmix=1.),
                                dict(mixup=.4, cutmix=1.)])
def test_targets_are_mixed_by_the_share_of_the_images(kw):
    batch = batch_of_plain_colours()
    images, given, targets, known = mixed(batch, **kw)
    torch.testing.assert_close(images.mean((2, 3)), targets, atol=1e-5, rtol=0)
    changed = (targets != batch[2]).any(1).float().mean()
    assert changed > .3  # a third of the faces meets another of its own class
    assert given is batch[1] and known is batch[3]


@pytest.mark.parametrize('kw, least', [(dict(mixup=1.), .5), (dict(cutmix=1.), .45)])
def test_the_face_itself_stays_the_main_one(kw, least):
    batch = batch_of_plain_colours(256)
    own = (mixed(batch, **kw)[2]*batch[2]).sum(1)
    assert own.min() >= least - 1e-6 and own.min() < .75


def test_mixup_blends_everywhere_and_cutmix_pastes_a_square():
    batch = batch_of_plain_colours()
    blended, pasted = (mixed(batch, **kw)[0] for kw in (dict(mixup=1.), dict(cutmix=1.)))
    assert torch.equal(blended, blended[:, :, :1, :1].expand_as(blended))
    assert set(pasted.unique().tolist()) == {0., 1.}
    other = (pasted != batch[0]).any(1)                                # (n, S, S)
    rows, columns = other.any(2).sum(1), other.any(1).sum(1)
    assert torch.equal(rows*columns, other.sum((1, 2)))                # full rectangles
    assert ((rows - columns).abs() <= 1).all() and rows.max() > 8


def test_both_together_take_turns():
    ways = {bool(set(mixed(batch_of_plain_colours(8), mixup=1., cutmix=1.)[0].unique().tolist())
                 <= {0., 1.}) for _ in range(30)}
    assert ways == {True, False}


def test_validation_is_not_mixed():
    batch = batch_of_plain_colours()
    assert all(a is b for a, b in zip(mixed(batch, training=False, mixup=1.), batch))


# --- drop path ---

@pytest.mark.parametrize('rate', [0., .2, .5])
def test_drop_path_rises_linearly_to_the_rate(rate):
    model = create_model('nano', img_size=32)
    assert set_drop_path(model, rate) is model
    rates = [m.rate for m in model.modules() if isinstance(m, DropPath)]
    n = len(rates)
    assert n > 3 and rates == pytest.approx([rate*i/n for i in range(1, n + 1)])


def test_drop_path_needs_branches():
    model = create_model('plain', depths=(0, 0, 0, 0))
    with pytest.raises(GrefelError, match='no branches'): set_drop_path(model, .1)
    set_drop_path(model, 0.)


# --- SAM ---

class Bowl(torch.nn.Module):
    "A model that answers with its weights."
    def __init__(self, *w):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(w))

    def forward(self): return dict(final_probs=self.w)


class Height:
    "Steeper in the second direction, so that another point has a gradient of another direction."
    slope = torch.tensor([1., 3.])

    def __call__(self, w): return (self.slope*w.square()).sum()/2


@pytest.mark.parametrize('rho', [.05, .5, 2.])
def test_sam_takes_the_gradient_from_the_worst_point_nearby_and_returns(rho):
    bowl, sam, start = Bowl(3., 4.), SAM(rho), torch.tensor([3., 4.])
    sam.learn = SimpleNamespace(model=bowl, opt=SGD(list(bowl.parameters()), lr=1.), xb=(), yb=(),
                                loss_func=Height())
    gradient = Height.slope*start
    bowl.w.grad = gradient.clone()
    sam.before_step()
    torch.testing.assert_close(bowl.w.detach(), start)  # the weights are back where they were
    worst = start + rho*gradient/gradient.norm()
    torch.testing.assert_close(bowl.w.grad, Height.slope*worst)


def test_sam_leaves_parameters_without_gradients_alone(faces, plain, quiet):
    frozen = next(plain.parameters()).requires_grad_(False)
    before = frozen.clone()
    learn = grefel_learner(face_dls(faces, faces, plain, bs=32), plain, ema=None, cbs=[SAM(.05)])
    quiet(learn, 1)
    assert torch.equal(frozen, before)


# --- placed anchors ---

@pytest.fixture
def three_anchors(): return create_model('nano', img_size=32, num_anchors_per_class=3)


def placing(model, faces, **kw):
    place = PlaceAnchors(**kw)
    loader = SimpleNamespace(dataset=faces)
    place.learn = SimpleNamespace(model=model, dls=SimpleNamespace(train=loader, device='cpu'))
    return place


def test_every_anchor_is_the_mean_of_the_faces_of_its_class_that_are_nearest_to_it(
        three_anchors, faces):
    placing(three_anchors, faces).place()
    assert three_anchors.training
    found = torch.from_numpy(predict_data(three_anchors, faces, temperature=1)['embedding'])
    anchors = anchors_of(three_anchors)
    for c in range(8):
        own = found[faces.labels == c]                                 # (m, D)
        nearest = anchors(own)[1][:, c].argmin(1)                      # (m,)
        for k in range(3):
            mean = own[nearest == k].mean(0)
            torch.testing.assert_close(anchors.anchors[c, k].detach(), mean, rtol=0, atol=.01)


@pytest.mark.parametrize('at', [0, 2])
def test_anchors_are_placed_before_the_named_epoch_only(three_anchors, faces, monkeypatch, at):
    place, placed = placing(three_anchors, faces, at=at), []
    monkeypatch.setattr(PlaceAnchors, 'place', lambda self: placed.append(self.epoch))
    for epoch in range(4):
        place.learn.epoch = epoch
        place.before_train()
    assert placed == [at]


def test_the_averaged_weights_get_the_placed_anchors_as_well(three_anchors, faces, quiet):
    class Look(Callback):
        order = 63
        def before_train(self):
            self.same = all(torch.equal(v, anchors_of(self.ema.average.module).state_dict()[k])
                            for k, v in anchors_of(self.model).state_dict().items())
            self.anchors = anchors_of(self.model).anchors.detach().clone()
    dls = face_dls(faces, faces, three_anchors, bs=32)
    before = anchors_of(three_anchors).anchors.detach().clone()
    learn = grefel_learner(dls, three_anchors, ema=.9, cbs=[PlaceAnchors(0), Look()])
    quiet(learn, 1)
    assert learn.look.same and not torch.allclose(learn.look.anchors, before, atol=.05)


def test_what_has_no_anchors_or_is_streamed_is_refused(three_anchors, plain, faces, data):
    with pytest.raises(GrefelError, match='no anchors to place'): placing(plain, faces).place()
    with pytest.raises(GrefelError, match='place_anchors: needs faces in memory'):
        placing(three_anchors, ShardDataset(data, bs=8)).place()


# --- a teacher ---

@pytest.fixture
def batch(faces, plain): return face_dls(faces, faces, plain, bs=32).train.one_batch()


@pytest.fixture
def teachers():
    torch.manual_seed(1)
    makers = dict(img_size=32), dict(img_size=24), dict(img_size=32)
    return [create_model('plain', widths=(8, 8, 8, 8), **kw).eval() for kw in makers]


def taught(lesson, batch, model, training=True):
    lesson.learn = SimpleNamespace(xb=batch[:2], yb=batch[2:], training=training, model=model,
                                   dls=SimpleNamespace(device='cpu'))
    lesson.before_fit()
    lesson.before_batch()
    return lesson.learn.yb


def opinion(teacher, images):
    "What a teacher says about images in its own size."
    side = teacher.config['img_size']
    with torch.no_grad():
        if images.shape[-1] != side:
            images = torch.nn.functional.interpolate(images, size=(side, side), mode='bilinear',
                                                     antialias=True)
        return teacher(images)['final_probs']


@pytest.mark.parametrize('share', [0., .25, 1.])
@pytest.mark.parametrize('which', [0, 1])  # the second is used to smaller images
def test_the_teacher_has_its_share_of_the_target(teachers, batch, plain, share, which):
    targets, known = taught(Distil(teachers[which], share=share), batch, plain)
    expected = (1 - share)*batch[2] + share*opinion(teachers[which], batch[0])
    torch.testing.assert_close(targets, expected)
    assert known is batch[3]


def test_of_several_teachers_one_is_sampled_for_each_batch(teachers, batch, plain):
    lesson = Distil(*teachers, share=1.)
    expected = [opinion(t, batch[0]) for t in teachers]
    found = [taught(lesson, batch, plain)[0] for _ in range(30)]
    who = [[torch.allclose(f, e, atol=1e-5) for e in expected] for f in found]
    assert all(sum(w) == 1 for w in who) and {w.index(True) for w in who} == {0, 1, 2}


def test_validation_is_measured_on_the_labels(teachers, batch, plain):
    assert taught(Distil(teachers[0]), batch, plain, training=False)[0] is batch[2]


@pytest.mark.parametrize('differs', ['mean', 'std', 'classes'])
def test_a_teacher_of_other_images_or_classes_is_refused(teachers, batch, differs):
    change = dict(num_classes=7) if differs == 'classes' else {differs: (.5,)*3}
    model = create_model('plain', widths=(8, 8, 8, 8), img_size=32, **change)
    with pytest.raises(GrefelError, match=f'teacher: its {differs} is'):
        taught(Distil(teachers[0]), batch, model)
    with pytest.raises(GrefelError, match='none is given'): Distil()


def test_a_teacher_does_not_learn(teachers, faces, plain, quiet):
    before = {k: v.clone() for k, v in teachers[0].state_dict().items()}
    dls = face_dls(faces, faces, plain, bs=32)
    quiet(grefel_learner(dls, plain, ema=None, cbs=[Distil(teachers[0].train())]), 1)
    assert all(torch.equal(v, before[k]) for k, v in teachers[0].state_dict().items())


def test_faces_are_taught_before_they_are_mixed():
    assert Distil.order < Mix.order < SAM.order < EMA.order < PlaceAnchors.order


def test_a_learner_without_ingredients_of_ours_can_use_sam(quiet):
    # a step with SAM is a step with the gradient from further up
    data = [(torch.zeros(1), torch.zeros(1))]
    dls = DataLoaders(DataLoader(data, bs=1), DataLoader(data, bs=1))

    class Line(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(2.))
        def forward(self, x): return dict(final_probs=self.w + 0*x)

    class Square:
        out = None
        def __call__(self, pred, y): return (pred.float()**2).sum()/2

    class Take(Callback):
        order = -5
        def after_pred(self): self.learn.pred = self.pred['final_probs']
    learn = Learner(dls, Line(), Square(), opt_func=SGD, cbs=[SAM(.5), Take()])
    quiet(learn, 1, .1)
    assert learn.model.w.item() == pytest.approx(2 - .1*2.5)
