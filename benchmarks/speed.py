"""Measure how fast grefel is, on a quiet machine. Writes nbs/8_experiments/B01_speed.csv.

    python benchmarks/speed.py              everything
    python benchmarks/speed.py photo cold   these stages anew; the rows of the others stay

    model    one face on one thread, beside other networks
    photo    a photograph, step by step
    folder   10,000 faces on two cores
    jobs     photographs by one job and by two
    cold     one command from nothing

With --quick everything is small and goes to a file in the system's temporary folder. That shows
that the script works, not how fast grefel is.
"""
import argparse
import contextlib
import csv
import datetime
import functools
import importlib
import io
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tools'))
from nbtools import ROOT, cpu_name

FIELDS = ('stage', 'what', 'how', 'threads', 'unit', 'repeats', 'median', 'p10', 'p90', 'note',
          'load', 'date', 'commit', 'cpu', 'versions')
SIDE = 48   # of the faces that grefel's sizes read, in pixels
PACKAGES = ('torch', 'onnxruntime', 'timm', 'numpy', 'pillow', 'scikit-image')


def command(*args):
    "What a command prints, or nothing."
    return subprocess.run(args, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def machine():
    "What a measured row says of where and when it was measured."
    from importlib.metadata import version
    changed = '+changes' if command('git', 'status', '--porcelain', '--untracked-files=no',
                                    'grefel') else ''
    versions = ', '.join(f'{p} {version(p)}' for p in PACKAGES)
    return dict(date=datetime.date.today().isoformat(),
                commit=command('git', 'rev-parse', '--short', 'HEAD') + changed,
                cpu=f'{cpu_name()}, {os.cpu_count()} cores',
                versions=f'Python {platform.python_version()}, {versions}')


def spread(values, unit, digits=3):
    "Median and the middle 80% of some measurements, as columns."
    import numpy as np
    low, middle, high = (round(float(v), digits) for v in np.percentile(values, (10, 50, 90)))
    return dict(unit=unit, repeats=len(values), median=middle, p10=low, p90=high)


def milliseconds(call):
    "How long one call takes."
    start = time.perf_counter()
    call()
    return 1e3*(time.perf_counter() - start)


# ---- model: one prepared face, one thread

def torch_call(model, size):
    "A call of a model in PyTorch on one face."
    import torch
    face = torch.rand(1, 3, size, size)
    def call():
        with torch.inference_mode(): model(face)
    return call


def onnx_call(content, size):
    "A call of an ONNX file, as bytes, on one face."
    import numpy as np
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
    face = np.random.default_rng(0).random((1, 3, size, size), np.float32)
    return lambda: session.run(None, {'images': face})


def onnx_bytes(model, size):
    "Any network of images as an ONNX file's bytes, exported as grefel's own are."
    from torch import nn
    from grefel.use.onnx import onnx_graph
    class Answering(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.config = model, dict(img_size=size, name=type(model).__name__)
        def forward(self, images):
            out = self.model(images)
            return out if isinstance(out, dict) else dict(logits=out)
    return onnx_graph(Answering().eval()).SerializeToString()


def own_models(quick):
    "(name, size in pixels, module, ONNX bytes) of grefel's sizes."
    from grefel.method.files import load_model
    from grefel.use.onnx import describe, onnx_graph, quantise, scale_faces
    for name in ('nano',) if quick else ('nano', 'small'):
        model = load_model(name)
        graph, size = onnx_graph(model), model.config['img_size']
        yield f'grefel {name}', size, model, graph.SerializeToString()
        int8 = describe(quantise(graph, scale_faces(model, n=64)), model)
        yield f'grefel {name}, int8', size, None, int8.SerializeToString()


def other_models(quick):
    "The same of networks to compare with: untrained, eight classes, at grefel's input size."
    import timm
    from grefel.base.core import GrefelError
    from grefel.method.poster import PosterV2
    for name in ('mobilenetv3_small_100',) if quick else ('mobilenetv3_small_100', 'resnet18'):
        model = timm.create_model(name, pretrained=False, num_classes=8).eval()
        yield f'{name} at {SIDE} px', SIDE, model, onnx_bytes(model, SIDE)
    if quick: return
    model = PosterV2().eval()
    try: content = onnx_bytes(model, 224)
    except GrefelError as e:
        content = None
        print(f'model: {e}; POSTER++ in PyTorch only', file=sys.stderr)
    yield 'POSTER++ at 224 px', 224, model, content


def described(name, size, model, content):
    "What a row notes of its network."
    said = []
    if model is not None:
        said.append(f'{sum(p.numel() for p in model.parameters())/1e6:.2f} M parameters')
    if content: said.append(f'{len(content)/1e6:.2f} MB as ONNX')
    trained = ('shipped weights' if 'grefel' in name
               else 'untrained: the time does not depend on the weights')
    return ', '.join([*said, f'{size} px', trained])


def measure_models(quick):
    "Rows: each network in ONNX Runtime and PyTorch. They take turns, so a slow moment hits all."
    import torch
    torch.set_num_threads(1)
    calls, notes = {}, {}
    for name, size, model, content in [*own_models(quick), *other_models(quick)]:
        if content: calls[name, 'onnx'] = onnx_call(content, size)
        if model is not None: calls[name, 'torch'] = torch_call(model, size)
        notes[name] = described(name, size, model, content)
    times = {key: [] for key in calls}
    for call in calls.values():
        for _ in range(3): call()
    for _ in range(2 if quick else 30):
        for key, call in calls.items():
            times[key] += [milliseconds(call) for _ in range(3 if 'POSTER' in key[0] else 10)]
    for (name, how), values in times.items():
        yield dict(what=name, how=how, threads=1, note=notes[name], **spread(values, 'ms'))


# ---- photo: from the bytes of a photograph to its faces, step by step

def photograph():
    "A 640 × 480 JPEG with one face: NASA's portrait of Eileen Collins, from scikit-image."
    from PIL import Image
    from skimage.data import astronaut
    upper = Image.fromarray(astronaut()).crop((0, 0, 512, 384))
    file = io.BytesIO()
    upper.resize((640, 480), Image.Resampling.LANCZOS).save(file, 'JPEG', quality=90)
    return file.getvalue()


STEPS = (('decode', 'load_image'), ('find faces', 'find_faces'), ('crop', 'cut'), ('crop', '_view'),
         ('crop', 'crop_box'), ('align', 'found_frame'), ('align', 'align_frame'),
         ('prepare', 'Predictor.prepare'), ('model', '_Torch.__call__'),
         ('model', '_Onnx.__call__'), ('answer', 'Predictor._face'))


class Steps:
    "Time of the steps of prediction: each function's own, without that of the steps it calls."
    def __init__(self, module):
        self.spent, self.stack = {}, []
        for step, name in STEPS:
            owner, _, attribute = name.rpartition('.')
            owner = getattr(module, owner) if owner else module
            setattr(owner, attribute, self._timed(step, getattr(owner, attribute)))

    def _timed(self, step, function):
        @functools.wraps(function)
        def call(*args, **kw):
            with self.step(step): return function(*args, **kw)
        return call

    @contextlib.contextmanager
    def step(self, name):
        self.stack.append(0.)
        start = time.perf_counter()
        try: yield
        finally:
            whole = time.perf_counter() - start
            self.spent.setdefault(name, 0.)
            self.spent[name] += 1e3*(whole - self.stack.pop())
            if self.stack: self.stack[-1] += whole


def measure_photo(quick):
    "Rows: the whole way from bytes to answers and each step of it, both backends on one thread."
    import torch
    predict = importlib.import_module('grefel.use.predict')
    torch.set_num_threads(1)
    predictors = {b: predict.Predictor(backend=b, threads=1) for b in ('onnx', 'torch')}
    steps, photo = Steps(predict), photograph()
    rows = {backend: [] for backend in predictors}
    for repeat in range(-2, 3 if quick else 40):
        for backend, predictor in predictors.items():
            steps.spent = {}
            with steps.step('rest'): faces = predictor(photo)
            if not faces: sys.exit('photo: the face of the benchmark was not found')
            if repeat >= 0: rows[backend].append(dict(steps.spent))
    for backend, spent in rows.items():
        how = dict(how=backend, threads=1)
        whole = [sum(s.values()) for s in spent]
        note = '640×480 JPEG, one face, from bytes to Face'
        yield dict(what='photo', note=note, **how, **spread(whole, 'ms'))
        yield dict(what='photos a second', note=note, **how,
                   **spread([1e3/w for w in whole], '1/s'))
        for name in dict.fromkeys([s for s, _ in STEPS] + ['rest']):
            values = [s.get(name, 0.) for s in spent]
            if any(values):
                yield dict(what=f'step: {name}', note='without the steps within', **how,
                           **spread(values, 'ms'))


# ---- folder and cold: whole commands

def grefel(*args):
    "The command line of a grefel command."
    return [sys.executable, '-m', 'grefel', *map(str, args)]


def environment():
    "Of a child process: threads as a user would have them."
    return {k: v for k, v in os.environ.items() if not k.startswith('OMP_')}


def write_faces(folder, n):
    "Synthetic faces of 48 pixels as PNG files in ten subfolders."
    from PIL import Image
    from grefel.base.synth import synth_faces
    for part in range(10):
        (folder/f'{part}').mkdir(parents=True)
        for i, face in enumerate(synth_faces(n//10, size=48, seed=part)['images'][:, 0].numpy()):
            Image.fromarray(face).save(folder/f'{part}'/f'{i:05}.png')


def memory(process):
    "What a process and its children hold, in MB; None when it has just ended."
    import psutil
    try: return sum(p.memory_info().rss for p in [process, *process.children(recursive=True)])/1e6
    except psutil.NoSuchProcess: return None


def watch(args, every=None):
    """Run a command: its seconds, and (seconds, MB) of what it held.

    We look `every` so many seconds; None: never.
    """
    import psutil
    held = []
    with tempfile.TemporaryFile('w+') as said:
        start = time.perf_counter()
        child = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=said, env=environment())
        process = psutil.Process(child.pid)
        while every and child.poll() is None:
            if mb := memory(process): held.append((time.perf_counter() - start, mb))
            time.sleep(every)
        code, seconds = child.wait(), time.perf_counter() - start
        said.seek(0)
        if code: sys.exit(f'{shlex.join(args)}: exit code {code}\n{said.read()[-500:]}')
    return seconds, held


def measure_folder(quick):
    "Rows: faces a second of a folder, the start of the command included; memory at four moments."
    n, how = (200, ('onnx',)) if quick else (10_000, ('onnx', 'torch'))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)/'faces'
        write_faces(folder, n)
        for backend in how:
            outs = [Path(scratch)/f'{backend}{i}.csv' for i in range(1 if quick else 3)]
            runs = [watch(grefel('predict', folder, '--backend', backend, '--out', out), every=0.1)
                    for out in outs]
            note = (f'{n:,} faces of 48 px as PNG, `grefel predict FOLDER --out rows.csv`, '
                    'start included')
            row = dict(how=backend, threads=os.cpu_count(), note=note)
            rates = [n/seconds for seconds, _ in runs]
            yield dict(what='faces a second', **row, **spread(rates, '1/s', 1))
            for share in (.25, .5, .75, 1.):
                at = [max(mb for t, mb in held if t <= share*seconds) for seconds, held in runs]
                yield dict(what=f'peak memory until {share:.0%}', **row, **spread(at, 'MB', 0))


def measure_jobs(quick):
    "Rows: photographs a second of a folder by one job and by two, which take turns."
    n = 8 if quick else 200
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)/'photos'
        folder.mkdir()
        for i in range(n): (folder/f'{i:03}.jpg').write_bytes(photograph())
        spent = {1: [], 2: []}
        for repeat in range(1 if quick else 5):
            for jobs in spent:
                out = Path(scratch)/f'{jobs}_{repeat}.csv'
                spent[jobs].append(watch(grefel('predict', folder, '--backend', 'onnx', '--jobs',
                                                jobs, '--threads', 1, '--out', out))[0])
    for jobs, seconds in spent.items():
        yield dict(what=f'photographs a second, jobs: {jobs}', how='onnx', threads=jobs,
                   note=f'{n} JPEG of 640×480, start included',
                   **spread([n/s for s in seconds], '1/s', 1))


def measure_cold(quick):
    "Rows: a command from nothing to its answer."
    with tempfile.TemporaryDirectory() as scratch:
        photo = Path(scratch)/'photo.jpg'
        photo.write_bytes(photograph())
        commands = {'grefel predict': grefel('predict', photo),
                    'grefel predict --backend onnx': grefel('predict', photo, '--backend', 'onnx')}
        for line in ('import torch', 'import onnxruntime', 'import numpy', 'pass'):
            commands[f'python -c "{line}"'] = [sys.executable, '-c', line]
        times = {name: [] for name in commands}
        for repeat in range(-1, 1 if quick else 15):
            for name, args in commands.items():
                seconds, _ = watch(args, every=None)
                if repeat >= 0: times[name].append(seconds)
    for name, values in times.items():
        yield dict(what=name, how='command', threads='default',
                   note="640×480 JPEG, files in the system's cache", **spread(values, 's'))


STAGES = dict(model=measure_models, photo=measure_photo, folder=measure_folder, jobs=measure_jobs,
              cold=measure_cold)


def busy(seconds=2):
    "How many processors are at work while this process waits: what else runs here."
    import psutil
    return round(psutil.cpu_percent(seconds)/100*os.cpu_count(), 2)


def read_rows(path):
    "The rows of an earlier run, or none."
    if not path.exists(): return []
    with open(path, newline='', encoding='utf-8') as file: return list(csv.DictReader(file))


def store(path, stage, rows):
    "Replace the rows of a stage; a stage is written when it is complete."
    from grefel.base.core import write_file
    kept = {name: [r for r in read_rows(path) if r['stage'] == name] for name in STAGES}
    kept[stage] = rows
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator='\n')
    writer.writeheader()
    for name in STAGES: writer.writerows(kept[name])
    write_file(path, text.getvalue())


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('stages', nargs='*', metavar='STAGE',
                        help=f'{", ".join(STAGES)} (default: all)')
    parser.add_argument('--quick', action='store_true', help='a small trial of the script')
    parser.add_argument('--out', type=Path, help='another file')
    args = parser.parse_args()
    if wrong := set(args.stages) - set(STAGES):
        parser.error(f'no stage {min(wrong)!r}; there are {", ".join(STAGES)}')
    usual = (Path(tempfile.gettempdir())/'B01_quick.csv' if args.quick
             else ROOT/'nbs'/'8_experiments'/'B01_speed.csv')
    out, where = args.out or usual, machine()
    warnings.simplefilter('ignore')
    for stage in args.stages or STAGES:
        load = busy()
        if load > 0.5:
            print(f'{stage}: the machine is busy (load {load}); these times will be too long',
                  file=sys.stderr)
        rows = []
        for row in STAGES[stage](args.quick):
            rows.append(dict(stage=stage, load=load) | where | row)
            print(f"{stage:7} {row['what']:34} {row['how']:8} {row['median']:>10} {row['unit']:4} "
                  f"({row['p10']} to {row['p90']})", flush=True)
        store(out, stage, rows)
    print(out)


if __name__ == '__main__': main()
