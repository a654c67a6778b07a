"Confidence, the attentive correction, and the weighing of opinions."
import math

import pytest
import torch

from grefel.method.balancing import (
    AttentiveCorrection, balance, balance_logits, confidence, MERGES, mix, ReliabilityBalancing,
    weigh)

UNIFORM, CERTAIN = torch.full((1, 8), 1/8), torch.eye(8)[:1]


@pytest.fixture
def opinions():
    "p, t_g and t_a of five faces."
    return (2*torch.randn(3, 5, 8)).softmax(-1)


@pytest.mark.parametrize('probs,expected', [
    (CERTAIN, 1.), (UNIFORM, 0.),
    (torch.tensor([[.5, .5, 0, 0, 0, 0, 0, 0]]), 2/3),   # H = log 2, a third of log 8
    (torch.tensor([[.25]*4 + [0]*4]), 1/3)])
def test_confidence_is_one_minus_entropy_over_log_n(probs, expected):
    torch.testing.assert_close(confidence(probs), torch.tensor([expected]), atol=1e-6, rtol=0)


def test_confidence_has_a_finite_gradient_at_zero_times_log_zero():
    p = CERTAIN.clone().requires_grad_()
    confidence(p).sum().backward()
    assert p.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_confidence_is_computed_in_full_precision(dtype):
    assert confidence(UNIFORM.to(dtype)).dtype == torch.float32


def test_opinions_are_weighed_by_their_confidence(opinions):
    a, b, _ = opinions
    wa, wb = confidence(a)[:, None] + 1e-4, confidence(b)[:, None] + 1e-4
    torch.testing.assert_close(weigh(a, b), (wa*a + wb*b)/(wa + wb))


def test_weighing_keeps_agreement_and_ignores_who_knows_nothing(opinions):
    a, b, _ = opinions
    torch.testing.assert_close(weigh(a, a), a)
    torch.testing.assert_close(weigh(a, b), weigh(b, a))
    torch.testing.assert_close(weigh(UNIFORM, UNIFORM), UNIFORM)
    torch.testing.assert_close(weigh(CERTAIN, UNIFORM), CERTAIN, atol=1e-3, rtol=0)


def test_the_default_merge_weighs_twice(opinions):
    p, t_g, t_a = opinions
    final, t = balance(p, [t_g, t_a])
    torch.testing.assert_close(t, weigh(t_g, t_a))
    torch.testing.assert_close(final, weigh(p, t))


def test_the_released_merge_gives_the_correction_what_the_primary_leaves(opinions):
    p, t_g, t_a = opinions
    c = confidence(p)[:, None]
    torch.testing.assert_close(balance(p, [t_g, t_a], 'primary')[0],
                               c*p + (1 - c)*weigh(t_g, t_a))


def test_a_mixture_in_logarithms_is_the_mixture(opinions):
    a, b, _ = opinions
    share = torch.rand(5, 1)
    torch.testing.assert_close(mix(a.log(), b.log(), share).exp(), share*a + (1 - share)*b)


@pytest.mark.parametrize('merge', MERGES)
@pytest.mark.parametrize('margins', [(150., 200.), (200., 150.)])
def test_what_rounds_to_zero_keeps_its_logarithm_and_its_gradient(merge, margins):
    # in float32 every one of these probabilities is 0; by hand in float64
    z = [torch.tensor([[m, 0, 0]], requires_grad=True) for m in margins]
    final, _ = balance_logits(z[0].log_softmax(-1), [z[1].log_softmax(-1)], merge)
    p, t = (q.detach().double().softmax(-1) for q in z)
    s = .5 if merge == 'confidence' else 1 - 1e-6   # two that are as sure; a share is never all
    torch.testing.assert_close(final.double(), (s*p + (1 - s)*t).log(), atol=.1, rtol=0)
    final[0, 1].backward()
    assert all(q.grad.isfinite().all() for q in z)
    assert z[margins.index(150.)].grad.norm() > .5   # who ruled it out less hears of it


def test_without_corrections_the_primary_answer_stands(opinions):
    p = opinions[0]
    final, t = balance(p, [])
    torch.testing.assert_close(final, p)
    torch.testing.assert_close(t, p)


def test_one_correction_is_weighed_as_it_is(opinions):
    p, t_g, _ = opinions
    final, t = balance(p, [t_g])
    torch.testing.assert_close(t, t_g)
    torch.testing.assert_close(final, weigh(p, t_g))


@pytest.mark.parametrize('call,says', [
    (lambda: balance(UNIFORM, [UNIFORM], 'sum'), 'merge is'),
    (lambda: balance(UNIFORM, [], 'sum'), 'merge is'),
    (lambda: ReliabilityBalancing(merge='vote'), 'merge is'),
    (lambda: ReliabilityBalancing(1), 'two or more'), (lambda: ReliabilityBalancing(0), 'two or'),
    (lambda: ReliabilityBalancing(sources=('oracle',)), 'unknown sources'),
    (lambda: AttentiveCorrection(8, 30, num_heads=4), 'do not divide')])
def test_a_slip_is_named(call, says):
    with pytest.raises(ValueError, match=says): call()


@pytest.fixture
def attend(): return AttentiveCorrection(8, 32, num_heads=4).eval()


def test_a_face_asks_its_own_tokens_only(attend):
    # whatever its neighbours are, and whether it has any
    e, tokens = torch.randn(5, 32), torch.randn(5, 27, 32)
    logits, others = attend(e, tokens), attend(torch.cat([e[:1], 9*torch.randn(4, 32)]),
                                               torch.cat([tokens[:1], 9*torch.randn(4, 27, 32)]))
    torch.testing.assert_close(others[0], logits[0])
    for i in range(5):
        torch.testing.assert_close(attend(e[i:i+1], tokens[i:i+1])[0], logits[i])
    assert not torch.allclose(logits, attend(e, tokens.flip(0)))   # but whose tokens matters
    assert not torch.allclose(logits, attend(e.flip(0), tokens))   # and who asks


def test_no_gradient_flows_between_faces(attend):
    e, tokens = torch.randn(5, 32, requires_grad=True), torch.randn(5, 27, 32, requires_grad=True)
    attend(e, tokens)[2].sum().backward()
    for grad in (e.grad, tokens.grad):
        assert grad[2].any() and not grad[[0, 1, 3, 4]].any()


def test_attention_is_pytorchs(attend):
    e, tokens = torch.randn(5, 32), torch.randn(5, 27, 32)
    theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([attend.q.weight, attend.kv.weight]))
        theirs.in_proj_bias.copy_(torch.cat([attend.q.bias, attend.kv.bias]))
        theirs.out_proj.weight.copy_(torch.eye(32))   # ours has none: the linear layer follows
        theirs.out_proj.bias.zero_()
        heard = theirs(e[:, None], tokens, tokens)[0][:, 0]
        torch.testing.assert_close(attend(e, tokens), attend.head(attend.norm(heard)))


def test_the_module_answers_what_the_functions_say(opinions):
    model, e = ReliabilityBalancing(8, 32, num_heads=4).eval(), torch.randn(5, 32)
    tokens, p = torch.randn(5, 27, 32), opinions[0]
    out = model(e, p.log(), tokens)
    t_g, t_a = model.anchors(e)[0], model.attention(e, tokens).softmax(-1)
    final, t = balance(p, [t_g, t_a])
    expected = dict(primary_probs=p, anchor_probs=t_g, attention_probs=t_a, correction_probs=t,
                    final_probs=final, distances=model.anchors(e)[1],
                    primary_confidence=confidence(p), correction_confidence=confidence(t))
    expected |= {k.replace('probs', 'logits'): expected[k].log()
                 for k in ('primary_probs', 'anchor_probs', 'attention_probs', 'final_probs')}
    assert set(out) == set(expected)
    for key, value in expected.items(): torch.testing.assert_close(out[key], value)


@pytest.mark.parametrize('sources', [(), ('anchor',), ('attention',), ('anchor', 'attention')])
def test_a_source_left_out_is_not_there(opinions, sources):
    model, p = ReliabilityBalancing(8, 32, num_heads=4, sources=sources), opinions[0]
    out = model(torch.randn(5, 32), p.log())
    for source in ('anchor', 'attention'): assert (f'{source}_probs' in out) == (source in sources)
    if not sources:
        torch.testing.assert_close(out['final_probs'], p)
        assert not list(model.parameters())


@pytest.mark.parametrize('merge', MERGES)
def test_the_merge_reaches_the_answer(opinions, merge):
    out = ReliabilityBalancing(8, 32, num_heads=4, merge=merge)(torch.randn(5, 32),
                                                                opinions[0].log())
    final, _ = balance(opinions[0], [out['anchor_probs'], out['attention_probs']], merge)
    torch.testing.assert_close(out['final_probs'], final)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_inputs_give_finite_distributions(dtype):
    model = ReliabilityBalancing(8, 32, num_heads=4).to(dtype)
    p = (1e4*torch.randn(5, 8)).to(dtype)
    e, tokens = 10*torch.randn(5, 32).to(dtype), torch.randn(5, 27, 32).to(dtype)
    final = model(e, p, tokens)['final_probs']
    assert final.isfinite().all()
    torch.testing.assert_close(final.sum(-1), torch.ones(5), atol=1e-3, rtol=0)


def test_certain_answers_on_top_of_anchors_have_finite_gradients():
    model = ReliabilityBalancing(8, 32, num_heads=4)
    logits = (100*torch.eye(8)[:5]).requires_grad_()
    on_anchors = model.anchors.anchors[0, :5].detach()
    out = model(on_anchors, logits, torch.randn(5, 27, 32))
    (-out['final_logits']).mean().backward()
    for q in (logits, *model.parameters()): assert q.grad is not None and q.grad.isfinite().all()


def test_a_source_that_is_unsure_hears_little():
    # why each source gets a loss of its own
    logits = [torch.tensor([[z, 0., 0.]], requires_grad=True) for z in (3., 2., .05)]
    p, t_g, t_a = (z.softmax(-1) for z in logits)
    (-balance(p, [t_g, t_a])[0][0, 1].log()).backward()
    assert logits[2].grad.norm() < .1*logits[0].grad.norm()
    assert math.isfinite(logits[2].grad.norm())
