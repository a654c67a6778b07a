"""Frames, dashes and words on images; the timeline of a film; films in, films out."""
import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from grefel.base.core import GrefelError
from grefel.use.drawing import (
    COLOURS, draw_video, mark_faces, plot_timeline, rows_by_frame, smooth_over_time,
    timeline_points)
from grefel.use.journal import item_rows, table_columns
from grefel.use.media import Item, MediaSource

CLASSES = ('happiness', 'fear')
NOTHING = dict.fromkeys(table_columns(CLASSES))
ROW = NOTHING | dict(
    file='film.avi', frame=0, seconds=0., face=0, faces=1, face_found=True, x0=40., y0=20., x1=140.,
    y1=120., tilt=0., emotion='happiness', confidence=.9, reliable=True, final_happiness=.9,
    final_fear=.1)


def blank(size=(200, 200)): return Image.new('RGB', size, 'black')


def coloured(image, name='happiness'):
    "Where an image has the colour of an expression."
    return (np.asarray(image) == ImageColor.getrgb(COLOURS[name])).all(-1)


def edges(image):
    "How much of each edge of ROW's frame is drawn."
    on = coloured(image)
    lines = on[20, 42:138], on[120, 42:138], on[22:118, 40], on[22:118, 140]
    return [line.mean() for line in lines]


def plate(image):
    "Rows and columns of the plate on which the word stands, where nothing covers it."
    return np.nonzero((np.asarray(image) == ImageColor.getrgb('#1d2530')).all(-1))


@pytest.mark.parametrize('reliable', [True, None])
def test_the_frame_is_solid_unless_the_answer_is_unsure(reliable):
    assert edges(mark_faces(blank(), [ROW | dict(reliable=reliable)])) == [1, 1, 1, 1]


def test_the_frame_of_an_unsure_answer_is_dashed():
    drawn = edges(mark_faces(blank(), [ROW | dict(reliable=False)]))
    assert all(.5 < share < .75 for share in drawn), drawn   # five dashes of 60%


def test_an_unsure_answer_bears_a_question_mark():
    columns = [plate(mark_faces(blank(), [ROW | dict(reliable=r)]))[1] for r in (True, False)]
    assert np.ptp(columns[1]) > np.ptp(columns[0]) + 3   # the same word and one sign more


def test_every_expression_has_a_colour_of_its_own():
    assert len(set(COLOURS.values())) == 8
    for name in COLOURS:
        assert edges_of(name) > .9


def edges_of(name):
    return coloured(mark_faces(blank(), [ROW | dict(emotion=name)]), name)[20, 42:138].mean()


def test_a_row_without_a_face_draws_nothing():
    assert mark_faces(blank(), [NOTHING]).tobytes() == blank().tobytes()


def test_the_image_itself_stays_as_it_was():
    image = blank()
    mark_faces(image, [ROW])
    assert image.tobytes() == blank().tobytes()


def test_the_frame_leans_with_the_head_clockwise():
    on = coloured(mark_faces(blank(), [ROW | dict(tilt=30.)]))[:120]   # without the word
    y, x = np.nonzero(on)
    assert x[y.argmin()] == pytest.approx(72, abs=4)   # 108 if it leaned to the other side


@pytest.mark.parametrize('box', [(150, 150, 199, 199), (0, 0, 30, 30), (-40, 150, 20, 210)])
def test_the_word_stays_inside_the_image(box):
    moved = ROW | dict(zip(('x0', 'y0', 'x1', 'y1'), map(float, box)))
    (y, x), (_, usual) = (plate(mark_faces(blank(), [row])) for row in (moved, ROW))
    assert np.ptp(x) >= np.ptp(usual) - 2 and np.ptp(y) > 8   # the whole word, as elsewhere


# Over time

def test_a_constant_stays_constant():
    seconds = np.arange(0, 3, .04)
    np.testing.assert_allclose(smooth_over_time(seconds, np.full((75, 2), .3)), .3)


def test_smoothing_is_the_weighted_mean_of_its_formula():
    seconds, values = np.array([0., .1, .4, .45]), np.array([[1.], [0.], [.5], [.25]])
    w = np.exp(-((seconds - .1)/.25)**2/2)
    assert smooth_over_time(seconds, values)[1, 0] == pytest.approx((w*values[:, 0]).sum()/w.sum())


def test_frames_without_a_face_do_not_count_as_zero():
    seconds, values = np.arange(0, 2, .1), np.full((20, 1), .8)
    values[8:11] = np.nan   # less than the smoothing reaches
    np.testing.assert_allclose(smooth_over_time(seconds, values), .8)


def test_nothing_is_said_where_no_face_is_near():
    seconds, values = np.arange(0, 8, .04), np.full((200, 1), .8)
    values[60:110] = np.nan
    smooth = smooth_over_time(seconds, values)[:, 0]
    assert np.isnan(smooth[85]) and not np.isnan(smooth[50])


def test_the_line_is_broken_below_a_fifth_of_the_weight():
    seconds, values = np.arange(0, 4, .01), np.full((400, 1), .8)
    values[200:] = np.nan
    last = np.isfinite(smooth_over_time(seconds, values)[:, 0]).nonzero()[0].max()
    assert (last - 199)*.01 == pytest.approx(.84*.25, abs=.02)   # a normal's upper fifth


def test_a_class_that_never_matters_is_not_drawn():
    figure = plot_timeline([0, 1, 2], [[.9, .1, np.nan]]*3, ('happiness', 'fear', 'anger'))
    assert [line.get_label() for line in figure.axes[0].lines] == ['happiness']


def test_a_files_name_is_no_formula():
    figure = plot_timeline([0, 1], [[.5]*2]*2, CLASSES, title='a$_b_$c.mp4')
    figure.savefig(io.BytesIO())   # only now it would be parsed


def test_a_frame_without_a_face_leaves_a_gap_and_an_error_no_point():
    (seconds, probs), = timeline_points(ROW, CLASSES)
    assert (seconds, probs) == (0., [.9, .1])
    (_, gap), = timeline_points(ROW | dict(face_found=False), CLASSES)
    assert np.isnan(gap).all()
    error, = item_rows(Item('film.avi', 4, .4, None), GrefelError('damaged'), CLASSES)
    assert timeline_points(error, CLASSES) == []


# Films

def test_rows_are_gathered_by_frame_of_one_film():
    rows = [ROW | dict(file=f, frame=n, face=k) for f, n, k in
            [('other.avi', 0, 0), ('film.avi', 0, 0), ('film.avi', 0, 1), ('film.avi', 3, 0)]]
    found = [(n, [r['face'] for r in group]) for n, group in rows_by_frame(rows, 'film.avi')]
    assert found == [(0, [0, 1]), (3, [0]), (np.inf, [])]


@pytest.fixture
def film(tmp_path):
    cv2 = pytest.importorskip('cv2')
    path = str(tmp_path/'film.avi')
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*'MJPG'), 10, (200, 200))
    for _ in range(6): writer.write(np.zeros((200, 200, 3), np.uint8))
    writer.release()
    return MediaSource(path, 'film', 'video')


def test_frames_between_answers_show_the_last_answer(film, tmp_path):
    import cv2
    rows = [ROW | dict(file='another.avi', frame=0), ROW | dict(file=film.file, frame=1),
            NOTHING | dict(file=film.file, frame=4, faces=0, face_found=False)]
    video, timeline = draw_video(film, rows, tmp_path/'out'/'drawn', CLASSES)
    capture, marked = cv2.VideoCapture(str(video)), []
    assert capture.get(cv2.CAP_PROP_FPS) == 10
    while (grabbed := capture.read())[0]: marked.append(grabbed[1].max() > 100)
    assert marked == [False, True, True, True, False, False]
    assert timeline.name == 'drawn_timeline.png' and timeline.stat().st_size > 1000


def test_a_film_without_a_frame_leaves_no_file(tmp_path):
    (tmp_path/'broken.mp4').write_bytes(b'no film')
    source = MediaSource(str(tmp_path/'broken.mp4'), 'broken', 'video')
    assert draw_video(source, [], tmp_path/'out'/'broken', CLASSES) == []
    assert list((tmp_path/'out').iterdir()) == []
