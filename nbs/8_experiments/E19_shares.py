"""Shares of expressions in folders of ten stated mixtures: how far off, and do intervals hold?

    python nbs/8_experiments/E19_shares.py [--weights small nano] [--out nbs/8_experiments]

writes E19_shares.csv (FER+ validation, cross-fitted over halves) and E19_drawn.csv (drawn faces,
where faces of another kind can be tried as well). A model's answers are kept in --cache. No image
is written anywhere.
"""
import argparse
import hashlib
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from grefel.base.core import weights_file
from grefel.data.faces import load_faces
from grefel.measure.answers import in_model_order, predict_data
from grefel.measure.calibration import apply_temperature, fit_temperature, make_folds, same_images
from grefel.measure.metrics import calibration_error
from grefel.measure.shares import (
    em_shares, fit_shares, folder_shares, likelihoods, move_probs)
from grefel.method.files import load_model

HERE = Path(__file__).resolve().parent

# In percent: neutral, happiness, surprise, sadness, anger, disgust, fear, contempt. Half of the
# validation faces hold eight of contempt and twelve of disgust, so no mixture asks for many.
MIXTURES = {
    'validation': (37, 27, 13, 11, 9, .7, 1.9, .4), 'neutral': (80, 5, 5, 4, 3, 1, 1.5, .5),
    'happy': (10, 75, 5, 3, 4, 1, 1.5, .5), 'surprised': (20, 13, 50, 5, 4, 1, 6, 1),
    'sad': (25, 5, 5, 50, 8, 2, 4, 1), 'angry': (26, 5, 5, 9, 50, 2, 2, 1),
    'nobody neutral': (0, 35, 20, 21, 15, 2, 6, 1), 'nobody happy': (50, 0, 17, 15, 12, 1, 4, 1),
    'negative': (15, 6, 6, 32, 30, 2.5, 7, 1.5), 'even': (18, 18, 18, 18, 17, 2.5, 7, 1.5)}


def kept_answers(weights, name, make, cache):
    "Labels, duplicates and untempered answers of the faces that `make` loads; from the cache."
    key = hashlib.sha256(Path(weights_file(weights)).read_bytes()).hexdigest()[:12]
    path = Path(cache)/f'{key}-shares-{name}.npz'
    if not path.exists():
        faces, model = make(), load_model(weights)
        found = predict_data(model, faces, temperature=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, probs=found['final_probs'], same=same_images(np.asarray(faces.images)),
                 labels=in_model_order(faces, model.classes)[0])
        print(f'{weights}: {name}, {len(faces.images)} faces', flush=True)
    kept = np.load(path)
    return kept['probs'].astype(float), kept['labels'], kept['same']


def shares_in(labels, n=8):
    "Each class's share of some labels."
    return np.bincount(labels, minlength=n)/len(labels)


def undone(q, rows):
    "Shares whose answers, with these rows for each class (N, N), would be q."
    shares = nnls(np.r_[rows.T, 100*np.ones((1, len(q)))], np.r_[q, 100])[0]
    return shares/shares.sum()


class Ways:
    "Six ways to find shares, fitted on some faces."
    def __init__(self, probs, labels, groups, seed):
        self.temperature = fit_temperature(probs, labels)
        p, answers = apply_temperature(probs, self.temperature), probs.argmax(1)
        self.known = fit_shares(p, labels, groups=groups, seed=seed)
        self.plain = np.r_[1, -np.log(shares_in(labels))]
        by_class = [labels == c for c in range(8)]
        self.confusion = np.array([shares_in(answers[c]) for c in by_class])      # (N, N)
        self.mass = np.array([p[c].mean(0) for c in by_class])                    # (N, N)

    def __call__(self, probs):
        "Shares by each way, the intervals of ours among them."
        p = apply_temperature(probs, self.temperature)
        counted, ours = shares_in(p.argmax(1)), folder_shares(p, self.known)
        return ours, {
            'counted': counted, 'mean probabilities': p.mean(0),
            'confusions undone': undone(counted, self.confusion),
            'probabilities undone': undone(p.mean(0), self.mass),
            'EM': em_shares(likelihoods(p, self.plain)), 'EM with biases': ours['shares']}


def sampled(labels, mixture, n, rng):
    "Rows of a folder of n faces whose labels are sampled from a mixture, no face twice."
    rows = [np.flatnonzero(labels == c) for c in range(8)]
    wanted = np.minimum(rng.multinomial(n, mixture), [len(r) for r in rows])
    return np.concatenate([rng.choice(r, k, replace=False) for r, k in zip(rows, wanted)])


def judged(ways, probs, labels, mixture):
    "A row for each way: how far off, whether intervals hold, and answers before and after."
    ours, found = ways(probs)
    own, p = shares_in(labels), apply_temperature(probs, ways.temperature)
    moved = move_probs(p, ways.known['fits'][0], ours['shares'])
    inside = (ours['low'] <= mixture) & (mixture <= ours['high'])
    of_own = (ours['low'] <= own) & (own <= ours['high'])
    answers = dict(held=inside.mean(), held_own=of_own.mean(),
                   width=(ours['high'] - ours['low']).mean(),
                   accuracy=(p.argmax(1) == labels).mean(), ece=calibration_error(p, labels),
                   moved_accuracy=(moved.argmax(1) == labels).mean(),
                   moved_ece=calibration_error(moved, labels))
    for name, shares in found.items():
        more = answers | {f'held_{c}': float(v) for c, v in enumerate(inside)}
        yield dict(way=name, off=100*np.abs(shares - own).mean(),
                   **(more if name == 'EM with biases' else {}))


def halves(weights, probs, labels, same, sizes, seeds):
    "All rows about one model: each half counts with what the other has taught it."
    for seed in range(seeds):
        fold, rng = make_folds(labels, same, 2, seed), np.random.default_rng(seed)
        for k in (0, 1):
            a, b = fold != k, np.flatnonzero(fold == k)
            ways = Ways(probs[a], labels[a], same[a], seed)
            for size, (name, mixture) in product(sizes, MIXTURES.items()):
                mixture = np.array(mixture)/sum(mixture)
                rows = b[sampled(labels[b], mixture, size, rng)]
                for row in judged(ways, probs[rows], labels[rows], mixture):
                    yield dict(weights=weights, faces=size, mixture=name, seed=seed, half=k) | row


def on_drawn(weights, n, seeds, cache, ferplus):
    "Drawn faces, with what was learned on drawn faces and with what FER+ taught."
    def make(): return load_faces('synth', 'valid', n=4000, ambiguity=.3)
    probs, labels, same = kept_answers(weights, 'drawn', make, cache)
    abroad = Ways(*ferplus, 0)
    for seed in range(seeds):
        fold, rng = make_folds(labels, same, 2, seed), np.random.default_rng(seed)
        a, b = fold == 0, np.flatnonzero(fold == 1)
        for learned, ways in (('drawn', Ways(probs[a], labels[a], same[a], seed)),
                              ('ferplus', abroad)):
            for name, mixture in MIXTURES.items():
                mixture = np.array(mixture)/sum(mixture)
                rows = b[sampled(labels[b], mixture, n, rng)]
                for row in judged(ways, probs[rows], labels[rows], mixture):
                    yield dict(weights=weights, learned_on=learned, mixture=name, seed=seed) | row


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--weights', nargs='+', default=['small', 'nano'])
    parser.add_argument('--faces', type=int, nargs='+', default=[300, 100],
                        help='in each folder')
    parser.add_argument('--seeds', type=int, default=8, help='ways of halving the faces')
    parser.add_argument('--out', type=Path, default=HERE)
    parser.add_argument('--cache', type=Path, default=Path(tempfile.gettempdir())/'grefel-answers')
    args, rows, drawn = parser.parse_args(), [], []
    for weights in args.weights:
        def make(): return load_faces('ferplus', 'valid')
        answers = kept_answers(weights, 'valid', make, args.cache)
        rows += halves(weights, *answers, args.faces, args.seeds)
        if weights == 'nano': drawn += on_drawn(weights, 200, 2, args.cache, answers)
    pd.DataFrame(rows).round(4).to_csv(args.out/'E19_shares.csv', index=False)
    if drawn: pd.DataFrame(drawn).round(4).to_csv(args.out/'E19_drawn.csv', index=False)


if __name__ == '__main__': main()
