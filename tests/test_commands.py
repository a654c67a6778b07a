"""The installed command, as people type it: help, a tiny run from data to answers, bad input."""
import json
import sys

import pytest
from tests.repository import BIN, call, last_line

HEAVY = {'fastai', 'pandas', 'matplotlib', 'seaborn'}
TINY = ('--data', 'synth', '--size', 'nano', '--epochs', '1', '--limit', '256', '--bs', '32')


def grefel(*args, cwd):
    "Run the installed command."
    return call(BIN/'grefel', *args, cwd=cwd, timeout=600)


def ends_with(result, code):
    "The exit code is right; 1 comes with one line on stderr; a traceback never comes."
    assert 'Traceback' not in result.stderr + result.stdout, last_line(result)
    assert result.returncode == code, last_line(result)
    if code == 1: assert len(result.stderr.strip().splitlines()) == 1, result.stderr


def json_rows(result, n):
    "`--json` prints an object a line: emotion, confidence and probabilities, or an error."
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == n
    for row in rows:
        if 'error' in row: continue
        assert {'emotion', 'confidence', 'probabilities'} <= row.keys()
        assert abs(sum(row['probabilities'].values()) - 1) < 1e-3
    return rows


def photograph(folder):
    "scikit-image's portrait of an astronaut (public domain), written into `folder`."
    from PIL import Image
    from skimage import data
    Image.fromarray(data.astronaut()).save(folder/'astronaut.png')
    return folder/'astronaut.png'


COMMANDS = [[n] for n in 'predict demo train evaluate calibrate export inspect landmarks '
                         'experiment data'.split()]
COMMANDS += [['data', n] for n in ('list', 'check', 'convert')]


@pytest.mark.parametrize('args', [[], *COMMANDS], ids=' '.join)
def test_help(args, tmp_path):
    ends_with(grefel(*args, '--help', cwd=tmp_path), 0)


def test_train_evaluate_predict(tmp_path):
    ends_with(grefel('train', *TINY, '--out', 'run', cwd=tmp_path), 0)
    assert (tmp_path/'run/weights.safetensors').exists()
    ends_with(grefel('evaluate', '--weights', 'run', '--data', 'synth', '--split', 'valid',
                     '--out', 'eval', cwd=tmp_path), 0)
    written = {p.name for p in (tmp_path/'eval').iterdir()}
    assert {'report.html', 'metrics.json', 'predictions.csv'} <= written
    metrics = json.loads((tmp_path/'eval/metrics.json').read_text())
    wanted = {'n', 'accuracy', 'balanced_accuracy', 'macro_f1', 'ece', 'primary_accuracy',
              'changed'}
    assert wanted <= metrics.keys()
    said = grefel('predict', photograph(tmp_path), '--weights', 'run', '--json', cwd=tmp_path)
    ends_with(said, 0)
    json_rows(said, 1)


OWN_DATA = '''
import sys
from pathlib import Path
from PIL import Image
from grefel import synth_faces
faces = synth_faces(48, seed=3)
for i, image in enumerate(faces['images']):
    part = 'valid' if i % 3 == 0 else 'train'
    folder = Path(sys.argv[1])/'mine'/part/('happiness' if i % 2 else 'neutral')
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[0].numpy()).save(folder/f'{i}.png')
'''


def test_ones_own_faces_all_the_way(tmp_path):
    "Check, convert, landmarks, train, evaluate, inspect, export, answers, drawings."
    made = call(sys.executable, '-c', OWN_DATA, tmp_path, cwd=tmp_path)
    assert not made.returncode, last_line(made)
    for args in (['data', 'check', 'mine'], ['data', 'convert', 'mine', 'mine.parquet'],
                 ['landmarks', 'mine.parquet', '--out', 'landmarks.parquet'],
                 ['train', '--data', 'mine.parquet', '--targets', 'hard',
                  '--landmarks', 'landmarks.parquet', '--epochs', '1', '--bs', '16',
                  '--out', 'run', '--quiet'],
                 ['evaluate', '--weights', 'run', '--data', 'mine.parquet', '--split', 'valid',
                  '--out', 'own'],
                 ['evaluate', '--data', 'mine.parquet', '--split', 'valid',
                  '--landmarks', 'landmarks.parquet', '--out', 'eval'],
                 ['inspect', 'mine.parquet', '--no-model', '--out', 'health'],
                 ['export', '--size', 'nano', '--out', 'nano.onnx'],
                 ['predict', 'mine', '--weights', 'nano.onnx', '--out', 'answers.csv', '--annotate',
                  'drawn']):
        ends_with(grefel(*args, cwd=tmp_path), 0)
    for name in ('mine.parquet', 'landmarks.parquet', 'own/report.html', 'eval/report.html',
                 'health/health.html', 'nano.onnx', 'answers.csv'):
        assert (tmp_path/name).exists(), name


BROKEN = {
    'missing file': ['predict', 'missing.png'],
    'empty folder': ['predict', 'empty'],
    'text as an image': ['predict', 'text.png'],
    'truncated image': ['predict', 'half.png'],
    'file of 0 bytes': ['predict', 'nothing.jpg'],
    'weights that are none': ['predict', 'astronaut.png', '--weights', 'weights.safetensors'],
    'missing weights': ['predict', 'astronaut.png', '--weights', 'missing.safetensors'],
    'CSV without a column': ['evaluate', '--split', 'valid', '--out', 'out', '--data', 'lacks.csv'],
    'CSV with too few pixels': ['evaluate', '--split', 'valid', '--out', 'out', '--data',
                                'short.csv'],
    'CSV with an unknown label': ['evaluate', '--split', 'valid', '--out', 'out', '--data',
                                  'range.csv'],
    'missing table': ['evaluate', '--split', 'valid', '--out', 'out', '--data', 'missing.csv'],
    'output where a file lies': ['evaluate', '--data', 'synth', '--split', 'valid', '--out',
                                 'text.png']}


@pytest.mark.parametrize('what', BROKEN)
def test_bad_input_gives_one_line_and_exit_code_1(what, tmp_path):
    photo = photograph(tmp_path)
    (tmp_path/'empty').mkdir()
    (tmp_path/'text.png').write_text('not a picture')
    (tmp_path/'half.png').write_bytes(photo.read_bytes()[:20_000])
    (tmp_path/'nothing.jpg').write_bytes(b'')
    (tmp_path/'weights.safetensors').write_text('not weights')
    (tmp_path/'lacks.csv').write_text('emotion,Usage\n3,Training\n')
    (tmp_path/'short.csv').write_text('emotion,pixels,Usage\n3,1 2 3,PublicTest\n')
    pixels = ' '.join(['7']*2304)
    (tmp_path/'range.csv').write_text(f'emotion,pixels,Usage\n99,{pixels},PublicTest\n')
    ends_with(grefel(*BROKEN[what], cwd=tmp_path), 1)


def test_unusual_images_are_read(tmp_path):
    import numpy as np
    from PIL import Image
    face = Image.open(photograph(tmp_path)).crop((150, 0, 330, 200))
    rotated = face.getexif()
    rotated[0x0112] = 6
    face.save(tmp_path/'exif.jpg', exif=rotated)
    face.convert('CMYK').save(tmp_path/'cmyk.jpg')
    face.convert('P').save(tmp_path/'palette.png')
    face.convert('LA').save(tmp_path/'alpha.png')
    Image.fromarray(np.asarray(face.convert('L')).astype('uint16')*257).save(tmp_path/'sixteen.png')
    names = ('exif.jpg', 'cmyk.jpg', 'palette.png', 'alpha.png', 'sixteen.png')
    said = grefel('predict', *names, '--json', cwd=tmp_path)
    ends_with(said, 0)
    json_rows(said, len(names))


def test_the_rest_of_a_list_is_done(tmp_path):
    photograph(tmp_path)
    (tmp_path/'text.png').write_text('not a picture')
    said = grefel('predict', 'text.png', 'astronaut.png', 'missing.png', '--json', cwd=tmp_path)
    assert ['error' in row for row in json_rows(said, 3)] == [True, False, True]
    assert said.returncode == 1


def test_wrong_usage_is_exit_code_2(tmp_path):
    assert grefel('predict', '--no-such-option', cwd=tmp_path).returncode == 2


PREDICTS = '''
import json, sys
from grefel.use.cli import main
try: code = main()
except SystemExit as end: code = end.code
if code: sys.exit(code)
print(json.dumps(sorted({name.partition('.')[0] for name in list(sys.modules)})))
'''


def test_predict_loads_no_training_packages(tmp_path):
    done = call(sys.executable, '-c', PREDICTS, 'predict', photograph(tmp_path), cwd=tmp_path)
    assert not done.returncode, last_line(done)
    assert not HEAVY & set(json.loads(done.stdout.splitlines()[-1]))


def test_predict_with_onnx_loads_no_pytorch_and_agrees_with_it(tmp_path):
    photo = photograph(tmp_path)
    done = call(sys.executable, '-c', PREDICTS, 'predict', photo, '--backend', 'onnx', '--json',
                cwd=tmp_path)
    assert not done.returncode, last_line(done)
    said, loaded = done.stdout.splitlines()[0], json.loads(done.stdout.splitlines()[-1])
    assert not (HEAVY | {'torch'}) & set(loaded)
    other = json.loads(grefel('predict', photo, '--json', cwd=tmp_path).stdout)['probabilities']
    assert max(abs(p - other[name]) for name, p in json.loads(said)['probabilities'].items()) < 1e-3
