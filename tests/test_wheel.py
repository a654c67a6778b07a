"""The built wheel holds every module, stub, manifest and weight file, and works on its own."""
import os
import re
import shutil
import sys
import zipfile

import pytest
from tests.repository import call, files, last_line, relative


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "A wheel built from the files that belong to the project."
    copy = tmp_path_factory.mktemp('wheel')
    for p in files():
        if relative(p).startswith(('nbs/', '.', 'tests/')): continue
        (copy/relative(p)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(p, copy/relative(p))
    done = call(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation',
                '--no-index', '-w', copy/'dist', '.', cwd=copy)
    assert not done.returncode, last_line(done)
    return next((copy/'dist').glob('*.whl'))


def test_holds_everything(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {relative(p) for p in files() if relative(p).startswith('grefel/')}
    assert not {n for n in wanted if '__pycache__' not in n} - held


LIGHT = '''
import importlib.util, json, sys
class Missing:
    "As if what training needs were not installed."
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition('.')[0] in BLOCKED:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
BLOCKED = {'torch', 'torchvision', 'fastai', 'timm', 'pandas', 'pyarrow', 'sklearn', 'matplotlib',
           'seaborn', 'einops', 'safetensors'}
sys.meta_path.insert(0, Missing)
from skimage import data
found_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in BLOCKED else found_spec(name, *more)
from grefel import Predictor
face, = Predictor()(data.astronaut())   # which chooses ONNX by itself
print(json.dumps([face.emotion, face.face_found]))
'''


def test_reads_a_photograph_without_what_training_needs(wheel, tmp_path):
    "The wheel alone, unpacked, with PyTorch, fastai, pandas and pyarrow out of reach."
    zipfile.ZipFile(wheel).extractall(tmp_path/'site')
    code = f'import sys; sys.path.insert(0, {str(tmp_path/"site")!r})\n' + LIGHT
    done = call(sys.executable, '-c', code, cwd=tmp_path)
    assert not done.returncode, last_line(done)
    assert done.stdout.strip() == '["happiness", true]'


@pytest.mark.slow
def test_installs_light_into_a_fresh_environment(wheel, tmp_path):
    "pip brings no PyTorch and no fastai, and `grefel predict` answers."
    done = call(sys.executable, '-m', 'venv', tmp_path/'venv', timeout=300)
    assert not done.returncode, last_line(done)
    python = tmp_path/'venv'/('Scripts' if os.name == 'nt' else 'bin')/'python'
    done = call(python, '-m', 'pip', 'install', '-q', wheel, timeout=1200)
    assert not done.returncode, last_line(done)
    listed = call(python, '-m', 'pip', 'list', '--format=freeze').stdout.lower()
    assert not re.search(r'^(torch|fastai|timm|pandas)==', listed, re.M)
    code = ('from skimage import data\nfrom PIL import Image\n'
            'Image.fromarray(data.astronaut()).save("a.png")')
    assert not call(python, '-c', code, cwd=tmp_path).returncode
    said = call(python, '-m', 'grefel', 'predict', 'a.png', '--backend', 'onnx', cwd=tmp_path)
    assert said.returncode == 0 and 'happiness' in said.stdout, last_line(said)
