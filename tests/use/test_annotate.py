"""Folders, films and cameras to tables and drawings, whatever breaks on the way."""
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.use import films

from grefel.base.core import EXPRESSIONS, GrefelError
from grefel.base.synth import synth_faces
from grefel.method.model import create_model
from grefel.use.annotate import annotate, answer_items
from grefel.use.journal import FORMATS, read_rows
from grefel.use.predict import Predictor

FACES = synth_faces(6, seed=1)['images'][:, 0].numpy()


@pytest.fixture(scope='module')
def predictor(): return Predictor(crop='whole')


@pytest.fixture
def album(tmp_path):
    "Three faces, one of them in a subfolder, and a letter."
    folder = tmp_path/'album'
    (folder/'summer').mkdir(parents=True)
    for name, face in zip(('a.png', 'c.png', 'summer/a.png'), FACES):
        Image.fromarray(face).save(folder/name)
    (folder/'b.jpg').write_text('Dear Sir or Madam')
    return folder


def write_film(path, n=8, seconds=None):
    "One face after the other, ten a second."
    def draw(i): return Image.fromarray(FACES[i % len(FACES)]).convert('RGB').resize((96, 96))
    return films.write_film(path, np.arange(n)/10 if seconds is None else seconds, (96, 96), draw)


class Stops:
    "A predictor that gives up after so many chunks, as if the power had failed."
    def __init__(self, predictor, chunks): self.predictor, self.left = predictor, chunks
    def __getattr__(self, name): return getattr(self.predictor, name)

    def predict_many(self, sources, chunk):
        self.left -= 1
        if self.left < 0: raise RuntimeError('power failure')
        return self.predictor.predict_many(sources, chunk)


def counts(found): return [found[k] for k in ('items', 'faces', 'errors', 'new')]


def table(path):
    return sorted((list(r.values()) for r in read_rows(path)), key=lambda r: (r[0], r[1] or 0))


def names(path): return [Path(r['file']).name for r in read_rows(path)]


# The table

def test_every_file_has_a_row_also_those_that_cannot_be_read(predictor, album, tmp_path):
    found = annotate([album, tmp_path/'gone.png'], predictor, tmp_path/'t.csv')
    assert counts(found) == [5, 3, 2, 5]
    rows = {r['file'].removeprefix(f'{tmp_path}/'): r for r in read_rows(tmp_path/'t.csv')}
    read, broken = ['album/a.png', 'album/c.png', 'album/summer/a.png'], ['album/b.jpg', 'gone.png']
    assert sorted(rows) == sorted(read + broken)
    for name in broken:
        assert rows[name]['emotion'] is None and name in rows[name]['error']


def test_rows_say_what_the_predictor_says(predictor, album, tmp_path):
    annotate(album, predictor, tmp_path/'t.jsonl')
    for row in read_rows(tmp_path/'t.jsonl'):
        if row['error']: continue
        face, = predictor(row['file'])
        assert row['emotion'] == face.emotion
        assert [row[f'final_{c}'] for c in EXPRESSIONS] == pytest.approx(
            list(face.probabilities.values()), abs=1e-5)


def test_only_what_could_not_be_read_is_tried_again(predictor, album, tmp_path):
    paths, out = [album, tmp_path/'late.png'], tmp_path/'t.csv'
    annotate(paths, predictor, out)
    assert counts(annotate(paths, predictor, out)) == [5, 3, 2, 2]   # of the whole table
    Image.fromarray(FACES[5]).save(tmp_path/'late.png')
    assert counts(annotate(paths, predictor, out)) == [5, 4, 1, 2]
    assert [Path(r['file']).name for r in read_rows(out) if r['error']] == ['b.jpg']
    assert sorted(names(out)) == ['a.png', 'a.png', 'b.jpg', 'c.png', 'late.png']


@pytest.mark.parametrize('ending', FORMATS)
def test_a_stopped_run_gives_the_table_of_one_left_alone(predictor, album, tmp_path, ending):
    whole, stopped = tmp_path/f'whole{ending}', tmp_path/f'stopped{ending}'
    annotate(album, predictor, whole)
    for chunks in (1, 2):
        with pytest.raises(RuntimeError, match='power'):
            annotate(album, Stops(predictor, chunks), stopped, chunk=1)
        assert not stopped.exists() and Path(f'{stopped}.log').exists()
    rest = annotate(album, predictor, stopped, chunk=1)
    assert counts(rest) == [4, 3, 1, 2]   # the letter, tried again, and the last face
    assert table(stopped) == table(whole) and not Path(f'{stopped}.log').exists()


def test_a_chunk_is_on_the_disk_before_the_next_begins(predictor, album, tmp_path):
    "Not only in the process, which a power failure would take along."
    seen = []

    class Looks(Stops):
        def predict_many(self, sources, chunk):
            seen.append(Path(f'{tmp_path}/t.csv.log').read_bytes().count(b'"rows"'))
            return super().predict_many(sources, chunk)
    annotate(album, Looks(predictor, 9), tmp_path/'t.csv', chunk=2)
    assert seen == [0, 2]


def test_ctrl_c_keeps_what_is_done(predictor, album, tmp_path):
    def press(rows): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        annotate(album, predictor, tmp_path/'t.csv', on_rows=press)
    assert annotate(album, predictor, tmp_path/'t.csv')['skipped'] == 1


KILLED = '''
import sys
from grefel.use.annotate import annotate
from grefel.use.predict import Predictor
annotate(sys.argv[1], Predictor(backend='onnx', crop='whole'), sys.argv[2], chunk=2, progress=False)
'''


def test_killed_from_outside_at_any_moment_each_image_is_there_once(tmp_path):
    "The honest form of a power failure: a moment that nobody chose."
    (tmp_path/'many').mkdir()
    for i in range(60): Image.fromarray(FACES[i % 6]).save(tmp_path/f'many/{i:02}.png')
    out, log = tmp_path/'t.csv', tmp_path/'t.csv.log'
    process = subprocess.Popen([sys.executable, '-c', KILLED, tmp_path/'many', out])
    ends = time.time() + 60
    while process.poll() is None and time.time() < ends:
        if log.exists() and log.stat().st_size > 6000: break
        time.sleep(.002)
    process.kill()
    process.wait()
    annotate(tmp_path/'many', Predictor(backend='onnx', crop='whole'), out, chunk=2)
    assert sorted(names(out)) == [f'{i:02}.png' for i in range(60)]


# Settings

@pytest.mark.parametrize('other', [
    dict(risk=.05), dict(flip_test=True), dict(balanced=.2), dict(min_score=.9),
    dict(smallest=40), dict(align='none'), dict(crop='detect')])
def test_a_predictor_that_answers_otherwise_does_not_go_on(predictor, album, tmp_path, other):
    annotate(album, predictor, tmp_path/'t.csv')
    strange = Predictor(predictor.model, **dict(crop='whole') | other)
    with pytest.raises(GrefelError, match='other settings'):
        annotate(album, strange, tmp_path/'t.csv')


def test_other_weights_do_not_go_on_even_if_they_say_nothing_of_themselves(album, tmp_path):
    models = [create_model('nano', img_size=48) for _ in range(2)]
    assert [m.metadata for m in models] == [{}, {}]
    annotate(album, Predictor(models[0]), tmp_path/'t.csv')
    assert annotate(album, Predictor(models[0]), tmp_path/'t.csv')['skipped'] == 3
    with pytest.raises(GrefelError, match='other settings'):
        annotate(album, Predictor(models[1]), tmp_path/'t.csv')


def test_another_step_through_a_film_does_not_go_on(predictor, tmp_path):
    film = write_film(tmp_path/'film.mkv')
    annotate(film, predictor, tmp_path/'t.csv', every=2)
    with pytest.raises(GrefelError, match='other settings'):
        annotate(film, predictor, tmp_path/'t.csv', every=3)


def test_another_limit_is_another_setting(predictor, tmp_path):
    film = write_film(tmp_path/'film.mkv')
    annotate(film, predictor, tmp_path/'t.csv', max_frames=3)
    with pytest.raises(GrefelError, match='other settings'):
        annotate(film, predictor, tmp_path/'t.csv')


# What has changed

def test_an_image_that_was_replaced_under_its_name_is_read_again_and_that_is_said(
        predictor, album, tmp_path):
    out = tmp_path/'t.csv'
    annotate(album, predictor, out)
    Image.fromarray(FACES[3]).save(album/'a.png')
    found = annotate(album, predictor, out)
    assert (found['changed'], found['new']) == ([str(album/'a.png')], 2)   # and the letter
    row, = [r for r in read_rows(out) if r['file'] == str(album/'a.png')]
    face, = predictor(album/'a.png')
    assert row['final_happiness'] == pytest.approx(face.probabilities['happiness'], abs=1e-5)


def test_a_film_that_was_replaced_is_read_anew_from_its_beginning(predictor, tmp_path):
    film, out = write_film(tmp_path/'film.mkv', 8), tmp_path/'t.csv'
    annotate(film, predictor, out, tmp_path/'drawn')
    found = annotate(write_film(film, 5), predictor, out, tmp_path/'drawn')
    assert counts(found) == [5, 5, 0, 5] and len(found['changed']) == 1
    assert len(films.shown(tmp_path/'drawn/film.mp4')[0]) == 5   # is drawn anew as well


def test_an_image_that_has_vanished_keeps_its_answer(predictor, album, tmp_path):
    out = tmp_path/'t.csv'
    annotate(album, predictor, out)
    (album/'a.png').unlink()
    assert annotate([album, album/'a.png'], predictor, out)['items'] == 4


@pytest.mark.parametrize('wrong', [dict(every=0), dict(chunk=0), dict(out='table.txt')])
def test_what_makes_no_sense_is_refused(predictor, album, wrong):
    with pytest.raises(GrefelError): annotate(album, predictor, **wrong)


# Progress and rows

def test_your_function_hears_how_far_it_is_and_every_row(predictor, album, tmp_path):
    heard, rows = [], []
    annotate([album, tmp_path/'gone.png'], predictor, tmp_path/'t.csv',
             progress=lambda *at: heard.append(at), on_rows=rows.extend)
    assert heard == [(n, 5) for n in (1, 2, 3, 4, 5)]
    assert [r['file'] for r in rows] == [r['file'] for r in read_rows(tmp_path/'t.csv')]
    heard.clear()
    annotate(album, predictor, tmp_path/'t.csv', progress=lambda *at: heard.append(at))
    assert heard == [(1, 1)]   # three were done earlier


@pytest.mark.parametrize('options, total', [
    (dict(), 12), (dict(every='0.4s'), 6), (dict(max_frames=5), 9)])
def test_a_films_frames_are_counted_beforehand(predictor, album, tmp_path, options, total):
    heard, film = [], films.write_film(tmp_path/'film.mp4', np.arange(8)/10, rate=10)
    annotate([album, film], predictor, progress=lambda *at: heard.append(at), **options)
    assert {of for _, of in heard} == {total}


@pytest.mark.parametrize('progress, terminal, shown', [
    (True, False, True), (False, True, False), (None, True, True), (None, False, False)])
def test_a_bar_is_shown_if_asked_for_or_on_a_terminal(
        predictor, album, capsys, monkeypatch, progress, terminal, shown):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: terminal)
    annotate(album, predictor, progress=progress)
    assert bool(capsys.readouterr().err) == shown


def test_no_table_need_be_written(predictor, album):
    assert annotate(album, predictor)['out'] is None
    assert not [p for p in album.parent.rglob('*') if p.suffix in FORMATS]


# Drawings

def drawn(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*.*'))


def test_each_image_is_drawn_under_its_name(predictor, album, tmp_path):
    annotate(album, predictor, pictures=tmp_path/'drawn')
    assert drawn(tmp_path/'drawn') == ['a.jpg', 'c.jpg', 'summer/a.jpg']


def test_drawings_may_be_asked_for_later(predictor, album, tmp_path):
    annotate(album, predictor, tmp_path/'t.csv', tmp_path/'drawn')
    (tmp_path/'drawn/c.jpg').write_bytes(b'kept')   # what is drawn already stays
    for folder in ('drawn', 'later'):
        annotate(album, Stops(predictor, 1), tmp_path/'t.csv', tmp_path/folder)   # only the letter
    assert (tmp_path/'drawn/c.jpg').read_bytes() == b'kept'
    for name in ('a.jpg', 'summer/a.jpg'):
        assert (tmp_path/'later'/name).read_bytes() == (tmp_path/'drawn'/name).read_bytes()
    assert drawn(tmp_path/'later') == ['a.jpg', 'c.jpg', 'summer/a.jpg']


def test_a_drawing_never_takes_the_place_of_a_source(predictor, tmp_path):
    Image.fromarray(FACES[0]).save(tmp_path/'a.jpg')
    before = (tmp_path/'a.jpg').read_bytes()
    with pytest.raises(GrefelError, match='would replace'):
        annotate(tmp_path/'a.jpg', predictor, pictures=tmp_path)
    assert (tmp_path/'a.jpg').read_bytes() == before


def test_a_large_image_is_refused_in_its_row(predictor, album, tmp_path):
    assert annotate(album/'a.png', predictor, max_pixels=1000)['errors'] == 1


# Films and cameras

def test_a_films_rows_are_in_order_with_the_films_own_seconds(predictor, tmp_path):
    film = write_film(tmp_path/'film.mkv', seconds=films.UNEVEN)
    annotate(film, predictor, tmp_path/'t.parquet')
    rows = list(read_rows(tmp_path/'t.parquet'))
    assert [r['frame'] for r in rows] == list(range(45)) and {r['person'] for r in rows} == {1}
    assert [r['seconds'] for r in rows] == pytest.approx(films.UNEVEN, abs=1e-3)


@pytest.mark.parametrize('chunks', [1, 2, 3])
def test_a_stopped_film_is_finished(predictor, tmp_path, chunks):
    paths = [write_film(tmp_path/f'{name}.mkv', 5) for name in 'ab']
    annotate(paths, predictor, tmp_path/'whole.csv')
    with pytest.raises(RuntimeError):
        annotate(paths, Stops(predictor, chunks), tmp_path/'t.csv', chunk=2)
    found = annotate(paths[::-1], predictor, tmp_path/'t.csv', chunk=2)   # in another order
    assert counts(found) == [10, 10, 0, 10 - 2*chunks]
    assert table(tmp_path/'t.csv') == table(tmp_path/'whole.csv')
    found = list(dict.fromkeys(r['file'] for r in read_rows(tmp_path/'t.csv')))
    assert [r['file'] for r in read_rows(tmp_path/'t.csv')] == [f for f in found for _ in range(5)]


def test_a_finished_film_is_not_opened_again(predictor, tmp_path, monkeypatch):
    film, out = write_film(tmp_path/'film.mkv'), tmp_path/'t.csv'
    annotate(film, predictor, out)
    monkeypatch.setattr('grefel.use.media.open_film', None)
    assert counts(annotate(film, predictor, out)) == [8, 8, 0, 0]


def test_a_damaged_film_is_told_as_such_each_time(predictor, tmp_path):
    whole = films.write_film(tmp_path/'a.mp4', size=(320, 240), draw=films.busy())
    film = films.cut(whole, 'cut.mp4')
    found = [annotate(film, predictor, tmp_path/'t.csv') for _ in range(2)]
    assert [f['errors'] for f in found] == [1, 1] and found[1]['new'] == 0
    last = list(read_rows(tmp_path/'t.csv'))[-1]
    assert 'breaks off after' in last['error'] and last['seconds'] is not None


def test_a_film_is_drawn_with_its_timeline_and_persons_and_only_once(predictor, tmp_path):
    film = write_film(tmp_path/'film.mp4')
    runs = [annotate(film, predictor, tmp_path/'t.csv', tmp_path/'drawn') for _ in range(2)]
    assert [len(r['files']) for r in runs] == [3, 0]
    assert drawn(tmp_path/'drawn') == ['film.mp4', 'film_persons.csv', 'film_timeline.png']


def test_the_table_is_passed_through_once_however_many_films_are_drawn(
        predictor, tmp_path, monkeypatch):
    calls, real = [], read_rows
    monkeypatch.setattr('grefel.use.annotate.read_rows', lambda p: calls.append(p) or real(p))
    paths = [write_film(tmp_path/f'{name}.mp4', 3) for name in 'abc']
    found = annotate(paths, predictor, tmp_path/'t.csv', tmp_path/'drawn')
    assert len(calls) == 1 and len([f for f in found['files'] if f.endswith('.mp4')]) == 3


def test_a_film_that_was_limited_says_so(predictor, tmp_path):
    film = write_film(tmp_path/'film.mkv')
    assert counts(annotate(film, predictor, tmp_path/'t.csv', max_frames=4)) == [5, 4, 1, 5]
    assert 'max_frames' in list(read_rows(tmp_path/'t.csv'))[-1]['error']
    assert annotate(film, predictor, tmp_path/'t.csv', max_frames=4)['new'] == 0


def test_a_broken_film_is_one_row_and_no_drawing(predictor, tmp_path):
    (tmp_path/'broken.mp4').write_bytes(b'no film')
    found = annotate(tmp_path/'broken.mp4', predictor, tmp_path/'t.csv', tmp_path/'drawn')
    assert (counts(found), found['files']) == ([1, 0, 1, 1], [])


def test_items_come_with_their_answers_in_order(predictor, album):
    from grefel.use.media import find_sources, read_items
    items = list(read_items(find_sources(album)))
    chunks = []
    found = list(answer_items(items, predictor, 2, lambda: chunks.append(1)))
    assert [i for i, _ in found] == items and len(chunks) == 2
    assert [isinstance(a, GrefelError) for _, a in found] == [False, True, False, False]


class Camera:
    "Gives the same image until somebody presses Ctrl-C."
    def __init__(self, frames): self.left = frames

    def grab(self):
        self.left -= 1
        if self.left < 0: raise KeyboardInterrupt
        return True

    def retrieve(self): return True, np.full((96, 96, 3), 128, np.uint8)
    def release(self): pass


def test_ctrl_c_is_a_cameras_normal_end_and_the_next_run_goes_on_counting(
        predictor, tmp_path, monkeypatch):
    cv2 = pytest.importorskip('cv2')
    cameras, seen = iter([Camera(3), Camera(2)]), []
    monkeypatch.setattr(cv2, 'VideoCapture', lambda number: next(cameras))
    for _ in range(2):
        annotate(0, predictor, tmp_path/'t.jsonl', tmp_path/'seen',
                 on_item=lambda item, rows: seen.append((item.image.size, rows[0]['frame'])))
    assert [r['frame'] for r in read_rows(tmp_path/'t.jsonl')] == [0, 1, 2, 3, 4]
    assert drawn(tmp_path/'seen') == ['camera_0.jpg']
    assert seen == [((96, 96), n) for n in range(5)]   # what a window shows
