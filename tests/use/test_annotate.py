"""Folders, films and cameras to tables and drawings, whatever breaks on the way."""
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from grefel.base.core import EXPRESSIONS, GrefelError
from grefel.base.synth import synth_faces
from grefel.method.model import create_model
from grefel.use.annotate import annotate
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


def write_film(path, n=8, fps=10, codec='MJPG'):
    "One face after the other."
    cv2 = pytest.importorskip('cv2')
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, (96, 96))
    for i in range(n):
        face = Image.fromarray(FACES[i % len(FACES)]).convert('RGB').resize((96, 96))
        writer.write(np.ascontiguousarray(face))
    writer.release()
    return path


class Stops:
    "A predictor that gives up after so many chunks, as if the power had failed."
    def __init__(self, predictor, chunks): self.predictor, self.left = predictor, chunks
    def __getattr__(self, name): return getattr(self.predictor, name)

    def predict_many(self, sources, chunk):
        self.left -= 1
        if self.left < 0: raise RuntimeError('power failure')
        return self.predictor.predict_many(sources, chunk)


def counts(found): return [found[k] for k in ('items', 'faces', 'errors', 'skipped')]


def table(path):
    return sorted((list(r.values()) for r in read_rows(path)), key=lambda r: (r[0], r[1] or 0))


def names(path): return [Path(r['file']).name for r in read_rows(path)]


# The table

def test_every_file_has_a_row_also_those_that_cannot_be_read(predictor, album, tmp_path):
    found = annotate([album, tmp_path/'gone.png'], predictor, tmp_path/'t.csv')
    assert counts(found) == [5, 0, 2, 0]   # crops are no found faces
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
    assert counts(annotate(paths, predictor, out)) == [2, 0, 2, 3]
    Image.fromarray(FACES[5]).save(tmp_path/'late.png')
    assert counts(annotate(paths, predictor, out)) == [2, 0, 1, 3]
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
    assert counts(rest) == [2, 0, 1, 2]   # the letter, tried again, and the last face
    assert table(stopped) == table(whole) and not Path(f'{stopped}.log').exists()


def test_a_chunk_is_on_the_disk_before_the_next_begins(predictor, album, tmp_path):
    "Not only in the process, which a power failure would take along."
    seen = []

    class Looks(Stops):
        def predict_many(self, sources, chunk):
            seen.append(Path(f'{tmp_path}/t.csv.log').read_bytes().count(b'"key"'))
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
    dict(risk=.05), dict(flip_test=True), dict(balanced=.2), dict(tilts=(0,)), dict(smallest=.5),
    dict(align='none'), dict(crop='detect')])
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
    film = write_film(tmp_path/'film.avi')
    annotate(film, predictor, tmp_path/'t.csv', every=2)
    with pytest.raises(GrefelError, match='other settings'):
        annotate(film, predictor, tmp_path/'t.csv', every=3)


class Silent:
    "A predictor whose every setting is known, and that is never asked."
    config = dict(name='tiny', classes=list(EXPRESSIONS), img_size=48, mean=[.5]*3, std=[.25]*3,
                  depth=9)
    metadata, engine = dict(temperature=1.5, grey=True), SimpleNamespace(digest='0123456789abcdef')
    classes, crop, align, detector, smallest = EXPRESSIONS, 'auto', 'model', 'cascade', .06
    tilts, risk, how = (-25., 0., 25.), .1, dict(flip_test=True, balanced=0.)

    def predict_many(self, sources, chunk): raise RuntimeError('stop')


def test_settings_are_written_as_version_0_1_0_wrote_them(album, tmp_path):
    "Or tables of that version would be refused."
    with pytest.raises(RuntimeError): annotate(album, Silent(), tmp_path/'t.csv', every=2)
    first = json.loads(Path(f'{tmp_path}/t.csv.log').read_text().splitlines()[0])
    assert first['settings'] == dict(
        model='3b2f1448ac4140ed', every=2, crop='auto', align='model', detector='cascade',
        smallest=.06, tilts=[-25., 0., 25.], risk=.1, flip_test=True, balanced=0.)


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
    assert heard == [(4, 4)]   # three were done earlier


@pytest.mark.parametrize('options, total', [
    (dict(), 12), (dict(every=3), 6), (dict(max_frames=5), 9)])
def test_a_films_frames_are_counted_beforehand(predictor, album, tmp_path, options, total):
    heard, film = [], write_film(tmp_path/'film.avi', n=8)
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
    film = write_film(tmp_path/'film.avi', fps=10)
    found = annotate(film, predictor, tmp_path/'t.parquet', every=3)
    rows = list(read_rows(tmp_path/'t.parquet'))
    assert [(r['frame'], r['seconds']) for r in rows] == [(0, 0.), (3, .3), (6, .6)]
    assert found['items'] == 3
    shown = [Image.fromarray(FACES[i]).resize((96, 96)) for i in (0, 3, 0)]
    assert [r['emotion'] for r in rows] == [face.emotion for face, in predictor(shown)]


def test_a_stopped_film_is_finished(predictor, tmp_path):
    film = write_film(tmp_path/'film.avi')
    annotate(film, predictor, tmp_path/'whole.csv')
    with pytest.raises(RuntimeError): annotate(film, Stops(predictor, 2), tmp_path/'t.csv', chunk=2)
    assert counts(annotate(film, predictor, tmp_path/'t.csv', chunk=2)) == [4, 0, 0, 4]
    assert table(tmp_path/'t.csv') == table(tmp_path/'whole.csv')


def test_a_film_is_drawn_with_its_timeline_and_only_once(predictor, tmp_path):
    film = write_film(tmp_path/'film.mp4', codec='mp4v')
    runs = [annotate(film, predictor, tmp_path/'t.csv', tmp_path/'drawn') for _ in range(2)]
    assert [len(r['files']) for r in runs] == [2, 0]
    assert 'film_timeline.png' in drawn(tmp_path/'drawn')


def test_a_film_that_was_cut_is_not_begun_again(predictor, tmp_path):
    film = write_film(tmp_path/'film.avi')
    assert counts(annotate(film, predictor, tmp_path/'t.csv', max_frames=4)) == [5, 0, 1, 0]
    assert 'max_frames' in list(read_rows(tmp_path/'t.csv'))[-1]['error']
    assert annotate(film, predictor, tmp_path/'t.csv', max_frames=4)['items'] == 0


def test_a_film_that_goes_on_is_drawn_anew(predictor, tmp_path):
    film, out, folder = write_film(tmp_path/'film.avi'), tmp_path/'t.csv', tmp_path/'drawn'
    annotate(film, predictor, out, folder, max_frames=4)
    assert len(annotate(film, predictor, out, folder)['files']) == 2


def test_a_film_of_any_length(predictor, tmp_path):
    assert annotate(write_film(tmp_path/'film.avi'), predictor, max_frames=None)['items'] == 8


def test_a_broken_film_is_one_row_and_no_drawing(predictor, tmp_path):
    (tmp_path/'broken.mp4').write_bytes(b'no film')
    found = annotate(tmp_path/'broken.mp4', predictor, tmp_path/'t.csv', tmp_path/'drawn')
    assert (counts(found), found['files']) == ([1, 0, 1, 0], [])


class Camera:
    "Gives the same image until somebody presses Ctrl-C."
    def __init__(self, frames): self.left = frames

    def grab(self):
        self.left -= 1
        if self.left < 0: raise KeyboardInterrupt
        return True

    def retrieve(self): return True, np.full((96, 96, 3), 128, np.uint8)
    def get(self, what): return 0.
    def release(self): pass


def test_ctrl_c_is_a_cameras_normal_end_and_the_next_run_goes_on_counting(
        predictor, tmp_path, monkeypatch):
    cv2 = pytest.importorskip('cv2')
    cameras = iter([Camera(3), Camera(2)])
    monkeypatch.setattr(cv2, 'VideoCapture', lambda number: next(cameras))
    for _ in range(2): annotate(0, predictor, tmp_path/'t.jsonl', tmp_path/'seen')
    assert [r['frame'] for r in read_rows(tmp_path/'t.jsonl')] == [0, 1, 2, 3, 4]
    assert drawn(tmp_path/'seen') == ['camera_0.jpg']
