"""Commands keep their promises: help at once, exit codes, one line for bad input, JSON alone."""
import io
import json
import re
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage.data import astronaut

from grefel import __version__
from grefel.base.core import EXPRESSIONS, GrefelError
from grefel.base.synth import synth_faces
from grefel.measure.answers import add_metadata
from grefel.method.files import load_model
from grefel.use.cli import main, parser

COMMANDS = [(n,) for n in 'predict demo train evaluate calibrate export inspect landmarks '
                          'experiment'.split()]
COMMANDS += [('data', n) for n in ('list', 'check', 'convert')]


@pytest.fixture
def run(capsys):
    "Run a command in this process: exit code, stdout, stderr."
    def one(*args):
        try: code = main([str(a) for a in args])
        except SystemExit as end: code = end.code
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err)
    return one


def one_line(text):
    "Whether this is the line that a command says about bad input."
    return text.startswith('grefel: ') and text.count('\n') == 1 and text.endswith('\n')


def as_json(text):
    "Every line of stdout, which must be strict JSON."
    def not_json(constant): raise ValueError(f'{constant} is no JSON')
    return [json.loads(line, parse_constant=not_json) for line in text.splitlines()]


# ---- Help and arguments

def test_help_loads_nothing_heavy():
    code = ('import sys; from grefel.use.cli import parser; parser().format_help(); '
            'print(sorted({"torch", "numpy", "pandas", "fastai", "PIL"} & set(sys.modules)))')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stderr


def test_the_package_runs_as_a_command():
    done = subprocess.run([sys.executable, '-m', 'grefel', '--version'], capture_output=True,
                          text=True)
    assert (done.returncode, done.stdout) == (0, f'grefel {__version__}\n')


@pytest.mark.parametrize('command', COMMANDS, ids=' '.join)
def test_help_speaks_the_fields_words(run, command):
    said = run(*command, '--help')
    assert said.code == 0 and said.out.startswith('usage: grefel ' + ' '.join(command))
    words = ' '.join(said.out.split()).lower()
    for odd in ('graphics card', 'picture', 'twin', 'rival', 'by lot', 'on purpose', 'passes over'):
        assert odd not in words


@pytest.mark.parametrize('args', [
    (), ('forecast',), ('train',), ('data',), ('data', 'sell'), ('predict', '--no-such-option'),
    ('export', '--out', 'a.onnx', '--size', 'nano', '--weights', 'w'), ('predict', '--camera', 'x'),
    ('evaluate', '--out', 'x', '--limit', 'many')])
def test_a_wrong_call_is_exit_code_2(run, args):
    said = run(*args)
    assert said.code == 2 and said.out == '' and 'error:' in said.err


def test_the_help_of_train_quotes_the_recipes_defaults(run):
    from grefel.train.runs import Recipe
    words = ' '.join(run('train', '--help').out.split())
    quoted = dict(re.findall(r'--([a-z-]+) [A-Z_]+ (?:(?!--[a-z]).)*?\(default: ([^)]+)\)', words))
    defaults = {f.name.replace('_', '-'): f.default for f in fields(Recipe)}
    assert {'size', 'epochs', 'ema', 'noise-share'} <= quoted.keys()
    scratch, onward = Recipe().lr, Recipe(start='nano').lr
    assert quoted.pop('lr') == f'{scratch}, with --start {onward}'
    for name in quoted.keys() - {'device', 'data-home', 'classes'}:   # these are no fields
        assert type(defaults[name])(quoted[name]) == defaults[name], name


def test_what_train_was_not_told_is_left_to_the_recipe():
    from grefel.train.runs import Recipe
    recipe = {f.name for f in fields(Recipe)}
    assert not recipe & vars(parser().parse_args(['train', '--out', 'x'])).keys()
    given = vars(parser().parse_args('train --out x --lr 1e-3 --graph --keep-duplicates'.split()))
    assert {k: given[k] for k in recipe & given.keys()} == dict(
        lr=1e-3, graph=True, drop_duplicates=False)


@pytest.mark.parametrize('given, wanted', [
    ([], None), (['--flip-test'], True), (['--no-flip-test'], False)])
def test_the_flip_is_as_calibrated_unless_it_was_asked_for(given, wanted):
    assert parser().parse_args(['predict', 'a.png', *given]).flip_test is wanted


# ---- predict

@pytest.fixture
def photos(tmp_path):
    Image.fromarray(astronaut()).save(tmp_path/'good.png')
    (tmp_path/'broken.jpg').write_bytes(b'not an image')
    (tmp_path/'empty').mkdir()
    return tmp_path


@pytest.fixture
def film(photos):
    "Two frames of the portrait."
    cv2 = pytest.importorskip('cv2')
    frame = np.ascontiguousarray(astronaut()[..., ::-1])
    writer = cv2.VideoWriter(str(photos/'film.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 5, (512, 512))
    for _ in range(2): writer.write(frame)
    writer.release()
    return photos/'film.avi'


@pytest.mark.parametrize('options', [
    [], ['--json'], ['--backend', 'onnx'], ['--out', '{}/answers.csv'],
    ['--out', '{}/answers.csv', '--json'], ['--annotate', '{}/drawn']])
@pytest.mark.parametrize('bad', ['broken.jpg', 'missing.png', 'empty'])
def test_what_cannot_be_read_is_exit_code_1_and_the_rest_is_answered(run, photos, options, bad):
    options = [o.format(photos) for o in options]
    assert run('predict', photos/'good.png', *options).code == 0
    options = [o.replace('answers', 'other') for o in options]
    said = run('predict', photos/bad, photos/'good.png', *options)
    assert said.code == 1
    if '--out' in options:
        rows = pd.read_csv(photos/'other.csv')
        assert list(rows.emotion.fillna('')) == ['', 'happiness']
        assert list(rows.error.notna()) == [True, False]
    elif '--annotate' in options: assert (photos/'drawn'/'good.jpg').exists()
    else: assert 'happiness' in said.out
    if '--json' not in options and '--out' not in options and '--annotate' not in options:
        assert one_line(said.err) and str(photos/bad) in said.err


def test_a_film_that_cannot_be_read_is_exit_code_1(run, photos, film):
    assert run('predict', film).code == 0
    (photos/'half.avi').write_bytes(film.read_bytes()[:100])
    said = run('predict', photos/'half.avi', film)
    assert said.code == 1 and one_line(said.err) and 'half.avi' in said.err
    assert said.out.count('happiness') == 2


def test_a_line_says_what_and_where(run, photos):
    said = run('predict', photos/'good.png')
    assert re.fullmatch(re.escape(str(photos/'good.png'))
                        + r': happiness \d+% \(face at \d+, \d+, \d+, \d+(; [a-z ]+ would say '
                        r'otherwise)?\)\n', said.out)
    assert said.err == ''


def test_a_line_says_where_nothing_was_found(run, photos):
    Image.new('RGB', (200, 200), (40, 90, 40)).save(photos/'lawn.png')
    said = run('predict', photos/'lawn.png', '--risk', '0.000001')
    assert said.out.endswith('lawn.png: no face found\n') and said.code == 0


def test_doubt_is_told(run, photos, monkeypatch):
    from grefel.use import predict
    class Unsure(predict.Predictor):
        def predict_many(self, images, *args):
            for faces in super().predict_many(images, *args):
                yield [replace(f, reliable=False) for f in faces]
    monkeypatch.setattr(predict, 'Predictor', Unsure)
    assert ', unsure (face at' in run('predict', photos/'good.png').out


def test_json_holds_every_face_and_every_error(run, photos):
    said = run('predict', photos/'broken.jpg', photos/'good.png', photos/'empty', '--json')
    assert said.code == 1 and said.err == ''
    broken, good, empty = as_json(said.out)
    assert 'format' in broken['error'] and 'no images or videos' in empty['error']
    assert [Path(r['file']).name for r in (broken, good, empty)] == ['broken.jpg', 'good.png',
                                                                     'empty']
    assert sum(good['probabilities'].values()) == pytest.approx(1, abs=1e-4)
    assert good['emotion'] == max(good['probabilities'], key=good['probabilities'].get)
    assert good['faces'][0]['emotion'] == good['emotion'] and good['face_found'] is True


def test_json_of_a_film_is_a_row_a_frame(run, film):
    rows = as_json(run('predict', film, '--json').out)
    assert [(r['frame'], r['emotion']) for r in rows] == [(0, 'happiness'), (1, 'happiness')]
    assert [r['frame'] for r in as_json(run('predict', film, '--json', '--every', 2).out)] == [0]


def test_a_table_is_told_in_a_summary(run, photos):
    args = 'predict', photos/'good.png', photos/'broken.jpg', '--out', photos/'a.jsonl'
    said = run(*args)
    assert said.out == '' and '2 images: 1 faces, 0 unsure, 1 errors' in said.err
    earlier = '2 images (1 done earlier): 1 faces, 0 unsure, 1 errors'   # of the whole table
    assert earlier in run(*args).err
    (found,) = as_json(run(*args, '--json').out)
    assert found['errors'] == 1 and found['out'] == str(photos/'a.jsonl')


def test_nothing_to_read_is_bad_input(run):
    said = run('predict')
    assert (said.code, said.err) == (1, 'grefel: name images, videos or folders, or a --camera\n')


def test_options_reach_the_predictor(run, photos, monkeypatch):
    from grefel.use import predict
    class Stop(GrefelError): pass
    def asked(*args, **kw): raise Stop(json.dumps([args, kw]))
    monkeypatch.setattr(predict, 'Predictor', asked)
    said = run('predict', 'a.png', '--weights', 'w', '--device', 'd', '--backend', 'onnx', '--crop',
               'whole', '--align', 'none', '--detector', 'face-alignment', '--risk', '.2',
               '--threads', '3', '--no-flip-test', '--balanced', '.5', '--smallest', '9',
               '--min-score', '.7', '--thorough', '--no-face', 'whole', '--jobs', '2', '--coverage',
               '.9', '--promise', 'annotators')
    assert json.loads(said.err.removeprefix('grefel: ')) == [
        ['w', 'd', 'onnx', 'whole', 'none', 'face-alignment', 9, .7, True, 'whole'],
        dict(risk=.2, threads=3, jobs=2, coverage=.9, promise='annotators', flip_test=False,
             balanced=.5)]


# ---- Sets and doubts

@pytest.fixture(scope='module')
def calibrated(tmp_path_factory):
    "The shipped weights, calibrated on a few drawn faces by the command; and what it said."
    folder = tmp_path_factory.mktemp('calibrated')
    table, file = folder/'faces.csv', folder/'small.safetensors'
    drawn = synth_faces(40, size=48, seed=7)
    rows = [f"{EXPRESSIONS[k]},{' '.join(map(str, x.flatten().tolist()))},valid"
            for k, x in zip(drawn['labels'].tolist(), drawn['images'])]
    table.write_text('\n'.join(['emotion,pixels,split', *rows]))
    said = io.StringIO()
    with redirect_stdout(said):
        assert not main(['calibrate', '--data', str(table), '--out', str(file)])
    return file, said.getvalue()


def test_calibrating_tells_what_sets_promise_and_that_faces_are_few(calibrated):
    file, said = calibrated
    assert 'Sets can be asked to hold 80%, 90%, 95% of labels' in said
    assert re.search('^Warning: .*40', said, re.M) and 'annotators' not in said
    assert {'sets', 'doubts'} <= load_model(file).metadata.keys()


def test_as_json_calibrating_leaves_out_the_vectors(run, replaced, monkeypatch):
    doubts = dict(crowd_temperature=1., parts=dict(pixels=dict(mean=dict(float32='AAAA'*9))))
    found = CALLS['calibrate'][1]['measure.answers.calibrate_weights'] | dict(doubts=doubts)
    monkeypatch.setitem(CALLS, 'calibrate', (
        [], {'measure.answers.calibrate_weights': found}, None))
    replaced('calibrate')
    said = run('calibrate', '--out', 'c.safetensors', '--json').out
    assert 'AAAA' not in said and as_json(said)[0]['doubts'] == doubts | dict(parts=['pixels'])


def test_sets_and_doubts_are_said_in_every_output(run, photos, calibrated):
    args = 'predict', photos/'good.png', '--weights', calibrated[0], '--coverage', '.9'
    said = run(*args)
    assert re.search(r': [a-z, ]+ or [a-z]+, likeliest |: any expression, likeliest |: \w+ \d+%',
                     said.out) and 'would say otherwise)' in said.out
    row, = as_json(run(*args, '--json').out)
    assert row['set'][0] == row['emotion'] and 0 <= row['familiarity'] <= 1
    assert run(*args, '--out', photos/'a.csv').code == 0
    table = pd.read_csv(photos/'a.csv')
    assert table.set[0] == ' or '.join(row['set'])
    assert table.ambiguity[0] == pytest.approx(row['ambiguity'], abs=1e-4)


def test_sets_that_nobody_measured_are_refused_in_a_line(run, photos, calibrated):
    bare = photos/'bare.safetensors'
    add_metadata('nano', bare, sets=None, doubts=None)
    for options, said in ((('--weights', bare, '--coverage', '.9'), 'run grefel calibrate'),
                          (('--weights', calibrated[0], '--coverage', '.7'), 'not stored'),
                          (('--promise', 'labels'), 'ask for sets with --coverage')):
        answer = run('predict', photos/'good.png', *options)
        assert answer.code == 1 and one_line(answer.err) and said in answer.err


# ---- Commands that call one function

METRICS = dict(n=9, accuracy=.5, accuracy_low=.4, accuracy_high=.6, balanced_accuracy=float('nan'),
               macro_f1=.5, ece=.1, changed=1, helped=1, hurt=0, primary_accuracy=.5, confusion=[])
SUMMARY = pd.DataFrame(dict(seeds=1, accuracy=.5, accuracy_sd=np.nan, ece=.1, minutes=2.), ['a'])
TOLD = SimpleNamespace(as_dict=lambda: dict(rows=3), text='3 rows', usable=3, unread=[])

# command → its arguments, the functions that are replaced by what they return, what JSON says
CALLS = {
    'data list': ([], {'data.check.data_list': TOLD}, dict(rows=3)),
    'data check': (['mine'], {'data.check.check_data': TOLD}, dict(rows=3)),
    'data convert': (['mine', 'a.parquet'], {'data.convert.convert': dict(
        stored=1, rows=2, bytes=3, bad=1, report=Path('bad.csv'), files=[Path('a.parquet')])},
        dict(stored=1, rows=2, bytes=3, bad=1, report='bad.csv', files=['a.parquet'])),
    'landmarks': (['mine', '--source', 'face-alignment', '--out', 'l.parquet'], {
        'data.landmarks.make_landmarks': dict(found=1, rows=2, file=Path('l.parquet'))},
        dict(found=1, rows=2, file='l.parquet')),
    'inspect': (['mine', '--out', 'health'], {'measure.inspect.inspect_data': dict(
        rows=3, problems=dict(label_noise=1))}, dict(rows=3, problems=dict(label_noise=1))),
    'calibrate': (['--out', 'c.safetensors'], {'measure.answers.calibrate_weights': dict(
        temperature=1.5, risk=[[.05, .9, .5], [.01, None, 0]])},
        dict(temperature=1.5, risk=[[.05, .9, .5], [.01, None, 0]])),
    'export': (['--size', 'nano', '--int8', '--out', 'a.onnx'], {'use.onnx.export_onnx': dict(
        bytes=2**20, difference=1e-6, faces='64 faces', agreement=.99)},
        dict(bytes=2**20, difference=1e-6, faces='64 faces', agreement=.99)),
    'evaluate': (['--data', 'synth', '--limit', '9', '--out', 'e'], {
        'measure.report.evaluate': METRICS},
        {k: v for k, v in METRICS.items() if k != 'confusion'} | dict(balanced_accuracy=None)),
    'experiment': (['spec.json'], {
        'train.experiments.run_table': None, 'train.experiments.summary': SUMMARY},
        dict(a=dict(seeds=1, accuracy=.5, accuracy_sd=None, ece=.1, minutes=2.))),
    'train': (['--data', 'synth', '--out', 'run'], {'train.runs.train': None},
              dict(out='run', best=dict(epoch=1, accuracy=.6)))}
TEXTS = {
    'data list': '3 rows\n', 'data check': '3 rows\n',
    'data convert': '1 of 2 rows are in a.parquet (0.0 MiB)\n'
                    '1 could not be used; bad.csv says why\n',
    'landmarks': '1 of 2 faces have landmarks in l.parquet\n',
    'inspect': '3 rows; 1 label noise\nPage: health/health.html\n',
    'calibrate': 'Temperature 1.500; answers are at most\n'
                 '    5% wrong where the confidence is 0.90 or more: 50% of faces\n'
                 '    1% wrong nowhere\nThe calibrated weights are in c.safetensors\n',
    'export': 'a.onnx: 1.0 MiB, differs from PyTorch by at most 1.0e-06 on 64 faces\n'
              '8-bit weights: 99.0% of answers are those of the full precision\n',
    'train': 'Best epoch 2: 60.00% right on validation. Weights, history and recipe are in run\n'}


@pytest.fixture
def replaced(monkeypatch, tmp_path):
    "Replace the functions of a command by ones that chatter and return something; their calls."
    monkeypatch.chdir(tmp_path)
    (tmp_path/'run').mkdir()
    (tmp_path/'run'/'history.csv').write_text('epoch,accuracy\n0,0.5\n1,0.6\n2,0.55\n')
    calls = {}

    def replace(command):
        for path, value in CALLS[command][1].items():
            def chatting(*args, _path=path, _value=value, **kw):
                calls[_path] = args, kw
                print('chatter that is no JSON')
                return _value
            monkeypatch.setattr('grefel.' + path, chatting)
        return calls
    return replace


@pytest.mark.parametrize('command', CALLS)
def test_with_json_stdout_is_json_and_nothing_else(run, replaced, command):
    "Whatever a library prints on the way goes to stderr."
    replaced(command)
    said = run(*command.split(), *CALLS[command][0], '--json')
    assert said.code == 0 and set(said.err.splitlines()) == {'chatter that is no JSON'}
    assert as_json(said.out) == [CALLS[command][2]]


@pytest.mark.parametrize('command', TEXTS)
def test_without_json_a_person_reads_it(run, replaced, command):
    replaced(command)
    said = run(*command.split(), *CALLS[command][0])
    assert said.code == 0 and said.err == ''
    assert said.out.replace('chatter that is no JSON\n', '') == TEXTS[command]


def test_metrics_are_told_with_their_interval(run, replaced):
    replaced('evaluate')
    said = run('evaluate', *CALLS['evaluate'][0]).out
    assert '9 faces: accuracy 50.00% (95% interval 40.00% to 60.00%)' in said
    assert 'Balancing changed 1 of 9 answers, 1 for the better and 0 for the worse' in said
    assert said.endswith('Report: e/report.html\n')


WITH_PROGRESS = {'data check': 'data.check.check_data', 'data convert': 'data.convert.convert',
                 'landmarks': 'data.landmarks.make_landmarks',
                 'inspect': 'measure.inspect.inspect_data', 'evaluate': 'measure.report.evaluate'}


@pytest.mark.parametrize('command, path', WITH_PROGRESS.items())
@pytest.mark.parametrize('terminal, options, wanted', [
    (True, [], True), (False, [], False), (True, ['--json'], False)])
def test_progress_is_drawn_for_a_person_who_watches(
        run, replaced, monkeypatch, command, path, terminal, options, wanted):
    calls = replaced(command)
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: terminal)
    run(*command.split(), *CALLS[command][0], *options)
    assert calls[path][1]['progress'] is wanted


@pytest.mark.parametrize('options, wanted', [([], True), (['--quiet'], False), (['--json'], False)])
def test_training_is_quiet_when_told(run, replaced, options, wanted):
    calls = replaced('train')
    run('train', *CALLS['train'][0], *options)
    assert calls['train.runs.train'][1] == dict(progress=wanted)


@pytest.mark.parametrize('options', [
    ['--out', 'a.csv'], ['--annotate', 'drawn', '--every', '0.5s']])
def test_annotate_draws_its_bar_and_hears_the_step(run, monkeypatch, film, options):
    from grefel.use import annotate
    found = dict(items=3, faces=1, unsure=0, errors=0, new=1, skipped=2, changed=['film.avi'])
    calls = []
    monkeypatch.setattr(annotate, 'annotate', lambda *a, **kw: calls.append(kw) or found)
    said = run('predict', film, *options)
    assert calls[0]['every'] == ('0.5s' if '--every' in options else 1)
    assert calls[0]['progress'] is None and calls[0]['on_item'] is None
    assert '3 images (2 done earlier, 1 changed since and read again): 1 faces' in said.err


def test_films_are_printed_as_images_are(run, film):
    said = run('predict', film, '--crop', 'whole', '--risk', '0.000001')
    assert said.out.count('s: ') == 2 and said.out.count('taken to be a face already') == 2
    image, frame = (as_json(run('predict', p, '--json').out)[0]
                    for p in (film.parent/'good.png', film))
    assert list(image) == list(frame)
    assert (image['frame'], image['seconds']) == (None, None)
    assert (frame['frame'], frame['seconds']) == (0, 0)


@pytest.mark.parametrize('step', ['0', 'x', '-1s'])
def test_a_step_that_makes_no_sense_is_told(run, film, step):
    said = run('predict', film, f'--every={step}')
    assert said.code == 1 and one_line(said.err) and 'every is' in said.err


def test_a_table_of_runs_logs_to_stderr(run, replaced):
    calls = replaced('experiment')
    said = run('experiment', 'spec.json', '--rows', 'a', 'b', '--seeds', 1, 2, '--jobs', 3,
               '--long')
    (spec, out, runs, seeds, rows, device, home, jobs, long), kw = calls[
        'train.experiments.run_table']
    assert (spec, seeds, rows, jobs, long) == ('spec.json', [1, 2], ['a', 'b'], 3, True)
    assert (out, runs, device, home) == (None, None, 'cpu', None)
    assert 'accuracy' in said.out and '0.5' in said.out


def test_a_line_of_the_log_is_seen_at_once(run, replaced, monkeypatch):
    replaced('experiment')
    monkeypatch.setattr('grefel.train.experiments.run_table',
                        lambda *args, log: log('a, seed 1: done'))
    said = run('experiment', 'spec.json')
    assert said.err == 'a, seed 1: done\n' and 'seed 1' not in said.out


@pytest.mark.parametrize('given, file, which', [
    ([], None, 'builtin'), (['--landmarks', 'given'], None, 'given'),
    (['--landmarks', 'l.parquet'], 'l.parquet', 'given')])
def test_evaluate_takes_landmarks_from_model_data_or_a_file(
        run, replaced, monkeypatch, given, file, which):
    from grefel.data import faces
    calls, loaded, load = replaced('evaluate'), [], faces.load_faces
    def watched(*args, **kw):
        loaded.append(kw.pop('landmarks'))
        assert kw['drop_duplicates'] is False                  # whoever measures wants all of them
        return load(*args, **kw)
    monkeypatch.setattr(faces, 'load_faces', watched)
    run('evaluate', *CALLS['evaluate'][0], *given)
    assert (loaded, calls['measure.report.evaluate'][1]['landmarks']) == ([file], which)


def test_evaluate_shows_the_history_that_lies_with_the_weights(run, replaced):
    calls = replaced('evaluate')
    run('evaluate', *CALLS['evaluate'][0], '--flip-test', '--balanced', '.5')
    (_, faces), kw = calls['measure.report.evaluate']
    assert len(faces) == 9 and kw['history'].name == 'ferplus_nano.csv'
    assert kw['weights'] == 'ferplus_nano.safetensors'
    assert (kw['flip_test'], kw['balanced']) == (True, .5)


def test_a_finished_run_is_not_done_again(run, replaced, monkeypatch):
    calls = replaced('train')
    monkeypatch.setattr('grefel.train.runs.finished', lambda *_: True)
    said = run('train', *CALLS['train'][0])
    assert said.out.startswith('This run was finished before. Best epoch 2:') and not calls


def test_train_hands_on_the_recipe(run, replaced):
    calls = replaced('train')
    run('train', '--data', 'synth', '--size', 'paper', '--lr', '1e-4', '--keep-duplicates',
        '--bf16', '--pretrained', 'files', '--device', 'cuda', '--data-home', 'home', '--out',
        'run')
    recipe, *rest = calls['train.runs.train'][0]
    assert (recipe.data, recipe.size, recipe.lr) == ('synth', 'paper', 1e-4)
    assert (recipe.drop_duplicates, recipe.bf16, recipe.graph) == (False, True, False)
    assert recipe.model == dict(pretrained='files') and rest == ['run', 'cuda', 'home']


# ---- What goes wrong

def failing(monkeypatch, error):
    "Let `grefel data list` end so."
    def fail(*_): raise error
    monkeypatch.setattr('grefel.data.check.data_list', fail)


@pytest.mark.parametrize('error, line', [
    (GrefelError('a.csv: two\n  lines'), 'grefel: a.csv: two lines\n'),
    (OSError(28, 'No space left on device', 'out/a.csv'),
     'grefel: out/a.csv: No space left on device\n'),
    (OSError(28, 'No space left on device'), 'grefel: data: No space left on device\n'),
    (KeyboardInterrupt(), 'grefel: stopped; the same command continues it\n')])
@pytest.mark.parametrize('options', [[], ['--json']])
def test_bad_input_is_one_line_and_exit_code_1(run, monkeypatch, error, line, options):
    failing(monkeypatch, error)
    said = run('data', 'list', *options)
    assert (said.code, said.out, said.err) == (1, '', line)


def test_a_mistake_of_the_library_keeps_its_traceback(run, monkeypatch):
    failing(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError): run('data', 'list')


@pytest.mark.parametrize('options, goes_on', [([], False), (['--out', 'a.csv'], True)])
def test_a_stopped_prediction_goes_on_only_with_a_table(run, photos, monkeypatch, options, goes_on):
    monkeypatch.chdir(photos)
    def stop(*_, **__): raise KeyboardInterrupt
    monkeypatch.setattr('grefel.use.predict.Predictor', stop)
    said = run('predict', 'good.png', *options)
    assert said.code == 1
    assert said.err == 'grefel: stopped' + '; the same command continues it'*goes_on + '\n'


def test_a_reader_that_goes_away_is_no_fault(tmp_path):
    "As in `grefel predict … | head -1`, which closes the pipe after a line."
    for i in range(60): Image.new('L', (48, 48), i).save(tmp_path/f'{i}.png')
    predict = [sys.executable, '-m', 'grefel', 'predict', '--backend', 'onnx', '--json']
    command = subprocess.Popen([*predict, str(tmp_path)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    command.stdout.readline()
    command.stdout.close()
    said = command.stderr.read()
    assert (command.wait(120), said) == (0, '')


@pytest.mark.parametrize('command', [
    ['evaluate', '--weights', 'noise.safetensors', '--data', 'synth', '--out', 'e'],
    ['evaluate', '--weights', 'nowhere', '--data', 'synth', '--out', 'e'],
    ['evaluate', '--data', 'bad.csv', '--out', 'e'],
    ['evaluate', '--data', 'synth', '--limit', '8', '--out', 'bad.csv'],
    ['evaluate', '--data', 'synth', '--limit', '0', '--out', 'e'],
    ['calibrate', '--weights', 'noise.safetensors', '--out', 'c.safetensors'],
    ['export', '--size', 'huge', '--out', 'a.onnx'], ['export', '--size', 'nano', '--out', 'a.bin'],
    ['train', '--data', 'synth', '--lr', 'nan', '--out', 't'],
    ['train', '--data', 'empty', '--out', 't'],
    ['train', '--data', 'synth', '--size', 'huge', '--limit', '64', '--out', 't'],
    ['train', '--config', 'bad.csv', '--out', 't'],
    ['inspect', 'bad.csv', '--no-model', '--out', 'h'], ['data', 'check', 'missing'],
    ['data', 'convert', 'bad.csv', 'o.parquet'], ['landmarks', 'bad.csv', '--out', 'l.parquet'],
    ['demo', '--port', '70000'], ['experiment', 'missing.json'], ['predict', 'empty'],
    ['predict', 'good.png', '--risk', '2'], ['predict', 'good.png', '--weights', 'nowhere']],
    ids=' '.join)
def test_bad_files_and_numbers_are_told_in_a_line(run, photos, monkeypatch, command):
    monkeypatch.chdir(photos)
    (photos/'noise.safetensors').write_bytes(b'noise')
    (photos/'bad.csv').write_text('a,b\n1,2\n')
    said = run(*command)
    assert said.code == 1 and one_line(said.err), said.err
    if '--json' in run(*command[:1 + (command[0] == 'data')], '--help').out:
        assert run(*command, '--json').out.count('\n') <= 1


def test_a_file_name_that_is_no_text_is_printed_all_the_same(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(raw, 'ascii'))
    monkeypatch.setattr('grefel.data.check.data_list', lambda _: SimpleNamespace(text='\udc80é'))
    assert main(['data', 'list']) == 0
    sys.stdout.flush()
    assert raw.getvalue() == b'\\udc80\\xe9\n'


# ---- All faces together

@pytest.fixture
def album(tmp_path):
    "Twelve drawn faces as files."
    for i, x in enumerate(synth_faces(12, size=48, seed=8)['images'][:, 0].numpy()):
        Image.fromarray(x).save(tmp_path/f'{i:02}.png')
    return tmp_path


@pytest.mark.parametrize('backend', ['torch', 'onnx'])
def test_shares_are_told_with_intervals_and_what_they_are_not_for(run, album, backend):
    said = run('predict', album, '--shares', '--backend', backend)
    assert said.code == 0 and 'all faces (12)' in said.out and '90% interval' in said.out
    assert all(e in said.out for e in EXPRESSIONS) and 'Do not use them to judge' in said.out


def test_shares_lie_beside_a_table_and_among_drawings(run, album):
    out, drawn = album/'t'/'answers.csv', album/'drawn'
    assert run('predict', album, '--shares', '--out', out).code == 0
    shares = pd.read_csv(out.with_name('answers_shares.csv'))
    assert list(shares.expression) == list(EXPRESSIONS) and shares.share.sum().round(2) == 1
    assert (shares.low <= shares.share).all() and (shares.share <= shares.high).all()
    assert '<svg' in out.with_name('answers_shares.svg').read_text() and len(pd.read_csv(out)) == 12
    assert run('predict', album/'00.png', '--shares', '--annotate', drawn).code == 0
    assert (drawn/'shares.csv').exists() and (drawn/'shares.svg').exists()


def test_shares_and_finds_as_json_are_one_object(run, album):
    (found,) = as_json(run('predict', album, '--shares', '--find', 'fear,contempt', '--precision',
                           '.2', '--json').out)
    assert found['items'] == 12 and len(found['shares']) == 8 and found['out'] is None
    assert len(found['found_is_worth']) == 2 and 'judge a person' in found['shares_are_not_for']
    assert all(f['looks_like'] in ('fear', 'contempt') for f in found['found'])


def test_a_search_shows_only_what_passes(run, album):
    run('predict', album, '--out', album/'all.csv')
    rows = pd.read_csv(album/'all.csv')
    limit = load_model('nano').metadata['finds']['thresholds']['surprise']['0.5']
    said = run('predict', album, '--find', 'surprise', '--precision', '.5')
    shown = [line for line in said.out.splitlines() if '.png: surprise ' in line]
    assert len(shown) == (rows.final_surprise >= limit).sum() > 0
    assert 'surprise: on validation this found' in said.out.splitlines()[-1]


@pytest.mark.parametrize('options, words', [
    (['--find', 'joy'], 'joy is no class'), (['--find', 'fear', '--precision', '.9'], '0.2, 0.25'),
    (['--precision', '.2'], '--find'), (['--shares', '--balanced', '.5'], 'run grefel calibrate'),
    (['--shares', '--weights', '{bare}'], 'hold none; run grefel calibrate')])
def test_what_cannot_be_said_of_a_folder_is_told_in_a_line(run, album, options, words):
    add_metadata('nano', album/'bare.safetensors', shares=None)
    options = [o.format(bare=album/'bare.safetensors') for o in options]
    said = run('predict', album/'00.png', *options)
    assert said.code == 1 and one_line(said.err) and words in said.err


def test_a_folder_without_faces_has_no_shares(run, tmp_path):
    Image.new('RGB', (300, 300), 'green').save(tmp_path/'green.png')
    said = run('predict', tmp_path/'green.png', '--shares')
    assert said.code == 1 and 'no face was found' in said.err


def test_persons_of_a_film_have_shares_of_their_own(run, photos):
    cv2 = pytest.importorskip('cv2')
    frame = np.ascontiguousarray(astronaut()[..., ::-1])
    film = photos/'long.avi'
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*'MJPG'), 5, (512, 512))
    for _ in range(12): writer.write(frame)
    writer.release()
    said = run('predict', film, '--shares').out
    assert 'all faces (12)' in said and 'long.avi, person 1 (12)' in said


def test_calibrating_stores_what_counting_needs(run, album, calibrated):
    notes = load_model(calibrated[0]).metadata
    assert notes['shares']['n'] == notes['finds']['n'] == 40
    assert notes['shares']['temperature'] == notes['temperature']
    assert run('predict', album, '--shares', '--weights', calibrated[0]).code == 0


def test_as_json_calibrating_leaves_out_the_draws(run, replaced, monkeypatch):
    shares = dict(fits=[[1.25]*9]*99, n=40)
    found = CALLS['calibrate'][1]['measure.answers.calibrate_weights'] | dict(shares=shares)
    monkeypatch.setitem(CALLS, 'calibrate', (
        [], {'measure.answers.calibrate_weights': found}, None))
    replaced('calibrate')
    said = run('calibrate', '--out', 'c.safetensors', '--json').out
    assert '1.25' not in said and as_json(said)[0]['shares']['n'] == 40


# ---- Other data sets

@pytest.fixture
def smiles(tmp_path):
    "A table of drawn faces that are happy or surprised, in a column of another name."
    drawn = synth_faces(60, size=48, seed=9, ambiguity=0)
    rows = ['mood,pixels']
    for k, x in zip(drawn['labels'].tolist(), drawn['images']):
        if k in (1, 2): rows.append(f"{'joy' if k == 1 else 'wow'},"
                                    f"{' '.join(map(str, x.flatten().tolist()))}")
    (tmp_path/'smiles.csv').write_text('\n'.join(rows))
    return tmp_path/'smiles.csv'


def evaluated(run, smiles, *options):
    "What grefel evaluate says of the smiles, and its metrics."
    out = smiles.with_name('report')
    said = run('evaluate', '--data', smiles, '--split', 'all', '--columns', 'label=mood',
               '--classes', 'joy=happiness,wow=surprise', '--out', out, *options)
    assert said.code == 0, said.err
    return said, json.loads((out/'metrics.json').read_text()), (out/'report.html').read_text()


def test_evaluate_reads_a_table_of_other_words(run, smiles):
    said, m, page = evaluated(run, smiles)
    assert m['split'] == 'all' and {r['class'] for r in m['per_class'] if r['n']} == {
        'happiness', 'surprise'}
    assert m['shares_apart'] > .3 and 'other shares' in said.out + page
    assert 'left_out' not in m and 'prior' not in m


def test_only_present_asks_about_nothing_else(run, smiles):
    said, m, page = evaluated(run, smiles, '--only-present')
    assert len(m['left_out']) == 6 and 'do not occur here' in said.out and 'do not occur' in page
    assert np.array(m['confusion'])[:, [0, 3, 4, 5, 6, 7]].sum() == 0


@pytest.mark.parametrize('prior, words', [
    ('equal', 'equally frequent'), ('file', "of these faces' own labels"),
    ('em', 'without labels')])
def test_answers_can_be_moved_to_another_mixture(run, smiles, prior, words):
    said, m, page = evaluated(run, smiles, '--prior', prior)
    assert m['prior'] == prior and words in said.out and m['risk'] == []
    plain = evaluated(run, smiles)[1]
    assert m['nll'] != plain['nll'] and (prior != 'file' or m['nll'] < plain['nll'])


@pytest.mark.parametrize('typed, meant', [
    ('--wieghts', '--weights'), ('--lmit=5', '--limit'), ('--only-presnt', '--only-present'),
    ('--zzz', None)])
def test_a_mistyped_option_gets_a_suggestion(run, typed, meant):
    said = run('evaluate', typed, '--out', 'x')
    assert said.code == 2 and f'unrecognized arguments: {typed}' in said.err
    assert ('did you mean' in said.err) == bool(meant) and (meant or '') in said.err
