"""Shares of a folder: the mixture that explains it, intervals that hold, words for a person."""
import json

import numpy as np
import pytest
from numpy.testing import assert_allclose

from grefel.base.core import EXPRESSIONS, GrefelError
from grefel.measure.shares import (
    NOT_FOR, em_prior, em_shares, fit_likelihood, fit_shares, folder_shares, likelihoods,
    move_probs, plot_shares, share_rows, shares_text, strange_faces)

USUAL, OTHER = np.array([.7, .2, .1]), np.array([.2, .2, .6])
SEEN = np.array([[2., 0, 0], [0, 2., 0], [0, 0, 2.]])         # what each class looks like


def world(n, mixture, seed, spoil=(0, 0, 0), sharp=1.):
    "Faces as points, their labels, and a model that knows the usual mixture and errs by `spoil`."
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=mixture)
    x = SEEN[labels] + rng.normal(size=(n, 3))
    z = (x @ SEEN.T + np.log(USUAL))*sharp + spoil
    z = np.exp(z - z.max(1, keepdims=True))
    return z/z.sum(1, keepdims=True), labels


def rows_of(probs, file='{}.jpg', **more):
    "Rows of a table of answers."
    return [dict(file=file.format(i), seconds=None, person=None, note=None, evidence='crops',
                 familiarity=.5, emotion=EXPRESSIONS[int(np.argmax(p))])
            | {f'final_{c}': v for c, v in zip(EXPRESSIONS, p)} | more for i, p in enumerate(probs)]


@pytest.fixture(scope='module')
def known():
    "Notes of a model that is too sure and shy of the last class."
    return fit_shares(*world(3000, USUAL, 1, (0, 0, -1), 1.5), 'points', draws=20, temperature=1.)


# ---- The mixture

def test_faces_known_for_sure_are_counted():
    assert_allclose(em_shares(np.eye(3)[[0, 0, 1, 2]]), [.5, .25, .25], atol=1e-4)
    weights = [3, 1, 0, 0]
    assert_allclose(em_shares(np.eye(3)[[0, 1, 2, 2]], weights), [.75, .25, 0], atol=1e-4)
    assert_allclose(em_shares(np.eye(3)[[0, 1]], extra=[0, 0, 2]), [.25, .25, .5], atol=1e-4)


def test_it_is_the_likeliest_mixture():
    rng = np.random.default_rng(0)
    likely = rng.gamma(.5, size=(80, 3))
    best = em_shares(likely, steps=5000)
    def fit(shares): return np.log(likely @ shares).sum()
    for other in rng.dirichlet([1, 1, 1], 300): assert fit(best) >= fit(other) - 1e-6


def test_a_factor_for_each_face_changes_nothing():
    rng = np.random.default_rng(0)
    likely = rng.gamma(.5, size=(80, 3))
    assert_allclose(em_shares(likely), em_shares(likely*rng.gamma(1, size=(80, 1))), atol=1e-6)


def test_many_folders_at_once_are_each_alone():
    rng = np.random.default_rng(0)
    likely, weights = rng.gamma(.5, size=(4, 60, 3)), rng.random((4, 60))
    alone = [em_shares(one, w, steps=2000) for one, w in zip(likely, weights)]
    assert_allclose(em_shares(likely, weights, steps=2000), alone, atol=1e-3)


# ---- From probabilities to likelihoods

@pytest.mark.parametrize('spoil, sharp', [((0, 0, 0), 1), ((0, 0, -1), 1), ((1, 0, 0), 2),
                                          ((0, -.5, .5), .5)])
def test_a_models_habits_are_undone(spoil, sharp):
    probs, labels = world(20_000, USUAL, 1, spoil, sharp)
    fit = fit_likelihood(probs, labels)
    assert fit[0] == pytest.approx(1/sharp, rel=.05)
    new, _ = world(20_000, OTHER, 2, spoil, sharp)
    assert_allclose(em_shares(likelihoods(new, fit)), OTHER, atol=.02)


def test_weights_are_repetitions():
    probs, labels = world(60, USUAL, 1)
    times = np.random.default_rng(0).integers(1, 4, 60)
    assert_allclose(fit_likelihood(probs, labels, times),
                    fit_likelihood(np.repeat(probs, times, 0), np.repeat(labels, times)), atol=1e-6)


def test_a_class_that_nobody_has_seen_stays_finite():
    probs, labels = world(200, USUAL, 1)
    fit = fit_likelihood(probs[labels < 2], labels[labels < 2])
    assert np.isfinite(fit).all() and np.isfinite(likelihoods(probs, fit)).all()


def test_moving_to_the_usual_mixture_leaves_a_calibrated_model_alone():
    probs, labels = world(20_000, USUAL, 1)
    moved = move_probs(probs, fit_likelihood(probs, labels), USUAL)
    assert np.abs(moved - probs).mean() < .01


def test_answers_moved_to_the_folders_mixture_are_right_more_often(known):
    probs, labels = world(2000, OTHER, 3, (0, 0, -1), 1.5)
    factors = em_prior(dict(shares=known))(probs, np.ones(3, bool))
    right = [(p.argmax(1) == labels).mean() for p in (probs, probs*factors, move_probs(
        probs, known['fits'][0], OTHER))]
    assert right[1] > right[0] + .05 and right[2] > right[0] + .05


def test_a_class_that_is_not_allowed_gets_no_share(known):
    probs, _ = world(500, OTHER, 3)
    factors = em_prior(dict(shares=known))(probs, np.array([True, False, True]))
    assert factors[1] < 1e-3


def test_without_notes_the_shares_of_training_serve():
    probs, labels = world(4000, OTHER, 3)
    trained = dict(data=dict(train=dict(per_class=(1000*USUAL).tolist())))
    factors = em_prior(trained)(probs, np.ones(3, bool))
    assert ((probs*factors).argmax(1) == labels).mean() > (probs.argmax(1) == labels).mean()


# ---- Folders

def test_shares_beat_counting(known):
    probs, labels = world(1500, OTHER, 4, (0, 0, -1), 1.5)
    there, got = np.bincount(labels)/1500, folder_shares(probs, known, draws=30)
    assert np.abs(got['shares'] - there).mean() < .25*np.abs(got['counted'] - there).mean()
    assert_allclose([got['shares'].sum(), got['counted'].sum()], 1)
    assert (got['low'] <= got['shares']).all() and (got['shares'] <= got['high']).all()


def test_intervals_hold_what_they_promise():
    "Validation faces and folder drawn anew each time; nine in ten, give or take four points."
    held = []
    for seed in range(60):
        notes = fit_shares(*world(150, USUAL, 100 + seed), draws=30)
        got = folder_shares(world(100, OTHER, 1000 + seed)[0], notes, draws=90)
        held.append((got['low'] <= OTHER) & (OTHER <= got['high']))
    assert .84 < np.mean(held) < .96


def test_few_validation_faces_make_intervals_wider():
    probs = world(1000, OTHER, 4)[0]
    width = [np.ptp([got['low'], got['high']], axis=0).mean() for n in (60, 3000)
             for got in [folder_shares(probs, fit_shares(*world(n, USUAL, 1), draws=30), draws=60)]]
    assert width[0] > 1.5*width[1]


def test_faces_that_were_seen_together_count_once(known):
    probs = np.repeat(world(40, OTHER, 5)[0], 10, 0)
    alone, together = (folder_shares(probs, known, groups) for groups in
                       (None, np.repeat(np.arange(40), 10)))
    def width(got): return (got['high'] - got['low']).mean()
    assert width(together) > 2*width(alone)


def test_a_class_that_is_not_there_may_be_none(known):
    probs, _ = world(300, [.5, .5, 0], 6, (0, 0, -1), 1.5)
    got = folder_shares(probs, known)
    assert got['low'][2] == 0 < got['high'][2] < .05


def test_the_same_folder_gives_the_same_intervals(known):
    probs = world(50, OTHER, 5)[0]
    a, b = folder_shares(probs, known), folder_shares(probs, known)
    for k in a: assert_allclose(a[k], b[k])


def test_a_long_film_is_worked_on_in_parts(known, monkeypatch):
    from grefel.measure import shares as room
    probs = world(300, OTHER, 5)[0]
    whole = folder_shares(probs, known, draws=60)
    monkeypatch.setattr(room, 'AT_ONCE', 900)
    parts = folder_shares(probs, known, draws=60)
    assert_allclose(parts['low'], whole['low'], atol=.03)


@pytest.mark.parametrize('probs, groups, said', [
    (np.full((5, 4), .25), None, '4 classes here, and 3'),
    (np.full((5, 3), 1/3), [1, 2], '2 groups')])
def test_what_does_not_fit_is_told(known, probs, groups, said):
    with pytest.raises(GrefelError, match=said): folder_shares(probs, known, groups)


def test_notes_fit_into_json(known):
    back = json.loads(json.dumps(known))
    assert back == known and len(back['fits']) == 21 and sum(back['counts']) == back['n'] == 3000


# ---- Tables and words

def test_a_table_has_a_part_for_all_and_one_for_each_person_seen_long_enough(known):
    probs = world(60, OTHER, 5)[0]
    rows = rows_of(probs[:30]) + [r | dict(file='film.mp4', seconds=i/10, person=1 + (i > 24))
                                  for i, r in enumerate(rows_of(probs[30:]))]
    found = share_rows(rows, EXPRESSIONS[:3], known)
    assert [(r['file'], r['person'], r['faces']) for r in found[::3]] == [
        (None, None, 60), ('film.mp4', 1, 25)]
    assert [r['expression'] for r in found[:3]] == list(EXPRESSIONS[:3])
    assert sum(r['share'] for r in found[:3]) == pytest.approx(1, abs=1e-3)


def test_images_without_a_face_and_errors_do_not_count(known):
    probs = world(20, OTHER, 5)[0]
    nobody = dict(rows_of(probs[:1])[0], emotion=None, note='no face found')
    guess = dict(rows_of(probs[:1])[0], note='no face found: the whole image was read')
    found = share_rows([*rows_of(probs), nobody, guess], EXPRESSIONS[:3], known)
    assert found[0]['faces'] == 20
    with pytest.raises(GrefelError, match='no face'): share_rows([nobody], EXPRESSIONS[:3], known)


def test_the_words_say_what_shares_are_not_for(known):
    rows = share_rows(rows_of(world(30, OTHER, 5)[0]), EXPRESSIONS[:3], known)
    said = shares_text(rows)
    assert said.endswith(NOT_FOR) and 'all faces (30)' in said and 'judge a person' in NOT_FOR
    assert f"{rows[2]['share']:5.1%}" in said and '90% interval' in said


@pytest.mark.parametrize('familiarity, evidence, warned', [
    (.01, 'crops', True), (.5, 'crops', False), (.01, 'photographs', False),
    (None, 'crops', False)])
def test_many_strange_faces_are_warned_of(familiarity, evidence, warned):
    rows = rows_of(world(20, OTHER, 5)[0], familiarity=familiarity, evidence=evidence)
    assert bool(strange_faces(rows)) == warned
    assert strange_faces(rows[:5]) is None     # five faces say little


def test_a_chart_has_a_panel_for_each_place(known):
    rows = share_rows(rows_of(world(30, OTHER, 5)[0]), EXPRESSIONS[:3], known)
    other = [r | dict(file='film.mp4', person=2) for r in rows]
    panels = plot_shares(rows + other).axes
    assert [a.get_title() for a in panels] == ['all faces: 30 faces', 'person 2: 30 faces']
    assert [b.get_width() for b in panels[0].patches] == [r['share'] for r in rows[::-1]]
