"""Sentences follow the metrics, up to their limits."""
import json

import numpy as np
import pytest

from grefel.measure.scores import crossfit, measure
from grefel.measure.verdicts import (
    QUESTIONS, _about_calibration, _about_change, _about_classes, _about_seen, _about_sets,
    _about_silence,
    _about_votes, _missed, about_groups, about_likeness, as_percent, calibration_verdict, fair_key,
    largest_confusions, verdict)


def test_where_a_temperature_was_fitted_here_the_crossfitted_metric_counts(metrics):
    known = metrics | dict(crossfit_ece=0.4, crossfit_ece_low=0.3)
    assert fair_key(known, 'ece') == 'ece'
    assert fair_key(known | dict(fitted_here=True), 'ece') == 'crossfit_ece'
    assert fair_key(known | dict(fitted_here=True), 'accuracy') == 'accuracy'
    assert calibration_verdict(known | dict(fitted_here=True))[:2] == ('off by 40 points', 'bad')


@pytest.mark.parametrize('ece, low, floor, word', [
    (0.01, 0.00, 0.03, 'yes'), (0.04, 0.00, 0.05, 'yes'),
    (0.06, 0.00, 0.09, 'too few faces to tell'),
    (0.04, 0.02, 0.03, 'roughly'), (0.04, 0.03, 0.03, 'off by 4 points')])
def test_chance_and_the_interval_decide_about_calibration(ece, low, floor, word):
    assert calibration_verdict(dict(ece=ece, ece_low=low, ece_floor_95=floor))[0] == word


@pytest.mark.parametrize('ece, confidence, words', [
    (0.01, 0.6, 'No miscalibration'), (0.2, 0.9, 'claims more than it knows'),
    (0.2, 0.3, 'knows more than it claims'), (0.2, 0.6, 'not at every confidence')])
def test_the_sentence_says_which_way_confidence_is_off(metrics, ece, confidence, words):
    m = metrics | dict(ece=ece, ece_low=ece, ece_floor_95=0.04, accuracy=0.6,
                       mean_confidence=confidence)
    assert words in _about_calibration(m)['text']


@pytest.mark.parametrize('more, words', [
    (dict(), 'on as many faces.'), (dict(temperature=2.), 'temperature of 2.00 is applied.'),
    (dict(crossfit_ece=.1, crossfit_temperature=3.), 'would make the error 0.100 (cross-fitted'),
    (dict(crossfit_ece=.1, crossfit_temperature=3., temperature=2.), 'gives 0.100'),
    (dict(crossfit_ece=.1, crossfit_mean_confidence=.5, crossfit_temperature=3., temperature=2.,
          fitted_here=True), 'fitted on others.')])
def test_the_sentence_says_what_a_temperature_has_to_do_with_it(metrics, more, words):
    assert words in _about_calibration(metrics | more)['text']


def test_a_class_is_missed_when_fewer_than_half_are_found(metrics):
    rows = [dict(metrics['per_class'][0], **{'class': c, 'recall': r, 'n': n}) for c, r, n in
            (('joy', 0.9, 99), ('fear', 0.49, 60), ('awe', 0.5, 10), ('none', None, 0))]
    m = metrics | dict(per_class=rows, balanced=0.5)
    text = _about_classes(m)['text']
    assert _missed(m) == ['fear'] and _about_classes(m)['word'] == 'not fear'
    assert 'best at joy (90.0% of 99 found) and worst at fear (49.0% of 60)' in text
    assert 'fewer than 50 faces of awe' in text and 'τ = 0.5' in text
    assert 'misses more than half of fear' in verdict(m)


@pytest.mark.parametrize('classes, words', [('a', 'All faces show a.'), ('ab', '100.0% of each')])
def test_classes_that_are_found_alike_have_no_best_one(metrics, classes, words):
    rows = [dict(metrics['per_class'][0], **{'class': c, 'recall': 1., 'n': 60}) for c in classes]
    assert words in _about_classes(metrics | dict(per_class=rows))['text']


@pytest.mark.parametrize('risk, more, word, words', [
    ([], {}, 'surest 80%', 'surest'),
    ([dict(risk=0.05, wrong=0.2, wrong_low=0.1)], {}, 'do not hold', '20.0% of the answers above'),
    ([dict(risk=0.05, wrong=0.2, wrong_low=0.04)], {}, 'surest 80%', 'hold here'),
    ([dict(risk=0.05, wrong=None, wrong_low=0.)], {}, 'surest 80%', 'hold here'),
    ([dict(risk=0.05, wrong=0.1, wrong_low=0.)], dict(fitted_here=True), 'surest', 'chosen on')])
def test_thresholds_that_break_are_named(metrics, risk, more, word, words):
    answer = _about_silence(metrics | dict(risk=risk) | more)
    assert word in answer['word'] and words in answer['text']


def group(worst, accuracy, confidence):
    return dict(worst=worst, shortfall=0.123, p_accuracy=0.001, p_confidence=0.002,
                groups=[dict(n=7)], found_accuracy=accuracy, found_confidence=confidence)


@pytest.mark.parametrize('groups, word, words', [
    ({}, 'not known', 'nobody knows'),
    (dict(age=group('old', True, True)), 'no',
     'By age, the group old is answered 12.3 points worse'),
    (dict(age=group('old', False, True)), 'confidence does not', 'not equally honest (p = 0.002)'),
    (dict(age=group('old', False, False)), 'no difference found', 'chance would not explain')])
def test_only_differences_that_were_found_are_told(metrics, groups, word, words):
    m = metrics | dict(groups=groups)
    answer = about_groups(m)
    assert answer['word'] == word and words in answer['text']
    assert ('serves groups differently (age)' in verdict(m)) == (word == 'no')


@pytest.mark.parametrize('p, accuracy, word', [
    (0.2, 1, 'no difference'), (0.01, 1, 'yes'), (0.01, 0, 'it harms')])
def test_a_correction_helps_only_beyond_luck(metrics, p, accuracy, word):
    m = metrics | dict(changed=9, helped=5, hurt=2, p_value=p, accuracy=accuracy)
    answer = _about_change(m)
    assert answer['word'] == word
    assert ('luck alone could explain' in answer['text']) == (p > 0.05)
    assert ('loss' in answer['text']) == (accuracy == 0)


def test_a_correction_that_changed_nothing_is_no_difference(metrics):
    assert _about_change(dict(changed=0))['text'] == 'Balancing changed no answer.'
    level = _about_change(metrics | dict(changed=4, helped=2, hurt=2, p_value=1.))
    assert 'neither gain nor loss' in level['text']


def test_agreement_with_the_crowd_names_the_price_of_a_temperature(metrics):
    m = metrics | dict(kl_votes=0.3, tv_votes=0.25, untempered_kl_votes=0.2, temperature=2.)
    answer = _about_votes(m)
    assert answer['word'] == '75.0% of votes' and 'it would be 0.200' in answer['text']
    assert 'it would be' not in _about_votes(m | dict(untempered_kl_votes=0.4))['text']
    assert _about_votes({}) is None


@pytest.mark.parametrize('seen, word', [
    ('trained', 'no'), ('chosen', 'not quite'), ('no', 'yes'), ('other', 'as far as names tell'),
    (None, 'not known')])
def test_faces_that_made_the_model_are_no_evidence(metrics, seen, word):
    assert _about_seen(dict(seen=seen))['word'] == word
    assert verdict(metrics | dict(seen=seen)).endswith('trained on these very faces.') == (
        seen == 'trained')


def test_confusions_are_the_largest_off_the_diagonal():
    m = dict(classes=list('abc'), confusion=[[50, 3, 0], [1, 8, 1], [0, 9, 1]])
    assert largest_confusions(m, 2) == [dict(label='c', answer='b', n=9, share=0.9),
                                        dict(label='a', answer='b', n=3, share=3/53)]
    assert len(largest_confusions(m)) == 4                     # what never happened is left out
    assert m['confusion'][0][0] == 50                          # and the table stays as it was


def test_percentages_have_one_digit(): assert as_percent(0.12345) == '12.3%'


@pytest.mark.parametrize('probs, labels', [
    ([[0.9] + [0.1/7]*7], [3]), (np.full((4, 8), 1/8), [0, 1, 2, 3]), (np.eye(8)[[1]], [0]),
    (np.full((5, 8), 1/8), [0]*5)])
def test_odd_sets_have_answers_too(probs, labels):
    p, y = np.asarray(probs), np.array(labels)
    m = measure(dict(final_probs=p, primary_probs=np.eye(8)[[7]*len(p)]), y, bootstrap=10)
    answers = [about(m) for about in QUESTIONS]
    json.dumps([m, answers, verdict(m), largest_confusions(m), crossfit(p, y)], allow_nan=False)


def test_sets_are_judged_by_the_fair_metric_and_only_where_there_are_some():
    kept = dict(coverage_labels_90=.9, set_size_labels_90=1.04)
    assert _about_sets({}) is None
    assert _about_sets(kept)['mood'] == 'good' and '1.04' in _about_sets(kept)['text']
    broken = kept | dict(crossfit_coverage_labels_90=.7, crossfit_set_size_labels_90=1.5)
    assert _about_sets(broken)['mood'] == 'good'
    assert _about_sets(broken | dict(fitted_here=True))['mood'] == 'bad'
    crossed = {k: v for k, v in broken.items() if k.startswith('crossfit')}
    assert _about_sets(crossed)['word'] == 'sets hold 70 of 100'


ALIKE = dict(shares_apart=.02, strangers=.05, stored_ece=.01, ece=.01, ece_floor_95=.05)


@pytest.mark.parametrize('more, word, mood', [
    ({}, 'yes', 'good'), (dict(shares_apart=.3), 'other shares', 'bad'),
    (dict(strangers=.5), 'strange faces', 'bad'), (dict(ece=.2), 'confidence is off', 'bad'),
    (dict(ece=.2, ece_floor_95=.3), 'yes', 'good'),
    (dict(shares_apart=.3, strangers=.5), 'other shares, strange faces', 'bad')])
def test_another_world_is_warned_of(metrics, more, word, mood):
    found = about_likeness(metrics | ALIKE | more)
    assert (found['word'], found['mood']) == (word, mood)


def test_what_was_done_to_the_answers_comes_first(metrics):
    done = dict(left_out=['fear', 'disgust'], prior='file')
    text = about_likeness(metrics | ALIKE | done)['text']
    assert text.startswith('fear and disgust do not occur here') and "own labels" in text
    assert about_likeness(metrics) is None
    assert about_likeness(metrics | done)['word'] == 'not known'
