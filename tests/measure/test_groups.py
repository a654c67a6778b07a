"""Columns become groups, and only differences that chance does not explain are found."""
import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from grefel.base.core import GrefelError
from grefel.measure import groups as room
from grefel.measure.groups import (
    LEAST_FACES, all_groups, as_groups, group_columns, group_report, permutation_p)
from grefel.measure.metrics import calibration_error, calibration_floor, wilson_interval


@pytest.mark.parametrize('lowest, sizes', [(20, [50]*4), (120, [30, 50, 120]), (180, [20, 180])])
def test_bands_hold_equally_many_faces_and_the_minimum_is_one_band(lowest, sizes):
    bands = as_groups(np.arange(1, 201).clip(lowest))
    assert sorted(np.unique(bands, return_counts=True)[1]) == sizes


def test_names_of_bands_tell_close_numbers_apart():
    months = np.repeat(202301 + np.arange(16), 5)              # they differ in the sixth digit
    assert sorted(set(as_groups(months))) == ['202305 to below 202309', '202309 to below 202313',
                                              '202313 and more', 'below 202305']
    assert 'below 20.2305' in as_groups(months/1e4)


def test_numbers_read_as_texts_make_the_same_bands():
    ages = np.r_[np.arange(18, 90), np.nan]
    bands = as_groups(ages)
    assert bands[-1] == '' and len(set(bands)) == 5
    assert_array_equal(as_groups(['' if np.isnan(a) else str(a) for a in ages]), bands)


@pytest.mark.parametrize('values, want', [
    (['f', ' m', None, 'nan'], ['f', 'm', '', '']), ([1, 2, 1], ['1', '2', '1']),
    ([20., 30., np.nan], ['20', '30', '']), ([True, False], ['True', 'False']),
    (np.zeros((4, 2)), None), ([1]*4, None), ([f'face {i}' for i in range(40)], None)])
def test_what_is_a_grouping(values, want):
    found = as_groups(values)
    assert found is None if want is None else found.tolist() == want


def test_columns_that_name_persons_or_repeat_the_label_are_left_out():
    columns = dict(sex=['f', 'm'], subject=['a', 'b'], label=[0, 1], one=[1, 1])
    assert list(group_columns(columns)) == ['sex']
    assert list(group_columns(columns, ['subject'])) == ['subject']     # unless asked for
    with pytest.raises(GrefelError, match="no column 'race'; the faces have sex"):
        group_columns(columns, ['race'])
    with pytest.raises(GrefelError, match='does not divide'): group_columns(columns, ['one'])


def test_shuffles_find_a_difference_and_leave_chance_alone():
    rng = np.random.default_rng(0)
    group, one = rng.integers(0, 3, 300), np.zeros(300, int)
    chance = [permutation_p(rng.random(300), group, one, 100, s) for s in range(60)]
    assert np.mean(np.array(chance) < 0.05) < 0.15 and np.median(chance) > 0.2
    assert permutation_p(rng.normal(group == 1, 1), group, one) == 1/1001


def test_shuffles_stay_within_strata():
    group = np.repeat([0, 1], 50)
    assert permutation_p(group*1., group, group, 99) == 1          # the strata explain it all
    assert permutation_p(group*1., group, np.zeros(100, int), 99) == 0.01


@pytest.fixture
def easy():
    "Class 0 is easy (95%), class 1 hard (60%); groups differ in their mixture of classes only."
    rng, y = np.random.default_rng(3), np.repeat([0, 1], 300)
    right = rng.random(600) < np.where(y == 0, 0.95, 0.6)
    probs = np.full((600, 2), 0.2)
    probs[np.arange(600), np.where(right, y, 1 - y)] = 0.8
    mixed = np.where(rng.random(600) < 0.2, np.where(y == 0, 'b', 'a'), np.where(y == 0, 'a', 'b'))
    return probs, y, mixed


def test_other_labels_are_no_bias(easy):
    report = group_report(*easy, 300)
    a, b = (r['accuracy'] for r in report['groups'])
    assert abs(a - b) > 0.1 and report['p_accuracy'] > 0.05
    assert all(abs(r['accuracy'] - r['expected']) < 0.05 for r in report['groups'])


def test_a_group_with_easy_labels_that_is_served_worse_is_found(easy):
    _, y, mixed = easy                      # its accuracy is still the higher one
    right = np.random.default_rng(0).random(600) < np.where(y == 0, .95, .5) - .2*(mixed == 'a')
    probs = np.eye(2)[np.where(right, y, 1 - y)]
    report = group_report(probs, y, mixed, 200)
    a, b = (r['accuracy'] for r in report['groups'])
    assert a > b and report['worst'] == 'a' and report['shortfall'] > 0.03
    assert report['p_accuracy'] < 0.01


def test_rows_hold_what_is_true_of_their_faces(easy):
    probs, y, mixed = easy
    row, here = group_report(*easy, 50)['groups'][0], mixed == 'a'
    right = (probs.argmax(1) == y)[here]
    assert (row['group'], row['n']) == ('a', here.sum())
    assert row['accuracy'] == right.mean()
    low, high = wilson_interval(right.sum(), here.sum())
    assert (row['accuracy_low'], row['accuracy_high']) == (low, high)
    assert row['ece'] == pytest.approx(calibration_error(probs[here], y[here]))
    assert row['ece_low'] <= row['ece'] <= row['ece_high']
    assert row['ece_floor_95'] == calibration_floor(probs[here])[1]
    off = group_report(np.eye(2)[probs.argmax(1)], y, mixed, 50)['groups'][0]    # far too sure
    assert off['ece_low'] > 0.5*off['ece'] > 0.04


def test_faces_without_a_group_are_set_aside(easy):
    probs, y, mixed = easy
    mixed = mixed.copy()
    mixed[:5] = ''
    report = group_report(probs, y, mixed, 30)
    assert report['unknown'] == 5 and sum(r['n'] for r in report['groups']) == 595
    json.dumps(report, allow_nan=False)


def test_a_handful_of_faces_is_never_the_worst_group():
    y, sides = np.zeros(100, int), np.array(['a']*60 + ['b']*38 + ['c']*2)
    answers = np.where((sides == 'c') | (np.arange(100) >= 90), 1, 0)     # c fails, b sometimes
    report = group_report(np.eye(2)[answers], y, sides, 20)
    assert min(r['n'] for r in report['groups']) < LEAST_FACES and report['worst'] == 'b'
    tiny = group_report(np.eye(2)[answers[[0, 99]]], y[:2], sides[[0, 99]], 20)
    assert tiny['worst'] == 'c'                                           # unless all are small


@pytest.mark.parametrize('columns, found', [(1, True), (2, False)])
def test_more_columns_ask_for_a_smaller_p(monkeypatch, easy, columns, found):
    # two tests a column: 5% is divided by 2 and by 4
    monkeypatch.setattr(room, 'permutation_p', lambda *args: 0.02)
    probs, y, mixed = easy
    reports = all_groups(probs, y, {str(i): mixed for i in range(columns)}, 20)
    assert [r['found_accuracy'] for r in reports.values()] == [found]*columns
    assert [r['found_confidence'] for r in reports.values()] == [found]*columns


@pytest.mark.parametrize('columns', [1, 9])
def test_few_resamples_find_what_cannot_be_missed(easy, columns):
    _, y, _ = easy
    sides = np.where(np.arange(600) % 2, 'b', 'a')
    answers = np.eye(2)[np.where(sides == 'a', y, 1 - y)]                 # all right, all wrong
    reports = all_groups(answers, y, {str(i): sides for i in range(columns)}, 20)
    assert [(r['found_accuracy'], r['worst']) for r in reports.values()] == [(True, 'b')]*columns


def test_what_cannot_be_grouped_is_refused(easy):
    probs, y, mixed = easy
    with pytest.raises(GrefelError, match='groups of shape'): group_report(probs, y, mixed[:4])
    with pytest.raises(GrefelError, match='two groups'): group_report(probs, y, np.full(600, 'a'))
    assert all_groups(probs, y, {}) == {}
