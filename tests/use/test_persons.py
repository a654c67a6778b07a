"""Who is who in a film: nobody takes another's number, and shares of time are those of the film."""
import numpy as np
import pytest

from grefel.use.persons import (
    durations, overlaps, PersonNotes, share_interval, summarise_persons, summary_rows, Tracker,
    with_persons)


def box(x, y, side=100): return np.array([x - side/2, y - side/2, x + side/2, y + side/2])


def numbers(tracker, times, *paths):
    "For each path, the set of numbers that it got; a path gives a box or None."
    found = [set() for _ in paths]
    for t in times:
        seen = [(i, b) for i, b in enumerate(p(t) for p in paths) if b is not None]
        seen.sort(key=lambda pair: (-np.ptp(pair[1][::2]), pair[0]))
        for (i, _), n in zip(seen, tracker.update(t, [b for _, b in seen])): found[i].add(n)
    return found


@pytest.mark.parametrize('a, b, want', [
    ([0, 0, 10, 10], [0, 0, 10, 10], 1), ([0, 0, 10, 10], [5, 0, 15, 10], 1/3),
    ([0, 0, 10, 10], [10, 0, 20, 10], 0), ([0, 0, 10, 10], [2, 2, 8, 8], .36),
    ([0, 0, 10, 10], [30, 30, 40, 40], 0), ([5, 5, 5, 5], [5, 5, 5, 5], 0)])
def test_overlap_is_intersection_over_union(a, b, want):
    assert overlaps([a], [b])[0, 0] == overlaps([b], [a])[0, 0] == pytest.approx(want)


@pytest.mark.parametrize('rate', [25, 12, 6])
@pytest.mark.parametrize('hidden', [0, 40])
@pytest.mark.parametrize('seed', range(3))
def test_two_people_who_cross_keep_their_numbers(rate, hidden, seed):
    draws = np.random.default_rng(seed)
    def shaken(b): return b + draws.normal(0, 2, 4)
    def ann(t): return shaken(box(60 + 120*t, 100))
    def ben(t): return None if abs(460 - 220*t) < hidden else shaken(box(520 - 100*t, 112, 90))
    found = numbers(Tracker(), np.arange(0, 4, 1/rate), ann, ben)
    assert [len(s) for s in found] == [1, 1] and found[0] != found[1]


@pytest.mark.parametrize('away, same', [(0.5, True), (1.5, True), (2.5, False)])
def test_who_comes_back_within_the_gap_is_the_same_and_never_the_other(away, same):
    def ann(t): return box(100, 100) if not 1 <= t < 1 + away else None
    def ben(t): return box(300, 100)
    mine, other = numbers(Tracker(), np.arange(0, 5, .04), ann, ben)
    assert len(mine) == (1 if same else 2) and len(other) == 1 and not mine & other


def test_who_sits_down_elsewhere_is_somebody_new():
    tracker = Tracker()
    assert tracker.update(0, [box(100, 100)]) == [1]
    assert tracker.update(.04, [box(400, 100)]) == [2]


def test_pairs_are_the_best_together_not_one_by_one():
    "The pair with the largest overlap would leave the other face without its person."
    tracker = Tracker()
    tracker.update(0, [box(100, 0), box(160, 0)])
    assert tracker.update(.04, [box(137, 0), box(190, 0)]) == [1, 2]


@pytest.mark.parametrize('step', [0.04, 0.5, 1.0])
def test_a_slow_film_lets_faces_move_farther(step):
    tracker = Tracker()
    tracker.update(0, [box(100, 100)])
    new = tracker.update(step, [box(190, 100)])
    assert new == ([1] if step >= .5 else [2])


def test_time_that_goes_back_is_another_film():
    tracker = Tracker()
    tracker.update(3, [box(0, 0)])
    assert tracker.update(0, [box(0, 0)]) == [2]


# Rows

def row(frame, seconds, b=None, file='a', **kw):
    place = dict(zip(('x0', 'y0', 'x1', 'y1'), [None]*4 if b is None else map(float, b)))
    usual = dict(file=file, frame=frame, seconds=seconds, faces=int(b is not None), person=None,
                 emotion='neutral' if b is not None else None, reliable=True)
    return usual | place | kw


def test_films_have_persons_of_their_own_and_images_none():
    rows = [row(0, 0., box(0, 0)), row(0, 0., box(300, 0)), row(1, .1, box(300, 0)),
            row(0, 0., box(300, 0), file='b'), row(None, None, box(0, 0), file='c'), row(2, .2)]
    assert [r['person'] for r in with_persons(rows)] == [1, 2, 2, 1, None, None]


def test_a_film_of_crops_is_one_persons():
    rows = [row(i, i/10, faces=1, emotion='neutral') for i in range(3)]
    assert [r['person'] for r in with_persons(rows)] == [1, 1, 1]


def test_numbers_given_before_do_not_matter():
    rows = list(with_persons([row(i, i/10, box(3*i, 0)) for i in range(9)]))
    again = list(with_persons([r | dict(person=5) for r in rows]))
    assert again == rows


# Sums

@pytest.mark.parametrize('seconds, want', [
    ([], []), ([3.], [0]), ([0, 1, 1.5], [1, .5, .5]), ([0, .1, 9, 9.1], [.1, 2, .1, .1])])
def test_a_frame_counts_until_the_next_one_but_not_longer_than_the_gap(seconds, want):
    assert durations(seconds) == pytest.approx(want)


def test_shares_are_of_time_and_unsure_time_stands_apart():
    seconds = [*np.arange(0, 4, .1), *np.arange(4, 8, .5)]   # fast, then slow
    rows = [row(i, float(t), box(0, 0), person=1, emotion='happiness' if t < 4 else 'fear',
                reliable=not 2 <= t < 4) for i, t in enumerate(seconds)]
    s, = summarise_persons(rows)
    found = {c: v[0] for c, v in s.shares.items() if v[0]}
    assert found == pytest.approx(dict(happiness=.25, fear=.5)) and s.unsure == pytest.approx(.25)
    assert s.seconds == pytest.approx(8) and s.frames == len(seconds)
    assert all(low <= share <= high for share, low, high in s.shares.values())


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    "Expressions that last for seconds: frames taken as independent would cover far less."
    draws, hits = np.random.default_rng(0), 0
    for n in range(100):
        blocks = (draws.random((40, 1)) < .3)*np.array([[1., 0]]) + 0
        blocks[:, 1] = 1 - blocks[:, 0]
        low, high = share_interval(blocks, 300, n)[:, 0]
        hits += low <= .3 <= high
    assert 85 <= hits <= 100


def test_a_film_of_less_than_five_seconds_has_no_interval():
    assert np.isnan(share_interval(np.ones((4, 2)))).all()
    rows = [row(i, i/10, box(0, 0), person=1) for i in range(20)]
    summary, = summary_rows(summarise_persons(rows))
    assert (summary['neutral'], summary['neutral_low'], summary['unsure']) == (1, None, 0)


def test_who_is_hardly_seen_is_left_out():
    notes = PersonNotes()
    for i in range(4): notes.add(row(i, i/10, box(0, 0), person=1))
    assert notes.summaries() == [] and len(notes.summaries(least=.1)) == 1
