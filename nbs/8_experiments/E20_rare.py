"""Looking for contempt, disgust and fear on FER+ validation; and why anger and sadness are missed.

    python nbs/8_experiments/E20_rare.py [--weights small nano] [--out nbs/8_experiments]

writes E20_find.csv (recall and precision at stated precisions, cross-fitted), E20_missed.csv (the
votes and looks of angry and sad faces by what the model says) and E20_tried.csv (what was tried to
find more of them, cross-fitted). Answers are kept in --cache, as E19_shares.py keeps them.
"""
import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from grefel.base.core import EXPRESSIONS
from grefel.data.faces import load_faces
from grefel.measure.answers import in_model_order
from grefel.measure.calibration import apply_temperature, fit_temperature, make_folds
from grefel.measure.metrics import wilson_interval
from grefel.measure.rare import PRECISIONS, crossfit_found, found_report
from grefel.measure.shares import fit_likelihood

from E19_shares import kept_answers

HERE = Path(__file__).resolve().parent
RARE, MISSED, SEEDS = (5, 6, 7), (4, 3), 5       # contempt and others; anger, sadness


def crossfit_probs(probs, labels, same):
    "Probabilities with a temperature from other faces."
    fold, out = make_folds(labels, same, 5, 0), np.empty_like(probs)
    for k in range(5):
        t = fit_temperature(probs[fold != k], labels[fold != k])
        out[fold == k] = apply_temperature(probs[fold == k], t)
    return out


def found(weights, probs, labels, same):
    "A row for each rare class and precision: what a search finds, and what the likeliest answer."
    for c in RARE:
        own = labels == c
        yield dict(weights=weights, expression=EXPRESSIONS[c], asked='likeliest',
                   **found_report(probs.argmax(1) == c, own))
        for precision in PRECISIONS:
            for seed in range(SEEDS):
                fold = make_folds(labels, same, 10, seed)
                shown = crossfit_found(probs[:, c], own, precision, fold)
                yield dict(weights=weights, expression=EXPRESSIONS[c], asked=precision, seed=seed,
                           **found_report(shown, own))


def missed(weights, probs, labels, votes, images):
    "Angry and sad faces by what the model says: the crowd's votes, contrast, and certainty."
    answers, shares = probs.argmax(1), votes/votes.sum(1, keepdims=True)
    contrast = images.reshape(len(images), -1).astype(float).std(1)
    for c in MISSED:
        for name, mask in {'found': answers == c, 'called neutral': answers == 0,
                           'called another': (answers != c) & (answers != 0)}.items():
            rows = mask & (labels == c)
            own = shares[rows, c]
            yield dict(weights=weights, expression=EXPRESSIONS[c], answer=name, faces=rows.sum(),
                       votes=own.mean(), votes_neutral=shares[rows, 0].mean(),
                       split=(own <= .6).mean(), clear=(own >= .8).mean(),
                       confidence=probs[rows].max(1).mean(), second=np.mean(
                           np.argsort(-probs[rows], 1)[:, 1] == c), contrast=contrast[rows].mean())


def with_biases(probs, labels):
    "A function that gives each class the bias that its labels ask for."
    fit = fit_likelihood(probs, labels)
    seen = np.bincount(labels, minlength=8) + .5
    return lambda p: p**fit[0]*np.exp(fit[1:])*seen


def with_weight(c, factor):
    "A function that multiplies one class."
    return lambda p: p*np.where(np.arange(8) == c, factor, 1)


def best_weight(probs, labels, c, lost=.003):
    "The factor for one class that finds most and costs at most so much accuracy."
    usual = (probs.argmax(1) == labels).mean()
    factors = [f for f in np.geomspace(1, 8, 22)
               if (with_weight(c, f)(probs).argmax(1) == labels).mean() >= usual - lost]
    return with_weight(c, max(factors))


def tried(weights, probs, labels, same):
    "Recall and precision of anger and sadness, and accuracy, after each remedy, cross-fitted."
    ways = {'as shipped': lambda p, y: lambda q: q, 'a bias for each class': with_biases} | {
        f'weight for {EXPRESSIONS[c]}': lambda p, y, c=c: best_weight(p, y, c) for c in MISSED}
    fold = make_folds(labels, same, 5, 1)
    for name, way in ways.items():
        answers = np.empty(len(labels), int)
        for k in range(5):
            use = way(probs[fold != k], labels[fold != k])
            answers[fold == k] = use(probs[fold == k]).argmax(1)
        row = dict(weights=weights, way=name, accuracy=(answers == labels).mean())
        for c in MISSED:
            hits = ((answers == c) & (labels == c)).sum()
            low, high = wilson_interval(hits, (labels == c).sum())
            row |= {f'recall_{EXPRESSIONS[c]}': hits/(labels == c).sum(),
                    f'recall_{EXPRESSIONS[c]}_low': low, f'recall_{EXPRESSIONS[c]}_high': high,
                    f'precision_{EXPRESSIONS[c]}': hits/(answers == c).sum()}
        yield row


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--weights', nargs='+', default=['small', 'nano'])
    parser.add_argument('--out', type=Path, default=HERE)
    parser.add_argument('--cache', type=Path, default=Path(tempfile.gettempdir())/'grefel-answers')
    args, tables = parser.parse_args(), {'find': [], 'missed': [], 'tried': []}
    faces = load_faces('ferplus', 'valid')
    votes, images = in_model_order(faces, EXPRESSIONS)[1], faces.images.numpy()
    for weights in args.weights:
        probs, labels, same = kept_answers(weights, 'valid', lambda: faces, args.cache)
        probs = crossfit_probs(probs, labels, same)
        tables['find'] += found(weights, probs, labels, same)
        tables['missed'] += missed(weights, probs, labels, votes, images)
        tables['tried'] += tried(weights, probs, labels, same)
    for name, rows in tables.items():
        pd.DataFrame(rows).round(4).to_csv(args.out/f'E20_{name}.csv', index=False)


if __name__ == '__main__': main()
