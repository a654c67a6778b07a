"""The weights that ship keep what their pages say, under every camera fault that was measured."""
from types import SimpleNamespace

import pandas as pd
import pytest

from grefel.base.core import GrefelError
from grefel.measure.corruptions import conditions
from grefel.method.files import load_model, weights_digest

import robustness
import ship

SIZES = 'nano', 'small'


@pytest.fixture(scope='module')
def page(): return pd.read_csv(robustness.TABLE)


@pytest.mark.parametrize('size', SIZES)
def test_the_page_is_of_the_weights_that_ship(page, size):
    own = page[page.name == size]
    assert set(own.digest) == {weights_digest(load_model(size))}, (
        f'measure them: tools/robustness.py {size}')
    assert set(conditions(severities=(1, 3, 5))) <= set(zip(own.kind, own.severity))


@pytest.mark.parametrize('size', SIZES)
def test_no_fault_makes_them_answer_with_one_class(page, size):
    own = page[(page.name == size) & (page.most > .6)]
    assert own.empty, own[['kind', 'severity', 'most']].to_string()


@pytest.mark.parametrize('size', SIZES)
def test_they_are_no_surer_than_right_under_faults_that_people_put_up_with(page, size):
    own = page[(page.name == size) & (page.severity <= 3)]
    over = own[own.mean_confidence - own.accuracy > .05]
    assert over.empty, over[['kind', 'severity', 'accuracy', 'mean_confidence']].to_string()


@pytest.mark.parametrize('clean, faulty, words', [
    (-.003, .1, 'clean faces: '), (0., -.01, 'camera faults: '), (-.0015, .01, None)])
def test_weights_that_are_worse_are_refused(monkeypatch, clean, faulty, words):
    old = dict(accuracy=.88, corruptions=dict(accuracy=.7))
    monkeypatch.setattr(ship, 'load_model', lambda path: SimpleNamespace(
        metadata=dict(validation=old)))
    new = dict(accuracy=.88 + clean, corruptions=dict(accuracy=.7 + faulty))
    if words is None: return ship.refuse_worse('nano', new)
    with pytest.raises(GrefelError, match=words): ship.refuse_worse('nano', new)


def test_measuring_goes_on_where_it_stopped_and_forgets_other_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(robustness, 'TABLE', tmp_path/'rows.csv')
    asked = []

    def answer(model, faces, which):  # one condition at a time
        asked.extend(which)
        if len(asked) == 5: raise KeyboardInterrupt
        (kind, severity), = which
        return [dict(kind=kind, severity=severity, n=1, accuracy=.5, mean_confidence=.5, ece=0.,
                     most=.5)]
    monkeypatch.setattr(robustness, 'robustness', answer)
    monkeypatch.setattr(robustness, 'weights_digest', lambda model: model)
    with pytest.raises(KeyboardInterrupt): robustness.measure('one', 'nano', None, None)
    rows = robustness.measure('one', 'nano', None, None)
    assert asked[:4] + asked[5:] == conditions() and list(rows.kind)[:2] == ['clean', 'noise']
    other = robustness.measure('other', 'nano', None, None)
    assert set(other.digest) == set(robustness.table().digest) == {'other'}
