"""Worlds, faces and models that several tests of this part measure."""
from types import SimpleNamespace

import numpy as np
import pytest

from grefel.data.faces import load_faces
from grefel.measure.answers import in_model_order, predict_data
from grefel.measure.groups import group_columns
from grefel.measure.scores import measure
from grefel.method.model import create_model
from tests.measure.worlds import Reader, known_world


@pytest.fixture(scope='session')
def world():
    "A calibrated predictor, its over-confident copy, labels, votes and the truth."
    calm, labels, truth = known_world(2000)
    bold = known_world(2000, temperature=0.5)[0]
    votes = np.random.default_rng(2).multinomial(10, truth)
    return SimpleNamespace(calm=calm, bold=bold, labels=labels, truth=truth, votes=votes, n=2000)


@pytest.fixture(scope='session')
def drawn():
    "Sixty drawn faces."
    return load_faces('synth', split='valid', n=60)


@pytest.fixture
def nano():
    "An untrained model whose file says nothing; tests may write into its metadata."
    model = create_model('nano').eval()
    model.metadata = {}
    return model


@pytest.fixture(scope='session')
def reader():
    "A model that reads drawn faces fairly well."
    return Reader(load_faces('synth', split='train', n=1000, targets='votes'))


@pytest.fixture(scope='session')
def grouped():
    "Drawn validation faces, a third of which wear glasses."
    faces = load_faces('synth', split='valid', n=300, group='glasses', group_penalty=0.5)
    faces.extra = dict(eyes=np.where(faces.extra['groups'] == 1, 'glasses', 'none'))
    return faces


@pytest.fixture(scope='session')
def metrics(reader, grouped):
    "All metrics of the reader on these faces."
    labels, votes = in_model_order(grouped, reader.classes)
    return measure(predict_data(reader, grouped), labels, reader.classes, votes, 100,
                   columns=group_columns(grouped.extra))
