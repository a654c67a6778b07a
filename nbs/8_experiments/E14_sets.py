"""How well sets keep their promises on FER+ validation, and what becomes of them under corruption.

    python nbs/8_experiments/E14_sets.py [--weights small nano] [--out nbs/8_experiments]

writes E14_sets.csv (cross-fitted over halves) and E14_corrupted.csv. A model's answers are kept in
--cache, so that E15_doubts.py need not ask again. No image is written anywhere.
"""
import argparse
import hashlib
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from grefel.base.core import weights_file
from grefel.data.faces import load_faces
from grefel.measure.answers import in_model_order, predict_data
from grefel.measure.calibration import apply_temperature, fit_temperature, make_folds, same_images
from grefel.measure.corruptions import CORRUPTIONS, corrupt
from grefel.measure.doubts import familiarity, fit_doubts
from grefel.measure.sets import (
    COVERAGES, SCORES, aps_scores, covered, fit_threshold, prediction_sets)
from grefel.method.files import load_model

HERE = Path(__file__).resolve().parent
SEVERITIES = (3, 5)
KEPT = ('primary_probs', 'anchor_probs', 'attention_probs', 'final_probs', 'embedding', 'landmarks',
        'logits', 'distances')


def kept_answers(weights, name, images, cache):
    "A model's answers to images, untempered; from the cache where they are there already."
    raw = Path(weights_file(weights)).read_bytes()
    header = 8 + int.from_bytes(raw[:8], 'little')              # calibrating changes only this
    key = hashlib.sha256(raw[header:]).hexdigest()[:12]
    what = hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()[:12]
    path = Path(cache)/f'{key}-{name}-{what}.npz'
    if not path.exists():
        found = predict_data(load_model(weights), dict(images=torch.as_tensor(images)),
                             temperature=1, more=('logits', 'distances'))
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{k: v for k, v in found.items() if k in KEPT})
        print(f'{weights}: {name}, {len(images)} faces', flush=True)
    return dict(np.load(path))


def validation(weights, cache):
    "FER+ validation: images, labels, votes of the model's classes, duplicates, answers."
    data = load_faces('ferplus', 'valid')
    labels, votes = in_model_order(data, load_model(weights).classes)
    images = data.images.numpy()
    return images, labels, votes, same_images(images), kept_answers(weights, 'clean', images, cache)


def corrupted(images, count, seed=0):
    "Yields kind, severity, rows and the corrupted images of those rows."
    rows = np.sort(np.random.default_rng(seed).permutation(len(images))[:count])
    for kind in CORRUPTIONS:
        for severity in SEVERITIES:
            faulty = corrupt(torch.as_tensor(images[rows]), kind, severity).numpy()
            yield kind, severity, rows, faulty


def one_half(weights, probs, labels, votes, fold, k, seed):
    "Rows about the faces of fold k, with temperature and thresholds from the others."
    a, b = fold != k, fold == k
    t = fit_temperature(probs[a], labels[a])
    p, rng = apply_temperature(probs, t), np.random.default_rng(seed)
    u = dict(a=rng.random(a.sum()), b=rng.random(b.sum()))
    kinds = {name: (name, name, {}) for name in SCORES}
    kinds['aps, random'] = (lambda q: aps_scores(q, u['a']), lambda q: aps_scores(q, u['b']), {})
    kinds['lac, by class'] = ('lac', 'lac', dict(by_class=True))
    for promise, targets in dict(labels=labels, annotators=votes).items():
        for c in COVERAGES:
            for name, (fit, use, how) in kinds.items():
                threshold = fit_threshold(p[a], targets[a], c, fit, **how)
                for never_empty in (False, True):
                    m = prediction_sets(p[b], threshold, use, never_empty)
                    by_class = [covered(m, labels[b])[labels[b] == n].mean() for n in range(8)]
                    yield dict(weights=weights, score=name, promise=promise, coverage=c, seed=seed,
                               half=k, never_empty=never_empty, size=m.sum(1).mean(),
                               labels=covered(m, labels[b]).mean(),
                               annotators=covered(m, votes[b]).mean(),
                               split_annotators=covered(m, votes[b])[_split(votes[b])].mean(),
                               **{f'class_{n}': v for n, v in enumerate(by_class)})


def _split(votes):
    "Faces on which nobody's answer has more than six in ten votes."
    return votes.max(1)/votes.sum(1).clip(1) <= .6


def under_corruption(weights, images, labels, votes, same, found, count, cache):
    "Coverage of 90% sets, and how many faces are flagged as strange, by kind and severity."
    fold, parts, both = make_folds(labels, same, 2, 0), {}, dict(labels=labels, annotators=votes)
    for kind, severity, rows, faulty in corrupted(images, count):
        said = kept_answers(weights, f'{kind}{severity}', faulty, cache)
        parts[kind, severity] = rows, faulty, said
    rows = next(iter(parts.values()))[0]
    parts['clean', 0] = rows, images[rows], {k: v[rows] for k, v in found.items()}
    table = {}
    for k in (0, 1):
        a = fold != k
        t = fit_temperature(found['final_probs'][a], labels[a])
        p = apply_temperature(found['final_probs'], t)
        doubts = fit_doubts({n: v[a] for n, v in (found | dict(final_probs=p)).items()},
                            images[a], votes[a])
        limits = {n: fit_threshold(p[a], y[a]) for n, y in both.items()}
        for (kind, severity), (rows, faulty, said) in parts.items():
            here = fold[rows] == k
            q = apply_temperature(said['final_probs'][here], t)
            known = familiarity({n: v[here] for n, v in said.items()}, faulty[here], doubts)
            held = [covered(prediction_sets(q, limits[n]), y[rows][here])
                    for n, y in both.items()]
            right = (q.argmax(1) == labels[rows][here]).astype(float)
            size = prediction_sets(q, limits['annotators']).sum(1)
            table.setdefault((kind, severity), []).append(np.stack([known, right, *held, size]))
    for (kind, severity), values in table.items():
        known, right, by_label, by_votes, size = np.concatenate(values, 1)
        row = dict(weights=weights, kind=kind, severity=severity, n=len(known), right=right.mean(),
                   labels=by_label.mean(), annotators=by_votes.mean(), size=size.mean())
        for limit in (.05, .01):
            ok = known >= limit
            row |= {f'flagged_{limit}': 1 - ok.mean(), f'kept_labels_{limit}': by_label[ok].mean(),
                    f'kept_annotators_{limit}': by_votes[ok].mean(), f'kept_{limit}': ok.sum()}
        yield row


def arguments():
    "What both scripts take."
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--weights', nargs='+', default=['small', 'nano'])
    parser.add_argument('--faces', type=int, default=200, help='for each kind of corruption')
    parser.add_argument('--seeds', type=int, default=5, help='ways of halving the faces')
    parser.add_argument('--out', type=Path, default=HERE)
    parser.add_argument('--cache', type=Path, default=Path(tempfile.gettempdir())/'grefel-answers')
    return parser.parse_args()


def main():
    args, clean, faulty = arguments(), [], []
    for weights in args.weights:
        images, labels, votes, same, found = validation(weights, args.cache)
        for seed in range(args.seeds):
            fold = make_folds(labels, same, 2, seed)
            for k in (0, 1):
                clean += one_half(weights, found['final_probs'], labels, votes, fold, k, seed)
        faulty += under_corruption(weights, images, labels, votes, same, found, args.faces,
                                   args.cache)
    pd.DataFrame(clean).round(4).to_csv(args.out/'E14_sets.csv', index=False)
    pd.DataFrame(faulty).round(4).to_csv(args.out/'E14_corrupted.csv', index=False)


if __name__ == '__main__': main()
