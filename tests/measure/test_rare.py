"""Looking for rare expressions: thresholds that keep a precision, told with their intervals."""
import json

import numpy as np
import pytest

from grefel.base.core import GrefelError
from grefel.measure.calibration import NEVER, make_folds
from grefel.measure.rare import (
    checked_finds, counting_notes, crossfit_found, find_threshold, fit_finds, found_report,
    found_rows, search_words)

NAMES = ('calm', 'glad', 'afraid')


def world(n, seed):
    "Probabilities that are calibrated, and their labels; few are afraid."
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet([2, 1, .15], n)
    return probs, (rng.random((n, 1)) > probs.cumsum(1)).sum(1)


@pytest.fixture(scope='module')
def finds(): return fit_finds(*world(3000, 1), NAMES, 'numbers', temperature=.7)


@pytest.mark.parametrize('labelled, precision, wanted', [
    ([1, 1, 1, 1, 1], .5, .1), ([1, 0, 1, 0, 0], .5, .7), ([1, 0, 0, 0, 0], .5, .8),
    ([0, 1, 1, 0, 0], .5, .7), ([0, 0, 0, 0, 0], .2, NEVER), ([0, 0, 0, 0, 1], .2, .1)])
def test_the_threshold_is_the_last_that_keeps_the_precision(labelled, precision, wanted):
    scores = [.9, .8, .7, .7, .1]
    assert find_threshold(scores, labelled, precision) == wanted
    order = np.random.default_rng(0).permutation(5)
    assert find_threshold(np.array(scores)[order], np.array(labelled)[order], precision) == wanted


def test_a_face_is_not_judged_by_its_own_label():
    probs, labels = world(400, 2)
    fold = make_folds(labels, folds=4)
    shown = crossfit_found(probs[:, 2], labels == 2, .33, fold)
    for k in range(4):
        changed = np.where(fold == k, labels != 2, labels == 2)
        again = crossfit_found(probs[:, 2], changed, .33, fold)
        assert (again[fold == k] == shown[fold == k]).all()


def test_a_report_counts():
    r = found_report(np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool))
    assert (r['faces'], r['shown'], r['hits'], r['recall'], r['precision']) == (2, 2, 1, .5, .5)
    assert r['recall_low'] < .5 < r['recall_high']
    nothing = found_report(np.zeros(3, bool), np.ones(3, bool))
    assert nothing['precision'] is None and nothing['recall'] == 0


def test_what_was_promised_holds_on_other_faces(finds):
    probs, labels = world(20_000, 3)
    for precision in (.25, .5):
        shown = probs[:, 2] >= finds['thresholds']['afraid'][f'{precision:g}']
        told = finds['measured']['afraid'][f'{precision:g}']
        found = found_report(shown, labels == 2)
        assert found['precision'] == pytest.approx(precision, abs=.08)
        assert told['recall_low'] - .02 <= found['recall'] <= told['recall_high'] + .02


def test_more_are_found_than_by_the_likeliest_answer(finds):
    probs, labels = world(20_000, 3)
    likeliest = (probs[labels == 2].argmax(1) == 2).mean()
    assert (probs[labels == 2, 2] >= finds['thresholds']['afraid']['0.25']).mean() > likeliest + .15


def test_duplicates_do_not_vouch_for_each_other():
    probs, labels = world(60, 4)
    twice = np.repeat(np.arange(60), 2)
    noise = fit_finds(probs[twice], labels[twice], NAMES, groups=twice)
    assert noise['n'] == 120 and set(noise['thresholds']) == set(NAMES)


def test_notes_fit_into_json(finds):
    assert json.loads(json.dumps(finds)) == finds and finds['temperature'] == .7


@pytest.mark.parametrize('wanted, precision, said', [
    ('joy', .25, 'joy is no class of this model; calm, glad, afraid are'),
    ('', .25, 'nothing is no class'), ('afraid', .9, 'precision 0.9 was not measured; 0.2, 0.25')])
def test_what_cannot_be_searched_is_told(finds, wanted, precision, said):
    with pytest.raises(GrefelError, match=said): checked_finds(wanted, finds, precision)


def test_a_search_shows_the_most_promising_first(finds):
    limits = checked_finds(' afraid,glad', finds, .5)
    assert list(limits) == ['afraid', 'glad']
    rows = [dict(emotion=NAMES[p.argmax()], **dict(zip([f'final_{n}' for n in NAMES], p)))
            for p in world(200, 5)[0]] + [dict(emotion=None, final_afraid=None, final_glad=None)]
    found = found_rows(rows, limits)
    assert {name for name, _, _ in found} == {'afraid', 'glad'}
    assert all(p >= limits[name] and p == row[f'final_{name}'] for name, p, row in found)
    above = [p/limits[name] for name, p, _ in found]
    assert above == sorted(above, reverse=True)


def test_the_words_give_both_numbers_with_intervals(finds):
    m, (said,) = finds['measured']['afraid']['0.25'], search_words(finds, dict(afraid=.1), .25)
    assert said.startswith('afraid') and f"{m['recall']:.0%} ({m['recall_low']:.0%} to" in said
    assert f"{m['precision']:.0%} (" in said and f"of {m['faces']} faces" in said


def test_one_call_gives_both_kinds_of_notes():
    probs, labels = world(100, 6)
    images = np.random.default_rng(0).integers(0, 255, (100, 1, 4, 4), np.uint8)
    notes = counting_notes(dict(temperature=.8), dict(final_probs=probs), labels,
                           dict(images=images), NAMES)
    assert {k: v['temperature'] for k, v in notes.items()} == dict(shares=.8, finds=.8)
    assert notes['finds']['thresholds'].keys() == set(NAMES)
