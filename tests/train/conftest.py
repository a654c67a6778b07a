"""What tests of training share: a few drawn faces, networks of few weights, a power cut."""
import pytest
import torch
from fastai.basics import Callback

from grefel.data.convert import convert
from grefel.data.faces import load_faces
from grefel.method.model import create_model
from grefel.train.runs import Recipe, train


@pytest.fixture(scope='session')
def faces():
    return load_faces('synth', split='train', n=96, img_size=32)


@pytest.fixture
def plain():
    "A convolutional network of six thousand weights."
    torch.manual_seed(0)
    return create_model('plain', widths=(8, 8, 8, 8), img_size=32)


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    "A file with 96 faces in each split."
    out = tmp_path_factory.mktemp('data')/'faces.parquet'
    convert('synth', out, n=96, img_size=32)
    return str(out)


@pytest.fixture
def recipe(data):
    "A recipe of a tiny run, with changes."
    def make(**changes):
        tiny = dict(data=data, size='plain', model=dict(widths=[8, 8, 8, 8]), epochs=3, bs=32,
                    seed=5, ema=.9)
        return Recipe(**tiny | changes)
    return make


class PowerCut(Exception):
    pass


class CutAfter(Callback):
    "A power cut at the end of an epoch, when all is on the disk."
    order = 80

    def __init__(self, epoch): self.last = epoch

    def after_epoch(self):
        if self.epoch == self.last: raise PowerCut('power cut')


@pytest.fixture
def run(tmp_path):
    "Train a recipe in a folder of a name, silently; `cut` says after which epoch it is stopped."
    def go(name, recipe, cut=None, cbs=(), **kw):
        cbs = [*cbs, *([] if cut is None else [CutAfter(cut)])]
        try: return train(recipe, tmp_path/name, progress=None, cbs=cbs, **kw)
        except PowerCut: return None
    return go


@pytest.fixture(scope='session')
def quiet():
    "Fit a learner without bars and tables."
    def fit(learn, *args, **kw):
        with learn.no_bar(), learn.no_logging(): learn.fit(*args, **kw)
        return learn
    return fit
