"""Half precision, and training steps that ask less of Python."""
from types import SimpleNamespace

import pytest
import torch
from fastai.basics import Callback
from fastai.callback.fp16 import MixedPrecision

from grefel.base.core import GrefelError
from grefel.method.model import create_model
from grefel.train.learner import grefel_learner
from grefel.train.loader import face_dls
from grefel.train.precision import BFloat16, CompileStep, autocasting, pass_through


class Types(Callback):
    "Notes what is cast, and the types of gradients."
    order = 90

    def before_fit(self): self.casts, self.gradients = [], set()
    def after_pred(self): self.casts.append(torch.is_autocast_enabled('cpu'))
    def after_backward(self):
        self.casts.append(torch.is_autocast_enabled('cpu'))
        self.gradients |= {p.grad.dtype for p in self.model.parameters()}


def learner(faces, model, *cbs, **kw):
    dls = face_dls(faces, faces, model, bs=32, seed=1, **kw)
    return grefel_learner(dls, model, ema=None, cbs=cbs)


def weights(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}


def test_forward_passes_are_cast_and_backward_passes_are_not(faces, plain, quiet):
    learn, outputs = learner(faces, plain, BFloat16(), Types()), set()
    conv = next(m for m in plain.modules() if isinstance(m, torch.nn.Conv2d))
    conv.register_forward_hook(lambda m, args, out: outputs.add(out.dtype))
    quiet(learn, 1)
    assert outputs == {torch.bfloat16}
    casts = learn.types.casts
    # three training batches with a pass and its gradient, two validation batches with a pass
    assert casts == [True, False]*3 + [True]*2
    assert learn.types.gradients == {torch.float32}
    assert not torch.is_autocast_enabled('cpu')


def test_it_is_fastais_own_and_casts_while_it_is_there(faces, plain, quiet):
    outputs = set()
    plain.head.register_forward_hook(lambda m, args, out: outputs.add(out.dtype))
    learn = learner(faces, plain).to_bf16()
    assert isinstance(learn.b_float16, MixedPrecision)
    quiet(learn, 1)
    quiet(learn.to_fp32(), 1)
    assert outputs == {torch.bfloat16, torch.float32}
    outputs.clear()
    quiet(learn, 1)
    assert outputs == {torch.float32}


def test_autocasting_follows_the_learner(faces, plain):
    for learn, cast in ((learner(faces, plain), False), (learner(faces, plain, BFloat16()), True)):
        with autocasting(learn): assert torch.is_autocast_enabled('cpu') is cast
        assert not torch.is_autocast_enabled('cpu')


@pytest.mark.parametrize('args, kw, training, fast', [
    ([(4, 3)], {}, True, True),
    ([(4, 3)], {}, False, False),         # validation
    ([(2, 3)], {}, True, False),          # a last, smaller batch
    ([(4, 3), None], {}, True, False),    # another number of arguments
    ([(4, 3)], dict(x=1), True, False)])  # named ones
def test_only_training_batches_of_the_recorded_shapes_go_the_fast_way(args, kw, training, fast):
    class Net(torch.nn.Module):
        def forward(self, *args, **kw): return 'usual'
    net = Net().train(training)
    pass_through(net, lambda *args, **kw: 'fast', [torch.Size((4, 3))])
    args = [a and torch.zeros(a) for a in args]
    assert net(*args, **kw) == ('fast' if fast else 'usual')
    del net.forward
    assert net(*args, **kw) == 'usual'


def test_a_compiled_model_learns_the_same_and_is_itself_again_afterwards(
        faces, quiet, monkeypatch):
    # traced for real, but run by PyTorch's own kernels: a C++ compiler takes a minute
    real, asked = torch.compile, []
    def compiled(f, **kw): return asked.append(kw) or real(f, backend='eager', **kw)
    monkeypatch.setattr(torch, 'compile', compiled)
    def trained(*cbs):
        torch.manual_seed(0)
        model = create_model('plain', widths=(8, 8, 8, 8), img_size=32, drop_rate=0.)
        return quiet(learner(faces, model, *cbs), 2)
    usual, learn = weights(trained()), trained(CompileStep(compile=True))
    assert asked == [dict(dynamic=False)]  # once a fit, not once an epoch
    for k, v in weights(learn).items(): torch.testing.assert_close(v, usual[k], msg=k)
    assert 'forward' not in vars(learn.model)
    quiet(learn, 1)
    assert len(asked) == 2


def test_nothing_is_recorded_on_a_processor(faces, plain, quiet):
    class Look(Callback):
        def after_pred(self): self.own = 'forward' in vars(self.model)
    learn = quiet(learner(faces, plain, CompileStep(graph=True), Look()), 1)
    assert not learn.look.own


@pytest.mark.parametrize('name', ['gradient_accumulation', 'mixed_precision'])
def test_what_recorded_passes_cannot_do_is_refused(plain, name):
    record = CompileStep(graph=True)
    record.learn = SimpleNamespace(model=plain, dls=SimpleNamespace(device='cuda'), **{name: None})
    with pytest.raises(GrefelError, match=name): record.before_train()
    record.leave()
    assert 'forward' not in vars(plain)


@pytest.mark.skipif(not torch.cuda.is_available(),
                    reason='CUDA graphs are untested here: they need a GPU')
@pytest.mark.parametrize('half', [False, True])
def test_recorded_steps_learn_what_usual_ones_do(faces, half):
    def trained(*cbs):
        torch.manual_seed(0)
        model = create_model('nano', img_size=32, drop_rate=0.).cuda()
        # a last batch of another size comes in validation only: training drops it
        learn = learner(faces.subset(range(80)), model, *cbs, *[BFloat16()]*half, Ways(),
                        device='cuda')
        with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3)
        return learn
    usual, recorded = trained(), trained(CompileStep(graph=True))
    assert 'forward' not in vars(recorded.model)
    assert recorded.ways.fast and not usual.ways.fast
    loose = dict(rtol=.05, atol=5e-3) if half else dict(rtol=1e-3, atol=1e-4)
    for k, v in weights(recorded).items():
        torch.testing.assert_close(v, weights(usual)[k], **loose, msg=k)


class Ways(Callback):
    "Notes whether training batches are replayed."
    order = 90
    fast = False

    def after_pred(self):
        if self.training: self.fast = 'forward' in vars(self.model)
