"""Measure how fast grefel is. Writes nbs/8_experiments/B01_speed.csv.

    python benchmarks/speed.py              everything
    python benchmarks/speed.py photo cold   these stages anew; the rows of the others stay

    model    one face on one thread, beside other networks
    photo    a photograph, step by step
    finders  the search for faces alone, beside two other finders, on scenes whose faces are known
    folder   10,000 faces on two cores
    jobs     photographs by one job and by two
    cold     one command from nothing
    film     memory and time over a minute, a quarter of an hour and an hour of film

What runs on one thread is measured in processor time, which others on the machine hardly touch;
on a quiet machine a clock says the same. Folder and jobs need the clock, so a quiet machine.
`finders` puts FER+'s validation faces on photographs: GREFEL_DATA names the folder that holds them.

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
import math
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
    "Processor time of one call."
    start = time.process_time()
    call()
    return 1e3*(time.process_time() - start)


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
        start = time.process_time()
        try: yield
        finally:
            whole = time.process_time() - start
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
    """Run a command: its seconds by the clock, (seconds, MB) of what it held, its processor time.

    We look `every` so many seconds; None: never.
    """
    import psutil
    held, ended = [], 0
    with tempfile.TemporaryFile('w+') as said:
        start = time.perf_counter()
        child = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=said, env=environment())
        process = psutil.Process(child.pid)
        while not ended:
            ended, status, used = os.wait4(child.pid, os.WNOHANG if every else 0)
            if ended: break
            if mb := memory(process): held.append((time.perf_counter() - start, mb))
            time.sleep(every)
        seconds, child.returncode = time.perf_counter() - start, os.waitstatus_to_exitcode(status)
        said.seek(0)
        if child.returncode:
            sys.exit(f'{shlex.join(args)}: exit code {child.returncode}\n{said.read()[-500:]}')
    return seconds, held, used.ru_utime + used.ru_stime


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
            rates = [n/seconds for seconds, *_ in runs]
            yield dict(what='faces a second', **row, **spread(rates, '1/s', 1))
            for share in (.25, .5, .75, 1.):
                at = [max(mb for t, mb in held if t <= share*seconds)
                      for seconds, held, _ in runs]
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
        for repeat in range(-1, 1 if quick else 5):
            for name, args in commands.items():
                seconds = watch(args)[2]
                if repeat >= 0: times[name].append(seconds)
    for name, values in times.items():
        yield dict(what=name, how='command', threads='default',
                   note="640×480 JPEG, files in the system's cache; processor time",
                   **spread(values, 's'))


# ---- finders: the search alone, on scenes whose faces are known

CELLS = (150, 100, 60)   # sides of faces, in pixels


def own_finder():
    "grefel's own search: boxes (x0, y0, x1, y1) of an RGB image (h, w, 3) uint8, the surest first."
    from PIL import Image
    from grefel.use.finder import find_faces
    def find(image):
        found = find_faces(Image.fromarray(image))
        return [f.box for f in sorted(found, key=lambda f: -f.score)]
    return find


def haar_finder():
    "OpenCV's cascade with the settings of its tutorial."
    import cv2
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + 'haarcascade_frontalface_default.xml')
    def find(image):
        found = cascade.detectMultiScale(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 1.1, 5)
        return [(x, y, x + w, y + h) for x, y, w, h in found]
    return find


def mtcnn_finder():
    "MTCNN of facenet-pytorch, whose weights lie in its package, as it comes."
    import tools
    folder = tools.environment('facenet-pytorch', tools.CACHE)
    sys.path.append(str(tools.own_packages(folder)))
    from facenet_pytorch import MTCNN
    tool = MTCNN(keep_all=True, device='cpu')
    def find(image):
        boxes, _ = tool.detect(image)
        return [] if boxes is None else list(boxes)
    return find


def hits(boxes, frames):
    "How many faces some boxes find, and how many boxes find none: the middle lies in the face."
    from grefel.base.alignment import frame_points, frame_size
    left, false = list(frames), 0
    for x0, y0, x1, y1 in boxes:
        middle = [(x0 + x1)/2, (y0 + y1)/2]
        def apart(frame): return math.dist(middle, frame_points([.5, .5], frame))
        best = min(range(len(left)), key=lambda i: apart(left[i]), default=None)
        if best is None or apart(left[best]) > frame_size(left[best])[0]/3: false += 1
        else: left.pop(best)
    return len(frames) - len(left), false


def scene_faces(quick):
    "Faces (n, 48, 48) to put on photographs."
    from grefel.base.core import data_home
    from grefel.data.faces import load_faces
    real = data_home() and (data_home()/'ferplus').exists()
    if not real and not quick: sys.exit('finders: GREFEL_DATA must name the folder of ferplus/')
    return load_faces(*(('ferplus', 'valid') if real else ('synth', 'valid'))).images[:, 0].numpy()


def measure_finders(quick):
    "Rows: time of a 640 × 480 photograph, share of faces found by size, boxes on no face."
    import cv2
    import numpy as np
    import torch
    from grefel.use.scenes import make_scene
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    faces, n = scene_faces(quick), 2 if quick else 15
    finders = {'grefel, YuNet': own_finder(), 'OpenCV, Haar cascade': haar_finder()}
    if not quick: finders['facenet-pytorch, MTCNN'] = mtcnn_finder()
    scenes = {side: [make_scene(faces, 7_000*side + i, n=6, sides=(side, side), tilt=15)
                     for i in range(n)] for side in CELLS}
    for name, find in finders.items():
        spent, false, whole = [], 0, 0
        for side, group in scenes.items():
            found = total = 0
            for scene in group:
                image = np.asarray(scene.image)
                start = time.process_time()
                boxes = find(image)
                spent.append(1e3*(time.process_time() - start))
                hit, wrong = hits(boxes, scene.frames)
                found, total, false = found + hit, total + len(scene.frames), false + wrong
            whole += len(group)
            row = dict(how=name, threads=1, note=f'{total} faces, leaning by up to 15°')
            yield dict(what=f'found at {side} px', **row, **share(found, total))
        yield dict(what='a photograph', how=name, threads=1, note='640×480, one to six faces',
                   **spread(spent[1:], 'ms'))
        yield dict(what='boxes on no face', how=name, threads=1, note=f'on {whole} photographs',
                   unit='boxes', repeats=1, median=false, p10=false, p90=false)


def share(k, n):
    "A share in percent, with its 95% interval where others have their spread."
    from grefel.measure.metrics import wilson_interval
    low, high = wilson_interval(k, n)
    return dict(unit='%', repeats=1, median=round(100*k/n, 1), p10=round(100*float(low), 1),
                p90=round(100*float(high), 1))


# ---- film: does memory grow with a film's length?

MINUTES = (1, 15, 60)


def write_film(path, minutes, size=(160, 120)):
    "A made-up film, a frame a second: a face that wanders over one of scikit-image's photographs."
    import av
    import numpy as np
    from PIL import Image
    from skimage.data import astronaut
    image = Image.fromarray(astronaut()).crop((0, 0, 512, 384))
    with av.open(str(path), 'w') as out:
        stream = out.add_stream('libx264', rate=1)
        stream.width, stream.height, stream.pix_fmt = *size, 'yuv420p'
        stream.options = dict(preset='ultrafast')
        for i in range(60*minutes):
            left, top = 40 + 40*np.sin(i/7), 40 + 40*np.cos(i/11)
            part = image.resize(size, box=(left, top, left + 400, top + 300))
            out.mux(stream.encode(av.VideoFrame.from_image(part)))
        out.mux(stream.encode(None))


def measure_film(quick):
    "Rows: the most memory held, and processor time a frame, over films of three lengths."
    with tempfile.TemporaryDirectory() as scratch:
        for minutes in (1, 2) if quick else MINUTES:
            film, table = Path(scratch)/f'{minutes}.mp4', Path(scratch)/f'{minutes}.csv'
            write_film(film, minutes)
            _, held, seconds = watch(grefel('predict', film, '--every', 1, '--backend', 'onnx',
                                            '--threads', 1, '--out', table), every=0.1)
            n = len(read_rows(table))
            row = dict(how='onnx', threads=1, note=f'a frame a second, 160×120, {n:,} rows')
            peak = max(mb for _, mb in held)
            yield dict(what=f'peak memory, film of {minutes} min', **row, **spread([peak], 'MB', 1))
            yield dict(what=f'a frame, film of {minutes} min', **row,
                       **spread([1e3*seconds/(60*minutes)], 'ms', 2))


STAGES = dict(model=measure_models, photo=measure_photo, finders=measure_finders,
              folder=measure_folder, jobs=measure_jobs, cold=measure_cold, film=measure_film)


CLOCKED = ('folder', 'jobs')   # measured by the clock, since more than one processor is at work


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
        if load > 0.5 and stage in CLOCKED:
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
