"""Label rules: what each keeps, and that what it makes are distributions."""
import numpy as np
import pytest

from grefel.base.core import EXPRESSIONS, GrefelError
from grefel.data.labels import (
    apply_rule, check_votes, counted_votes, in_order_of, RULES, TARGETS, votes_to_targets)


@pytest.fixture
def crowd():
    "Four thousand faces, ten votes each, from clear to scattered."
    g = np.random.default_rng(0)
    return g.multinomial(10, g.dirichlet(np.full(10, .3), 4000))


@pytest.mark.parametrize('num_classes', (7, 8))
@pytest.mark.parametrize('targets', TARGETS[:3])
@pytest.mark.parametrize('rule', RULES)
def test_kept_rows_are_distributions_and_others_zero(crowd, rule, targets, num_classes):
    keep, t, y = apply_rule(crowd, rule, num_classes, targets)
    assert (t.shape, t.dtype, y.dtype) == ((4000, num_classes), np.float32, np.int64)
    np.testing.assert_allclose(t.sum(1), keep.astype(float), atol=1e-6)
    np.testing.assert_array_equal(y >= 0, keep)
    assert keep.any() and not keep.all() and y.max() < num_classes


@pytest.mark.parametrize('rule', ('majority', 'votes'))
def test_label_has_the_largest_share(crowd, rule):
    # not so under 'argmax', which looks at the votes as cast, and 'multi', where all count the same
    keep, t, y = apply_rule(crowd, rule)
    np.testing.assert_array_equal(t[keep].max(1), t[keep, y[keep]])


@pytest.mark.parametrize('votes, kept', [
    ([5, 0, 0, 5, 0, 0, 0, 0, 0, 0], False),   # a tie is no majority
    ([5, 0, 0, 4, 0, 0, 0, 0, 1, 0], True),    # five of nine, once the single vote is gone
    ([4, 1, 1, 1, 2, 0, 0, 0, 1, 0], True),    # four of six
    ([3, 3, 2, 2, 0, 0, 0, 0, 0, 0], False),
    ([4, 0, 0, 0, 0, 0, 0, 0, 6, 0], False),   # unknown
    ([4, 0, 0, 0, 0, 0, 0, 0, 0, 6], False),   # no face
])
def test_majority(votes, kept): assert apply_rule([votes])[0].tolist() == [kept]


@pytest.mark.parametrize('rule, counted', [
    ('majority', [4, 0, 0, 0, 2, 0, 0, 0]), ('votes', [4, 0, 0, 0, 2, 0, 0, 0]),
    ('multi', [1, 0, 0, 0, 1, 0, 0, 0]), ('argmax', [4, 0, 0, 0, 2, 0, 0, 0])])
def test_single_votes_do_not_count(rule, counted):
    target = apply_rule([[4, 1, 1, 1, 2, 0, 0, 0, 1, 0]], rule)[1][0]
    np.testing.assert_allclose(target, np.array(counted)/sum(counted), atol=1e-6)


def test_raw_targets_keep_single_votes():
    target = apply_rule([[4, 1, 1, 1, 2, 0, 0, 0, 1, 0]], targets='raw')[1][0]
    np.testing.assert_allclose(target, np.array([4, 1, 1, 1, 2, 0, 0, 0])/9, atol=1e-6)


@pytest.mark.parametrize('votes, kept', [
    ([5, 0, 0, 0, 0, 0, 0, 0, 5, 0], False),   # unknown shares the top: half is not more than half
    ([6, 0, 0, 0, 0, 0, 0, 0, 4, 0], True),    # unknown in second place ends the counting
    ([3, 3, 0, 0, 0, 0, 0, 0, 2, 2], True),
    ([2, 2, 2, 2, 0, 0, 0, 0, 0, 2], False),   # four equals are too many
    ([3, 0, 0, 0, 0, 0, 0, 0, 7, 0], False),
    ([4, 2, 1, 0, 0, 0, 0, 0, 3, 0], False),   # the two votes after unknown do not help
])
def test_probability_rule_stops_where_it_should(votes, kept):
    assert apply_rule([votes], 'votes')[0].tolist() == [kept]


def test_three_quarters_are_enough():
    targets = apply_rule([[8, 2] + [0]*8, [7, 3] + [0]*8], 'votes')[1]
    np.testing.assert_allclose(targets[:, :2], [[1, 0], [.7, .3]], atol=1e-6)


def test_votes_and_probability_are_one_rule(crowd):
    for a, b in zip(apply_rule(crowd, 'votes'), apply_rule(crowd, 'probability')):
        np.testing.assert_array_equal(a, b)


def test_multi_takes_classes_of_thirty_percent():
    keep, t, _ = apply_rule([[4, 3, 3] + [0]*7, [5, 2, 3] + [0]*7], 'multi')
    np.testing.assert_allclose(t[:, :3], [[1/3]*3, [.5, 0, .5]], atol=1e-6)
    assert keep.all()


def test_argmax_takes_the_first_of_equals():
    keep, t, y = apply_rule([[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]], 'argmax')
    assert (keep.tolist(), y.tolist()) == ([True], [0])
    # nothing but single votes: they count after all
    np.testing.assert_allclose(t[0], np.array([1, 0, 0, 1, 0, 0, 0, 0])/2)


def test_counted_votes():
    votes = np.array([[5, 1, 0, 2, 0, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0, 0, 0, 8, 0]])
    assert counted_votes(votes).tolist() == [[5, 0, 0, 2, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]]


def test_seven_classes_drop_contempt_and_its_votes():
    votes = [[0, 0, 0, 0, 0, 0, 0, 10, 0, 0], [7, 0, 0, 0, 0, 0, 0, 3, 0, 0]]
    keep, t, y = apply_rule(votes, num_classes=7)
    assert (keep.tolist(), y.tolist()) == ([False, True], [-1, 0])
    assert t.tolist() == [[0]*7, [1] + [0]*6]


@pytest.mark.parametrize('row, why', [
    ([0]*10, 'sum to zero'), ([1, 2], '10 numbers'), ([-1] + [1]*9, '0 or more'),
    ([float('nan')]*10, '0 or more'), (None, '10 numbers'), ('happy', '10 numbers'),
    ([.5]*10, 'whole numbers, not 0.5')])
def test_bad_votes_are_named_by_row(row, why):
    fine = [3] + [0]*9
    out, wrong = check_votes([fine, row])
    assert set(wrong) == {1} and why in wrong[1]
    assert out.tolist() == [fine, [0]*10]
    with pytest.raises(GrefelError, match='row 1: votes'): apply_rule([fine, row])


def test_whole_votes_may_be_floats_and_eight():
    assert apply_rule(10.*np.eye(8))[2].tolist() == [*range(8)]
    assert check_votes([10*np.eye(8)[0], [10] + [0]*9])[1] == {}  # of both lengths, row by row


@pytest.mark.parametrize('kw, said', [
    (dict(rule='median'), 'known: majority'), (dict(num_classes=6), '7 without contempt'),
    (dict(targets='soft'), 'unknown targets'), (dict(targets='truth'), 'unknown targets')])
def test_unknown_choices(kw, said):
    with pytest.raises(GrefelError, match=said): apply_rule([[10] + [0]*9], **kw)


def test_classes_in_another_order_go_by_name(crowd):
    keep, t, y = apply_rule(crowd)
    there = in_order_of(keep, t, y, EXPRESSIONS[::-1])
    np.testing.assert_array_equal(there[0], keep)
    np.testing.assert_allclose(there[1][:, ::-1], t, atol=1e-6)
    np.testing.assert_array_equal(there[2][keep], 7 - y[keep])
    np.testing.assert_array_equal(there[2] < 0, ~keep)


def test_fewer_classes_drop_the_other_faces(crowd):
    keep, t, y = apply_rule(crowd)
    kept, some, labels = in_order_of(keep, t, y, ('fear', 'anger'))
    np.testing.assert_array_equal(kept, np.isin(y, [4, 6]))
    np.testing.assert_array_equal(labels[kept], np.where(y[kept] == 6, 0, 1))
    np.testing.assert_allclose(some[kept].sum(1), 1, atol=1e-6)
    with pytest.raises(GrefelError, match='nothing of other'):
        in_order_of(keep, t, y, ('fear', 'other'))


def test_hard_targets_ignore_the_votes():
    votes, labels = np.array([[6, 4] + [0]*8]), np.array([0])
    assert votes_to_targets(votes, votes[:, :8], labels, 'hard', 8).tolist() == [[1] + [0]*7]
