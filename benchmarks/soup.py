"""Measure every mean of some weights on FER+ validation, for nbs/8_experiments/E08_soup.

A row for each of the weights, and one for each mean of two or more of them
(`grefel.train.runs.average_weights`). FER+ must lie in $GREFEL_DATA.
How the weights were made is in their own headers; the notebook says it in words.
"""
import argparse
import itertools
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pandas as pd

from grefel.base.core import GrefelError, write_file
from grefel.data.faces import load_faces
from grefel.measure.answers import in_model_order, predict_data
from grefel.measure.calibration import apply_temperature
from grefel.measure.metrics import nll_values, vote_divergence
from grefel.measure.scores import measure
from grefel.method.files import load_model
from grefel.train.experiments import commit, processor
from grefel.train.runs import average_weights

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tools'))
from nbtools import ROOT

METRICS = ('n', 'accuracy', 'primary_accuracy', 'balanced_accuracy', 'macro_f1', 'nll', 'aurc',
           'kl_votes', 'changed', 'helped', 'hurt')


def measured(weights, faces):
    "The metrics of one file, without any temperature."
    model = load_model(weights)
    labels, votes = in_model_order(faces, model.classes)
    answers = predict_data(model, faces, temperature=1)
    found = measure(answers, labels, model.classes, votes, bootstrap=0)
    return {k: found[k] for k in METRICS} | at_best(answers['final_probs'], labels, votes)


def at_best(probs, labels, votes):
    """Likelihood at the temperature that is best for it, and the distance to the votes there.

    Also the distance to the votes at the temperature that is best for that distance.
    """
    nll, kl = {}, {}
    for t in np.arange(50, 201, 2)/100:
        tempered = apply_temperature(probs, t)
        nll[t] = nll_values(tempered, labels).mean()
        kl[t] = np.nanmean(vote_divergence(tempered, votes)[0])
    sharp = min(nll, key=nll.get)
    return dict(nll_best=nll[sharp], kl_there=kl[sharp], kl_best=min(kl.values()))


def every_mean(parts, faces):
    "A row for each choice of weights: their names, how many they are, the metrics of their mean."
    choices = [c for n in range(len(parts)) for c in itertools.combinations(parts, n + 1)]
    with tempfile.TemporaryDirectory() as scratch:
        for names in choices:
            files = [parts[name] for name in names]
            file = (files[0] if len(files) == 1
                    else average_weights(files, Path(scratch)/'mean.safetensors'))
            yield dict(weights=' + '.join(names), members=len(names)) | measured(file, faces)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('weights', nargs='+', metavar='NAME=WEIGHTS',
                        help="a name, and a weights file, a run's folder or a shipped size")
    parser.add_argument('--out', default='E08_soup.csv', metavar='FILE.csv',
                        help='another file in nbs/8_experiments (E08_soup.csv)')
    args = parser.parse_args()
    parts = dict(pair.split('=', 1) for pair in args.weights)
    about = dict(commit=commit(), machine=processor(),
                 date=datetime.now(timezone.utc).strftime('%Y-%m-%d'))
    rows = []
    for row in every_mean(parts, load_faces('ferplus', split='valid')):
        rows.append(row | about)
        print(row['weights'], f"{row['accuracy']:.4f}", flush=True)
    path = ROOT/'nbs'/'8_experiments'/args.out
    write_file(path, pd.DataFrame(rows).to_csv(index=False, lineterminator='\n',
                                               float_format='%.6g'))
    print(f'{path.relative_to(ROOT)}: {len(rows)} lines')


if __name__ == '__main__':
    try: main()
    except (GrefelError, ValueError) as e: sys.exit(f'soup: {e}')
