"""What balancing does to each validation face, for nbs/8_experiments/E05_balancing.

FER+ must lie in $GREFEL_DATA. Two files are written, to three digits, and no image:

    E05_balancing_faces.csv    a row for each face of FER+ validation: label, votes, the four
                               distributions, the primary and the correction of the mirror image,
                               confidences, the nearest anchor, the embedding on its two main axes
    E05_balancing_anchors.csv  a row for each anchor: its place on these axes, how many faces it is
                               the nearest of, and its distances to other anchors
"""
import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA

from grefel.base.core import GrefelError, write_file
from grefel.data.faces import load_faces
from grefel.measure.answers import predict_data
from grefel.method.anchors import anchor_distances
from grefel.method.files import load_model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tools'))
from nbtools import ROOT

OUT = ROOT/'nbs'/'8_experiments'
SOURCES = dict(primary='primary_probs', anchor='anchor_probs', attention='attention_probs',
               final='final_probs')
# the same of the mirror image
MIRRORED = dict(mirrorprimary='primary_probs', mirrorcorrection='correction_probs')


def columns(kind, values, classes):
    "One column a class."
    return {f'{kind}_{c}': v for c, v in zip(classes, values.T)}


def faces_table(model, faces, found, mirrored, near, places):
    "One row a face."
    votes = faces.votes[:, :len(model.classes)].numpy().astype(float)
    table = dict(name=faces.names, label=np.asarray(model.classes)[faces.labels])
    table |= columns('votes', votes/votes.sum(1, keepdims=True), model.classes)
    for kind, name in SOURCES.items(): table |= columns(kind, found[name], model.classes)
    for kind, name in MIRRORED.items(): table |= columns(kind, mirrored[name], model.classes)
    flat = near.reshape(len(near), -1)
    table |= {k: found[k] for k in ('primary_confidence', 'correction_confidence')}
    table |= dict(anchor=flat.argmin(1), distance=flat.min(1))
    return pd.DataFrame(table | dict(zip('xy', places.T)))


def anchors_table(model, anchors, near, places):
    "One row an anchor; distances in the unit of the embeddings."
    n, k, _ = anchors.shape
    between = torch.cdist(anchors.flatten(0, 1), anchors.flatten(0, 1)).numpy()  # (N·K, N·K)
    np.fill_diagonal(between, np.inf)
    kin = np.repeat(np.arange(n), k)[:, None] == np.repeat(np.arange(n), k)
    used = np.bincount(near.reshape(len(near), -1).argmin(1), minlength=n*k)
    return pd.DataFrame({'class': np.repeat(model.classes, k), 'k': np.tile(np.arange(k), n),
                         'used': used, 'nearest_kin': np.where(kin, between, np.inf).min(1),
                         'nearest_other': np.where(kin, np.inf, between).min(1)}
                        | dict(zip('xy', places.T)))


def both_tables(weights):
    "Faces and anchors, as one model sees them."
    model, faces = load_model(weights), load_faces('ferplus', split='valid')
    plain = dict(temperature=1, flip_test=False)
    found = predict_data(model, faces, **plain)
    mirrored = predict_data(model, dict(images=faces.images.flip(-1)), **plain)
    anchors, e = model.balancing.anchors.anchors.detach(), torch.from_numpy(found['embedding'])
    near = anchor_distances(e, anchors).numpy()  # (n, N, K)
    axes = PCA(2, random_state=0).fit(found['embedding'])
    at_faces = axes.transform(found['embedding'])               # (n, 2)
    at_anchors = axes.transform(anchors.flatten(0, 1).numpy())  # (N·K, 2)
    return dict(faces=faces_table(model, faces, found, mirrored, near, at_faces),
                anchors=anchors_table(model, anchors, near, at_anchors))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('weights', nargs='?', metavar='WEIGHTS',
                        help="a weights file, a run's folder or a shipped size (nano)")
    for name, table in both_tables(parser.parse_args().weights).items():
        path = OUT/f'E05_balancing_{name}.csv'
        write_file(path, table.to_csv(index=False, lineterminator='\n', float_format='%.3g'))
        print(f'{path.relative_to(ROOT)}: {len(table)} rows, {path.stat().st_size/1024:.0f} KiB')


if __name__ == '__main__':
    try: main()
    except GrefelError as e: sys.exit(f'balancing: {e}')
