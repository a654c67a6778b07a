"""The house: parts from the ground up, rooms in order, modules that stand alone."""
import ast
import functools
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.repository import (
    BIN, BY_HAND, NBS, PACKAGE, PARTS, ROOT, call, dotted, exported, last_line, module_name,
    modules, notebooks, own_imports, parsed, part_of, read, relative, rooms, source)

HEAVY = {'fastai', 'pandas', 'matplotlib', 'seaborn'}


def height(room):
    "Where a room lies: the floor of its part and its number there."
    part, number = room
    return (PARTS.index(part) if part in PARTS else len(PARTS), number)


def test_every_notebook_but_the_index_lies_in_a_part():
    assert [p.name for p in notebooks() if part_of(p) is None] == ['index.ipynb']
    folders = {p.parent.name for p in notebooks()} - {'nbs'}
    assert all(f[1:].lstrip('_') in (*PARTS, 'start', 'experiments') for f in folders)


def test_folder_and_sub_package_are_one_map():
    for p in notebooks():
        name = module_name(read(p))
        if name and name != 'all':
            assert name.split('.')[0] == part_of(p)[0], f'{relative(p)} exports {name}'
        if part_of(p) and part_of(p)[0] in ('start', 'experiments'):
            assert name is None, relative(p)


def test_imports_go_one_way():
    "Only to lower parts, within a part only to lower numbers; tests in notebooks as well."
    wrong = []
    for p in notebooks():
        own, room = module_name(read(p)), part_of(p)
        if room is None or room[0] not in PARTS: continue
        for i, c in enumerate(read(p)['cells']):
            if c['cell_type'] != 'code': continue
            for name, _ in own_imports(parsed(source(c))):
                if name not in rooms() or name == 'all': continue
                if name == own and not exported(c): continue
                if height(rooms()[name]) >= height(room):
                    wrong.append(f'{relative(p)}, cell {i}: grefel.{name}')
    assert not wrong, '\n'.join(wrong)


def test_nobody_imports_private_names():
    wrong = []
    for p in modules():
        for name, what in own_imports(ast.parse(p.read_text(encoding='utf-8')), dotted(p)):
            if what and what.startswith('_') and what != '__version__':
                wrong.append(f'{dotted(p)}: {what} of {name}')
    assert not wrong, '\n'.join(wrong)


@functools.lru_cache(maxsize=None)
def made_again():
    "A copy of the project in which everything that nbdev makes was made again from the notebooks."
    import tempfile
    copy = Path(tempfile.mkdtemp(prefix='grefel-export-'))
    shutil.copytree(NBS, copy/'nbs', symlinks=True,
                    ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    for p in [ROOT/'settings.ini', ROOT/'pyproject.toml', ROOT/'_quarto.yml',
              *PACKAGE.rglob('*.py')]:
        if p.parent == ROOT or p.name in BY_HAND:
            (copy/p.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(p, copy/p.relative_to(ROOT))
    done = call(BIN/'nbdev_export', cwd=copy)
    assert not done.returncode, last_line(done)
    return copy


def test_exporting_again_changes_nothing():
    copy = made_again()
    here, there = ({p.relative_to(top) for p in (top/'grefel').glob('**/*.py')}
                   for top in (ROOT, copy))
    assert not here - there, 'modules that no notebook exports'
    assert not there - here, 'not exported yet: run make export'
    same = [*sorted(here), Path('pyproject.toml')]
    changed = [str(p) for p in same if (ROOT/p).read_text() != (copy/p).read_text()]
    assert not changed, 'run make export'
    shutil.rmtree(copy)


def test_links_into_the_repository():
    link = NBS/'_quarto.yml'   # for nbdev's preview; nothing that runs reads it
    assert link.is_symlink() and os.readlink(link) == '../_quarto.yml' and link.exists()
    linked = [p for p in PACKAGE.rglob('*') if p.is_symlink()]
    assert not linked, 'Windows checks links out as small text files'


FRESH = '''
import builtins, dis, importlib, json, sys, types, warnings
warnings.simplefilter('ignore')
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
    "Import a module in a fresh process: which packages came along, which names are missing."
    done = call(sys.executable, '-c', FRESH, name)
    if done.returncode: return dict(error=last_line(done))
    return json.loads(done.stdout.splitlines()[-1])


@functools.lru_cache(maxsize=None)
def fresh_imports():
    "All modules, each imported in a fresh process, two at a time."
    names = [dotted(p) for p in modules()]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(fresh_import, [f'grefel.{n}' for n in names])))


@pytest.mark.parametrize('name', [dotted(p) for p in modules()])
def test_module_stands_alone(name):
    "It imports in a fresh process, and no function leans on a name that was not exported."
    found = fresh_imports()[name]
    assert 'error' not in found, found['error']
    assert Path(found['file']).resolve().is_relative_to(PACKAGE)
    assert not found['missing']


@pytest.mark.parametrize('name', [
    dotted(p) for p in modules()
    if dotted(p).startswith(('base.', 'method.')) or dotted(p) in ('use.predict', 'use.cli')])
def test_model_code_and_prediction_stay_light(name):
    "No fastai, pandas or plotting comes along; prediction brings no PyTorch either."
    came = set(fresh_imports()[name].get('loaded', ()))
    allowed = {'matplotlib'} if name == 'base.page' else set()
    assert not came & HEAVY - allowed
    if name in ('use.predict', 'use.cli', 'base.core', 'base.images', 'base.alignment'):
        assert 'torch' not in came


@pytest.mark.parametrize('name', [
    dotted(p) for p in modules()
    if not dotted(p).startswith(('train.', 'use.')) and dotted(p) != 'all'])
def test_only_training_stands_on_fastai(name):
    assert 'fastai' not in fresh_imports()[name].get('loaded', ())
