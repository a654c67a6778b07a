"""Every mean of some weights, measured on FER+ validation, for the page nbs/experiments/E08_soup: tools/soup.py NAME=WEIGHTS …

Writes E08_soup.csv, or with --out FILE.csv first another file beside it: one line for each of the weights and each mean of two or more of them (`grefel.runs.average_weights`).
FER+ must lie in $GREFEL_DATA. How the weights were made is in their own headers; the page says it in words."""
import itertools
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pandas as pd

from grefel.answers import in_model_order, predict_data
from grefel.calibrate import apply_temperature
from grefel.core import GrefelError, write_file
from grefel.data import load_faces
from grefel.evaluate import measure
from grefel.experiments import commit, processor
from grefel.metrics import nll_values, vote_divergence
from grefel.model import load_model
from grefel.runs import average_weights

from nbtools import ROOT

FIGURES = ('n', 'accuracy', 'primary_accuracy', 'balanced_accuracy', 'macro_f1', 'nll', 'aurc', 'kl_votes', 'changed', 'helped', 'hurt')


def figures(weights, faces):
    "What is measured of one file, without any temperature."
    model = load_model(weights)
    labels, votes = in_model_order(faces, model.classes)
    answers = predict_data(model, faces, temperature=1)
    found = measure(answers, labels, model.classes, votes, bootstrap=0)
    return {k: found[k] for k in FIGURES} | at_best(answers['final_probs'], labels, votes)


def at_best(probs, labels, votes):
    "Likelihood at the temperature that is best for it, the distance to the votes there, and that at its own best temperature."
    nll, kl = {}, {}
    for t in np.arange(50, 201, 2)/100:
        tempered = apply_temperature(probs, t)
        nll[t], kl[t] = nll_values(tempered, labels).mean(), np.nanmean(vote_divergence(tempered, votes)[0])
    sharp = min(nll, key=nll.get)
    return dict(nll_best=nll[sharp], kl_there=kl[sharp], kl_best=min(kl.values()))


def main(*named):
    out = 'E08_soup.csv'
    if named[:1] == ('--out',):
        out, named = named[1], named[2:]
    parts = dict(pair.split('=', 1) for pair in named)
    faces, lines = load_faces('ferplus', split='valid'), []
    about = dict(commit=commit(), machine=processor(), date=datetime.now(timezone.utc).strftime('%Y-%m-%d'))
    with tempfile.TemporaryDirectory() as scratch:
        for count in range(1, len(parts) + 1):
            for some in itertools.combinations(parts, count):
                file = Path(scratch)/'mean.safetensors'
                weights = parts[some[0]] if count == 1 else average_weights([parts[p] for p in some], file)
                lines.append(dict(weights=' + '.join(some), members=count) | figures(weights, faces) | about)
                print(lines[-1]['weights'], f"{lines[-1]['accuracy']:.4f}", flush=True)
    path = ROOT/'nbs'/'experiments'/out
    write_file(path, pd.DataFrame(lines).to_csv(index=False, lineterminator='\n', float_format='%.6g'))
    print(f'{path.relative_to(ROOT)}: {len(lines)} lines')


if __name__ == '__main__':
    try: main(*sys.argv[1:])
    except (GrefelError, ValueError) as e: sys.exit(f'soup: {e}')
