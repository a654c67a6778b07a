"""Temperatures, folds, thresholds and logit adjustment, each against a value worked out by hand."""
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import binom

from grefel.base.core import GrefelError
from grefel.measure.calibration import (
    NEVER, apply_temperature, between_0_and_1, calibration_notes, calibration_report, cross_fit,
    few_faces_warning, fewest_answers, fit_temperature, logit_adjustment, make_folds,
    risk_thresholds, same_images, temperature_interval, training_shares)
from tests.measure.worlds import known_world


def test_a_temperature_undoes_its_own_sharpening(world):
    assert_allclose(apply_temperature(world.bold, 2), world.truth, rtol=0, atol=1e-5)
    assert_allclose(apply_temperature([[0.8, 0.2]], 0.5), [[16/17, 1/17]])


def test_temperature_one_leaves_everything_alone(world):
    assert apply_temperature(world.bold, 1) is world.bold
    assert apply_temperature(world.bold.astype('f4'), 2).dtype == np.float32


def test_heat_levels_and_cold_decides_but_no_answer_changes(world):
    assert_allclose(apply_temperature(world.bold, 1e6), 1/8, atol=1e-4)
    assert apply_temperature(world.bold, 0.01).max(1).mean() > 0.98
    assert_array_equal(apply_temperature(world.bold, 7).argmax(1), world.bold.argmax(1))


@pytest.mark.parametrize('t', [0, -1, np.nan, np.inf])
def test_temperatures_that_cannot_be_are_refused(world, t):
    with pytest.raises(GrefelError, match='above 0'): apply_temperature(world.bold, t)


def test_the_right_temperature_is_found_from_labels_votes_and_logits(world):
    found = fit_temperature(world.bold, world.labels)
    assert found == pytest.approx(2, abs=0.2)
    assert fit_temperature(world.bold, world.votes) == pytest.approx(2, abs=0.08)
    assert fit_temperature(world.truth, world.votes) == pytest.approx(1, abs=0.05)
    for constant in (5, 60):                    # makes no difference; with 60 all are above 0
        logits = np.log(world.bold.clip(1e-12)) + constant
        assert fit_temperature(logits, world.labels) == pytest.approx(found, abs=1e-3)


def test_images_are_grouped_by_their_pixels():
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), np.uint8)[[0, 1, 2, 1, 4, 0]]
    groups = same_images(images)
    assert len(set(groups)) == 4 and groups[0] == groups[5] and groups[1] == groups[3]


def test_folds_divide_classes_evenly_and_groups_not_at_all():
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 4, 600), rng.integers(0, 200, 600)
    fold = make_folds(labels, groups)
    assert all(len(set(fold[groups == g])) == 1 for g in set(groups))
    alone = make_folds(labels)
    assert np.ptp(np.bincount(alone)) <= 1
    assert all(np.ptp(np.bincount(alone[labels == c], minlength=5)) <= 1 for c in range(4))
    assert (make_folds(labels, seed=1) != alone).any()
    assert_array_equal(make_folds(labels), alone)


@pytest.mark.parametrize('labels, groups, why', [
    ([0, 1, 0], None, 'cannot fill'), ([0]*9, [1]*9, '1 different faces cannot fill'),
    ([0]*9, [1]*5, '5 groups for 9 labels')])
def test_folds_that_cannot_be_filled_are_refused(labels, groups, why):
    with pytest.raises(GrefelError, match=why): make_folds(labels, groups)


def test_a_face_is_tempered_by_other_faces_alone():
    p, labels, _ = known_world(300, 0.5)
    fold = make_folds(labels)
    tempered, temperatures = cross_fit(p, labels, fold)
    here, spoilt = fold == 2, labels.copy()
    spoilt[here] = (labels[here] + 3) % 8            # other labels here change nothing here …
    again, others = cross_fit(p, spoilt, fold)
    assert_array_equal(again[here], tempered[here])
    assert others[2] == temperatures[2]
    assert not np.allclose(again[~here], tempered[~here])        # … and everything elsewhere
    assert_allclose(tempered[here], apply_temperature(p[here],
                                                      fit_temperature(p[~here], labels[~here])))


def test_report_judges_before_and_after_and_keeps_answers(world):
    report = calibration_report(world.bold, world.labels, world.votes)
    before, after = report['before'], report['after']
    assert before['accuracy'] == after['accuracy']
    assert after['ece'] < after['ece_floor_95'] < before['ece']
    assert after['kl_votes'] < before['kl_votes']
    assert report['temperature_low'] <= report['temperature'] <= report['temperature_high']
    assert report['temperature'] == fit_temperature(world.bold, world.labels)


@pytest.mark.parametrize('n, safe', [(58, False), (59, True)])
def test_a_threshold_needs_as_many_faces_as_clopper_and_pearson_say(n, safe):
    # all right at one confidence: the bound is 1 − 0.05^(1/n), which 0.05 holds from 59 faces on
    want = [0.05, 0.8, 1.0] if safe else [0.05, NEVER, 0.0]
    assert risk_thresholds(np.full(n, 0.8), np.ones(n, bool), (0.05,)) == [want]


@pytest.mark.parametrize('risk, mistakes', [(.01, 0), (.05, 0), (.05, 2), (.15, 2), (.5, 7)])
def test_fewest_answers_prove_a_risk_and_one_fewer_does_not(risk, mistakes):
    k = fewest_answers(risk, .05, mistakes)
    assert binom.cdf(mistakes, k, risk) <= .05 < binom.cdf(mistakes, k - 1, risk)


def test_a_probability_of_exactly_delta_is_proof_enough():
    # two right answers happen by chance in exactly a quarter of cases where half are wrong
    assert risk_thresholds([.9, .9], [True, True], (.5,), level=.75) == [[.5, .9, 1.]]


def test_the_walk_starts_where_two_mistakes_are_forgiven_and_stops_at_the_first_failure():
    confidence = np.linspace(.99, .2, 2000)
    right = np.ones(2000, bool)
    right[[0, 50]] = False                       # the very first is wrong; 124 forgive two
    right[400:440] = False                       # a bad patch, after which all are right again
    wrong, taken = (~right).cumsum(), np.arange(1, 2001)
    proven = binom.cdf(wrong, taken, .05) <= .05
    threshold, coverage = risk_thresholds(confidence, right, (.05,))[0][1:]
    last = round(coverage*2000) - 1
    assert proven[-1] and 400 < last < 440 and threshold == confidence[last]
    assert proven[123:last + 1].all() and not proven[last + 1]
    right[:4] = False
    assert risk_thresholds(confidence[:300], right[:300], (.05,))[0][1] == NEVER


ERRORS = {'falls': lambda c: .4*(1 - c)**2 + .01, 'flat, just above': lambda c: .051 + 0*c,
          'a bad patch': lambda c: np.where(np.abs(c - .6) < .1, .2, .03),
          'jumps': lambda c: np.where(c > .7, .02, .12)}

@pytest.mark.parametrize('world', ERRORS)
def test_a_promised_risk_is_broken_in_at_most_five_of_a_hundred_draws(world):
    fine, rng, draws, broken, naive = np.linspace(1, 0, 20_001), np.random.default_rng(0), 400, 0, 0
    true = ERRORS[world](fine).cumsum()/np.arange(1, 20_002)            # above each confidence
    def above(threshold): return true[np.searchsorted(-fine, -threshold, 'right') - 1]
    for _ in range(draws):
        c = rng.random(600)
        right = rng.random(600) >= ERRORS[world](c)
        threshold = risk_thresholds(c, right, (.05,))[0][1]
        broken += threshold <= 1 and above(threshold) > .05
        order = np.argsort(-c)
        seen = np.flatnonzero((~right[order]).cumsum()/np.arange(1, 601) <= .05)
        naive += len(seen) > 0 and above(c[order][seen[-1]]) > .05
    assert broken <= binom.ppf(.999, draws, .05)                  # 35; 20 are expected at most
    assert naive > .3*draws                                             # what it would be otherwise


def test_thresholds_cover_what_they_say_and_keep_their_promise_here():
    q, y, _ = known_world(3000, seed=5, spread=4)
    sure, right = q.max(1), q.argmax(1) == y
    rows = risk_thresholds(sure, right)
    assert [r[0] for r in rows] == [0.01, 0.02, 0.05, 0.1, 0.15]
    for risk, threshold, coverage in rows:
        chosen = sure >= threshold
        assert coverage == pytest.approx(chosen.mean())
        if chosen.any(): assert (~right[chosen]).mean() < risk
    assert rows[-1][2] > rows[2][2] > 0.2


@pytest.mark.parametrize('confidence, right', [
    ([], []), ([0.5], [True, False]), ([np.nan], [True]), ([[0.5]], [[True]])])
def test_thresholds_of_nonsense_are_refused(confidence, right):
    with pytest.raises(GrefelError): risk_thresholds(confidence, right)


def test_adjustment_divides_by_the_training_shares():
    # one class three times as frequent in training: alike before, the rare one is ahead after
    assert_allclose(logit_adjustment([[0.5, 0.5]], [3, 1]), [[0.25, 0.75]])
    assert_allclose(logit_adjustment([[0.5, 0.5]], [4, 1], 0.5), [[1/3, 2/3]])


def test_parts_of_an_adjustment_add_up_on_any_scale(world):
    shares = np.geomspace(1000, 10, 8)
    once = logit_adjustment(world.calm, shares)
    assert_allclose(logit_adjustment(logit_adjustment(world.calm, shares, .3), shares, .7), once)
    assert_allclose(logit_adjustment(world.calm, 10*shares), once)
    assert logit_adjustment(world.calm, shares, 0) is world.calm
    assert logit_adjustment(world.calm.astype('f4'), shares, .3).dtype == np.float32


def test_a_class_never_seen_in_training_does_not_take_over(world):
    assert logit_adjustment(world.calm, [0]*7 + [5]).max() < 1


def test_adjustment_asks_for_a_share_of_every_class(world):
    with pytest.raises(GrefelError, match='3 shares'): logit_adjustment(world.calm, [1, 2, 3])


@pytest.mark.parametrize('value', [np.nan, -.1, 1.1, 2, 'much', None])
def test_shares_lie_between_0_and_1(value):
    with pytest.raises(GrefelError, match='tau lies between 0 and 1'): between_0_and_1(value, 'tau')


def test_training_shares_prefer_what_was_learned_to_counts():
    train = dict(per_class=[3, 4])
    assert training_shares(dict(data=dict(train=train))) == [3, 4]
    assert training_shares(dict(data=dict(train=train | dict(share=[.4, .6])))) == [.4, .6]


@pytest.mark.parametrize('metadata', [
    None, {}, dict(data=None), dict(data=dict(train=[1])),
    dict(data=dict(train=dict(per_class=['many']))), dict(data=dict(train=dict(per_class=[-1, 2]))),
    dict(data=dict(train=dict(per_class=[0, 0]))), dict(data=dict(train=dict(per_class=[])))])
def test_files_without_usable_shares_say_so(metadata):
    with pytest.raises(GrefelError, match='do not say how often'): training_shares(metadata)


@pytest.mark.parametrize('recipe', [dict(balanced=.5), dict(class_weights=1)])
def test_weights_that_favour_rare_classes_already_are_not_adjusted_again(recipe):
    notes = dict(data=dict(train=dict(per_class=[3, 4])), recipe=recipe)
    with pytest.raises(GrefelError, match='favoured already'): training_shares(notes)


def test_notes_hold_thresholds_of_the_tempered_answers(world):
    notes = calibration_notes(world.bold, world.labels, 'a known world', world.votes)
    tempered = apply_temperature(world.bold, notes['temperature'])
    assert notes['risk'] == risk_thresholds(tempered.max(1), tempered.argmax(1) == world.labels)
    assert notes['risk_from'].startswith('a known world, 2,000 faces')
    assert notes['calibration']['ece'][0] > notes['calibration']['ece'][1]
    assert {'kl_votes', 'temperatures'} <= set(notes['calibration'])


@pytest.mark.parametrize('n, right', [(5, True), (12, True), (30, True), (3, False), (5, False)])
def test_a_few_faces_do_not_move_a_temperature_far(n, right):
    "However well or badly they are answered."
    sure = np.full((n, 8), .01)
    sure[:, 0] = .93
    labels = np.zeros(n, int) if right else np.ones(n, int)
    alone, kept = (fit_temperature(sure, labels, towards=t) for t in (None, 1.))
    assert alone < .3 if right else alone > 5
    assert abs(np.log(kept)) < abs(np.log(alone))/3
    assert apply_temperature(sure, kept).max() < .985
    assert fit_temperature(sure, labels, towards=.7) < kept            # towards what is stored


def test_many_faces_decide_alone(world):
    free, kept = (fit_temperature(world.bold, world.labels, towards=t) for t in (None, .5))
    assert kept == pytest.approx(free, rel=.03)


def test_the_interval_of_a_temperature_holds_it_and_shrinks_with_faces():
    inside, widths = 0, []
    for seed in range(40):
        q, y, _ = known_world(150, .5, seed=seed)
        low, high = temperature_interval(q, y, fit_temperature(q, y))
        inside += low < 2 < high
    assert inside >= 34                                                # of 40, 38 expected
    for n in (50, 200, 800):
        q, y, _ = known_world(n, .5, seed=1)
        widths.append(np.log(np.divide(*temperature_interval(q, y, fit_temperature(q, y))[::-1])))
    assert widths[0] > 1.6*widths[1] > 1.6*1.6*widths[2]


def test_notes_of_few_faces_warn_and_of_many_do_not(world):
    few = calibration_notes(world.calm[:30], world.labels[:30], 'a few faces')
    assert few['calibration']['warning'].startswith('30 faces say little')
    low, high = few['calibration']['interval']
    assert low < few['temperature'] < high
    many = calibration_notes(world.bold, world.labels, 'many', stored=.8)
    assert 'warning' not in many['calibration'] and few_faces_warning(9, 1, 1.4) is None
    assert many['temperature'] == fit_temperature(world.bold, world.labels, towards=.8)
