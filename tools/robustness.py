"""Measure weights under every condition of the robustness page.

    tools/robustness.py WEIGHTS [NAME] [--severities 1 3 5]

WEIGHTS is a file, a run's folder or a shipped size; NAME is what the page calls it (a shipped size
is called by its size). Each condition is a row of nbs/8_experiments/E17_robustness.csv, written as
soon as it is there: a run that was stopped goes on where it was. Rows of weights that had the name
before are replaced. FER+'s validation images must lie in $GREFEL_DATA.
"""
import argparse
import sys
from pathlib import Path

import pandas as pd

from grefel.base.core import GrefelError, write_file
from grefel.data.faces import load_faces
from grefel.measure.corruptions import conditions, robustness, SEVERITIES
from grefel.method.files import load_model, weights_digest

from nbtools import ROOT

TABLE = ROOT/'nbs'/'8_experiments'/'E17_robustness.csv'
BY = ['name', 'kind', 'severity']


def table():
    "What is known so far, a row for each condition."
    return pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=BY + ['digest'])


def measure(model, name, faces, progress=print, severities=SEVERITIES):
    "Fill in the conditions that are missing for a model under its name; its rows."
    digest = weights_digest(model)
    for kind, severity in conditions(severities=severities):
        rows = table()
        own = rows[(rows.name == name) & (rows.digest == digest)]
        if ((own.kind == kind) & (own.severity == severity)).any(): continue
        rows = rows[(rows.name != name) | (rows.digest == digest)]
        new = robustness(model, faces, [(kind, severity)])[0]
        rows = pd.concat([rows, pd.DataFrame([dict(name=name, **new, digest=digest)])])
        write_file(TABLE, rows.round(5).to_csv(index=False, lineterminator='\n'))
        if progress: progress(f"{name}: {kind} {severity}: {new['accuracy']:.1%} right, "
                              f"{new['mean_confidence']:.1%} sure")
    rows = table()
    return rows[(rows.name == name) & (rows.digest == digest)]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('weights', metavar='WEIGHTS')
    parser.add_argument('name', metavar='NAME', nargs='?', help='what the page calls them')
    parser.add_argument('--severities', type=int, nargs='+', default=SEVERITIES, metavar='N')
    args = parser.parse_args()
    try:
        name = args.name or Path(args.weights).stem
        measure(load_model(args.weights), name, load_faces('ferplus', split='valid'),
                severities=args.severities)
    except GrefelError as e: sys.exit(f'{parser.prog}: {e}')


if __name__ == '__main__': main()
