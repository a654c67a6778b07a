"""What scripts behind the pages do: answers of other tools, boxes, films, rows of their tables."""
import json
import sys

import numpy as np
import pandas as pd
import pytest
from tests.repository import NBS, ROOT

sys.path.insert(0, str(ROOT/'benchmarks'))

import speed  # noqa: E402
import tools  # noqa: E402
from nbtools import put_rows  # noqa: E402

NAMES = [*tools.TOOLS]


@pytest.fixture(scope='module')
def faces():
    "Drawn faces of all eight classes."
    from grefel.data.faces import load_faces
    return load_faces('synth', 'valid', n=160)


def keep(cache, name, clean, noise, framing='as it is'):
    "Answers as the script keeps them."
    (cache/'answers').mkdir(exist_ok=True)
    about = json.dumps(dict(framing=framing, tried={'as it is': .5}, ms=1.5))
    np.savez(cache/'answers'/f'{name}.npz', about=about, clean=clean, noise=noise)


def perfect(faces, classes):
    "Probabilities of a tool that is right wherever it can be, else sure of its first class."
    at = [classes.index(n) if n in classes else 0
          for n in np.array(faces.classes)[faces.labels.numpy()]]
    return np.eye(len(classes), dtype=np.float32)[at]


@pytest.mark.parametrize('name', NAMES)
def test_each_tool_knows_the_seven_classes_once(name):
    assert sorted(tools.TOOLS[name].classes) == sorted(tools.COMMON)


@pytest.mark.parametrize('name', ['fer', 'face-api', 'facex'])
def test_answers_are_scored_in_the_tools_own_order(name, faces, tmp_path):
    p = perfect(faces, tools.TOOLS[name].classes)
    keep(tmp_path, name, p, p[::tools.FOURTH])
    row = tools.score(name, faces, tmp_path, 0)
    known = float(np.mean(np.array(faces.classes)[faces.labels.numpy()] != 'contempt'))
    assert (row['accuracy'], row['noise_accuracy']) == (1, 1)
    assert row['n'] == round(known*len(faces)) < row['n_all'] == len(faces)
    assert row['accuracy_all'] == pytest.approx(known)


def test_an_order_that_is_wrong_is_seen(faces, tmp_path):
    p = perfect(faces, tools.TOOLS['fer'].classes)
    keep(tmp_path, 'face-api', p, p[::tools.FOURTH])
    assert tools.score('face-api', faces, tmp_path, 0)['accuracy'] < .5


def test_seven_classes_share_what_the_eighth_had():
    p = tools.in_order(np.array([[.1, .2, .7], [0, 0, 1.]]), ('a', 'b', 'c'), ('b', 'a'))
    assert np.allclose(p, [[2/3, 1/3], [.5, .5]])


def test_framings_keep_the_middle():
    face = np.arange(48*48, dtype=np.uint8).reshape(1, 48, 48)
    closer, margin = (tools.framed(face, how)[0] for how in ('closer', 'margin'))
    assert (closer == face[0, 4:-4, 4:-4]).all()
    assert (margin[6:-6, 6:-6] == face[0]).all() and (margin[0] == margin[6]).all()
    assert tools.framed(face, 'enlarged').shape == (1, 192, 192)
    assert tools.framed(face, 'as it is') is face


def test_time_is_the_quietest_hundred():
    assert tools.quiet_time(np.r_[np.full(100, 9.), np.full(100, 2.), np.full(100, 5.)]) == 2


def test_new_rows_replace_their_own_and_the_best_stand_first(tmp_path):
    out = tmp_path/'table.csv'
    rows = [dict(tool=t, accuracy=a) for t, a in (('fer', .6), ('human', .7), ('nano', .5))]
    tools.write(rows, out)
    tools.write(list((tools.earlier(out) | {'fer': dict(tool='fer', accuracy=.8)}).values()), out)
    assert pd.read_csv(out).tool.tolist() == ['nano', 'fer', 'human']


def test_what_was_stopped_halfway_is_made_anew(tmp_path):
    folder, made = tmp_path/'env', []
    def fail(folder): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): tools.made(folder, fail)
    for _ in range(2): tools.made(folder, made.append)
    assert len(made) == 1


def test_no_environment_lies_in_the_repository(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['tools.py', '--cache', str(ROOT/'cache')])
    with pytest.raises(SystemExit): tools.main()
    assert 'repository' in capsys.readouterr().err


def test_every_tool_of_the_table_can_be_asked_again():
    rows = pd.read_csv(NBS/'8_experiments'/'E21_tools.csv').set_index('tool')
    assert set(rows.index) <= {*tools.OWN, *tools.TOOLS}
    for name in rows.index.difference(tools.OWN):
        tried = json.loads(rows.tried[name])
        assert set(tried) == set(tools.FRAMINGS)
        assert tried[rows.framing[name]] == max(tried.values())


# ---- speed

def square(x, y, side): return np.array([[side, 0, x], [0, side, y]], float)


def test_a_face_is_found_once_and_other_boxes_are_false():
    frames = [square(10, 10, 100), square(300, 50, 60)]
    boxes = [(12, 8, 108, 112), (15, 15, 105, 105), (500, 300, 560, 360)]
    assert speed.hits(boxes, frames) == (1, 2)
    assert speed.hits([], frames) == (0, 0) and speed.hits(boxes[:1], []) == (0, 1)


def test_a_command_is_watched_until_it_ends():
    seconds, held, processor = speed.watch(
        [sys.executable, '-c', 'x = bytearray(80_000_000); sum(range(3_000_000))'], every=.01)
    assert 0 < processor < seconds + 1 and max(mb for _, mb in held) > 60


def test_a_command_that_fails_stops_the_benchmark():
    with pytest.raises(SystemExit, match='exit code 3'):
        speed.watch([sys.executable, '-c', 'raise SystemExit(3)'])


def test_a_made_up_film_has_a_frame_a_second(tmp_path):
    av = pytest.importorskip('av')
    speed.write_film(tmp_path/'film.mp4', 1)
    with av.open(str(tmp_path/'film.mp4')) as film:
        times = [f.time for f in film.decode(video=0)]
    assert len(times) == 60 and times[-1] == pytest.approx(59)


def test_rows_of_a_table_are_replaced_by_those_that_measured_the_same_and_no_others(tmp_path):
    path, fields = tmp_path/'table.csv', ('size', 'threads', 'part', 'ms')
    def rows(*cells): return [dict(zip(fields, c)) for c in cells]
    def put(*cells, **kw): put_rows(path, rows(*cells), fields, same=('size', 'threads'), **kw)
    put(('small', 1, 'step', 9), ('small', 1, 'loss', 2), ('small', 2, 'step', 5))
    put(('small', 1, 'step', 8), ('nano', 1, 'step', 3))    # numbers, while the file holds text
    lines = ['size,threads,part,ms', 'small,2,step,5', 'small,1,step,8', 'nano,1,step,3']
    assert path.read_text().splitlines() == lines
    put(('base', 1, 'step', 70), order=lambda r: r['size'])
    assert [line.split(',')[0] for line in path.read_text().splitlines()[1:]] == [
        'base', 'nano', 'small', 'small']
