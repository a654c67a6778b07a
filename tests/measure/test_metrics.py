"""Each metric against a value known by hand, or against another library's."""
import json
import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import rel_entr
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from torchmetrics.functional.classification import (
    binary_calibration_error, multiclass_calibration_error)

from grefel.base.core import EXPRESSIONS, GrefelError
from grefel.measure.metrics import (
    _class_metrics, _error_tables, _risk_metrics, accuracy_at_coverage, as_outcomes, bin_gaps,
    brier_values, calibration_error, calibration_floor, change_report, check_answers, check_probs,
    class_calibration, classification_metrics, classwise_error, confusion_counts, error_interval,
    nll_values, per_class_table, reliability_bins, resample_weights, risk_coverage,
    vote_divergence, wilson_interval)

HALF = [[0.5, 0.5]]


@pytest.mark.parametrize('probs, why', [
    ([0.5, 0.5], 'shape'), ([[1.0]], 'shape'), ([[[0.5, 0.5]]], 'shape'),
    (np.zeros((0, 8)), 'n ≥ 1'), ([[np.inf, 0]], 'row 0: NaN or infinity'),
    ([[0.5, np.nan]], 'NaN'), ([[2.1, -1.3]], 'row 0: outside 0 to 1'),
    ([[0.5, 0.5], [0.5, 0.8]], 'row 1: the sum is not 1'), ([[1.01, -0.01]], 'outside'),
    ([[0.5, 0.5], [50, 50]], 'row 1: outside')])
def test_what_is_no_probability_is_refused_by_row(probs, why):
    with pytest.raises(GrefelError, match=why): check_probs(probs)


@pytest.mark.parametrize('labels', [['a'], [0.5], [-1], [2], [np.nan], [None], 0, [[0]], [0, 1]])
def test_labels_that_cannot_be_are_refused_without_a_warning(labels):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(GrefelError, match='labels'): check_answers(HALF, labels)


def test_probabilities_of_16_bits_are_made_whole():
    half = np.random.default_rng(0).dirichlet(np.ones(8), 500).astype(np.float16)
    assert np.abs(half.astype(float).sum(1) - 1).max() > 1e-5
    assert_allclose(check_probs(half).sum(1), 1, atol=1e-12)


def test_whole_labels_may_be_floats():
    probs, labels = check_answers(HALF, np.array([1.0]))
    assert labels.dtype == np.int64 and probs.dtype == np.float64


@pytest.mark.parametrize('level', [0.95, 0.5])
@pytest.mark.parametrize('right, total', [(0, 1), (1, 1), (20, 20), (17, 20), (2600, 3191)])
def test_wilson_is_scipys(right, total, level):
    theirs = binomtest(right, total).proportion_ci(level, method='wilson')
    assert_allclose(wilson_interval(right, total, level), theirs, atol=1e-12)


def test_wilson_takes_arrays_and_knows_nothing_about_nothing():
    low, high = wilson_interval([0, 17], [0, 20])
    assert (low[0], high[0]) == (0, 1) and 0.6 < low[1] < 0.85 < high[1] < 1


def test_table_by_class_says_none_where_nothing_is_defined():
    answers = np.eye(4)[[0, 0, 1, 1, 3]]    # class 2: neither present nor answered; 3: not present
    rows = per_class_table(answers, [0, 0, 0, 1, 1], 'abcd')
    pick = [[r[k] for k in ('n', 'answered', 'precision', 'recall')] for r in rows]
    assert pick == [[3, 2, 1.0, 2/3], [2, 2, 0.5, 0.5], [0, 0, None, None], [0, 1, 0.0, None]]
    assert [r['f1'] for r in rows[2:]] == [None, 0.0]
    for row, right in zip(rows, (2, 1)):
        assert_allclose([row['recall_low'], row['recall_high']], wilson_interval(right, row['n']))
    assert [rows[2][k] for k in ('recall_low', 'recall_high')] == [None, None]


def test_confusion_has_labels_in_rows():
    assert_array_equal(confusion_counts(np.eye(3)[[1, 1, 2]], [0, 0, 2]),
                       [[0, 2, 0], [0, 0, 0], [0, 0, 1]])


def test_ece_by_hand():
    p = [[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.9, 0.1]]     # gaps 0.1 and 0.1
    assert calibration_error(p, [0, 1, 0, 0]) == pytest.approx(0.1)
    assert calibration_error(p, [0, 1, 0, 0], 2, equal_mass=True) == pytest.approx(0.1)


def test_a_bin_holds_its_upper_edge_and_not_its_lower_one():
    p = [[0.5, 0.5], [0.6, 0.4]]       # one half is the edge between two bins: the lower has it
    assert_array_equal(reliability_bins(p, [1, 0], bins=2)['count'], [1, 1])
    assert calibration_error(p, [1, 0], bins=2) == pytest.approx((0.5 + 0.4)/2)
    assert_array_equal(reliability_bins(np.eye(2), [0, 1], bins=4)['count'], [0, 0, 0, 2])


@pytest.mark.parametrize('bins', [5, 15, 40])
@pytest.mark.parametrize('who', ['calm', 'bold'])
def test_ece_is_torchmetrics(world, who, bins):
    p = getattr(world, who)
    theirs = multiclass_calibration_error(torch.tensor(p), torch.tensor(world.labels),
                                          num_classes=8, n_bins=bins)
    assert calibration_error(p, world.labels, bins) == pytest.approx(theirs.item(), abs=1e-5)


def test_equal_mass_is_scikit_learns(world):
    right = world.calm.argmax(1) == world.labels
    share, claimed = calibration_curve(right, world.calm.max(1), n_bins=8, strategy='quantile')
    assert calibration_error(world.calm, world.labels, 8, equal_mass=True) == pytest.approx(
        np.abs(share - claimed).mean(), abs=1e-12)
    assert np.ptp(reliability_bins(world.calm, world.labels, equal_mass=True)['count']) <= 1


def test_equal_widths_are_equal_masses_where_confidence_is_even():
    even = np.linspace(0.5, 1, 1001)[1:]
    even, coin = np.stack([even, 1 - even], 1), np.random.default_rng(0).integers(0, 2, 1000)
    assert calibration_error(even, coin, 10) == pytest.approx(
        calibration_error(even, coin, 5, equal_mass=True), abs=1e-9)


def test_equal_confidences_share_a_bin_of_equal_mass():
    assert calibration_error(np.full((40, 2), 0.5), np.arange(40) % 2, equal_mass=True) == 0


def test_bins_of_a_diagram_average_what_they_hold(world):
    b = reliability_bins(world.bold, world.labels)
    here = (world.bold.max(1) > b['edges'][9]) & (world.bold.max(1) <= b['edges'][10])
    right = (world.bold.argmax(1) == world.labels)[here]
    assert [b['count'][9], b['confidence'][9], b['accuracy'][9]] == pytest.approx(
        [here.sum(), world.bold.max(1)[here].mean(), right.mean()])
    assert_allclose([b['accuracy_low'][9], b['accuracy_high'][9]],
                    wilson_interval(right.sum(), len(right)))


def test_floor_is_the_mean_deviation_of_a_fair_coin():
    mean, high = calibration_floor(np.full((400, 2), 0.5), repeats=2000)
    assert mean == pytest.approx(0.5*np.sqrt(2/np.pi/400), rel=0.05)
    assert high == pytest.approx(1.96*0.5/20, rel=0.1)


def test_floor_divides_calibrated_from_over_confident(world):
    floor = calibration_floor(world.calm)[1]
    assert calibration_error(world.calm, world.labels) < floor
    assert floor < calibration_error(world.bold, world.labels)
    assert calibration_floor(np.eye(8)) == (0, 0)     # certainty leaves nothing to chance


def test_classwise_error_is_torchmetrics_class_by_class(world):
    theirs = [binary_calibration_error(torch.tensor(world.calm[:, c]),
                                       torch.tensor(world.labels == c).int(), n_bins=15).item()
              for c in range(8)]
    assert_allclose(classwise_error(world.calm, world.labels), theirs, atol=1e-6)


def test_classwise_error_by_votes_nears_that_by_truth(world):
    by_truth = classwise_error(world.bold, world.truth).mean()
    assert classwise_error(world.bold, world.votes).mean() == pytest.approx(by_truth, abs=0.004)


def test_outcomes_are_one_hot_labels_or_shares_of_votes():
    p = np.full((3, 2), 0.5)
    assert_array_equal(as_outcomes(p, [0, 1, 1])[1], [[1, 0], [0, 1], [0, 1]])
    probs, shares = as_outcomes(p, [[1, 3], [0, 0], [4, 0]])    # the second face has no votes
    assert_array_equal(shares, [[0.25, 0.75], [1, 0]])
    assert len(probs) == 2


def test_brier_and_nll_by_hand_and_by_scikit_learn(world):
    assert_allclose(brier_values([[0.6, 0.4], [0.6, 0.4]], [0, 1]), [0.32, 0.72])
    assert nll_values([[1, 0]], [1])[0] == pytest.approx(-np.log(1e-12))
    assert nll_values(world.bold, world.labels).mean() == pytest.approx(
        sk.log_loss(world.labels, world.bold))


def test_proper_scores_are_best_for_the_truth(world):
    for score in (brier_values, nll_values):
        assert score(world.truth, world.labels).mean() < score(world.bold, world.labels).mean()


def test_divergence_is_from_the_votes_to_the_model(world):
    kl, tv = vote_divergence([[0.6, 0.4], [0.5, 0.5], [1, 0]], [[6, 4], [10, 0], [0, 0]])
    assert_allclose(kl, [0, np.log(2), np.nan], atol=1e-9)      # exchanged, the second is infinite
    assert_allclose(tv, [0, 0.5, np.nan], atol=1e-12)
    assert_allclose(vote_divergence(world.bold, world.votes)[0],
                    rel_entr(world.votes/10, world.bold).sum(1), atol=1e-9)
    shares = world.votes/10
    assert_allclose(vote_divergence(world.bold, shares), vote_divergence(world.bold, world.votes))


def test_risk_over_coverage_by_hand():
    p = np.array([0.9, 0.8, 0.7, 0.6])
    curve = risk_coverage(np.stack([p, 1 - p], 1), [0, 0, 1, 0])    # the third answer is wrong
    assert_allclose(curve['risk'], [0, 0, 1/3, 1/4])
    assert_allclose(curve['coverage'], [1/4, 1/2, 3/4, 1])
    assert curve['aurc'] == pytest.approx((1/3 + 1/4)/4)
    assert curve['augrc'] == pytest.approx((1/2 + 1)/4/4)           # trapezoids, of all four faces
    assert [accuracy_at_coverage(curve, c) for c in (0.5, 0.6, 0.75)] == pytest.approx(
        [1, 2/3, 2/3])


def test_equal_confidences_cannot_be_told_apart():
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    for wrong in range(4):
        curve = risk_coverage(p, np.arange(4) == wrong, confidence=np.ones(4))
        assert_allclose(curve['risk'], [1/4]*4)


def test_resampled_metrics_are_those_of_the_resampled_rows(world):
    n, labels = world.n, world.labels
    w = next(resample_weights(n, 3, 0))
    row = np.repeat(np.arange(n), w[1].astype(int))
    tied = check_probs(np.round(world.calm, 1)/np.round(world.calm, 1).sum(1, keepdims=True))
    for q in (world.calm, world.bold, tied):
        y, a, by = labels[row], q.argmax(1), q.max(1)
        assert_allclose(_class_metrics(w, labels, a, 8)[:, 1],
                        [sk.balanced_accuracy_score(y, a[row]),
                         sk.f1_score(y, a[row], average='macro')])
        curve = risk_coverage(q[row], y, by[row])
        at = [accuracy_at_coverage(curve, c) for c in (0.8, 0.9, 0.95)]
        assert_allclose(_risk_metrics(w, by, (a == labels)*1.)[:, 1],
                        [curve['aurc'], curve['augrc'], *at],
                        atol=1e-9)


@pytest.mark.filterwarnings('ignore:y_pred contains classes not in y_true')
def test_classes_that_are_missing_do_not_count_and_answered_ones_do():
    labels, answers = np.array([0, 0, 1]), np.array([0, 2, 1])     # 2: answered only; 3: never
    found = _class_metrics(np.ones((1, 3)), labels, answers, 4)[:, 0]
    assert_allclose(found, [sk.balanced_accuracy_score(labels, answers),
                            sk.f1_score(labels, answers, average='macro', zero_division=0)])


def test_resamples_are_whole_repeatable_and_the_same_in_parts():
    whole = np.concatenate(list(resample_weights(50, 30, 4)))
    parts = list(resample_weights(50, 30, 4, at_once=7*50))
    assert len(parts) > 1 and whole.shape == (30, 50)
    assert_array_equal(whole, np.concatenate(parts))
    assert_array_equal(whole.sum(1), [50]*30)
    assert whole.std() == pytest.approx(1, abs=0.1)     # drawn with replacement: Poisson-like


def test_sums_of_gaps_are_the_calibration_error(world):
    for name, (gaps, scale) in _error_tables(world.bold, world.labels, world.votes).items():
        want = dict(ece=calibration_error(world.bold, world.labels),
                    ece_mass=calibration_error(world.bold, world.labels, equal_mass=True),
                    ece_classwise=classwise_error(world.bold, world.labels).mean(),
                    ece_votes=classwise_error(world.bold, world.votes).mean())[name]
        assert np.abs(gaps.sum(0)).sum()/scale == pytest.approx(want), name


def test_without_chance_the_interval_of_an_error_is_a_point():
    assert error_interval(np.array([3., -1.]), np.zeros((10, 2)), 10) == pytest.approx(
        (0.4, 0.4), abs=0.01)


def test_the_interval_of_a_calibrated_model_reaches_zero(world):
    gaps = bin_gaps(*as_outcomes(world.calm, world.labels))
    moves = np.concatenate([(w - 1) @ gaps for w in resample_weights(world.n, 200, 0)])
    low, high = error_interval(gaps.sum(0), moves, 8*world.n)
    measured = np.abs(gaps.sum(0)).sum()/(8*world.n)
    assert low < 0.2*measured and high >= measured


def test_correction_is_counted_by_hand():
    before, after = np.eye(3)[[0, 1, 2, 0, 1, 0]], np.eye(3)[[0, 2, 1, 1, 0, 0]]
    report = change_report(before, after, [0, 2, 2, 2, 0, 1])   # the last stays wrong
    assert [report[k] for k in ('changed', 'helped', 'hurt', 'neutral')] == [4, 2, 1, 1]
    assert [report[f'{k}_rate'] for k in ('change', 'helped', 'hurt')] == [4/6, 2/6, 1/6]
    assert (report['primary_accuracy'], report['final_accuracy']) == (2/6, 3/6)
    assert [r['n'] for r in report['change_by_class']] == [2, 1, 3]
    assert [r['helped'] for r in report['change_by_class']] == [1, 0, 1]
    assert [r['n'] for r in report['change_by_confidence']] == [0, 0, 0, 6]   # 1 is in the last


def test_bands_of_confidence_hold_their_lower_edge():
    p = np.array([[0.5, 0.5], [0.7, 0.3], [0.9, 0.1], [0.89, 0.11]])
    report = change_report(p, p[:, ::-1], [0]*4, classes=['yes', 'no'])
    assert [r['n'] for r in report['change_by_confidence']] == [0, 1, 2, 1]
    assert report['change_by_class'][0]['class'] == 'yes'


def test_p_value_of_a_correction_is_the_sign_test(world):
    noisy = check_probs(world.truth**0.5/(world.truth**0.5).sum(1, keepdims=True))
    noisy = np.roll(noisy, 1, 0)*0.3 + noisy*0.7
    report = change_report(noisy, world.truth, world.labels)
    assert report['helped'] > report['hurt'] > 0
    assert report['p_value'] == binomtest(report['helped'],
                                          report['helped'] + report['hurt']).pvalue < 1e-3
    same = change_report(world.truth, world.bold, world.labels)     # sharpening changes no answer
    assert (same['changed'], same['p_value']) == (0, 1)


def test_every_metric_but_the_floor_has_an_interval_that_holds_it(world):
    m = classification_metrics(world.bold, world.labels, EXPRESSIONS, world.votes, bootstrap=50)
    for k in (k for k in m if not k.endswith(('_low', '_high'))):
        if k == 'n' or k.startswith('ece_floor'): assert f'{k}_low' not in m
        else: assert m[f'{k}_low'] <= m[k] <= m[f'{k}_high'], k
    for k in ('ece', 'ece_mass', 'ece_classwise', 'ece_votes'):    # far off, so not 0
        assert 0.5*m[k] < m[f'{k}_low'] and m[f'{k}_high'] < 1.5*m[k], k


def test_interval_of_a_mean_is_that_of_statistics(world):
    m = classification_metrics(world.calm, world.labels, bootstrap=1000)
    reach = 1.96*nll_values(world.calm, world.labels).std()/np.sqrt(world.n)
    assert [m['nll_low'] - m['nll'], m['nll_high'] - m['nll']] == pytest.approx(
        [-reach, reach], rel=0.12)


def test_metrics_agree_with_the_functions_they_are_made_of(world):
    p, y = world.bold, world.labels
    m, curve = classification_metrics(p, y, votes=world.votes), risk_coverage(p, y)
    kl, tv = vote_divergence(p, world.votes)
    want = dict(accuracy=sk.accuracy_score(y, p.argmax(1)), aurc=curve['aurc'],
                augrc=curve['augrc'],
                balanced_accuracy=sk.balanced_accuracy_score(y, p.argmax(1)),
                macro_f1=sk.f1_score(y, p.argmax(1), average='macro'),
                accuracy_at_90=accuracy_at_coverage(curve, 0.9), mean_confidence=p.max(1).mean(),
                brier=brier_values(p, y).mean(), nll=nll_values(p, y).mean(),
                kl_votes=kl.mean(), tv_votes=tv.mean(), ece=calibration_error(p, y),
                ece_floor=calibration_floor(p)[0])
    assert {k: m[k] for k in want} == pytest.approx(want)


def test_the_order_of_rows_has_no_effect(world):
    tied = np.round(world.calm, 1)/np.round(world.calm, 1).sum(1, keepdims=True)
    order = np.random.default_rng(5).permutation(world.n)
    for p in (world.calm, tied):
        one = classification_metrics(p, world.labels)
        two = classification_metrics(p[order], world.labels[order])
        for k in one:
            if not k.startswith('ece_floor'): assert one[k] == pytest.approx(two[k], abs=1e-12), k


def test_the_same_seed_gives_the_same_intervals(world):
    p, y = world.calm[:300], world.labels[:300]
    one, two, other = (classification_metrics(p, y, bootstrap=30, seed=s) for s in (0, 0, 1))
    assert one == two != other


def test_faces_without_votes_do_not_count(world):
    votes = np.where(np.arange(world.n)[:, None] < 100, world.votes, 0)
    few = classification_metrics(world.calm[:100], world.labels[:100], votes=world.votes[:100])
    m = classification_metrics(world.calm, world.labels, votes=votes)
    for k in ('ece_votes', 'kl_votes', 'tv_votes'): assert m[k] == pytest.approx(few[k]), k
    none = classification_metrics(world.calm[:3], world.labels[:3], votes=np.zeros((3, 8)))
    assert 'kl_votes' not in none and 'ece_votes' not in none


@pytest.mark.parametrize('probs, labels', [
    ([[0.9, 0.1]], [0]), ([[0.9, 0.1]], [1]), (np.eye(8)[[1, 1, 2]], [1, 1, 1]),
    (np.full((50, 8), 1/8), np.zeros(50, int))])
def test_odd_sets_give_numbers_for_json_and_no_warning(probs, labels):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found = [classification_metrics(probs, labels, bootstrap=20),
                 per_class_table(probs, labels, EXPRESSIONS[:np.shape(probs)[1]]),
                 change_report(probs, probs, labels)]
    json.dumps(found, allow_nan=False)


def test_calibration_of_single_classes_has_their_errors_and_intervals(world):
    error, low, high = class_calibration(world.bold, world.votes, 100)
    assert_allclose(error, classwise_error(world.bold, world.votes), atol=1e-12)
    assert (low <= error).all() and (error <= high).all() and (low > 0).any()


@pytest.mark.parametrize('wrong', [
    lambda w: classification_metrics(w.calm, w.labels[:5]),
    lambda w: classification_metrics(w.calm, w.labels, ('a', 'b')),
    lambda w: vote_divergence(w.calm, w.votes[:, :5]), lambda w: vote_divergence(w.calm, -w.votes),
    lambda w: vote_divergence(w.calm, w.votes*np.nan),
    lambda w: risk_coverage(w.calm, w.labels, np.full(w.n, np.nan)),
    lambda w: risk_coverage(w.calm, w.labels, np.ones(3)),
    lambda w: change_report(w.calm, w.calm[:, :7], w.labels),
    lambda w: per_class_table(w.calm, w.labels, ('a',))])
def test_what_does_not_belong_together_is_refused(world, wrong):
    with pytest.raises(GrefelError): wrong(world)
