"The loss: each term, and their sum against a reference that's written from the formulas."
import math

import pytest
import torch
import torch.nn.functional as F

from grefel.base.geometry import mean_shape
from grefel.method.anchors import anchor_distances
from grefel.method.balancing import confidence
from grefel.method.files import RENAMED
from grefel.method.losses import (
    adjust_prior, anchor_loss, anchor_loss_unbounded, center_loss, GReFELLoss, landmark_loss,
    smooth_labels, soft_nll)
from grefel.method.model import create_model

B, N, K, D = 6, 5, 3, 16
PROBS = 'primary_probs', 'anchor_probs', 'attention_probs', 'final_probs', 'correction_probs'


def reference(out, y, lmk, a, lambda_cls=1., lambda_anchor=1., lambda_center=1.,
              lambda_landmark=1., lambda_source=.25, label_smoothing=0., class_weights=None,
              prior=None, margin=.5, kin_margin=None, bounded=True):
    "The whole loss in plain PyTorch, from the formulas and from nothing of the library."
    smooth = (1 - label_smoothing)*y + label_smoothing/N
    w = torch.ones(N) if class_weights is None else torch.tensor(class_weights)
    log_prior = torch.zeros(N) if prior is None else torch.tensor(prior).log()
    def ce(p):
        log_q = (p.log() + log_prior).log_softmax(-1)
        return -(w*smooth*log_q).sum()/(w*smooth).sum()
    kin_margin = margin if kin_margin is None else kin_margin
    d = {(i, j): (a.view(-1, D)[i] - a.view(-1, D)[j]).norm()/D**.5 for j in range(N*K)
         for i in range(j)}
    push = sum(((kin_margin if i//K == j//K else margin) - v).clamp_min(0)**2
               for (i, j), v in d.items())
    apart = (push if bounded else -sum(v**2 for v in d.values()))/len(d)
    near = torch.stack([(e - a).square().sum(-1).amin(1)/D for e in out['embedding']])   # (B, N)
    p = out['primary_probs'].detach()
    pull = ((1 + (p*p.log()).sum(1)/math.log(N))*(y*near).sum(1)).mean()
    ok = [i for i in range(B) if not lmk[i].isnan().any()]
    eyes = (lmk[ok, 36] - lmk[ok, 45]).norm(dim=-1)[:, None, None]   # outer corners
    off = ((out['landmarks'][ok] - lmk[ok])/eyes).abs()
    points = torch.where(off < .05, off**2/.1, off - .025).mean()
    each = sum(ce(out[k]) for k in PROBS[:3])
    return (lambda_cls*ce(out['final_probs']) + lambda_anchor*apart + lambda_center*pull
            + lambda_landmark*points + lambda_source*each)


@pytest.fixture
def batch():
    "Answers of a model that never was, in which no two opinions agree; its leaves take gradients."
    logits = {k: (2*torch.randn(B, N)).requires_grad_() for k in PROBS}
    embedding = (.5*torch.randn(B, D)).requires_grad_()
    anchors = (.35*torch.randn(N, K, D)).requires_grad_()
    known = mean_shape() + .02*torch.randn(B, 68, 2)
    found = (known + .05*torch.randn(B, 68, 2)).requires_grad_()
    known[2, 5, 1] = float('nan')
    out = {k: z.softmax(-1) for k, z in logits.items()}
    out |= {k.replace('probs', 'logits'): z.log_softmax(-1) for k, z in logits.items()}
    out |= dict(embedding=embedding, landmarks=found,
                distances=anchor_distances(embedding, anchors),
                primary_confidence=confidence(out['primary_probs']),
                correction_confidence=confidence(out['correction_probs']))
    targets = torch.randn(B, N).softmax(-1)
    leaves = dict(logits, embedding=embedding, anchors=anchors, found=found)
    return out, targets, known, anchors, leaves


SHARES = [.4, .3, .15, .1, .05]
NONE = dict(lambda_cls=0., lambda_anchor=0., lambda_center=0., lambda_landmark=0., lambda_source=0.)
SETTINGS = {
    'defaults': {},
    'as published': dict(lambda_source=0., bounded=False),
    **{f'only {name}': NONE | {name: 3.} for name in NONE},
    'smoothed': dict(label_smoothing=.2),
    'weighted classes': dict(class_weights=[1., 2., .5, 1., 3.]),
    'adjusted logits': dict(prior=SHARES),
    'other margins': dict(margin=.9, kin_margin=.3),
    'all at once': dict(lambda_cls=.7, lambda_anchor=1.3, lambda_center=.6, lambda_landmark=1.7,
                        lambda_source=.4, label_smoothing=.1, class_weights=[1., 2., .5, 1., 3.],
                        prior=SHARES, margin=.8, kin_margin=.4)}


@pytest.mark.parametrize('settings', SETTINGS.values(), ids=SETTINGS)
def test_the_whole_loss_and_its_gradients_equal_the_reference(batch, settings):
    # gradients too: a value alone can't tell whether C(p) is detached in the centre loss
    out, targets, known, anchors, leaves = batch
    total = GReFELLoss(**settings)(out, targets, known, anchors)['total']
    expected = reference(out, targets, known, anchors, **settings)
    torch.testing.assert_close(total, expected)
    found, wanted = (torch.autograd.grad(v, list(leaves.values()), retain_graph=True,
                                         allow_unused=True, materialize_grads=True)
                     for v in (total, expected))
    for name, a, b in zip(leaves, found, wanted):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4, msg=lambda m: f'{name}: {m}')


def test_the_total_is_the_weighted_sum_of_the_parts(batch):
    out, targets, known, anchors, _ = batch
    weights = dict(cls=.5, source=.2, anchor=2., center=3., landmark=4.)
    settings = {f'lambda_{name}': w for name, w in weights.items()}
    parts = GReFELLoss(**settings)(out, targets, known, anchors)
    assert set(parts) == {*weights, 'total'}
    torch.testing.assert_close(parts['total'], sum(w*parts[k] for k, w in weights.items()))


@pytest.mark.parametrize('old, new', RENAMED.items())
def test_what_a_weight_was_called_before_names_one_of_todays(batch, old, new):
    out, targets, known, anchors, _ = batch
    total = GReFELLoss(**NONE | {new: 2.})(out, targets, known, anchors)
    torch.testing.assert_close(total['total'], 2*total[old])


def test_a_plain_classifier_learns_by_cross_entropy_alone():
    model, y = create_model('nano', sources=()), torch.tensor([0, 3, 3, 7])
    out = model(torch.randn(4, 3, 48, 48))
    parts = GReFELLoss()(out, F.one_hot(y, 8).float())
    assert set(parts) == {'cls', 'landmark', 'total'}
    torch.testing.assert_close(parts['total'], F.cross_entropy(out['logits'], y))


@pytest.mark.parametrize('weights', [None, torch.tensor([1., 2., .5, 1., 3.])])
@pytest.mark.parametrize('soft', [False, True])
def test_soft_nll_is_cross_entropy(soft, weights):
    logits, y = torch.randn(B, N), torch.randint(N, (B,))
    targets = torch.randn(B, N).softmax(-1) if soft else F.one_hot(y, N).float()
    expected = -(targets*logits.log_softmax(-1)).sum(-1).mean()
    if weights is not None:   # PyTorch divides by the weights of hard labels, as we do for all
        share = targets*weights
        expected = -(share*logits.log_softmax(-1)).sum()/share.sum()
        if not soft:
            torch.testing.assert_close(expected, F.cross_entropy(logits, y, weight=weights))
    torch.testing.assert_close(soft_nll(logits, targets, weights), expected)


@pytest.mark.parametrize('margin', [20., 200., 1e4])
@pytest.mark.parametrize('sources', [(), ('anchor',), ('attention',), ('anchor', 'attention')])
def test_a_certain_wrong_answer_has_a_loss_and_a_gradient(margin, sources):
    # all opinions are sure of class 0; class 1 is true
    model = create_model('nano', sources=sources)
    with torch.no_grad():
        for layer in (model.head[-1], getattr(model.balancing.attention, 'head', None)):
            if layer is not None: layer.bias[0] += margin
        if sources and 'anchor' in sources:
            model.balancing.anchors.anchors[1:] += margin
    out = model(torch.randn(4, 3, 48, 48))
    parts = GReFELLoss(**NONE | dict(lambda_cls=1.))(out, torch.eye(8)[[1]*4])
    parts['total'].backward()
    assert margin/30 < parts['total'].item() < 2*margin + 10
    assert model.head[-1].bias.grad.norm() > 1e-3
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_label_smoothing_is_pytorchs():
    logits, y = torch.randn(B, N), torch.randint(N, (B,))
    smoothed = soft_nll(logits, smooth_labels(F.one_hot(y, N).float(), .3))
    torch.testing.assert_close(smoothed, F.cross_entropy(logits, y, label_smoothing=.3))


def test_logit_adjustment_adds_log_shares():
    logits, shares = torch.randn(B, N), torch.tensor(SHARES)
    p = logits.softmax(-1)
    torch.testing.assert_close(adjust_prior(logits, shares).softmax(-1),
                               p*shares/(p*shares).sum(-1, keepdim=True))


def test_logit_adjustment_asks_more_of_rare_classes():
    # the same answer costs more where the true class is rare in training: π pulls it down
    y, uniform, loss = torch.eye(N), torch.full((N, N), 1/N), GReFELLoss(prior=SHARES)
    cost = [loss(dict(final_logits=uniform[:1].log()), y[i:i+1])['total'].item() for i in range(N)]
    assert cost == sorted(cost) and cost[-1] > cost[0] + 1


def test_anchors_further_apart_than_the_margin_are_left_alone():
    far, near = (torch.stack([torch.zeros(D), torch.full((D,), d)])[:, None] for d in (.51, .49))
    assert anchor_loss(far) == 0 and anchor_loss(near) > 0   # in √D: a distance of .51 and .49


def test_anchors_at_one_place_cost_the_margin_squared():
    torch.testing.assert_close(anchor_loss(torch.zeros(2, 3, D)), torch.tensor(.25))
    two_kin_four_others = (2*.1**2 + 4*.5**2)/6
    torch.testing.assert_close(anchor_loss(torch.zeros(2, 2, D), .5, .1),
                               torch.tensor(two_kin_four_others))


def test_anchors_at_one_place_have_a_finite_gradient():
    anchors = torch.zeros(2, 3, D, requires_grad=True)
    anchor_loss(anchors).backward()
    assert anchors.grad.isfinite().all()


def test_the_published_anchor_loss_has_no_lower_bound():
    a = torch.randn(N, K, D)
    torch.testing.assert_close(anchor_loss_unbounded(10*a), 100*anchor_loss_unbounded(a))
    assert anchor_loss_unbounded(a) < 0


def test_the_centre_loss_leaves_the_confidence_alone_unless_asked():
    a, e, logits = torch.randn(N, K, D), torch.randn(1, D), torch.randn(1, N, requires_grad=True)
    def gradient(**kw):
        sure = confidence(logits.softmax(-1))
        loss = center_loss(anchor_distances(e, a), torch.eye(N)[:1], sure, D, **kw)
        return torch.autograd.grad(loss, logits)[0] if loss.requires_grad else None
    assert gradient() is None
    assert gradient(detach=False).abs().sum() > 0


def test_the_centre_loss_weighs_by_the_primary_confidence(batch):
    out, targets, known, anchors, _ = batch
    before = GReFELLoss()(out, targets, known, anchors)['center']
    surer = out | dict(primary_confidence=2*out['primary_confidence'])
    torch.testing.assert_close(GReFELLoss()(surer, targets, known, anchors)['center'], 2*before)


@pytest.mark.parametrize('odd', [float('nan'), float('inf'), -float('inf'), 1e30])
def test_faces_without_landmarks_count_nothing(odd):
    known = mean_shape() + .01*torch.randn(4, 68, 2)
    found = (known + .02*torch.randn(4, 68, 2)).requires_grad_()
    holes = known.clone()
    holes[1, 0, 0] = odd
    kept = [0, 2, 3]
    loss = landmark_loss(found, holes)
    torch.testing.assert_close(loss, landmark_loss(found[kept], known[kept]))
    loss.backward()
    assert found.grad.isfinite().all() and not found.grad[1].any()


@pytest.mark.parametrize('known', [None, torch.full((4, 68, 2), float('nan')),
                                   torch.full((4, 68, 2), float('inf'))])
def test_no_landmarks_at_all_cost_nothing(known):
    assert landmark_loss(torch.rand(4, 68, 2), known) == 0


def test_landmark_errors_count_alike_on_small_and_large_faces():
    known = mean_shape() + .01*torch.randn(4, 68, 2)
    off = .01*torch.randn(4, 68, 2)
    torch.testing.assert_close(landmark_loss(known + off, known),
                               landmark_loss((known + off)/2, known/2))


def test_every_weight_of_the_model_learns_from_the_loss():
    model = create_model('nano')
    parts = GReFELLoss()(model(torch.randn(4, 3, 48, 48)), torch.eye(8)[:4],
                         mean_shape().expand(4, -1, -1), model.balancing.anchors.anchors)
    parts['total'].backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name


def test_only_the_proportions_of_class_weights_matter():
    logits, targets = torch.randn(6, N), torch.rand(6, N).softmax(-1)
    weights = torch.tensor([1., 2., .5, 1., 3.])
    torch.testing.assert_close(soft_nll(logits, targets, .001*weights),
                               soft_nll(logits, targets, weights))
