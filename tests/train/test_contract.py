"""What the training chapter promises about fastai: each row works, or says in a line what does."""
import json
import re
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger, ShowGraphCallback
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.interpret import ClassificationInterpretation, Interpretation
from fastai.learner import load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import F1Score, accuracy
from fastai.optimizer import SGD, OptimWrapper, ranger
from matplotlib import pyplot as plt

from grefel.base.core import GrefelError
from grefel.train.learner import face_splitter, grefel_learner
from grefel.train.loader import FaceLoader, face_dls
from tests.repository import ROOT

plt.switch_backend('agg')
KEPT = ('epoch', 'train_loss', 'valid_loss', 'accuracy', 'cls')  # columns of the log


@pytest.fixture
def learner(faces, plain, tmp_path):
    def make(**kw):
        dls = face_dls(faces, faces.subset(range(50)), plain, bs=32)
        return grefel_learner(dls, plain, **dict(ema=None, path=tmp_path) | kw)
    return make


@pytest.fixture(autouse=True)
def no_open_figures():
    yield
    plt.close('all')


def answers(learn):
    "Probabilities, labels and losses of the validation faces, computed by hand."
    faces, model = learn.dls.valid.dataset, learn.model.eval()
    with torch.no_grad():
        images = learn.dls.valid.transform(faces.images, faces.landmarks)[0]
        probs = model(images)['final_probs']
    return probs, faces.labels, -(faces.targets*probs.log()).sum(-1)


def fitted(learn, epochs=1, lr=1e-2, **kw):
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, lr, **kw)
    return learn


def get_preds(make):
    found = make().get_preds(with_loss=True)
    for a, b in zip(found, answers(make()), strict=True): torch.testing.assert_close(a, b)


def validate(make):
    loss, right, *_ = make().validate()
    probs, labels, losses = answers(make())
    assert loss == pytest.approx(losses.mean().item(), abs=1e-5)
    assert right == pytest.approx((probs.argmax(-1) == labels).float().mean().item())


def interpretation(make):
    learn = make()
    found = Interpretation.from_learner(learn)
    losses, index = found.top_losses(3)
    expected = answers(learn)[2].topk(3)
    torch.testing.assert_close(losses, expected.values)
    assert torch.equal(index, expected.indices)
    found.show_results(index.tolist())
    classes = learn.dls.valid.dataset.classes
    shown = [ax.get_title().split('is ')[-1] for ax in plt.gcf().axes]
    assert len(shown) == 3 and {s.strip() for s in shown} <= {*classes}
    inputs, _, labels, decoded, _ = found[index]
    assert torch.equal(labels, answers(learn)[1][index])
    assert torch.equal(decoded, answers(learn)[0][index].argmax(-1))


def classification_interpretation(make):
    learn = make()
    probs, labels, _ = answers(learn)
    found = ClassificationInterpretation.from_learner(learn)
    expected = np.zeros((8, 8), int)
    for true, said in zip(labels, probs.argmax(-1)): expected[true, said] += 1
    assert np.array_equal(found.confusion_matrix(), expected)
    assert found.most_confused()[0][0] in learn.dls.valid.dataset.classes
    found.plot_confusion_matrix()


def export(make):
    learn = fitted(make())
    with pytest.warns(UserWarning, match='pickle'): learn.export()
    assert len(learn.dls.train.dataset) == 96  # the learner keeps its faces, the file has none
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        other = load_learner(learn.path/'export.pkl')  # ours, of a moment ago
    assert len(other.dls.train.dataset) == len(other.dls.valid.dataset) == 0
    found = other.get_preds(dl=other.dls.test_dl(learn.dls.valid.dataset))[0]
    torch.testing.assert_close(found, answers(learn)[0])


def tta(make):
    learn = make()
    plain, mixed = answers(learn)[0], learn.tta(n=2)[0]
    varied, alone = learn.tta(n=2, beta=None)[0]
    torch.testing.assert_close(alone, plain)
    torch.testing.assert_close(mixed, .75*varied + .25*plain)
    assert (learn.tta(n=2, use_max=True)[0] >= plain - 1e-6).all()
    one, another = (learn.tta(n=n, beta=None)[0][0] for n in (1, 2))
    assert not torch.allclose(one, plain, atol=1e-5) and not torch.allclose(one, another, atol=1e-6)


def show_results(make):
    learn = make()
    learn.show_results(ds_idx=0, max_n=3, shuffle=False)
    probs = learn.get_preds(ds_idx=0)[0]
    said = [learn.dls.train.dataset.classes[i] for i in probs[:3].argmax(-1)]
    assert [ax.get_title().split('\n')[0] for ax in plt.gcf().axes] == said


def show_graph(make):
    seen, learn = [], make(cbs=[ShowGraphCallback()])
    class Bar:
        def update_graph(self, graphs, *bounds): seen.append(graphs)
        def __getattr__(self, name): return lambda *args, **kw: None
    with learn.no_logging(), learn.no_mbar():
        learn.progress.mbar = Bar()
        learn.fit(2, 1e-3)
    assert [len(graphs[0][0]) for graphs in seen] == [3, 6]  # training batches so far


def metrics(make):
    learn = fitted(make(metrics=[accuracy, F1Score(average='macro')]))
    assert [m.name for m in learn.metrics] == ['accuracy', 'cls', 'f1_score']
    probs, labels, _ = answers(learn)
    said, scores = probs.argmax(-1), []
    for c in labels.unique().tolist():
        both = ((said == c) & (labels == c)).sum()
        scores.append((2*both/((said == c).sum() + (labels == c).sum())).item())
    found = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    assert found['accuracy'] == pytest.approx((said == labels).float().mean().item())
    assert found['f1_score'] == pytest.approx(np.mean(scores))


def opt_func(make):
    for kind in (SGD, ranger, partial(OptimWrapper, opt=torch.optim.SGD)):
        learn = make(opt_func=kind)
        assert moved(learn, fitted) == [True, True]
        assert learn.opt_func is kind


def moved(learn, train):
    "Which groups of layers a training moves, apart from norms."
    groups = [[p for p in g if p.ndim > 1] for g in face_splitter(learn.model)]
    before = [[p.detach().clone() for p in group] for group in groups]
    train(learn)
    return [any(not torch.equal(p, b) for p, b in zip(*pair)) for pair in zip(groups, before)]


def freeze(make):
    learn = make()
    learn.freeze()
    assert moved(learn, fitted) == [False, True]


def unfreeze(make):
    learn = make()
    learn.freeze()
    learn.unfreeze()
    assert moved(learn, fitted) == [True, True]


def rates(make):
    learn = make()
    fitted(learn, lr=slice(1e-4, 1e-2))
    assert [h['lr'] for h in learn.opt.hypers] == pytest.approx([1e-4, 1e-2])
    assert moved(learn, lambda learn: fitted(learn, lr=[0., 1e-2], wd=0.)) == [False, True]


def fine_tune(make):
    rows = []
    class Watch(CSVLogger):
        def before_fit(self): pass
        def after_fit(self): pass
        def before_train(self):
            rows.append([g[0].requires_grad for g in face_splitter(self.model)])
    learn = make(cbs=[Watch()])
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, 1e-2)
    assert rows == [[False, True], [True, True]]


def precision(learn): return [type(cb).__name__ for cb in learn.cbs
                              if isinstance(cb, MixedPrecision)]


def back_to_float32(make): assert precision(make().to_bf16().to_fp32()) == []
def bfloat16_once(make): assert precision(make().to_bf16().to_bf16()) == ['BFloat16']


def lr_find(make):
    learn = make()
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    with learn.no_bar(), learn.no_logging(): found = learn.lr_find(num_it=8, show_plot=False)
    assert found.valley > 0
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())


def callbacks(make):
    cbs = [SaveModelCallback(monitor='accuracy'), EarlyStoppingCallback(patience=9), CSVLogger(),
           GradientAccumulation(64), GradientClip(1.), ReduceLROnPlateau()]
    learn = fitted(make(cbs=cbs), epochs=2)
    lines = (learn.path/'history.csv').read_text().splitlines()
    assert lines[0].split(',')[:-1] == [*KEPT] and len(lines) == 3
    assert (learn.path/'models'/'model.pth').exists()


def refused(message, act):
    def check(make):
        with pytest.raises(GrefelError, match=message) as caught: act(make)
        assert '\n' not in str(caught.value)
    return check


def a_misspelt_argument(make):
    dls = make().dls
    with pytest.raises(TypeError, match='shufle'):
        FaceLoader(dls.train.dataset, dls.train.transform, shufle=True)
    with pytest.raises(TypeError, match='shufle'): dls.train.new(shufle=True)


# the row of the chapter's table: what holds
CONTRACT = {
    'get_preds(with_loss=True)': get_preds,
    'validate()': validate,
    'lr_find()': lr_find,
    'SaveModelCallback, EarlyStoppingCallback, CSVLogger, GradientAccumulation, GradientClip, '
    'ReduceLROnPlateau': callbacks,
    'Interpretation': interpretation,
    'ClassificationInterpretation': classification_interpretation,
    'show_results(ds_idx=0)': show_results,
    'ShowGraphCallback': show_graph,
    'tta()': tta,
    'metrics=[accuracy, F1Score(…)]': metrics,
    'opt_func=': opt_func,
    'freeze()': freeze,
    'unfreeze()': unfreeze,
    'fit(1, slice(1e-5, 1e-3))': rates,
    'fine_tune(1)': fine_tune,
    'to_bf16().to_fp32()': back_to_float32,
    'to_bf16().to_bf16()': bfloat16_once,
    'to_fp16() on a processor': refused('use|to_bf16', lambda make: make().to_fp16()),
    'export()': export,
    'predict(image)': refused(r'Predictor\(learn.model\)', lambda make: make().predict('a.png')),
    'plot_top_losses(9)': refused(r'show_results\(interp', lambda make:
                                  Interpretation.from_learner(make()).plot_top_losses(9)),
    'MixUp(), CutMix()': refused(r'Mix\(mixup=0.4\)', lambda make: make(cbs=[MixUp()])),
    'loss_func=': refused(r'loss=GReFELLoss', lambda make: make(loss_func=CrossEntropyLossFlat())),
    'FaceLoader(shufle=True)': a_misspelt_argument}


@pytest.mark.parametrize('row', CONTRACT)
def test_a_row_of_the_contract_holds(learner, row): CONTRACT[row](learner)


def test_cutmix_is_refused_for_a_single_fit_as_well(learner):
    with pytest.raises(GrefelError, match=r'Mix\(cutmix=0.4\)'):
        fitted(learner(), cbs=[CutMix()])


@pytest.mark.parametrize('items', [['a.png'], [3], np.zeros((2, 2))])
def test_what_is_no_face_is_refused_in_one_line(learner, items):
    with pytest.raises(GrefelError, match='faces as load_faces returns them'):
        learner().dls.test_dl(items)


def test_the_chapter_has_the_rows_that_are_tested():
    nb = json.loads((ROOT/'nbs'/'6_train'/'05_learner.ipynb').read_text())
    text = '\n'.join(''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'markdown')
    rows = [line.split('|')[1] for line in text.splitlines() if line.startswith('| `')]
    assert [', '.join(re.findall('`([^`]+)`', r)) + r.split('`')[-1].rstrip() for r in rows] == [
        *CONTRACT]
