"""The star import takes nothing away, `import grefel` costs nothing, former paths name the new."""
import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import grefel
from grefel import _moved

STUB = ast.parse((Path(grefel.__file__).parent/'__init__.pyi').read_text(encoding='utf-8'))
STUBBED = [a.name for node in STUB.body if isinstance(node, ast.ImportFrom) for a in node.names]
FORMER = [(old, home.strip()) for old, homes in _moved.MOVED.items() for home in homes.split(',')]
FORMER_NAMES = [(part, module, *(name.split('=')*2)[:2]) for part, modules in _moved.PARTS.items()
                for module, names in modules.items() for name in names.split()]


def fresh(code):
    "What a line of Python prints in a process of its own."
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- from grefel.all import *

@pytest.fixture(scope='module')
def everything():
    import grefel.all
    return grefel.all


def test_the_star_import_is_no_flood(everything):
    names = everything.__all__
    assert 80 <= len(names) <= 120 and len(names) == len(set(names))
    assert all(hasattr(everything, name) for name in names)


@pytest.mark.parametrize('other', ['fastai.vision.all', 'fastai.basics', 'torch', 'torch.nn'])
def test_the_star_import_takes_no_name_away(everything, other):
    "Names that the other exports by a star, and all that can be reached as its attributes."
    module = importlib.import_module(other)
    exported = {*getattr(module, '__all__', ()), *(n for n in dir(module) if n[0] != '_')}
    assert not exported & set(everything.__all__)


def test_the_star_import_can_stand_on_either_side_of_fastais():
    stars = 'from fastai.vision.all import *', 'from grefel.all import *'
    seen = [fresh('; '.join([*order, 'print(load_image.__module__, Recipe.__module__)']))
            for order in (stars, stars[::-1])]
    assert seen == ['fastai.vision.core grefel.train.runs']*2


def test_what_the_papers_readme_promises_is_there(everything):
    for name in ('GReFELModel', 'MultiScaleFeatureExtractor', 'GeometryAwareAnchors',
                 'ReliabilityBalancing', 'create_dummy_data', 'GReFELEvaluator', 'plot_confusion'):
        assert name in everything.__all__


def test_models_are_registered_with_timm(everything):
    import timm
    assert timm.list_models('grefel_*')


# ---- import grefel

def test_the_stub_lists_what_is_offered():
    assert sorted(STUBBED) == sorted(grefel.__all__)
    assert set(STUBBED) <= set(dir(grefel)) and len(STUBBED) <= 40


@pytest.mark.parametrize('name', STUBBED)
def test_every_name_is_loaded_when_it_is_first_used(name):
    value = getattr(grefel, name)
    home = next(node for node in STUB.body if isinstance(node, ast.ImportFrom)
                and name in [a.name for a in node.names]).module
    assert value is getattr(importlib.import_module('grefel.' + home), name)


def test_import_is_instant_and_loads_nothing_heavy():
    "The best of several: a busy machine is slow now and then, heavy packages are slow each time."
    code = ('import json, sys, time; start = time.perf_counter(); import grefel; '
            'seconds = time.perf_counter() - start; '
            'print(json.dumps([seconds, sorted(m for m in sys.modules if "." not in m)]))')
    found = [json.loads(fresh(code)) for _ in range(5)]
    assert min(seconds for seconds, _ in found) < 0.05
    assert not {'numpy', 'torch', 'pandas', 'PIL', 'fastai', 'matplotlib'} & set(found[0][1])


def test_a_name_loads_no_more_than_it_needs():
    "Predicting with ONNX needs no PyTorch; prediction never needs fastai."
    code = ('import sys; from grefel import Predictor; '
            'print(*{"torch", "fastai", "pandas"} & set(sys.modules))')
    assert fresh(code) == ''


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError): grefel.no_such_name


# ---- Former paths

@pytest.mark.parametrize('old, home', FORMER)
def test_a_former_module_names_its_successor_which_exists(old, home):
    with pytest.raises(ModuleNotFoundError) as told: importlib.import_module(f'grefel.{old}')
    assert told.value.name == f'grefel.{old}'
    named = str(told.value).partition('see ')[2].split(', ')
    assert f'grefel.{home}' in named
    importlib.import_module(f'grefel.{home}')


@pytest.mark.parametrize('part, module, old, new', FORMER_NAMES)
def test_a_former_name_names_its_successor_which_exists(part, module, old, new):
    home = importlib.import_module(f'grefel.{part}')
    with pytest.raises(ImportError, match=rf'see grefel\.{part}\.{module}\.{new}$'):
        getattr(home, old)
    assert hasattr(importlib.import_module(f'grefel.{part}.{module}'), new)


def test_former_names_are_told_in_the_import_itself():
    done = subprocess.run([sys.executable, '-c', 'from grefel.train import EMA'],
                          capture_output=True, text=True)
    assert 'grefel.train.EMA has moved since 0.1: see grefel.train.averaging.EMA' in done.stderr


def test_what_never_was_is_not_said_to_have_moved():
    with pytest.raises(ModuleNotFoundError, match='No module named'):
        importlib.import_module('grefel.never_was')
    with pytest.raises(AttributeError): importlib.import_module('grefel.train').never_was
    assert importlib.util.find_spec('json.core') is None       # only within this package


def test_the_finder_is_installed_once():
    importlib.reload(_moved).install()
    finders = [getattr(f, '__name__', '') for f in sys.meta_path]
    assert finders.count('_Former') == 1
    assert finders.index('_Former') > finders.index('PathFinder')   # asked when nothing was found
