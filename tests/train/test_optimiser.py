"""The optimiser: fastai's arithmetic, on all tensors at once."""
from copy import deepcopy

import pytest
import torch
from fastai.optimizer import Adam as FastaiAdam

from grefel.train.learner import grefel_learner
from grefel.train.loader import face_dls
from grefel.train.optimiser import Adam


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.GELU(), torch.nn.Linear(5, 1))


def weights(net): return torch.cat([p.detach().flatten() for p in net.parameters()])


def trained(kind, steps=20, groups=False, skip=None, **hypers):
    "A small network and its optimiser after some steps with changing hyperparameters."
    net = network()
    params = [list(m.parameters()) for m in (net[0], net[2])] if groups else list(net.parameters())
    opt = kind(params, **dict(lr=.01, eps=1e-8) | hypers)
    for p in net.parameters(): opt.state[p]['do_wd'] = p.ndim > 1
    for i, x in enumerate(torch.randn(steps, 8, 6)):
        opt.set_hypers(mom=.95 - .005*i)
        if groups: opt.set_hypers(lr=[.01*(1 + i), .003])
        else: opt.set_hypers(lr=.01*(1 + i))
        net(x).square().mean().backward()
        if skip == i: net[0].weight.grad = None  # a tensor may have no gradient in a step
        opt.step()
        opt.zero_grad()
    return net, opt


@pytest.mark.parametrize('how', [dict(), dict(wd=.3), dict(wd=0.), dict(sqr_mom=.9), dict(eps=.1),
                                 dict(groups=True, wd=.3), dict(skip=4, wd=.3)])
def test_it_does_what_fastais_adam_does(how):
    ours, fastais = trained(Adam, **how), trained(FastaiAdam, **how)
    torch.testing.assert_close(weights(ours[0]), weights(fastais[0]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('how', [dict(wd=.3), dict(sqr_mom=.9), dict(eps=.1)])
def test_each_hyperparameter_counts(how):
    assert not torch.allclose(weights(trained(Adam, **how)[0]), weights(trained(Adam, wd=0.)[0]),
                              atol=1e-3)


def test_each_can_go_on_from_the_others_state():
    (net, ours), (_, fastais) = trained(Adam, wd=.3), trained(FastaiAdam, wd=.3)
    def going_on(kind, state):
        after = network()
        after.load_state_dict(net.state_dict())
        opt = kind(list(after.parameters()), lr=.01, wd=.3, eps=1e-8)
        opt.load_state_dict(deepcopy(state))  # steps change it in place
        after(torch.ones(8, 6)).square().mean().backward()
        opt.step()
        return weights(after)
    expected = going_on(Adam, ours.state_dict())
    for kind, state in ((FastaiAdam, ours.state_dict()), (Adam, fastais.state_dict())):
        torch.testing.assert_close(going_on(kind, state), expected, rtol=1e-4, atol=1e-6)


def test_biases_and_norms_of_a_learner_do_not_decay(faces, plain, quiet):
    learn = grefel_learner(face_dls(faces, faces, plain, bs=96), plain, ema=None, wd=.5)
    learn.loss_func.loss = Nothing(learn.loss_func.loss)  # only decay is left
    with torch.no_grad():
        for p in plain.parameters(): p.add_(1.)  # nothing is 0, which would not show a decay
    before = {k: p.detach().clone() for k, p in plain.named_parameters()}
    quiet(learn, 1, .1)
    left = {k: (p/before[k]).mean().item() for k, p in plain.named_parameters()}
    matrices = {k for k, p in plain.named_parameters() if p.ndim > 1}
    assert matrices and len(matrices) < len(left)
    for name, share in left.items():
        assert share == pytest.approx(1 - .1*.5 if name in matrices else 1, abs=1e-5), name


class Nothing(torch.nn.Module):
    "A loss without a gradient."
    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, *args): return {k: 0*v for k, v in self.loss(*args).items()}
