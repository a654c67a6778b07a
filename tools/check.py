"""The checks that every change must pass, each a small function; `--notebooks` runs every notebook with nbdev_test as well."""
import argparse
import ast
import atexit
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import browser
import readme
from nbtools import (MACHINE, NBS, PACKAGE, ROOT, as_stored, directives, exported, files, module_name, notebooks, output_text,
                     read, relative, settle_environment, source)

BIN = Path(sys.executable).parent
settle_environment()
ENV = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | {'OMP_NUM_THREADS': '1'}
TOP = 100                                           # the floor of index, experiments and grefel.all
BY_HAND = {'__init__.py', '__main__.py', 'all.py'}  # modules that need no notebook
HEAVY = {'fastai', 'pandas', 'matplotlib', 'seaborn'}
NOTEBOOK_KB, FILE_MIB, CELL_LINES, LINE_WIDTH = 400, 16, 60, 120

CHECKS = {}


def check(claim):
    "Make a check of a function that yields its complaints, one line each, and none where `claim` holds."
    def add(f):
        f.claim = claim
        CHECKS[f.__name__] = f
        return f
    return add


def scratch():
    "A folder that goes when the checks end."
    folder = Path(tempfile.mkdtemp(prefix='grefel-check-'))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def call(*command, timeout=300, cwd=None):
    "Run a command, outside of the repository if no folder is named, so that only what is installed is found."
    return subprocess.run([str(c) for c in command], cwd=cwd or scratch(), env=ENV, capture_output=True, text=True, timeout=timeout)


def last_line(result):
    "What a command said last, its errors first."
    return ((result.stderr.strip() or result.stdout.strip()).splitlines() or ['(it said nothing)'])[-1][:300]


def parsed(text):
    "The syntax tree of a cell without its magics, or of nothing if it is no Python."
    try: return ast.parse(re.sub(r'^\s*[%!].*$', '', text, flags=re.M))
    except SyntaxError: return ast.parse('')


# ---- Notebooks as files

@check('notebooks are stored clean: as nbdev_clean leaves them, no execution counts, no metadata')
def clean():
    for p in notebooks():
        nb = read(p)
        if nb.get('nbformat_minor') != 5: yield f'{relative(p)}: nbformat_minor is {nb.get("nbformat_minor")}, not 5'
        elif p.read_text(encoding='utf-8') != as_stored(nb): yield f'{relative(p)}: not clean; run make export'


@check('every cell has an id of its own')
def ids():
    for p in notebooks():
        found = [c.get('id') for c in read(p)['cells']]
        twice = sorted({i for i in found if i and found.count(i) > 1})
        if not all(found): yield f'{relative(p)}: cells without an id; run make export'
        if twice: yield f'{relative(p)}: ids that occur twice: {" ".join(twice)}'


@check('no stored output is an error, a warning or residue of a progress bar')
def outputs():
    residue = re.compile(r'<progress|\d+%\||\r(?!\n)|\d(?:it|s)/(?:s|it)\]')
    for p in notebooks():
        for i, o in ((i, o) for i, c in enumerate(read(p)['cells']) for o in c.get('outputs', [])):
            where, text = f'{relative(p)}, cell {i}', output_text(o)
            if o['output_type'] == 'error': yield f'{where}: an error output ({o.get("ename")})'
            elif o.get('name') == 'stderr': yield f'{where}: written to stderr: {text.strip().splitlines()[-1:]}'
            elif residue.search(text): yield f'{where}: residue of a progress bar: {residue.search(text)[0]!r}'


@check('no stored output tells a path or a memory address of the machine it was made on')
def machine():
    for p in notebooks():
        for i, c in enumerate(read(p)['cells']):
            found = [MACHINE.search(output_text(o)) for o in c.get('outputs', [])]
            yield from (f'{relative(p)}, cell {i}: {m[0]}' for m in found if m)


@check(f'notebooks stay under {NOTEBOOK_KB} KB, other files under {FILE_MIB} MiB')
def sizes():
    for p in files():
        size = p.stat().st_size
        if p.suffix == '.ipynb' and size > NOTEBOOK_KB * 1000: yield f'{relative(p)}: {size/1000:.0f} KB'
        if size > FILE_MIB * 2**20: yield f'{relative(p)}: {size/2**20:.1f} MiB'


@check('no photographs and no tables of images lie in data/, and nothing anywhere is pickled')
def no_photographs():
    pictures = {'.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.parquet', '.npy', '.npz', '.zip', '.gz'}
    pickled = {'.pkl', '.pickle', '.pt', '.pth', '.ckpt', '.joblib'}
    for p in files():
        if p.suffix.lower() in pictures and relative(p).startswith('data/'): yield f'{relative(p)}: may hold photographs'
        if p.suffix.lower() in pickled: yield f'{relative(p)}: a pickled file; weights are safetensors'


@check(f'exported cells have at most {CELL_LINES} lines, and those at most {LINE_WIDTH} characters')
def short_cells():
    for p in notebooks():
        for i, c in enumerate(read(p)['cells']):
            if not exported(c): continue
            lines = source(c).splitlines()
            if len(lines) > CELL_LINES: yield f'{relative(p)}, cell {i}: {len(lines)} lines'
            wide = [n for n, line in enumerate(lines, 1) if len(line) > LINE_WIDTH]
            if wide: yield f'{relative(p)}, cell {i}: line {wide[0]} has {len(lines[wide[0] - 1])} characters'


@check('every notebook opens with a title and a one-line summary')
def titles():
    for p in notebooks():
        cells = [c for c in read(p)['cells'] if c['cell_type'] == 'markdown']
        if not cells or not re.match(r'# \S.*\n\n> \S.*', source(cells[0])): yield f'{relative(p)}: no "# Title" with "> summary" below'


def is_import(node): return isinstance(node, (ast.Import, ast.ImportFrom))


@check('cells that import do nothing else, unless they are exported: nbdev runs such cells alone when it builds the site')
def import_cells():
    for p in notebooks():
        for i, c in enumerate(read(p)['cells']):
            if c['cell_type'] != 'code' or exported(c) or directives(c).get('eval') == 'false' or not module_name(read(p)): continue
            tree = parsed(source(c))
            if any(map(is_import, ast.walk(tree))) and not all(map(is_import, tree.body)):
                yield f'{relative(p)}, cell {i}: move its imports into a cell of their own'


@check('nbs/_quarto.yml and grefel/manifests are links to _quarto.yml and data/')
def links():
    for link, target in ((NBS/'_quarto.yml', '../_quarto.yml'), (PACKAGE/'manifests', '../data')):
        if not link.is_symlink() or os.readlink(link) != target: yield f'{relative(link)} is not a link to {target}'
        elif not link.exists(): yield f'{relative(link)} leads nowhere'


# ---- What is made from notebooks

@functools.lru_cache(maxsize=None)
def made_again():
    "A copy of the project in which everything nbdev makes was made again from the notebooks, and what failed."
    copy = scratch()
    shutil.copytree(NBS, copy/'nbs', symlinks=True, ignore=shutil.ignore_patterns('.ipynb_checkpoints', 'nbdev.yml', 'sidebar.yml'))
    (copy/'grefel').mkdir()
    for p in [ROOT/'settings.ini', ROOT/'pyproject.toml', ROOT/'_quarto.yml', *(PACKAGE/n for n in BY_HAND)]:
        if p.exists(): shutil.copy(p, copy/p.relative_to(ROOT))
    site = 'from nbdev.quarto import refresh_quarto_yml; refresh_quarto_yml()'
    for command in ([BIN/'nbdev_export'], [BIN/'nbdev_sidebar'], [sys.executable, '-c', site]):
        done = call(*command, cwd=copy)
        if done.returncode: return copy, f'{Path(command[0]).name}: {last_line(done)}'
    return copy, None


@check('exporting again changes nothing, and no module is without its notebook')
def export():
    copy, trouble = made_again()
    if trouble: yield trouble; return
    here, there = ({p.relative_to(top) for p in (top/'grefel').glob('**/*.py')} for top in (ROOT, copy))
    yield from (f'{p}: no notebook exports it' for p in sorted(here - there))
    yield from (f'{p}: not exported yet; run make export' for p in sorted(there - here))
    same = [*sorted(here & there), Path('pyproject.toml')]
    yield from (f'{p}: not what the notebooks export; run make export' for p in same if (ROOT/p).read_text() != (copy/p).read_text())


@check("the website's nbs/nbdev.yml and nbs/sidebar.yml are as nbdev makes them, and its settings survive that")
def site():
    copy, trouble = made_again()
    if trouble: yield trouble; return
    for name in ('nbs/nbdev.yml', 'nbs/sidebar.yml'):
        if not (ROOT/name).exists() or (ROOT/name).read_text() != (copy/name).read_text(): yield f'{name}: run make export'
    if not (copy/'nbs/_quarto.yml').is_symlink(): yield 'nbs/_quarto.yml: nbdev replaced the link'


PAGES = '''
import os, sys, traceback
from pathlib import Path
from execnb.nbio import read_nb
from nbdev.processors import FilterDefaults
for name in sys.argv[1:]:
    os.chdir(Path(name).parent)
    try: FilterDefaults()(read_nb(name))
    except Exception as e: print(f'{Path(name).name}: {e.__cause__ or e!r} in: {str(e).splitlines()[1:2]}', flush=True)
'''


@check('nbdev can turn every notebook into a page of the website')
def pages():
    halves = [notebooks()[0::2], notebooks()[1::2]]
    with ThreadPoolExecutor(2) as pool: results = list(pool.map(lambda half: call(sys.executable, '-c', PAGES, *half), halves))
    for done in results:
        yield from done.stdout.splitlines() if done.returncode == 0 else [last_line(done)]


@check('README.md is what nbs/index.ipynb gives, and the files it names exist')
def readme_written():
    if not readme.INDEX.exists(): yield 'nbs/index.ipynb is missing'; return
    text = readme.README.read_text(encoding='utf-8') if readme.README.exists() else ''
    if text != readme.render(): yield 'README.md: run make readme'
    targets = {m[2].split('#')[0] for m in readme.LINK.finditer(text) if not re.match(r'[a-z]+:|#', m[2])}
    yield from (f'README.md: {t} does not exist' for t in sorted(targets) if t and not (ROOT/t).exists())


# ---- Imports

def floor(notebook):
    "A notebook's number; index and those in folders stand on top of everything."
    number = re.match(r'(\d+)_', notebook.name) if notebook.parent == NBS else None
    return int(number[1]) if number else TOP


@functools.lru_cache(maxsize=None)
def floors():
    "Module name → floor of the notebook that it comes from."
    return {p.stem: TOP for p in PACKAGE.glob('*.py') if p.name in BY_HAND} | {
        module_name(read(p)): floor(p) for p in notebooks() if module_name(read(p))}


def own_imports(tree):
    "Names of grefel's modules that a syntax tree imports anywhere, inside functions too."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name.split('.')[1] for a in node.names if a.name.startswith('grefel.'))
        elif isinstance(node, ast.ImportFrom):
            path = [*(['grefel'] if node.level else []), *(node.module or '').split('.')]
            path = [part for part in path if part]
            if path[:1] == ['grefel']: yield from [path[1]] if len(path) > 1 else [a.name for a in node.names]


def outer_imports(tree):
    "Packages that are imported when the module is, that is: outside of functions."
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)): continue
        if isinstance(node, ast.Import): yield from (a.name.split('.')[0] for a in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level: yield node.module.split('.')[0]
        else: yield from outer_imports(node)


@check('modules and notebooks import only from lower floors')
def lower_floors():
    for p in notebooks():
        own, height = module_name(read(p)), floor(p)
        for i, c in enumerate(read(p)['cells']):
            if c['cell_type'] != 'code': continue
            for name in own_imports(parsed(source(c))):
                above = floors().get(name, -1) >= height and height < TOP
                if above and (name != own or exported(c)): yield f'{relative(p)}, cell {i}: imports grefel.{name}'
        if own and (PACKAGE/f'{own}.py').exists():
            names = set(own_imports(ast.parse((PACKAGE/f'{own}.py').read_text(encoding='utf-8'))))
            yield from (f'grefel/{own}.py: imports grefel.{n}' for n in sorted(names) if floors().get(n, -1) >= height)


FRESH = '''
import builtins, dis, importlib, json, sys, types
module = importlib.import_module(sys.argv[1])
loaded = sorted({name.partition('.')[0] for name in list(sys.modules)})
known, wanted = {*vars(module), *dir(builtins)}, set()
def walk(code):
    for i in dis.get_instructions(code):
        if i.opname == 'STORE_GLOBAL': known.add(i.argval)
        if i.opname == 'LOAD_GLOBAL': wanted.add(i.argval)
    for const in code.co_consts:
        if isinstance(const, types.CodeType): walk(const)
walk(compile(open(module.__file__, encoding='utf-8').read(), module.__file__, 'exec'))
print(json.dumps(dict(loaded=loaded, missing=sorted(wanted - known), file=module.__file__)))
'''


def fresh_import(name):
    "Import a module in a process of its own: which packages came along, which names its functions lack, or the error."
    done = call(sys.executable, '-c', FRESH, name)
    return dict(error=last_line(done)) if done.returncode else json.loads(done.stdout.splitlines()[-1])


@functools.lru_cache(maxsize=None)
def fresh_imports():
    "All modules, each imported in a fresh process, two at a time."
    names = [f'grefel.{p.stem}' for p in sorted(PACKAGE.glob('*.py')) if p.name not in ('__init__.py', '__main__.py')]
    with ThreadPoolExecutor(2) as pool: return dict(zip(names, pool.map(fresh_import, names)))


@check('every module imports in a fresh process, and no function leans on a name that was not exported')
def imports():
    for name, found in fresh_imports().items():
        if 'error' in found: yield f'{name}: {found["error"]}'
        elif Path(found['file']).resolve().parent != PACKAGE: yield f'{name}: imported from {found["file"]}, not from here'
        elif found['missing']: yield f'{name}: these names are not defined in the module: {" ".join(found["missing"])}'


@check('model code (1x) and prediction load no fastai, pandas or plotting, and prediction itself names no timm')
def light_imports():
    model = {n for n, height in floors().items() if 10 <= height < 20}
    for name in sorted(model | {'predict'}):
        path, found = PACKAGE/f'{name}.py', fresh_imports().get(f'grefel.{name}', dict(error='no such module'))
        if 'error' in found: yield f'grefel/{name}.py: {found["error"]}'; continue
        named = HEAVY & set(outer_imports(ast.parse(path.read_text(encoding='utf-8'))))
        if name == 'predict' and 'timm' in set(outer_imports(ast.parse(path.read_text(encoding='utf-8')))): named.add('timm')
        came = HEAVY & set(found['loaded']) - named
        if named: yield f'grefel/{name}.py: imports {", ".join(sorted(named))}'
        if came: yield f'grefel/{name}.py: {", ".join(sorted(came))} comes along with what it imports'


@check('import grefel is instant: no package of weight, and under half a second')
def instant():
    code = 'import sys, time; t = time.perf_counter(); import grefel; print(time.perf_counter() - t, *sys.modules)'
    done = call(sys.executable, '-c', code)
    if done.returncode: yield last_line(done); return
    seconds, *loaded = done.stdout.split()
    came = sorted({'torch', 'numpy', 'PIL', 'fastcore', *HEAVY} & set(loaded))
    if came: yield f'import grefel loads {", ".join(came)}'
    if float(seconds) > 0.5: yield f'import grefel takes {float(seconds):.2f} s'


@check('the wheel holds every module, manifest and weight file')
def wheel():
    copy = scratch()
    for p in files():
        if relative(p).startswith(('nbs/', '.')): continue
        (copy/relative(p)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(p, copy/relative(p))
    os.symlink('../data', copy/'grefel/manifests')
    done = call(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '--no-index', '-w', copy/'dist', '.', cwd=copy)
    if done.returncode: yield last_line(done); return
    held = set(zipfile.ZipFile(next((copy/'dist').glob('*.whl'))).namelist())
    wanted = {re.sub('^data/', 'grefel/manifests/', relative(p)) for p in files() if relative(p).startswith(('grefel/', 'data/'))}
    yield from (f'{name} is not in the wheel' for name in sorted({n for n in wanted if '__pycache__' not in n} - held))


# ---- The command line

def grefel(*args, cwd):
    "Run the installed command."
    return call(BIN/'grefel', *args, cwd=cwd, timeout=600)


def complaints(what, result, code):
    "A command must end with this exit code; where that is 1, with one line on stderr; never with a traceback."
    lines = result.stderr.strip().splitlines()
    if 'Traceback' in result.stderr + result.stdout: yield f'{what}: a traceback: {last_line(result)}'
    elif result.returncode != code: yield f'{what}: exit code {result.returncode}, not {code}: {last_line(result)}'
    elif code == 1 and len(lines) != 1: yield f'{what}: {len(lines)} lines on stderr, not one: {lines[:3]}'


def photograph(folder):
    "scikit-image's portrait of an astronaut (public domain), written into `folder`."
    from PIL import Image
    from skimage import data
    path = folder/'astronaut.png'
    Image.fromarray(data.astronaut()).save(path)
    return path


TINY = ('--data', 'synth', '--size', 'nano', '--epochs', '1', '--limit', '256', '--bs', '32')


@check('the commands: help, and a tiny train → evaluate → predict')
def commands():
    here = scratch()
    named = 'predict demo train evaluate calibrate export inspect landmarks experiment data'.split()
    for args in (['--help'], *([n, '--help'] for n in named), *(['data', n, '--help'] for n in ('list', 'check', 'convert'))):
        yield from complaints(f'grefel {" ".join(args)}', grefel(*args, cwd=here), 0)
    trained = grefel('train', *TINY, '--out', 'run', cwd=here)
    yield from complaints('grefel train', trained, 0)
    if trained.returncode: return
    if not (here/'run/weights.safetensors').exists(): yield 'grefel train: no weights.safetensors in its folder'; return
    yield from complaints('grefel evaluate', grefel('evaluate', '--weights', 'run', '--data', 'synth', '--split', 'valid', '--out', 'eval', cwd=here), 0)
    yield from (f'grefel evaluate: no {n}' for n in ('report.html', 'metrics.json', 'predictions.csv') if not (here/'eval'/n).exists())
    if (here/'eval/metrics.json').exists():
        wanted = {'n', 'accuracy', 'balanced_accuracy', 'macro_f1', 'ece', 'primary_accuracy', 'changed'}
        lacks = wanted - json.loads((here/'eval/metrics.json').read_text()).keys()
        if lacks: yield f'metrics.json lacks {", ".join(sorted(lacks))}'
    said = grefel('predict', photograph(here), '--weights', 'run', '--json', cwd=here)
    yield from complaints('grefel predict --weights run', said, 0)
    yield from json_complaints(said, 1)


def json_complaints(result, n):
    "`--json` prints one object a line, with the emotion, its confidence and all probabilities, or with an error."
    try: rows = [json.loads(line) for line in result.stdout.splitlines()]
    except ValueError: yield f'--json printed something else: {result.stdout[:100]!r}'; return
    if len(rows) != n: yield f'--json printed {len(rows)} lines for {n} files'
    for row in rows:
        if 'error' in row: continue
        if not {'emotion', 'confidence', 'probabilities'} <= row.keys(): yield f'--json lacks fields: {sorted(row)}'
        elif abs(sum(row['probabilities'].values()) - 1) > 1e-3: yield f'probabilities sum to {sum(row["probabilities"].values())}'


def odd_images(folder):
    "Pictures that are unusual but right, by name."
    import numpy as np
    from PIL import Image
    face = Image.open(photograph(folder)).crop((150, 0, 330, 200))
    rotated = face.getexif()
    rotated[0x0112] = 6
    face.save(folder/'exif.jpg', exif=rotated)
    face.convert('CMYK').save(folder/'cmyk.jpg')
    face.convert('P').save(folder/'palette.png')
    face.convert('LA').save(folder/'alpha.png')
    Image.fromarray(np.asarray(face.convert('L')).astype('uint16') * 257).save(folder/'sixteen.png')
    return [folder/n for n in ('exif.jpg', 'cmyk.jpg', 'palette.png', 'alpha.png', 'sixteen.png')]


def broken_files(folder):
    "Arguments that must end in one clear line, by what is wrong with them."
    (folder/'empty').mkdir()
    (folder/'text.png').write_text('not a picture')
    (folder/'half.png').write_bytes(photograph(folder).read_bytes()[:20_000])
    (folder/'nothing.jpg').write_bytes(b'')
    (folder/'weights.safetensors').write_text('not weights')
    (folder/'lacks.csv').write_text('emotion,Usage\n3,Training\n')
    (folder/'short.csv').write_text('emotion,pixels,Usage\n3,1 2 3,PublicTest\n')
    (folder/'range.csv').write_text('emotion,pixels,Usage\n99,' + ' '.join(['7'] * 2304) + ',PublicTest\n')
    predict, evaluate = ['predict'], ['evaluate', '--split', 'valid', '--out', 'out', '--data']
    return {'missing file': [*predict, 'missing.png'], 'empty folder': [*predict, 'empty'], 'text as picture': [*predict, 'text.png'],
            'truncated picture': [*predict, 'half.png'], 'file of 0 bytes': [*predict, 'nothing.jpg'],
            'weights that are none': [*predict, 'astronaut.png', '--weights', 'weights.safetensors'],
            'missing weights': [*predict, 'astronaut.png', '--weights', 'missing.safetensors'],
            'CSV without a column': [*evaluate, 'lacks.csv'], 'CSV with too few pixels': [*evaluate, 'short.csv'],
            'CSV with an unknown label': [*evaluate, 'range.csv'], 'missing table': [*evaluate, 'missing.csv'],
            'output where a file lies': ['evaluate', '--data', 'synth', '--split', 'valid', '--out', 'text.png']}


@check('bad input gives one line, exit code 1 and no traceback; the rest of a list is still done')
def bad_input():
    here = scratch()
    photograph(here)
    wrong = broken_files(here)
    with ThreadPoolExecutor(2) as pool: results = list(pool.map(lambda args: grefel(*args, cwd=here), wrong.values()))
    for what, result in zip(wrong, results): yield from complaints(what, result, 1)
    odd = odd_images(here)
    said = grefel('predict', *odd, '--json', cwd=here)
    yield from complaints('unusual pictures', said, 0)
    yield from json_complaints(said, len(odd))
    mixed = grefel('predict', 'text.png', 'astronaut.png', 'missing.png', '--json', cwd=here)
    yield from json_complaints(mixed, 3)
    errors = ['error' in json.loads(line) for line in mixed.stdout.splitlines() if line.startswith('{')]
    if errors != [True, False, True] or mixed.returncode != 1: yield f'a list with bad files: errors {errors}, exit code {mixed.returncode}'
    usage = grefel('predict', '--no-such-option', cwd=here)
    if usage.returncode != 2: yield f'wrong usage: exit code {usage.returncode}, not 2'


PREDICTS = '''
import json, sys
from grefel.cli import main
try: code = main()
except SystemExit as end: code = end.code
if code: sys.exit(code)
print(json.dumps(sorted({name.partition('.')[0] for name in list(sys.modules)})))
'''


@check('grefel predict loads no fastai, pandas or plotting')
def predict_light():
    here = scratch()
    done = call(sys.executable, '-c', PREDICTS, 'predict', photograph(here), cwd=here)
    if done.returncode: yield last_line(done); return
    came = HEAVY & set(json.loads(done.stdout.splitlines()[-1]))
    if came: yield f'grefel predict loads {", ".join(sorted(came))}'


@check('one face of its own data all the way: check, convert, landmarks, inspect, table of answers, ONNX')
def data_commands():
    here = scratch()
    made = call(sys.executable, '-c', OWN_DATA, here)
    if made.returncode: yield last_line(made); return
    for args in (['data', 'check', 'mine'], ['data', 'convert', 'mine', 'mine.parquet'],
                 ['landmarks', 'mine.parquet', '--out', 'landmarks.parquet'],
                 ['train', '--data', 'mine.parquet', '--targets', 'hard', '--landmarks', 'landmarks.parquet', '--epochs', '1',
                  '--bs', '16', '--out', 'run', '--quiet'],
                 ['evaluate', '--weights', 'run', '--data', 'mine.parquet', '--split', 'valid', '--out', 'own'],
                 ['evaluate', '--data', 'mine.parquet', '--split', 'valid', '--landmarks', 'landmarks.parquet', '--out', 'eval'],
                 ['inspect', 'mine.parquet', '--no-model', '--out', 'health'],
                 ['export', '--size', 'nano', '--out', 'nano.onnx'],
                 ['predict', 'mine', '--weights', 'nano.onnx', '--out', 'answers.csv', '--annotate', 'drawn']):
        yield from complaints(f'grefel {" ".join(args)}', grefel(*args, cwd=here), 0)
    wanted = ('mine.parquet', 'landmarks.parquet', 'own/report.html', 'eval/report.html', 'health/health.html', 'nano.onnx', 'answers.csv')
    yield from (f'{name} was not written' for name in wanted if not (here/name).exists())


OWN_DATA = '''
import sys
from pathlib import Path
from PIL import Image
from grefel.synth import synth_faces
faces = synth_faces(48, seed=3)
for i, image in enumerate(faces['images']):
    part = 'valid' if i % 3 == 0 else 'train'
    folder = Path(sys.argv[1])/'mine'/part/('happiness' if i % 2 else 'neutral')
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[0].numpy()).save(folder/f'{i}.png')
'''


@check('grefel predict with ONNX loads no PyTorch, and gives the answers that PyTorch gives')
def onnx_light():
    here = scratch()
    photo = photograph(here)
    done = call(sys.executable, '-c', PREDICTS, 'predict', photo, '--backend', 'onnx', '--json', cwd=here)
    if done.returncode: yield last_line(done); return
    said, loaded = done.stdout.splitlines()[0], json.loads(done.stdout.splitlines()[-1])
    came = (HEAVY | {'torch'}) & set(loaded)
    if came: yield f'grefel predict --backend onnx loads {", ".join(sorted(came))}'
    other = json.loads(grefel('predict', photo, '--json', cwd=here).stdout)['probabilities']
    worst = max(abs(p - other[name]) for name, p in json.loads(said)['probabilities'].items())
    if worst > 1e-3: yield f'the probabilities differ by {worst:.1e}'


@check('the app in a real Chromium: the right answer, readable messages, no request to elsewhere')
def app_in_browser():
    if reason := browser.why_not(): print(f'      skipped: {reason}')
    else: yield from browser.complaints()


# ---- Running them

def run_check(f):
    "Run one check and print its line; True if nobody complained."
    start = time.time()
    try: found = list(f())
    except Exception as e: found = [f'the check itself failed: {type(e).__name__}: {e}']
    print(f'{"FAIL" if found else "ok":4}  {f.__name__:15} {f.claim}  ({time.time() - start:.1f} s)')
    for complaint in found: print(f'        {complaint}')
    sys.stdout.flush()
    return not found


def run_nbdev_test(jobs, slow):
    "Run all notebooks with nbdev_test, showing what it says; give the number that passed and that failed."
    command = [str(BIN/'nbdev_test'), '--n_workers', str(jobs), '--do_print', *(['--flags', 'slow'] if slow else [])]
    said = []
    with subprocess.Popen(command, cwd=ROOT, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            print(line.replace(f'{ROOT}/', ''), end='', flush=True)
            said.append(line)
    total = len(notebooks())
    if process.returncode == 0: return total, 0
    failed = sum(line.startswith('\t') and line.rstrip().endswith('.ipynb') for line in said)
    return total - failed, failed or 1


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('names', nargs='*', metavar='CHECK', help=f'only these of: {" ".join(CHECKS)}')
    parser.add_argument('--notebooks', action='store_true', help='run every notebook with nbdev_test too')
    parser.add_argument('--jobs', type=int, default=2, help='notebooks at a time (2)')
    parser.add_argument('--slow', action='store_true', help='run cells marked slow as well')
    args = parser.parse_args()
    unknown = sorted(set(args.names) - CHECKS.keys())
    if unknown: parser.error(f'no such check: {" ".join(unknown)}')
    if not os.environ.get('GREFEL_DATA'): print('GREFEL_DATA is not set: tests that need real data skip')
    results = [run_check(CHECKS[name]) for name in args.names or CHECKS]
    passed, failed = sum(results), len(results) - sum(results)
    if args.notebooks:
        good, bad = run_nbdev_test(args.jobs, args.slow)
        passed, failed = passed + good, failed + bad
    print(f'{passed} passed, {failed} failed')
    sys.exit(failed > 0)


if __name__ == '__main__': main()
