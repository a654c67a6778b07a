"""The keys of metrics.json: all there, all explained, all consistent with each other."""
import csv
import json

import numpy as np
import pytest

from grefel.base.core import EXPRESSIONS
from grefel.measure.answers import in_model_order, predict_data
from grefel.measure.calibration import NEVER, apply_temperature, fit_temperature
from grefel.measure.metrics import calibration_error, class_calibration, nll_values, wilson_interval
from grefel.measure.scores import all_keys, crossfit, explain_key, measure, predictions_csv
from grefel.measure.sets import fit_sets


@pytest.fixture(scope='module')
def found(reader, grouped):
    return predict_data(reader, grouped)


@pytest.fixture(scope='module')
def labels(reader, grouped):
    return in_model_order(grouped, reader.classes)[0]


def test_final_metrics_come_plain_and_primary_ones_with_a_prefix(metrics, found, labels):
    for prefix, name in (('', 'final'), ('primary_', 'primary')):
        p = found[f'{name}_probs']
        assert metrics[f'{prefix}accuracy'] == (p.argmax(1) == labels).mean()
        assert metrics[f'{prefix}ece'] == pytest.approx(calibration_error(p, labels))
    before, after = (found[f'{k}_probs'].argmax(1) for k in ('primary', 'final'))
    assert metrics['changed'] == (before != after).sum() > 0


def test_every_key_is_explained_and_fits_into_json(metrics, found, labels):
    m = metrics | crossfit(found['final_probs'], labels, bootstrap=10)
    json.dumps(m, allow_nan=False)
    within = {'per_class.recall_low', 'groups.groups.ece', 'change_by_class.helped'}
    assert within <= set(all_keys(m))
    for key in all_keys(m): assert explain_key(key), key


@pytest.mark.parametrize('key, words', [
    ('ece', 'calibration error of the answers (ECE, equal widths)'),
    ('primary_nll', 'negative log-likelihood, nats: before balancing'),
    ('crossfit_nll_high', 'negative log-likelihood, nats: each face with a temperature fitted on '
                          'other faces: upper end of the 95% interval'),
    ('per_class.ece', "calibration error of this class's probability against labels"),
    ('helped_rate', 'of them from wrong to right: as a share of all')])
def test_prefixes_and_endings_are_put_into_words(key, words):
    assert explain_key(key) == words


def test_nobody_explains_what_nobody_knows():
    with pytest.raises(KeyError): explain_key('primary_nonsense')


def test_names_of_columns_are_no_keys():
    m = dict(groups=dict(age=dict(worst='old', groups=[dict(n=3)])), per_class=[dict(recall=1)])
    assert list(all_keys(m)) == ['groups', 'groups.worst', 'groups.groups', 'groups.groups.n',
                                 'per_class', 'per_class.recall']


def test_classes_have_the_calibration_of_their_own_probability(metrics, reader, grouped, found):
    labels, votes = in_model_order(grouped, reader.classes)
    for key, targets in dict(ece=labels, ece_votes=votes).items():
        error, low, high = class_calibration(found['final_probs'], targets, 100)
        for c, row in enumerate(metrics['per_class']):
            assert [row[key], row[f'{key}_low'], row[f'{key}_high']] == pytest.approx(
                [error[c], low[c], high[c]])


def test_without_votes_no_key_speaks_of_them(found, labels):
    m = measure(found, labels, bootstrap=5)
    assert not [k for k in all_keys(m) if 'votes' in k]


def test_without_a_correction_nothing_changed(found, labels):
    m = measure(dict(final_probs=found['final_probs']), labels, bootstrap=0)
    assert (m['changed'], m['primary_accuracy']) == (0, m['accuracy'])


def test_stored_thresholds_are_judged_on_these_faces(found, labels):
    rows = measure(found, labels, bootstrap=0, risk=[[.5, .6, .3], [.01, NEVER, 0.]])['risk']
    sure, wrong = found['final_probs'].max(1) >= .6, found['final_probs'].argmax(1) != labels
    low, high = wilson_interval(wrong[sure].sum(), sure.sum())
    assert rows[0] == pytest.approx(dict(
        risk=.5, threshold=.6, coverage=sure.mean(), wrong=wrong[sure].mean(), wrong_low=low,
        wrong_high=high), abs=1e-6)
    assert (rows[1]['coverage'], rows[1]['wrong'], rows[1]['wrong_high']) == (0, None, 1)


def test_crossfit_divides_what_no_temperature_from_what_one_does(found, labels):
    p = apply_temperature(found['final_probs'].astype(float), 0.4)      # far too sure
    m = crossfit(p, labels)
    assert m['untempered_nll'] == pytest.approx(nll_values(p, labels).mean())
    assert m['crossfit_nll'] < m['untempered_nll'] and m['crossfit_ece'] < m['untempered_ece']
    assert m['crossfit_temperature'] == fit_temperature(p, labels)
    assert 'crossfit_accuracy' not in m and not [k for k in m if 'floor' in k]


def test_crossfit_keeps_groups_together(found, labels):
    p = found['final_probs']
    assert crossfit(p, labels, groups=np.arange(300) // 10) != crossfit(p, labels)
    assert crossfit(p[:49], labels[:49]) == {}


def test_every_prediction_is_a_row(grouped, found, labels):
    rows = list(csv.DictReader(predictions_csv(grouped.names, found, labels).splitlines()))
    p, q = found['final_probs'], found['primary_probs']
    assert [r['name'] for r in rows] == list(grouped.names)
    for i, r in enumerate(rows):
        assert r['label'] == EXPRESSIONS[labels[i]]
        assert r['predicted'] == EXPRESSIONS[p[i].argmax()]
        assert r['primary'] == EXPRESSIONS[q[i].argmax()]
        assert int(r['correct']) == (p[i].argmax() == labels[i])
        assert float(r['confidence']) == pytest.approx(p[i].max(), abs=1e-6)
        assert [float(r[c]) for c in EXPRESSIONS] == pytest.approx(p[i].tolist(), abs=1e-6)


def test_sets_are_measured_as_stored_and_crossfitted(world):
    sets = fit_sets(world.calm, world.labels, world.votes)
    stored = measure(dict(final_probs=world.calm), world.labels, votes=world.votes, bootstrap=10,
                     sets=sets)
    crossed = crossfit(world.bold, world.labels, world.votes)
    for promise in ('labels', 'annotators'):
        for c in (80, 90, 95):
            key = f'coverage_{promise}_{c}'
            assert stored[key] == pytest.approx(c/100, abs=.01)
            assert crossed[f'crossfit_{key}'] == pytest.approx(c/100, abs=.02)
            assert str(c) in explain_key(key)
            assert explain_key(f'crossfit_set_size_{promise}_{c}_low')
    assert 'coverage_labels_90' not in measure(dict(final_probs=world.calm), world.labels,
                                               bootstrap=10)
