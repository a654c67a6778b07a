"""Plots show the numbers they were given, cope with odd sets, and leave nothing open."""
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from grefel.base.core import GrefelError
from grefel.measure.metrics import (
    accuracy_at_coverage, change_report, confusion_counts, per_class_table, reliability_bins,
    risk_coverage)
from grefel.measure.plots import (
    pick_faces, plot_change, plot_classwise, plot_confidence, plot_confusion, plot_faces,
    plot_groups, plot_history, plot_intervals, plot_pairs, plot_reliability, plot_risk,
    plot_seeds, plot_votes, read_history)


def widths(ax): return [bar.get_width() for bar in ax.patches]


@pytest.mark.parametrize('probs, labels', [
    ([[0.9] + [0.1/7]*7], [3]), (np.full((4, 8), 1/8), [0, 1, 2, 3]), (np.eye(8)[[1]], [0]),
    (np.full((5, 8), 1/8), [0]*5)])
def test_odd_sets_are_drawn_and_no_figure_stays_open(probs, labels):
    p, y, before = np.asarray(probs), np.array(labels), np.eye(8)[[7]*len(labels)]
    backend = plt.get_backend()
    for fig in (plot_confusion(confusion_counts(p, y)), plot_classwise(per_class_table(p, y)),
                plot_reliability(p, y), plot_confidence(p.max(1), p.argmax(1) == y),
                plot_risk(p, y), plot_votes(p, np.eye(8)[y]),
                plot_change(change_report(before, p, y))):
        assert isinstance(fig, Figure)
        fig.draw_without_rendering()
    assert plt.get_fignums() == [] and plt.get_backend() == backend


def test_confusion_is_coloured_by_the_share_of_its_row():
    ax = plot_confusion([[9, 1], [0, 0]], ['yes', 'no']).axes[0]
    assert ax.collections[0].get_array().ravel().tolist() == [0.9, 0.1, 0, 0]
    assert [t.get_text() for t in ax.texts][:2] == ['9\n90%', '1\n10%']
    assert (ax.get_xlabel(), ax.get_ylabel()) == ('answer', 'label')


def test_bars_of_recall_leave_out_classes_without_faces():
    ax = plot_classwise(per_class_table(np.eye(3)[[0, 1]], [0, 0], 'abc')).axes[0]
    assert widths(ax) == [0.5]


def test_histograms_of_confidence_keep_right_and_wrong_apart():
    legend = plot_confidence([0.9, 0.8, 0.7], [True, True, False]).axes[0].get_legend()
    assert [t.get_text() for t in legend.get_texts()] == ['wrong (1)', 'right (2)']
    with pytest.raises(GrefelError, match='for right of shape'): plot_confidence([0.5], [1, 0])


def test_bars_of_the_reliability_diagram_end_where_its_intervals_do(world):
    bars, = plot_reliability(world.bold, world.labels).axes[0].containers
    ends = np.array([line[:, 1] for line in bars[2][0].get_segments()])               # (bins, 2)
    want = reliability_bins(world.bold, world.labels)
    seen = want['count'] > 0
    np.testing.assert_allclose(ends[:, 0], want['accuracy_low'][seen])
    np.testing.assert_allclose(ends[:, 1], want['accuracy_high'][seen])


def test_marks_on_the_risk_curve_are_mistakes_at_their_coverage(world):
    curve, marks = plot_risk(dict(final=world.bold), world.labels).axes[0].lines
    want = risk_coverage(world.bold, world.labels)
    np.testing.assert_allclose(curve.get_ydata(), want['risk'])
    np.testing.assert_allclose(marks.get_ydata(),
                               [1 - accuracy_at_coverage(want, c) for c in (0.8, 0.9, 0.95)])


def test_dots_of_votes_lie_where_the_crowd_is():
    p, votes = np.tile([0.65, 0.35], (20, 1)), np.tile([3, 7], (20, 1))
    dots = plot_votes(p, votes).axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(dots, [[0.35, 0.7], [0.65, 0.3]])


def test_a_bar_of_a_group_is_its_accuracy_and_the_diamond_its_promise():
    rows = [dict(group=g, n=9, accuracy=a, accuracy_low=a - .1, accuracy_high=a + .1, expected=.6)
            for g, a in (('a', .5), ('b', .7))]
    ax = plot_groups(dict(groups=rows)).axes[0]
    assert widths(ax) == [.5, .7] and list(ax.lines[-1].get_xdata()) == [.6, .6]


def test_what_was_hurt_goes_to_the_left():
    before, after = np.eye(2)[[0, 0, 1]], np.eye(2)[[1, 1, 0]]
    ax = plot_change(change_report(before, after, [0, 0, 0])).axes[0]
    assert widths(ax) == [1, -2, 0]                   # helped, hurt, neutral


def test_history_marks_the_best_epoch(tmp_path):
    file = tmp_path/'history.csv'
    file.write_text('epoch,valid_loss,accuracy\n0,2.9,0.41\n1,2.3,0.58\n2,,0.57\n')
    assert read_history(file) == dict(epoch=[0, 1, 2], valid_loss=[2.9, 2.3, None],
                                      accuracy=[.41, .58, .57])
    below = plot_history(file).axes[1]
    assert below.get_title('left') == 'best: epoch 2'
    assert list(below.lines[-1].get_ydata()) == [0.58]


def test_names_of_lines_stand_at_their_ends_and_apart():
    fig = plot_history(dict(epoch=[0, 1], train_loss=[3, 2.001], valid_loss=[3, 2.]))
    fig.draw_without_rendering()
    names = {t.get_text(): t.get_window_extent() for t in fig.axes[0].texts}
    assert set(names) == {'train loss', 'valid loss'}
    assert names['train loss'].y0 >= names['valid loss'].y1 - 2


ROWS = {'base': [.5, .7], 'worse': [.4], 'better': [.9, .8, .7]}


@pytest.mark.parametrize('higher', [True, False])
def test_rows_are_sorted_best_on_top_and_the_baseline_goes_through(higher):
    ax = plot_seeds(ROWS, 'base', 'x', higher=higher).axes[0]
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert names == (['worse', 'base', 'better'] if higher else ['better', 'base', 'worse'])
    assert ax.texts[0].get_text() == 'base'
    assert list(ax.lines[-1].get_xdata()) == [pytest.approx(.6)]*2
    dots = [line for line in ax.lines if line.get_marker() == 'o']
    assert [list(d.get_xdata()) for d in dots] == [ROWS[name] for name in names]


def test_panels_of_intervals_share_the_order_of_the_last():
    tables = [pd.DataFrame(dict(mean=m, low=[m[0] - 1, m[1] - 2], high=[m[0] + 1, m[1] + 2]),
                           ['a', 'b']) for m in ([1, 5], [3, 2])]
    fig = plot_intervals(dict(zip(('one', 'two'), tables)), 'base')
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ['a', 'b']
    assert list(fig.axes[0].lines[0].get_xdata()) == [1, 5]
    ends = [segment[:, 0].tolist() for segment in fig.axes[1].collections[0].get_segments()]
    assert ends == [[2, 4], [0, 4]]


def test_pairs_are_joined_by_a_line_between_their_means():
    ax = plot_pairs({'a': [(1, 4), (3, 6)], 'b': [(2, 2), (2, 0)]}, ('best', 'last')).axes[0]
    joined = [list(line.get_xdata()) for line in ax.lines if line.get_marker() == 'None']
    assert joined == [[2, 5], [2, 1]]
    dots = [list(line.get_xdata()) for line in ax.lines if line.get_markersize() == 5]
    assert dots == [[1, 3], [4, 6], [2, 2], [2, 0]]
    assert [(t.get_text(), t.xy) for t in ax.texts] == [('best', (2, 1)), ('last', (1, 1))]


@pytest.mark.parametrize('history', [dict(epoch=[0.], seconds=[3.]),
                                     dict(epoch=[0.], accuracy=[None])])
def test_a_history_of_other_columns_is_drawn_as_far_as_it_goes(history):
    assert isinstance(plot_history(history), Figure)


@pytest.mark.parametrize('content, why', [
    (b'epoch,accuracy\n0,0.5\n1,soon\n', "row 2: accuracy is 'soon'"), (b'a,b\n1,2\n', 'epoch'),
    (b'epoch\n', 'no rows'), (bytes(range(128, 256)), 'is no history'), (None, 'cannot be read')])
def test_a_file_that_is_no_history_is_refused_by_name(tmp_path, content, why):
    file = tmp_path/'history.csv'
    if content is not None: file.write_bytes(content)
    with pytest.raises(GrefelError, match=f'history.csv.*{why}'): read_history(file)


def test_faces_are_picked_by_what_they_show(world):
    picked = pick_faces(world.bold, world.labels, 5)
    right, sure = world.bold.argmax(1) == world.labels, world.bold.max(1)
    assert right[picked['right']].all() and not right[picked['wrong']].any()
    assert not right[picked['sure']].any()
    assert sure[picked['sure']].tolist() == sorted(sure[~right])[:-6:-1]
    other = pick_faces(world.bold, world.labels, 5, seed=1)
    assert (picked['right'] != other['right']).any() and (picked['sure'] == other['sure']).all()


def test_a_face_names_its_label_only_where_the_answer_differs():
    images = np.zeros((2, 1, 8, 8), np.uint8)
    fig = plot_faces(images, np.eye(2)[[0, 0]], [0, 1], [0, 1], ('yes', 'no'))
    assert [ax.get_title() for ax in fig.axes[:2]] == ['yes 100%', 'yes 100%\nlabel: no']
