"""What finding faces is worth, on photographs whose faces are known. Writes
nbs/8_experiments/E16_photographs.csv.

    python benchmarks/photographs.py                    everything, some minutes
    python benchmarks/photographs.py answers --store    after weights have changed: fit confidence
                                                        and risk anew and put them into the weights

    answers   accuracy, confidence and sets on scenes, and the fit that weights carry
    doubts    how familiar faces on photographs look
    costs     processor time of each stage
    false     faces found where there is nobody
    found     the share of faces found by size, lean and fault

Scenes are made of FER+'s validation faces (GREFEL_DATA names the folder that holds them). With
--quick there are few of them, drawn ones where FER+ is missing, and the file goes to the system's
temporary folder.
"""
import argparse
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tools'))
from nbtools import ROOT, put_rows

STAGES = ('answers', 'doubts', 'costs', 'false', 'found')
PARTS = ('found', 'fault', 'false', 'portrait', 'answers', 'range', 'sets', 'doubts', 'fit',
         'cost')
FIELDS = ('part', 'weights', 'how', 'what', 'n', 'value', 'low', 'high')
OUT = ROOT/'nbs'/'8_experiments'/'E16_photographs.csv'
WAYS = dict(one_pass={}, thorough=dict(thorough=True))
CELLS = {  # what → make_scene's arguments
    '150 px': dict(sides=(150, 150), tilt=0), '150 px, ±40°': dict(sides=(150, 150), tilt=40),
    '100 px': dict(sides=(100, 100), tilt=0), '60 px': dict(sides=(60, 60), tilt=0),
    '60 px, ±40°': dict(sides=(60, 60), tilt=40), '40 px': dict(sides=(40, 40), tilt=0),
    '24 px': dict(sides=(24, 24), tilt=0)}
EMPTY = ('skimage/data', 'brick.png cell.png chelsea.png chessboard_GRAY.png chessboard_RGB.png '
         'clock_motion.png coffee.png color.png grass.png gravel.png horse.png '
         'hubble_deep_field.jpg ihc.png logo.png microaneurysms.png moon.png motorcycle_left.png '
         'page.png retina.jpg rocket.jpg text.png'), ('sklearn/datasets/images',
                                                      'china.jpg flower.jpg')
PORTRAITS = {'skimage/data/astronaut.png': 1, 'matplotlib/mpl-data/sample_data/grace_hopper.jpg': 1}


def share(k, n):
    "A share and its 95% interval, in percent."
    from grefel.measure.metrics import wilson_interval
    low, high = wilson_interval(k, n)
    return dict(n=int(n), value=round(100*k/n, 2), low=round(100*low, 2), high=round(100*high, 2))


def valid_faces(quick):
    "Faces (m, 48, 48), labels, votes, and each one's half of validation, duplicates together."
    from grefel.base.core import data_home
    from grefel.data.faces import load_faces
    from grefel.measure.calibration import make_folds, same_images
    real = data_home() and (data_home()/'ferplus').exists()
    if not real and not quick: sys.exit('FER+ is missing: GREFEL_DATA names the folder of ferplus/')
    data = load_faces('ferplus', 'valid') if real else load_faces('synth', 'valid', n=200)
    labels = data.labels.numpy()
    votes = None if data.votes is None else data.votes[:, :len(data.classes)].numpy()
    fold = make_folds(labels, same_images(data.images), 2)
    return data.images[:, 0].numpy(), labels, votes, fold


def package_image(name):
    "An image of an installed package, or nothing where it is not installed."
    from importlib.util import find_spec
    package, _, rest = name.partition('/')
    spec = find_spec(package)
    path = Path(spec.origin).parent/rest if spec else None
    return path if path and path.exists() else None


def measure_found(predictors, faces, quick):
    "Rows: the share of faces found by size and lean, and by fault."
    for way, predictor in predictors.items():
        n = 4 if quick else 20 if way == 'one_pass' else 12
        for k, (what, kw) in enumerate(CELLS.items()):
            found = count_found(predictor, faces, range(1000*k, 1000*k + n), n=8, **kw)
            yield dict(part='found', how=way, what=what, **found)
        if way == 'thorough': continue
        for k, fault in enumerate(fault_names()):
            seeds = range(9000 + 100*k, 9000 + 100*k + n)
            found = count_found(predictor, faces, seeds, n=8, sides=(60, 200), tilt=20, fault=fault)
            yield dict(part='fault', how=way, what=fault, **found)


def fault_names():
    from grefel.use.scenes import FAULTS
    return list(FAULTS)


def count_found(predictor, faces, seeds, **kw):
    "The share of the faces on some scenes that a finder finds."
    from grefel.base.alignment import found_frame
    from grefel.use.finder import find_faces
    from grefel.use.scenes import make_scene, match_frames
    found = total = 0
    for seed in seeds:
        scene = make_scene(faces, seed, **kw)
        seen = sorted(find_faces(scene.image, thorough=predictor.thorough), key=lambda f: -f.score)
        which = match_frames([found_frame(f.box, f.points) for f in seen], scene.frames)
        found, total = found + sum(w >= 0 for w in which), total + len(scene.frames)
    return share(found, total)


def measure_false(predictors, quick):
    "Rows: faces found on forty images without people, and on portraits that packages ship."
    from grefel.base.images import load_image
    from grefel.use.finder import find_faces
    paths = [p for folder, names in EMPTY for name in names.split()
             if (p := package_image(f'{folder}/{name}'))]
    images = [load_image(p) for p in paths]
    images += [ImageOps.mirror(i).crop((0, 0, i.width*3//4, i.height*3//4)) for i in images]
    images = images[:4 if quick else 40]
    for way, predictor in predictors.items():
        def count(image): return len(find_faces(image, thorough=predictor.thorough))
        yield dict(part='false', how=way, what='images without people', n=len(images),
                   value=sum(map(count, images)))
        for name, people in PORTRAITS.items():
            if path := package_image(name):
                yield dict(part='portrait', how=way, what=path.stem, n=people,
                           value=count(load_image(path)))


def calibrated(probs, predictor):
    "Probabilities with the temperature that was fitted on crops."
    from grefel.measure.calibration import apply_temperature
    return apply_temperature(probs, predictor.temperature)


def judged(probs, labels):
    "Accuracy with its interval, mean confidence and ECE."
    from grefel.measure.metrics import calibration_error
    right = probs.argmax(1) == labels
    yield dict(what='accuracy', **share(right.sum(), len(right)))
    yield dict(what='mean confidence', n=len(right), value=round(100*probs.max(1).mean(), 2))
    yield dict(what='ECE', n=len(right), value=round(calibration_error(probs, labels), 4))


def read_scenes(predictor, faces, fold, quick):
    "What a predictor says to the faces of many scenes, each of which holds faces of one half only."
    from grefel.use.evaluator import answer_scenes
    n, parts = 6 if quick else 240, []
    for half in (0, 1):
        own = np.flatnonzero(fold == half)
        part = answer_scenes(predictor, faces[own], range(50_000*(half + 1), 50_000*(half + 1) + n),
                             progress=False, sides=(40, 300), fault=None)
        parts.append(part | dict(row=own[part['row']]))
    false = sum(p.pop('false') for p in parts)
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}, false


def reliable_share(probs, labels, fold, notes, risk=.1):
    "Of the answers called reliable at this risk: how many are wrong, and how many there are."
    from grefel.use.predict import threshold_for
    limit = np.array([threshold_for(notes[k]['risk'], risk)[1] for k in (0, 1)], float)[fold]
    taken = probs.max(1) >= limit
    wrong = (probs.argmax(1) != labels)[taken]
    yield dict(what='wrong among reliable at 10%', **share(wrong.sum(), max(1, taken.sum())))
    yield dict(what='called reliable', **share(taken.sum(), len(taken)))


def measure_answers(size, faces, labels, votes, fold, quick):
    "Rows about accuracy and confidence on scenes; and the notes for the weights."
    from grefel.use.evaluator import cross_fit_photographs, fit_photographs
    from grefel.use.predict import Predictor
    predictor = Predictor(size, backend='torch', threads=1)
    got, false = read_scenes(predictor, faces, fold, quick)
    seen, rows = got['found'], got['row']
    y, halves = labels[rows[seen]], fold[rows[seen]]
    probs, side, score = (got[k][seen] for k in ('probs', 'side', 'score'))
    crossed, notes = cross_fit_photographs(probs, y, side, score, halves)
    ways = {'in scenes, confidence of crops': calibrated(probs, predictor),
            'in scenes, confidence of photographs': crossed,
            'same faces, true frames': calibrated(got['true_probs'][seen], predictor)}
    crops = predictor.prepare([Image.fromarray(f) for f in faces[rows[seen]]])
    clean = [predictor.ask(crops[i:i + 64])['final_probs'] for i in range(0, len(crops), 64)]
    ways['same faces, perfect crops'] = calibrated(np.concatenate(clean), predictor)
    for how, p in ways.items():
        for row in judged(p, y): yield dict(part='answers', weights=size, how=how, **row)
    yield from ranges(size, ways, y, got, seen)
    own = None if votes is None else votes[rows[seen]]
    yield from measure_sets(size, ways, crossed, y, own, halves)
    for how, thresholds in (('confidence of photographs', notes),
                            ('confidence of crops', dict.fromkeys((0, 1), dict(
                                risk=predictor.metadata.get('risk') or ())))):
        p = ways[f'in scenes, {how}']
        for row in reliable_share(p, y, halves, thresholds):
            yield dict(part='answers', weights=size, how=f'in scenes, {how}', **row)
    finder = dict(part='answers', weights=size, how='finder')
    yield finder | dict(what='found') | share(seen.sum(), len(seen))
    yield finder | dict(what='false faces', n=len(seen), value=false)
    fitted = fit_photographs(probs, y, side, score, votes=own) | {
        'from': f'FER+ validation faces on scenes, {len(y):,} found; each threshold holds with 95% '
                'probability'}
    for name, value in zip(('w0', 'w1', 'w2'), fitted['temper']):
        yield dict(part='fit', weights=size, what=name, n=len(y), value=value)
    yield fitted


def measure_sets(size, ways, crossed, y, votes, halves):
    "Rows: what sets of 90% hold on scenes, by thresholds of crops and of scenes, from other faces."
    from grefel.measure.sets import covered, fit_threshold, prediction_sets
    on_scenes = {'crops': ways['in scenes, confidence of crops'], 'photographs': crossed}
    fitted_on = {'crops': ways['same faces, perfect crops'], 'photographs': crossed}
    for how, asked in on_scenes.items():
        for what, targets in (('labels', y), ('annotators', votes)):
            if targets is None: continue
            held = []
            for k in (0, 1):
                threshold = fit_threshold(fitted_on[how][halves != k], targets[halves != k])
                members = prediction_sets(asked[halves == k], threshold)
                held.append(covered(members, targets[halves == k]))
            held = np.concatenate(held)
            yield dict(part='sets', weights=size, how=f'thresholds of {how}', what=what,
                       **share(held.sum(), len(held)))


def measure_doubts(size, faces, labels, votes, fold, quick):
    "Rows: how many faces on clean scenes look stranger than 99 and 90 in 100 known ones."
    from grefel.measure.doubts import apply_doubts, fit_doubts
    from grefel.use.predict import Predictor
    predictor, n = Predictor(size, backend='torch', threads=1), 4 if quick else 40
    known, familiar = {}, []
    for half in (0, 1):
        rows = np.flatnonzero(fold == half)[:60 if quick else 800]
        known[half] = fit_doubts(asked(predictor, map(Image.fromarray, faces[rows])),
                                 faces[rows][:, None], labels=labels[rows],
                                 votes=None if votes is None else votes[rows])
    for half in (0, 1):
        crops = list(scene_crops(predictor, faces[fold == half], range(70_000, 70_000 + n)))
        pixels = np.stack([np.asarray(c) for c in crops])[:, None]   # (n, 1, s, s)
        doubts = apply_doubts(asked(predictor, crops), pixels, known[1 - half])
        familiar.append(doubts['familiarity'])
    familiar = np.concatenate(familiar)
    for least in (.01, .1):
        yield dict(part='doubts', weights=size, how='clean scenes, doubts of crops',
                   what=f'less familiar than {least:.0%}',
                   **share((familiar < least).sum(), len(familiar)))


def asked(predictor, crops):
    "What a model says to many crops."
    crops = predictor.prepare(list(crops))
    parts = [predictor.ask(crops[i:i + 64]) for i in range(0, len(crops), 64)]
    return {k: np.concatenate([p[k] for p in parts]) for k in ('final_probs', 'embedding',
                                                               'landmarks')}


def scene_crops(predictor, faces, seeds):
    "The faces found on clean scenes, cut out."
    from grefel.use.scenes import make_scene, match_frames
    for seed in seeds:
        scene = make_scene(faces, seed, sides=(40, 300))
        crops = sorted(predictor.read(scene.image), key=lambda c: -c.found.score)
        which = match_frames([c.frame for c in crops], scene.frames)
        yield from (c.image for c, w in zip(crops, which) if w >= 0)


def ranges(size, ways, y, got, seen):
    "Rows: accuracy of the found by size, by lean and by fault, beside the true frames'."
    side, tilt, fault = (got[k][seen] for k in ('true_side', 'tilt', 'fault'))
    bands = {f'{a} to {b} px': (side >= a) & (side < b) for a, b in
             ((40, 60), (60, 100), (100, 170), (170, 301))}
    bands |= {f'{a} to {b}°': (abs(tilt) >= a) & (abs(tilt) < b) for a, b in
              ((0, 20), (20, 40), (40, 61))}
    bands |= {f'fault {name}': fault == name for name in np.unique(fault)}
    for how in ('in scenes, confidence of photographs', 'same faces, true frames'):
        for what, mask in bands.items():
            if not mask.any(): continue
            right = ways[how].argmax(1)[mask] == y[mask]
            yield dict(part='range', weights=size, how=how, what=what,
                       **share(right.sum(), len(right)))


def photograph():
    "A 640 × 480 JPEG with one face, as bytes."
    image = Image.open(package_image('skimage/data/astronaut.png')).convert('RGB')
    file = io.BytesIO()
    image.crop((0, 0, 512, 384)).resize((640, 480)).save(file, 'JPEG', quality=90)
    return file.getvalue()


def measure_costs(quick):
    "Rows: milliseconds of processor time that each stage takes on one thread."
    from grefel.base.images import load_image
    from grefel.use.finder import find_faces
    from grefel.use.predict import Predictor
    predictor, data = Predictor('nano', backend='onnx', threads=1), photograph()
    image = load_image(data)
    x = predictor.prepare([predictor.read(image)[0].image])
    blank = Image.new('RGB', image.size, 'grey')
    stages = dict(decode=lambda: load_image(data), find=lambda: find_faces(image),
                  search=lambda: find_faces(blank),   # without the looks at a found face
                  model=lambda: predictor.ask(x), all=lambda: predictor(data),
                  thorough=lambda: find_faces(image, thorough=True))
    for what, call in stages.items():
        spent = []
        for _ in range(3 if quick or what == 'thorough' else 30):
            start = time.process_time()
            call()
            spent.append(1e3*(time.process_time() - start))
        low, middle, high = np.percentile(spent, (10, 50, 90)).round(2)
        yield dict(part='cost', weights='nano', how='ONNX, one thread', what=what, n=len(spent),
                   value=middle, low=low, high=high)


def store(size, notes):
    "Put the notes into the shipped weights and into the ONNX file beside them."
    from grefel.base.core import weights_file, write_file
    from grefel.measure.answers import add_metadata
    from grefel.method.files import load_model
    path = weights_file(size)
    add_metadata(path, path, photographs=notes)
    if (file := path.with_suffix('.onnx')).exists():
        import onnx
        from grefel.use.onnx import describe
        write_file(file, describe(onnx.load(file), load_model(path)).SerializeToString())


def measured(stages, sizes, quick):
    "Rows of the stages that were asked for, and at last of the fits of each size."
    from grefel.use.predict import Predictor
    faces, labels, votes, fold = valid_faces(quick)
    finders = {way: Predictor('nano', backend='onnx', threads=1, **kw) for way, kw in WAYS.items()}
    if 'answers' in stages:
        for size in sizes: yield from measure_answers(size, faces, labels, votes, fold, quick)
    if 'doubts' in stages:
        for size in sizes: yield from measure_doubts(size, faces, labels, votes, fold, quick)
    if 'costs' in stages: yield from measure_costs(quick)
    if 'false' in stages: yield from measure_false(finders, quick)
    if 'found' in stages: yield from measure_found(finders, faces, quick)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('stages', nargs='*', metavar='STAGE',
                        help=f'{", ".join(STAGES)} (default: all)')
    parser.add_argument('--weights', nargs='+', default=['nano', 'small'], metavar='SIZE')
    parser.add_argument('--store', action='store_true',
                        help='put what was fitted into the weights')
    parser.add_argument('--quick', action='store_true', help='a small trial of the script')
    args = parser.parse_args()
    if wrong := set(args.stages) - set(STAGES):
        parser.error(f'no stage {min(wrong)!r}; there are {", ".join(STAGES)}')
    out = Path(tempfile.gettempdir())/'E16_quick.csv' if args.quick else OUT
    rows, fitted = [], []
    for row in measured(args.stages or STAGES, args.weights, args.quick):
        if 'temper' in row: fitted.append(row)
        else:
            rows.append(row)
            print(*(row.get(k, '') for k in FIELDS), sep='\t', flush=True)
    put_rows(out, rows, FIELDS, same=('part', 'weights', 'how'),
             order=lambda r: PARTS.index(r['part']))
    for size, notes in zip(args.weights, fitted):
        if args.store and not args.quick: store(size, notes)
    print(os.path.relpath(out))


if __name__ == '__main__': main()
