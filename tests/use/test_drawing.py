"""Frames, dashes and words on images; the timeline of a film; films in, films out."""
import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from tests.use.films import TENTHS, UNEVEN, busy, cut, film, shown, torn, write_film

import grefel.use.drawing as drawing
from grefel.base.core import GrefelError
from grefel.use.drawing import (
    add_points, COLOURS, draw_video, LiveView, mark_faces, PANELS, plot_timeline, rows_by_frame,
    smooth_over_time, terminal_image)
from grefel.use.journal import item_rows, table_columns
from grefel.use.media import Item

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


def test_a_person_bears_their_number():
    plain, numbered = (plate(mark_faces(blank(), [ROW | dict(person=p)]))[1] for p in (None, 2))
    assert np.ptp(numbered) > np.ptp(plain) + 3


# Over time

def mean(seconds, values, **kw): return smooth_over_time(seconds, values, **kw)[0]


def test_a_constant_stays_constant_and_is_certain():
    found, off = smooth_over_time(np.arange(0, 3, .04), np.full((75, 2), .3))
    np.testing.assert_allclose(found, .3)
    np.testing.assert_allclose(off, 0, atol=1e-9)


def test_smoothing_is_the_weighted_mean_of_its_formula():
    seconds, values = np.array([0., .1, .4, .45]), np.array([[1.], [0.], [.5], [.25]])
    w = np.exp(-((seconds - .1)/.25)**2/2)
    wanted = (w*values[:, 0]).sum()/w.sum()
    assert mean(seconds, values, sigmas=[.25])[1, 0] == pytest.approx(wanted)


def test_frames_without_a_face_do_not_count_as_zero():
    seconds, values = np.arange(0, 2, .1), np.full((20, 1), .8)
    values[8:11] = np.nan   # less than the smoothing reaches
    np.testing.assert_allclose(mean(seconds, values), .8)


def test_nothing_is_said_where_no_face_is_near():
    seconds, values = np.arange(0, 8, .04), np.full((200, 1), .8)
    values[60:110] = np.nan
    smooth = mean(seconds, values)[:, 0]
    assert np.isnan(smooth[85]) and not np.isnan(smooth[50])


def test_it_is_wider_only_where_neighbouring_frames_disagree():
    seconds, draws = np.arange(0, 8, .04), np.random.default_rng(0)
    step = np.where(seconds < 4, .2, .8)[:, None]
    calm, noisy = step + draws.normal(0, .01, step.shape), step + draws.normal(0, .3, step.shape)
    narrow = mean(seconds, calm, sigmas=[.25])
    np.testing.assert_array_equal(mean(seconds, calm), narrow)   # a sudden change stays sharp
    far = np.abs(seconds - 4) > 1.5
    errors = [np.abs(mean(seconds, noisy, **kw) - step)[far].mean()
              for kw in ({}, dict(sigmas=[.25]))]
    assert errors[0] < .75*errors[1]


def test_how_far_a_mean_may_be_off_is_about_right():
    seconds, draws = np.arange(0, 60, .04), np.random.default_rng(0)
    found, off = smooth_over_time(seconds, draws.normal(.5, .2, (len(seconds), 1)), [.25])
    assert .7 < np.std(found)/np.mean(off) < 1.4


def people(n=1, length=4): return {
    p: [(float(t), [.9, .1, 0.], True) for t in range(length + p)] for p in range(1, n + 1)}


def test_a_class_that_never_matters_is_not_drawn():
    figure = plot_timeline(people(), ('happiness', 'fear', 'anger'))
    assert [line.get_label() for line in figure.axes[0].lines] == ['happiness']


def test_every_person_has_a_panel_and_of_a_crowd_those_seen_longest():
    assert len(plot_timeline(people(2), CLASSES).axes) == 2
    figure = plot_timeline(people(PANELS + 2), CLASSES)
    assert [ax.get_title(loc='left') for ax in figure.axes] == [f'person {p}' for p in range(3, 9)]


def test_a_line_breaks_while_a_person_is_away():
    points = [(t, [.9, .1, 0.], True) for t in (0., .1, .2, 5., 5.1, 5.2)]
    line, = plot_timeline({1: points}, ('happiness', 'fear', 'anger')).axes[0].lines
    assert np.isnan(line.get_ydata()).sum() == 1


def test_unsure_time_is_marked():
    sure, unsure = ([(t, [.9, .1], r) for t in (0., .1, .2)] for r in (None, False))
    def grey(points): return plot_timeline({1: points}, CLASSES).axes[0].collections[0]
    assert len(grey(sure).get_paths()) < len(grey(unsure).get_paths())


@pytest.mark.parametrize('nobody', [{}, {1: [(0., [.5, .5], True)]}])
def test_a_film_with_nobody_or_one_frame_can_be_drawn(nobody):
    plot_timeline(nobody, CLASSES).savefig(io.BytesIO())


def test_a_files_name_is_no_formula():
    plot_timeline(people(), ('a', 'b', 'c'), title='a$_b_$c.mp4').savefig(io.BytesIO())


def test_only_rows_of_persons_are_points():
    found = {}
    error, = item_rows(Item('film.avi', 4, .4, None), GrefelError('damaged'), CLASSES)
    add_points(found, [ROW | dict(person=2), NOTHING, error, ROW], CLASSES)
    assert found == {2: [(0., [.9, .1], True)]}


# Films

def test_rows_are_gathered_by_frame():
    rows = [ROW | dict(frame=n, face=k) for n, k in [(0, 0), (0, 1), (3, 0)]]
    found = [(n, [r['face'] for r in group]) for n, group in rows_by_frame(rows)]
    assert found == [(0, [0, 1]), (3, [0]), (np.inf, [])]


def black(size=(200, 200)): return lambda i: Image.new('RGB', size)


def test_frames_between_answers_show_the_last_answer(tmp_path):
    path = write_film(tmp_path/'a.mkv', TENTHS[:6], (200, 200), black())
    rows = [ROW | dict(frame=1), NOTHING | dict(frame=4, faces=0, face_found=False)]
    video, timeline = draw_video(film(path), rows, tmp_path/'out'/'drawn', CLASSES)
    assert [pixels.max() > 100 for pixels in shown(video)[1]] == [
        False, True, True, True, False, False]
    assert timeline.name == 'drawn_timeline.png' and timeline.stat().st_size > 1000
    assert sorted(p.name for p in (tmp_path/'out').iterdir()) == ['drawn.mp4', timeline.name]


@pytest.mark.parametrize('ending, sound, kept', [
    ('mkv', None, []), ('mp4', 'aac', ['aac']), ('mkv', 'pcm_s16le', ['aac'])])
@pytest.mark.parametrize('start', [0, 3.])
def test_a_drawn_film_plays_in_a_browser_with_true_times_and_sound(
        tmp_path, ending, sound, kept, start):
    path = write_film(tmp_path/f'a.{ending}', UNEVEN, sound=sound, start=start)
    video, _ = draw_video(film(path), [], tmp_path/'drawn', CLASSES)
    times, _, codecs = shown(video)
    assert codecs == ['h264', *kept] and video.suffix == '.mp4'
    assert np.array(times) - times[0] == pytest.approx(UNEVEN, abs=1e-3)
    data = video.read_bytes()
    assert data.index(b'moov') < data.index(b'mdat')   # plays at once


@pytest.mark.parametrize('size', [(63, 47), (64, 47), (2, 2)])
def test_odd_sides_are_no_trouble(tmp_path, size):
    path = write_film(tmp_path/'a.avi', TENTHS[:3], size, black(size), codec='ffv1', rate=10)
    assert len(shown(draw_video(film(path), [], tmp_path/'drawn', CLASSES)[0])[0]) == 3


def test_of_damaged_films_the_good_frames_are_drawn_at_their_own_seconds(tmp_path):
    whole = write_film(tmp_path/'a.ts', TENTHS, (320, 240), busy())
    for path in (torn(whole, 'b.ts'), cut(whole, 'c.ts')):
        times = np.array(shown(draw_video(film(path), [], tmp_path/path.stem, CLASSES)[0])[0])
        assert 20 < len(times) < 60 and np.abs(times[:, None] - TENTHS).min(1).max() < 2e-3


def test_a_film_without_a_frame_leaves_no_file(tmp_path):
    (tmp_path/'broken.mp4').write_bytes(b'no film')
    assert draw_video(film(tmp_path/'broken.mp4'), [], tmp_path/'out'/'broken', CLASSES) == []
    assert list((tmp_path/'out').iterdir()) == []


# Live

class Terminal(io.StringIO):
    def isatty(self): return True


def test_a_terminal_shows_two_pixels_a_character():
    image = Image.new('RGB', (40, 40), 'red')
    image.paste('blue', (0, 20, 40, 40))
    lines = terminal_image(image, 20).splitlines()
    assert len(lines) == 10 and all(line.count('▀') == 20 for line in lines)
    assert '38;2;255;0;0;48;2;255;0;0' in lines[0] and '38;2;0;0;255;48;2;0;0;255' in lines[-1]


@pytest.mark.parametrize('system, display, has', [
    ('darwin', '', True), ('win32', '', True), ('linux', ':0', True), ('linux', '', False)])
def test_windows_and_macs_have_a_screen_and_others_say_so(monkeypatch, system, display, has):
    monkeypatch.setattr('sys.platform', system)
    for name, value in (('DISPLAY', display), ('WAYLAND_DISPLAY', '')):
        monkeypatch.setenv(name, value)
    assert drawing._has_screen() is has


def test_without_a_screen_the_terminal_shows_what_a_camera_sees(monkeypatch):
    for name in ('DISPLAY', 'WAYLAND_DISPLAY'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr('sys.platform', 'linux')
    view = LiveView(out=(out := Terminal()))
    view.show(Item('camera 0', 0, 0., blank()), [ROW | dict(reliable=False)])
    assert view.terminal and 'happiness 90%?' in out.getvalue() and '▀' in out.getvalue()
    view = LiveView(out=(out := io.StringIO()))   # a file, nobody looks
    view.show(Item('camera 0', 0, 0., blank()), [ROW])
    assert out.getvalue() == ''
