"""Prediction sets: quantiles by hand, the promise kept, the same thresholds as MAPIE's."""
import json

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from grefel.base.core import EXPRESSIONS, GrefelError
from grefel.measure.calibration import make_folds
from grefel.measure.sets import (
    PROMISES, aps_scores, apply_sets, conformal_quantile, coverage_and_size, covered,
    crossfit_sets, fit_sets, fit_threshold, lac_scores, name_sets, prediction_sets, raps_scores,
    set_in_words, set_metrics)


@pytest.mark.parametrize('n, coverage, place', [
    (9, .9, 9), (8, .9, None), (9, .5, 5), (9, .51, 6), (99, .95, 95), (19, .95, 19),
    (18, .95, None), (1, .5, 1), (1, .51, None), (4, .8, 4), (0, .5, None)])
def test_the_quantile_counts_the_new_face(n, coverage, place):
    scores = np.random.default_rng(0).permutation(np.arange(1, n + 1))
    assert conformal_quantile(scores, coverage) == (np.inf if place is None else place)


@pytest.mark.parametrize('coverage', [0, 1, -.1, 1.5, np.nan, 'most'])
def test_a_coverage_that_promises_nothing_or_too_much_is_refused(coverage):
    with pytest.raises(GrefelError, match='coverage'): conformal_quantile([1, 2], coverage)


def test_weights_of_a_quantile_are_repetitions():
    rng = np.random.default_rng(0)
    scores, times = rng.random(40), rng.integers(0, 4, 40)
    assert conformal_quantile(scores, .8, times) == conformal_quantile(np.repeat(scores, times), .8)


def test_scores_by_hand():
    p = np.array([[.1, .6, .3]])
    assert_allclose(lac_scores(p), [[.9, .4, .7]])
    assert_allclose(aps_scores(p), [[1, .6, .9]])
    assert_allclose(aps_scores(p, .5), [[.95, .3, .75]])
    assert_allclose(raps_scores(p, .1, 1), [[1.2, .6, 1]])
    assert_allclose(raps_scores(p, .1, 2, np.array([.5])), [[1.05, .3, .75]])


@pytest.mark.parametrize('name', ['lac', 'aps'])
@pytest.mark.parametrize('coverage', [.8, .9, .95])
def test_sets_equal_those_of_mapie(world, name, coverage):
    "On the same scores; APS there takes a random part of the last step away when it calibrates."
    mapie = pytest.importorskip('mapie.classification')
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Fixed(ClassifierMixin, BaseEstimator):
        "Its input is its answer."
        classes_, fitted_ = np.arange(8), True
        def fit(self, x, y): return self
        def predict_proba(self, x): return np.asarray(x)
        def predict(self, x): return np.asarray(x).argmax(1)

    p, y = world.calm, world.labels
    theirs = mapie.SplitConformalClassifier(Fixed(), coverage, name, prefit=True, random_state=3)
    theirs.conformalize(p[:1000], y[:1000])
    how = {} if name == 'lac' else dict(conformity_score_params=dict(include_last_label=False))
    members = theirs.predict_set(p[1000:], **how)[1][:, :, 0]
    u = np.random.RandomState(3).uniform(size=1000)
    fit = dict(lac=lac_scores, aps=lambda q: aps_scores(q, u))[name]
    threshold = fit_threshold(p[:1000], y[:1000], coverage, fit)
    ours = prediction_sets(p[1000:], threshold, name, keep_best=name == 'aps')
    assert_array_equal(ours, members)


def test_raps_scores_equal_those_of_mapie(world):
    raps = pytest.importorskip('mapie.conformity_scores.sets.raps').RAPSConformityScore
    p, y = world.calm[:200], world.labels[:200]
    added, rank = raps.get_true_label_cumsum_proba(y, p, np.arange(8))
    for penalty, free in ((.1, 1), (.02, 3)):
        theirs = raps._regularize_conformity_score(np.array([free]), penalty, added, rank)
        assert_allclose(raps_scores(p, penalty, free)[np.arange(200), y], theirs[:, 0, 0])


@pytest.mark.parametrize('by_class', [False, True])
@pytest.mark.parametrize('score', ['lac', 'aps', 'raps'])
def test_the_promise_about_labels_is_kept_on_new_faces(world, score, by_class):
    half = world.n//2
    threshold = fit_threshold(world.bold[:half], world.labels[:half], .9, score, by_class)
    members = prediction_sets(world.bold[half:], threshold, score, keep_best=False)
    hit = covered(members, world.labels[half:])
    assert .87 < hit.mean() < .935
    if by_class: assert min(hit[world.labels[half:] == c].mean() for c in range(8)) > .78


def test_labels_of_a_vote_undercover_and_votes_do_not(world):
    half, winners = world.n//2, world.votes.argmax(1)
    def said(targets):
        m = prediction_sets(world.calm[half:], fit_threshold(world.calm[:half], targets[:half]))
        return covered(m, world.truth[half:]).mean()
    assert said(winners) < .87
    assert said(world.votes) == pytest.approx(.9, abs=.02)


def test_votes_are_what_sampling_many_labels_comes_to(world):
    p, votes = world.calm[:300], world.votes[:300]
    draws = np.random.default_rng(0).multinomial(5000, votes/votes.sum(1, keepdims=True))
    assert conformal_quantile(lac_scores(p), .9, draws/5000) == pytest.approx(
        fit_threshold(p, votes), abs=.01)
    assert fit_threshold(p, votes) == fit_threshold(p, 3*votes)        # shares, not counts


def test_expected_coverage_of_votes_holds_at_tiny_sizes(world):
    "Conformal risk control: a mean over many draws of nineteen faces keeps the promise."
    rng, kept = np.random.default_rng(1), []
    for _ in range(400):
        row = rng.permutation(world.n)[:20]
        old, new = row[:19], row[19:]
        m = prediction_sets(world.bold[new], fit_threshold(world.bold[old], world.votes[old], .8),
                            keep_best=False)
        kept.append(covered(m, world.votes[new])[0])
    assert .79 < np.mean(kept) < .9


def test_faces_without_votes_do_not_count(world):
    votes = world.votes[:50].copy()
    votes[::2] = 0
    assert fit_threshold(world.calm[:50], votes) == fit_threshold(world.calm[1:50:2], votes[1::2])
    assert len(covered(np.ones((50, 8), bool), votes)) == 25


def test_the_best_class_is_always_in_unless_told_otherwise(world):
    assert_array_equal(prediction_sets(world.calm, 0.).sum(1), 1)
    assert prediction_sets(world.calm, 0.)[np.arange(world.n), world.calm.argmax(1)].all()
    assert not prediction_sets(world.calm, 0., keep_best=False).any()
    assert prediction_sets(world.calm, np.inf).all()


def test_a_class_with_too_few_faces_is_in_every_set(world):
    labels = np.r_[np.zeros(60, int), np.full(5, 1)]
    threshold = fit_threshold(world.calm[:65], labels, by_class=True)
    assert np.isfinite(threshold[0]) and threshold[1] == threshold[2] == np.inf


def test_what_is_stored_is_json_and_promises_more_with_larger_sets(world):
    sets = fit_sets(world.calm, world.labels, world.votes, 'a known world')
    assert json.loads(json.dumps(sets, allow_nan=False)) == sets
    sizes = [[apply_sets(world.calm, sets, c, p).sum(1).mean() for c in (.8, .9, .95)]
             for p in PROMISES]
    assert all(a < b < c for a, b, c in sizes)
    assert sets['n'] == world.n and sets['source'] == 'a known world'


def test_few_faces_store_sets_of_everything(world):
    sets = fit_sets(world.calm[:8], world.labels[:8], coverages=(.9,))
    assert sets['labels'] == {'0.9': 1.} and apply_sets(world.calm, sets).all()


@pytest.mark.parametrize('how, why', [
    (dict(coverage=.85), '0.8, 0.9, 0.95 are'), (dict(coverage=2), 'between 0 and 1'),
    (dict(promise='people'), "'labels' or 'annotators'"),
    (dict(promise='annotators'), 'without votes'), (dict(sets=None), 'grefel calibrate'),
    (dict(sets={}), 'grefel calibrate')])
def test_promises_that_were_never_made_are_refused(world, how, why):
    how = dict(sets=fit_sets(world.calm, world.labels)) | how
    with pytest.raises(GrefelError, match=why): apply_sets(world.calm, **how)


def test_sets_are_named_from_the_likeliest_down():
    p, members = np.array([[.2, .5, .3]]), np.array([[True, True, False]])
    assert name_sets(members, p, ('a', 'b', 'c')) == [['b', 'a']]


@pytest.mark.parametrize('names, words', [
    (['a'], 'a'), (['a', 'b'], 'a or b'), (['a', 'b', 'c'], 'a, b or c'),
    (list(EXPRESSIONS), 'any expression')])
def test_sets_in_words(names, words):
    assert set_in_words(names) == words


def test_a_face_has_no_say_in_its_own_set(world):
    fold = make_folds(world.labels)
    here, spoilt = fold == 2, world.labels.copy()
    spoilt[here] = (world.labels[here] + 3) % 8
    crossed, again = (crossfit_sets(world.bold, y, fold) for y in (world.labels, spoilt))
    assert_array_equal(again[here], crossed[here])
    assert (again[~here] != crossed[~here]).any()
    assert_array_equal(crossed[here], prediction_sets(
        world.bold[here], fit_threshold(world.bold[~here], world.labels[~here])))


def test_metrics_of_sets_have_the_reports_keys(world):
    fold = make_folds(world.labels)
    m = set_metrics(world.calm, world.labels, world.votes, fold=fold)
    assert set(m) == {f'{k}_{p}_{c}{e}' for k in ('coverage', 'set_size') for p in PROMISES
                      for c in (80, 90, 95) for e in ('', '_low', '_high')}
    for c in (80, 90, 95):
        for p in PROMISES:
            k = f'coverage_{p}_{c}'
            assert m[f'{k}_low'] < m[k] < m[f'{k}_high']
            assert m[k] == pytest.approx(c/100, abs=.02)
    stored = fit_sets(world.calm, world.labels)
    assert set_metrics(world.calm, world.labels, world.votes, stored)['coverage_labels_90'] == \
        covered(apply_sets(world.calm, stored), world.labels).mean()


def test_intervals_of_coverage_are_those_of_a_mean(world):
    members = prediction_sets(world.calm, .5)
    found, hit = coverage_and_size(members, world.labels), covered(members, world.labels)
    assert found['coverage'] - found['coverage_low'] == pytest.approx(
        1.96*np.sqrt(hit.mean()*(1 - hit.mean())/world.n))
