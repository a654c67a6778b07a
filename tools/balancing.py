"""What balancing does to each validation face, for the page nbs/experiments/E05_balancing: tools/balancing.py [WEIGHTS].

Writes E05_balancing_faces.csv (FER+ validation: label, votes, the four distributions, the primary and the correction of the
mirror image, confidences, the nearest anchor, and the embedding's place on its two main axes; three digits) and E05_balancing_anchors.csv (each anchor's place there,
how many faces it is the nearest of, and its distances to other anchors). No picture is written. FER+ must lie in
$GREFEL_DATA."""
import sys

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA

from grefel.anchors import anchor_distances
from grefel.answers import predict_data
from grefel.core import GrefelError, write_file
from grefel.data import load_faces
from grefel.model import load_model

from nbtools import ROOT

OUT = ROOT/'nbs'/'experiments'
SOURCES = dict(primary='primary_probs', anchor='anchor_probs', attention='attention_probs', final='final_probs')
MIRRORED = dict(mirrorprimary='primary_probs', mirrorcorrection='correction_probs')     # of the mirror image


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
    between = torch.cdist(anchors.flatten(0, 1), anchors.flatten(0, 1)).numpy()               # (N·K, N·K)
    np.fill_diagonal(between, np.inf)
    kin = np.repeat(np.arange(n), k)[:, None] == np.repeat(np.arange(n), k)
    used = np.bincount(near.reshape(len(near), -1).argmin(1), minlength=n*k)
    return pd.DataFrame({'class': np.repeat(model.classes, k), 'k': np.tile(np.arange(k), n), 'used': used,
                         'nearest_kin': np.where(kin, between, np.inf).min(1),
                         'nearest_other': np.where(kin, np.inf, between).min(1)}
                        | dict(zip('xy', places.T)))


def main(weights=None):
    model, faces = load_model(weights), load_faces('ferplus', split='valid')
    found = predict_data(model, faces, temperature=1, flip_test=False)
    mirrored = predict_data(model, dict(images=faces.images.flip(-1)), temperature=1, flip_test=False)
    anchors, e = model.balancing.anchors.anchors.detach(), torch.from_numpy(found['embedding'])
    near = anchor_distances(e, anchors).numpy()                                               # (n, N, K)
    axes = PCA(2, random_state=0).fit(found['embedding'])
    tables = dict(faces=faces_table(model, faces, found, mirrored, near, axes.transform(found['embedding'])),
                  anchors=anchors_table(model, anchors, near, axes.transform(anchors.flatten(0, 1).numpy())))
    for name, table in tables.items():
        path = OUT/f'E05_balancing_{name}.csv'
        write_file(path, table.to_csv(index=False, lineterminator='\n', float_format='%.3g'))
        print(f'{path.relative_to(ROOT)}: {len(table)} rows, {path.stat().st_size/1024:.0f} KiB')


if __name__ == '__main__':
    try: main(*sys.argv[1:])
    except GrefelError as e: sys.exit(f'balancing: {e}')
