"""The optimiser: fastai's arithmetic in PyTorch's kernel, and what weight decay leaves alone."""
from copy import deepcopy

import pytest
import torch
from fastai.optimizer import Adam as FastaiAdam

from grefel.method.model import create_model
from grefel.train.learner import grefel_learner
from grefel.train.loader import face_dls
from grefel.train.optimiser import AdamW, spared


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.GELU(), torch.nn.Linear(5, 1))


def weights(net): return torch.cat([p.detach().flatten() for p in net.parameters()])


def trained(kind, steps=20, groups=False, skip=None, **hypers):
    "A small network and its optimiser after some steps with changing hyperparameters."
    net = network()
    params = [list(m.parameters()) for m in (net[0], net[2])] if groups else list(net.parameters())
    own = dict(spared=spared(net)) if kind is AdamW else {}
    opt = kind(params, **dict(lr=.01, eps=1e-8) | hypers | own)
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
    ours, fastais = trained(AdamW, **how), trained(FastaiAdam, **how)
    torch.testing.assert_close(weights(ours[0]), weights(fastais[0]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('how', [dict(wd=.3), dict(sqr_mom=.9), dict(eps=.1)])
def test_each_hyperparameter_counts(how):
    assert not torch.allclose(weights(trained(AdamW, **how)[0]), weights(trained(AdamW, wd=0.)[0]),
                              atol=1e-3)


def test_it_goes_on_from_its_own_state():
    net, opt = trained(AdamW, wd=.3)
    after = network()
    after.load_state_dict(net.state_dict())
    other = AdamW(list(after.parameters()), lr=.5, spared=spared(after))
    other.load_state_dict(deepcopy(opt.state_dict()))  # steps change it in place
    assert other.hypers[0]['lr'] == opt.hypers[0]['lr'] == pytest.approx(.2)
    for model, o in ((net, opt), (after, other)):
        model(torch.ones(8, 6)).square().mean().backward()
        o.step()
    assert torch.equal(weights(net), weights(after))


def test_fastai_sees_its_own_groups():
    net = network()
    opt = AdamW([list(net[0].parameters()), list(net[2].parameters())], lr=.1, wd=.2,
                spared=spared(net))
    assert [[id(p) for p in group] for group in opt.param_lists] == [
        [id(net[i].weight), id(net[i].bias)] for i in (0, 2)]
    opt.set_hypers(lr=slice(1e-3, 1e-1), mom=.8, sqr_mom=.95)
    assert [(h['lr'], h['mom'], h['sqr_mom'], h['wd']) for h in opt.hypers] == [
        (pytest.approx(1e-3), .8, .95, .2), (pytest.approx(1e-1), .8, .95, .2)]
    assert [g['weight_decay'] for g in opt.opt.param_groups] == [.2, 0, .2, 0]
    opt.freeze()
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]


# what each name of a parameter says that it is
SPARED = ('log_delta', 'anchors.anchors', 'fusion.cls', 'tokens.place', 'tokens.scale', 'gamma',
          'norm', 'bias')


@pytest.mark.parametrize('size', ['nano', 'base', 'plain', 'mad', 'lanet'])
def test_weight_decay_is_meant_for_matrices_and_nothing_else(size, faces):
    small = dict(img_size=56, depth=1) if size == 'base' else {}
    model = create_model(size, **small)
    learn = grefel_learner(face_dls(faces, faces, model, bs=16), model, ema=None)
    learn.create_opt()
    learn.opt.set_hypers(wd=.5)
    names = {id(p): name for name, p in model.named_parameters()}
    decaying = {names[id(p)] for group in learn.opt.opt.param_groups for p in group['params']
                if group['weight_decay'] == .5}
    assert decaying == {name for name, p in model.named_parameters()
                        if p.ndim > 1 and not any(what in name for what in SPARED)}


def test_a_model_may_name_more():
    net = network()
    assert len(spared(net)) == 2
    net.no_weight_decay = lambda: {'2.weight'}
    assert [id(p) for p in spared(net)] == [id(net[0].bias), id(net[2].weight), id(net[2].bias)]


def test_decay_alone_shrinks_the_matrices_by_the_rate(faces, plain, quiet):
    learn = grefel_learner(face_dls(faces, faces, plain, bs=96), plain, ema=None, wd=.5)
    learn.loss_func.loss = Nothing(learn.loss_func.loss)  # only decay is left
    with torch.no_grad():
        for p in plain.parameters(): p.add_(1.)  # nothing is 0, which would not show a decay
    before = {k: p.detach().clone() for k, p in plain.named_parameters()}
    quiet(learn, 1, .1)
    for name, p in plain.named_parameters():
        share = (p/before[name]).mean().item()
        assert share == pytest.approx(1 - .1*.5 if p.ndim > 1 else 1, abs=1e-5), name


class Nothing(torch.nn.Module):
    "A loss without a gradient."
    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, *args): return {k: 0*v for k, v in self.loss(*args).items()}
