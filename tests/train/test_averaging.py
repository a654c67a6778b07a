"""Averaged weights: the average itself, when it is in the model, and when it begins anew."""
import pytest
import torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner, SGD

from grefel.train.averaging import EMA


class Note(Callback):
    "Keeps the state after each step, and the weights that are validated."
    order = 61

    def before_fit(self): self.states, self.validated = [], []
    def after_step(self): self.states.append(copied(self.model))
    def before_validate(self): self.validated.append(copied(self.model))


def copied(model): return {k: v.clone() for k, v in model.state_dict().items()}


def close(a, b):
    for k, v in a.items(): torch.testing.assert_close(v, b[k], msg=k)


@pytest.fixture
def learner():
    def make(*cbs):
        torch.manual_seed(0)
        data = [(torch.randn(3), torch.randn(2)) for _ in range(24)]
        dls = DataLoaders(DataLoader(data, bs=4), DataLoader(data, bs=4))
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4),
                                  torch.nn.Linear(4, 2))
        return Learner(dls, net, torch.nn.functional.mse_loss, opt_func=SGD, cbs=[*cbs, Note()])
    return make


@pytest.mark.parametrize('decay', [.5, .999])
def test_the_average_is_the_formula(learner, quiet, decay):
    learn = learner(EMA(decay))
    expected, t = copied(learn.model), 0
    quiet(learn, 2, .1)
    for state in learn.note.states:
        # AveragedModel takes the first state as it is
        beta = min(decay, (1 + t)/(10 + t)) if t else 0.
        expected = {k: beta*expected[k] + (1 - beta)*v if v.is_floating_point() else v
                    for k, v in state.items()}  # counters are taken over
        t += 1
    assert t == 12
    close(learn.ema.average.module.state_dict(), expected)
    assert any((v - expected[k]).abs().max() > 1e-3 for k, v in learn.note.states[-1].items())


def test_training_itself_is_as_without_averaging(learner, quiet):
    with_average, without = (quiet(learner(*cbs), 2, .1) for cbs in ([EMA(.9)], []))
    for a, b in zip(with_average.note.states, without.note.states, strict=True): close(a, b)


def test_the_average_is_validated_and_stays_at_the_end(learner, quiet):
    learn = quiet(learner(EMA(.9)), 2, .1)
    average = learn.ema.average.module.state_dict()
    close(learn.note.validated[-1], average)
    close(learn.model.state_dict(), average)
    assert not torch.equal(learn.note.validated[0]['0.weight'], learn.note.states[5]['0.weight'])


def test_weights_that_are_loaded_after_training_stay_and_are_trained_from(learner, quiet):
    learn = quiet(learner(EMA(.9)), 1, .1)
    average = learn.ema.average
    for p in learn.model.parameters(): p.data.fill_(.01)
    with learn.no_bar(), learn.no_logging(): learn.validate()
    assert all((p == .01).all() for p in learn.model.parameters())
    quiet(learn, 1, 0.)
    assert learn.ema.average is not average
    assert all((p - .01).abs().max() < 1e-6 for p in learn.model.parameters())


def test_further_training_of_the_same_weights_goes_on_with_the_average(learner, quiet):
    learn = quiet(learner(EMA(.9)), 1, .1)
    average = learn.ema.average
    quiet(learn, 1, .1)
    assert learn.ema.average is average and int(average.n_averaged) == 12


def test_a_search_for_the_learning_rate_does_not_count(learner, quiet, tmp_path):
    learn = learner(EMA(.9))
    learn.path = tmp_path
    before = copied(learn.model)
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=6, show_plot=False)
    assert learn.ema.average is None
    close(learn.model.state_dict(), before)
