"""Other tools that read faces, in one table with calibration. Writes
nbs/8_experiments/E21_tools.csv.

    python benchmarks/tools.py                 every tool, and grefel's two sizes beside them
    python benchmarks/tools.py fer face-api    these anew; the rows of the others stay
    python benchmarks/tools.py nano small      after grefel's weights have changed
    python benchmarks/tools.py --score         the table alone, from answers that are kept

Each tool gets an environment of its own in --cache, with what it needs from PyPI or npm. It is
asked about 250 training faces in each of four framings; in the one it does best in, it reads
FER+'s 3,191 validation faces, and every fourth of them under noise. Times are processor time.
Answers are kept in --cache as well, so that scoring is apart from asking. FER+ lies in the folder
that GREFEL_DATA names. With --quick there are few faces, drawn ones where FER+ is missing, and the
table goes to the system's temporary folder.
"""
import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tools'))
from nbtools import ROOT

HERE = Path(__file__).resolve().parent
CACHE = Path.home()/'.cache'/'grefel-tools'
OUT = ROOT/'nbs'/'8_experiments'/'E21_tools.csv'
COMMON = ('neutral', 'happiness', 'surprise', 'sadness', 'anger', 'disgust', 'fear')
NAMES = dict(happy='happiness', sad='sadness', angry='anger', fearful='fear', disgusted='disgust',
             surprised='surprise')
FRAMINGS = ('as it is', 'closer', 'margin', 'enlarged')
NOISE = ('noise', 2)   # a standard deviation of 10 of 255
FOURTH = 4             # of the validation faces are seen under noise
SAMPLE = 250           # training faces that choose the framing


@dataclass(frozen=True)
class Tool:
    "How a tool is installed, and what its outputs mean."
    package: str              # name and version
    order: str                # its classes in its own order
    base: str = ''            # 'tensorflow', 'torch' or '' for npm
    needs: tuple = ()         # what its classifier imports besides
    note: str = ''            # what a reader must know

    @property
    def classes(self): return [NAMES.get(c, c) for c in self.order.split()]


FER2013 = 'angry disgust fear happy sad surprise neutral'
TFJS = ('@tensorflow/tfjs@4.22.0', '@tensorflow/tfjs-backend-wasm@4.22.0')
TOOLS = {
    'fer': Tool('fer==25.10.3', FER2013, 'tensorflow', ('setuptools<81',),
                'quantised, as it comes'),
    'fer-keras': Tool('fer==25.10.3', FER2013, 'tensorflow', ('setuptools<81',),
                      'use_tflite=False'),
    'face-api': Tool('@vladmandic/face-api@1.7.15',
                     'neutral happy sad angry fearful disgusted surprised', needs=TFJS,
                     note='WASM'),
    'human': Tool('@vladmandic/human@3.3.6', FER2013, needs=TFJS, note='WASM'),
    'facex': Tool('facex==1.1.0', 'anger disgust fear happy neutral sadness surprised',
                  'tensorflow', ('scikit-image', 'scipy', 'lazy-loader')),
    'facemood': Tool('facemood==1.0.1', 'angry disgust fear happy sad surprise neutral',
                     'tensorflow', ('setuptools<81',), 'made for whole camera frames'),
    'facial-emotion-recognition': Tool(
        'facial-emotion-recognition==0.3.4', FER2013, 'torch', ('facenet-pytorch==2.6.0',),
        'offers a class only: its outputs after softmax'),
    'what-the-face': Tool('what-the-face-classification==0.0.27', FER2013, 'torch',
                          ('setuptools<81',)),
}
OWN = ('nano', 'small')
FINDERS = {'facenet-pytorch': Tool('facenet-pytorch==2.6.0', '', 'torch')}  # for speed.py
BASES = dict(tensorflow=('tensorflow==2.21.0', 'opencv-python-headless<5', 'pillow'))


# ---- environments

def execute(*args, cwd=None):
    "Run a command; its last line. Its error is ours."
    done = subprocess.run([str(a) for a in args], cwd=cwd, capture_output=True, text=True)
    if done.returncode: sys.exit(f'{args[0]}: {(done.stderr or done.stdout)[-1500:]}')
    return (done.stdout.strip().splitlines() or [''])[-1]


def made(folder, make):
    "A folder that was made whole: made anew if an earlier run was stopped halfway."
    if (folder/'whole').exists(): return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make(folder)
    (folder/'whole').touch()
    return folder


def python_of(folder):
    "The interpreter of a virtual environment."
    return folder/('Scripts' if os.name == 'nt' else 'bin')/'python'


def own_packages(folder):
    "Where a virtual environment keeps its packages."
    return next(folder.glob('[Ll]ib/**/site-packages'))


def install(folder, *packages):
    "Packages into a virtual environment."
    execute(sys.executable, '-m', 'pip', '--python', python_of(folder), 'install', '-q', *packages)


def packages_of(base, cache):
    "The folder that holds a framework: grefel's own PyTorch, or an environment made for it."
    if base == 'torch':
        import torch
        return Path(torch.__file__).parent.parent
    def make(folder):
        venv.create(folder)
        install(folder, *BASES[base])
    return own_packages(made(cache/f'base_{base}', make))


def prepare_python(tool, folder, cache):
    """A virtual environment with a tool, what its classifier imports, and a path to its framework.

    Without its other requirements: one tool pins a PyTorch that no present Python installs."""
    shared = packages_of(tool.base, cache)
    venv.create(folder)
    install(folder, '--no-deps', tool.package, *tool.needs)
    (own_packages(folder)/'framework.pth').write_text(str(shared))


def prepare_node(tool, folder, cache):
    "A folder with a tool from npm; no package may run a script of its own."
    (folder/'package.json').write_text('{"private": true}')
    execute('npm', 'install', '--ignore-scripts', '--no-audit', '--no-fund', tool.package,
            *tool.needs, cwd=folder)


def environment(name, cache):
    "The folder of a tool's environment."
    tool = (TOOLS | FINDERS)[name]
    prepare = prepare_python if tool.base else prepare_node
    return made(cache/'env'/name, lambda folder: prepare(tool, folder, cache))


# ---- faces

def framed(faces, how):
    "Faces (n, 48, 48) uint8 in one of the framings."
    from PIL import Image
    if how == 'as it is': return faces
    side = faces.shape[-1]
    cut = side//12
    if how == 'closer': return faces[:, cut:side - cut, cut:side - cut]
    if how == 'margin': return np.pad(faces, ((0, 0), (side//8,)*2, (side//8,)*2), mode='edge')
    assert how == 'enlarged'
    return np.stack([np.asarray(Image.fromarray(f).resize((4*side, 4*side),
                                                          Image.Resampling.BICUBIC))
                     for f in faces])


def load(quick):
    "The sample of training faces, and validation."
    from grefel.base.core import data_home
    from grefel.data.faces import load_faces
    real = data_home() and (data_home()/'ferplus').exists()
    if not real and not quick: sys.exit('FER+ is missing: GREFEL_DATA names the folder of ferplus/')
    if not real: return (load_faces('synth', s, n=40) for s in ('train', 'valid'))
    n = 40 if quick else SAMPLE
    valid = load_faces('ferplus', 'valid')
    return load_faces('ferplus', 'train').sample(n), valid.sample(60) if quick else valid


def grey(data): return np.ascontiguousarray(data.images[:, 0].numpy())


def noisy(data):
    "Every fourth of the faces, under the noise of the robustness page."
    from dataclasses import replace
    from grefel.measure.corruptions import corrupt
    noise = replace(data, images=corrupt(data.images, *NOISE))
    return noise.subset(np.arange(0, len(data), FOURTH))


# ---- asking

class Asked:
    "A tool at work in its own environment: a process that answers until it is closed."
    def __init__(self, name, cache):
        folder, known = environment(name, cache), (TOOLS | FINDERS)[name]
        run = ([python_of(folder), HERE/'tools_python.py'] if known.base
               else ['node', HERE/'tools_node.mjs'])
        self.name, self.scratch = name, tempfile.TemporaryDirectory()
        self.child = subprocess.Popen([*map(str, run), name], cwd=folder, text=True,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self): return self

    def __exit__(self, *_):
        self.child.stdin.close()
        self.child.wait()
        self.scratch.cleanup()

    def __call__(self, faces):
        "What it says of faces (n, s, s) uint8: probabilities (n, N) in its order, milliseconds."
        given, said = (Path(self.scratch.name)/n for n in ('faces', 'answers'))
        np.ascontiguousarray(faces).tofile(given)
        print(json.dumps([faces.shape[-1], str(given), str(said)]), file=self.child.stdin,
              flush=True)
        for line in self.child.stdout:
            if line.startswith('answered '):
                spent = json.loads(line.removeprefix('answered '))
                return np.fromfile(said, np.float32).reshape(len(faces), -1), np.array(spent)
        sys.exit(f'{self.name}: stopped with exit code {self.child.wait()}')


def ask_own(name, data):
    "The same of grefel's own: probabilities in FER+'s order; times of its ONNX file."
    import onnxruntime
    import torch
    from grefel.measure.answers import predict_data
    from grefel.method.files import load_model
    from grefel.use.onnx import onnx_graph, prepare_faces
    torch.set_num_threads(1)
    model = load_model(name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx_graph(model).SerializeToString(), options,
                                           providers=['CPUExecutionProvider'])
    spent = []
    for face in data.images[:1000]:
        start = time.process_time()
        session.run(None, {'images': np.asarray(prepare_faces(model.config, face[None]))})
        spent.append(1e3*(time.process_time() - start))
    return predict_data(model, data)['final_probs'], np.array(spent)


def quiet_time(spent, block=100):
    "Milliseconds of a call: the median of the quietest hundred in a row."
    blocks = np.array_split(spent, max(1, len(spent)//block))
    return float(min(np.median(b) for b in blocks))


def gather(name, sample, valid, cache):
    "Ask one tool everything and keep its answers: a file that scoring reads."
    found, tried, framing = {}, {}, 'as it is'
    seen = dict(clean=valid, noise=noisy(valid))
    if name in OWN:
        for what, data in seen.items(): found[what], spent = ask_own(name, data)
    else:
        place = [TOOLS[name].classes.index(c) for c in COMMON]
        known = sample.with_classes(COMMON)
        truth = np.array([COMMON.index(c) for c in known.classes])[known.labels.numpy()]
        with Asked(name, cache) as tool:
            for how in FRAMINGS:
                probs, spent = tool(framed(grey(known), how))
                tried[how] = float((probs[:, place].argmax(1) == truth).mean())
                print(f'{name}: {how} {tried[how]:.1%}, {np.median(spent):.2f} ms', flush=True)
            framing = max(tried, key=lambda how: tried[how])
            for what, data in seen.items(): found[what], spent = tool(framed(grey(data), framing))
    about = dict(framing=framing, tried=tried, ms=quiet_time(spent))
    (cache/'answers').mkdir(exist_ok=True)
    np.savez(cache/'answers'/f'{name}.npz', about=json.dumps(about), **found)
    print(name, about, flush=True)


# ---- scoring

def in_order(probs, classes, wanted):
    "Columns of some classes, each row made to sum to 1."
    part = probs[:, [list(classes).index(c) for c in wanted]].astype(float)
    total = part.sum(1, keepdims=True)
    return np.where(total > 0, part/np.where(total > 0, total, 1), 1/len(wanted))


KEPT = ('n', 'accuracy', 'accuracy_low', 'accuracy_high', 'balanced_accuracy',
        'balanced_accuracy_low', 'balanced_accuracy_high', 'mean_confidence', 'ece', 'ece_low',
        'ece_high', 'ece_classwise', 'kl_votes', 'kl_votes_low', 'kl_votes_high', 'augrc',
        'augrc_low', 'augrc_high')


def score(name, valid, cache, bootstrap):
    "One row of the table."
    from grefel.measure.calibration import calibration_report, same_images
    from grefel.measure.metrics import classification_metrics
    kept = np.load(cache/'answers'/f'{name}.npz')
    about, every = json.loads(str(kept['about'])), valid.classes
    own = every if name in OWN else TOOLS[name].classes
    labels, images = valid.labels.numpy(), valid.images
    votes = None if valid.votes is None else valid.votes.numpy()[:, :len(every)].astype(float)
    among = np.isin(labels, [every.index(c) for c in COMMON])
    place = np.array([COMMON.index(c) if c in COMMON else -1 for c in every])
    new = place[labels[among]]
    seven = [every.index(c) for c in COMMON]
    crowd = None if votes is None else votes[among][:, seven]
    clean, noise = (in_order(kept[k], own, COMMON) for k in ('clean', 'noise'))
    clean, noise = clean[among], noise[among[::FOURTH]]
    m = classification_metrics(clean, new, COMMON, crowd, bootstrap)
    refit = calibration_report(clean, new, crowd, same_images(images[among]))
    under = classification_metrics(noise, place[labels[::FOURTH][among[::FOURTH]]], COMMON)
    answers = np.array([every.index(c) for c in own])[kept['clean'].argmax(1)]
    return dict(
        tool=name, package='grefel' if name in OWN else TOOLS[name].package,
        note='8 classes' if name in OWN else TOOLS[name].note, framing=about['framing'],
        tried=json.dumps({k: round(v, 4) for k, v in about['tried'].items()}),
        **{k: m.get(k) for k in KEPT},
        temperature=refit['temperature'], refit_ece=refit['after']['ece'],
        refit_classwise=refit['after']['ece_classwise'], refit_kl=refit['after'].get('kl_votes'),
        n_noise=under['n'], noise_accuracy=under['accuracy'],
        noise_confidence=under['mean_confidence'],
        noise_ece=under['ece'], n_all=len(labels),
        accuracy_all=float((answers == labels).mean()), ms=about['ms'], weights=digest(name))


def digest(name):
    "Which of grefel's weights a row is about."
    if name not in OWN: return ''
    from grefel.method.files import load_model, weights_digest
    return weights_digest(load_model(name))


def write(rows, out):
    "The table, grefel's sizes first, then by accuracy."
    from grefel.base.core import write_file
    import io
    rows = sorted(rows, key=lambda r: (r['tool'] not in OWN, -float(r['accuracy'])))
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
    table.writeheader()
    table.writerows({k: round(v, 5) if isinstance(v, float) else v for k, v in r.items()}
                    for r in rows)
    write_file(out, text.getvalue())


def earlier(out):
    "Rows that are there, by tool."
    if not out.exists(): return {}
    with open(out, newline='', encoding='utf-8') as file:
        return {r['tool']: r for r in csv.DictReader(file)}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('tools', nargs='*', metavar='TOOL', help=', '.join([*OWN, *TOOLS]))
    parser.add_argument('--cache', type=Path, default=CACHE,
                        help='environments and answers')
    parser.add_argument('--score', action='store_true', help='from answers that are kept')
    parser.add_argument('--quick', action='store_true')
    args = parser.parse_args()
    names = args.tools or [*OWN, *TOOLS]
    if strange := set(names) - {*OWN, *TOOLS}: parser.error(f'unknown: {", ".join(strange)}')
    out = Path(tempfile.gettempdir())/'E21_quick.csv' if args.quick else OUT
    if args.cache.resolve().is_relative_to(ROOT): parser.error('--cache lies in the repository')
    args.cache.mkdir(parents=True, exist_ok=True)
    sample, valid = load(args.quick)
    if args.quick: out.unlink(missing_ok=True)
    for name in names:
        if not args.score: gather(name, sample, valid, args.cache)
        row = score(name, valid, args.cache, 50 if args.quick else 1000)
        write(list((earlier(out) | {name: row}).values()), out)
    print(f'written: {out}')


if __name__ == '__main__': main()
