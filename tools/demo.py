"""What `make demo` shows: the commands a user would type, and what they say."""
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from skimage import data

from nbtools import ROOT

BIN = Path(sys.executable).parent
OUT = Path('runs/demo')
TRAIN = ('grefel train --data synth --size nano --epochs 5 --bs 32 --lr 1.5e-3 --augment none '
         '--out runs/demo')
EVALUATE = 'grefel evaluate --weights runs/demo --data synth --split valid --out runs/demo'
PREDICT = 'grefel predict runs/demo/astronaut.png --weights small'
DONE = f'''
Done in {{seconds:.0f}} s. In {OUT}/:
  report.html          open it in a browser: accuracy, confusion, calibration,
                       what the correction changed
  weights.safetensors  the model, with its configuration
  astronaut.png        the photograph (NASA, public domain, from scikit-image)

Next:
  .venv/bin/grefel predict YOUR_PHOTO.jpg
      a photograph of yours; --json for a machine to read
  .venv/bin/grefel train --data ferplus --out runs/first
      real faces; grefel/manifests/README.md says where to get them
  make lab
      the notebooks that explain and build all of this
'''


def show(title, command):
    "Print a command, run it, and end where it fails."
    print(f'\n{title}\n$ {command}', flush=True)
    name, *args = shlex.split(command)
    code = subprocess.run([BIN/name, *args], cwd=ROOT).returncode
    if code: sys.exit(f'The demo ends here: {name} {args[0]} gave exit code {code}')


def main():
    start = time.time()
    # a finished run of an earlier demo would not be trained again
    shutil.rmtree(ROOT/OUT, ignore_errors=True)
    (ROOT/OUT).mkdir(parents=True)
    Image.fromarray(data.astronaut()).save(ROOT/OUT/'astronaut.png')
    show('1. What does a photograph show? The weights that ship with the package were trained on '
         'FER+.', PREDICT)
    show('2. A small model, trained for two minutes on synthetic faces: hard ones, with noise, '
         'occlusion and ambiguity. Chance is 1 in 8.', TRAIN)
    show('3. How good is it, and how sure is it when it is right?', EVALUATE)
    print(DONE.format(seconds=time.time() - start))


if __name__ == '__main__': main()
