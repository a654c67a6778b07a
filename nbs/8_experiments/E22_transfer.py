"""Few faces of one's own: going on from shipped weights, or starting from random ones?

    python nbs/8_experiments/E22_transfer.py [--weights small] [--seeds 3] [--out nbs/8_experiments]

writes E22_transfer.csv. For 25, 100 and 400 faces a class of FER+ training (seven classes, all that
there are where there are fewer) it makes the folder that a user would have, a folder of PNG files a
class, and trains as `grefel train --data mine` does: three quarters of these faces are learned, one
eighth chooses the best epoch, one eighth is left for a test. Accuracy is measured afterwards, on
all FER+ validation faces of the seven classes. Runs are kept in --cache: one that was stopped goes
on.
"""
import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from grefel.base.core import EXPRESSIONS
from grefel.data.faces import load_faces
from grefel.measure.answers import predict_data
from grefel.measure.scores import measure
from grefel.method.files import load_model
from grefel.train.experiments import commit, processor
from grefel.train.runs import Recipe, finished, train

HERE = Path(__file__).resolve().parent
SEVEN = EXPRESSIONS[:7]                                 # without contempt
MANY = 25, 100, 400                                     # faces a class
# What is tried: whether it goes on from shipped weights, the peak rate and the epochs.
WAYS = {'fine-tuned at 0.0015': dict(start=True, lr=1.5e-3, epochs=12),
        'fine-tuned at 0.0003': dict(start=True, lr=3e-4, epochs=12),
        'from scratch': dict(start=False, lr=1.5e-3, epochs=36)}      # three times the default
COLUMNS = ('way', 'per_class', 'seed', 'faces', 'n', 'accuracy', 'balanced_accuracy',
           'best_epoch', 'ece', 'kl_votes', 'seconds', 'lr', 'epochs', 'weights', 'commit',
           'machine')


def write_folder(folder, faces, per_class, seed):
    "A folder of PNG files for each class, as a user would have it; how many it holds."
    rng, labels, n = np.random.default_rng(seed), np.asarray(faces.labels), 0
    for c, name in enumerate(SEVEN):
        own = np.flatnonzero(labels == c)
        (folder/name).mkdir(parents=True, exist_ok=True)
        for i in rng.permutation(own)[:per_class]:
            Image.fromarray(np.asarray(faces.images[i, 0])).save(folder/name/f'{i:05}.png')
            n += 1
    return n


def scores(weights, faces):
    "Accuracy, calibration and distance to the votes on the faces of seven classes."
    model = load_model(weights)
    faces = faces.with_classes(model.classes)           # a folder's classes come in its own order
    answers = predict_data(model, faces)
    order = [EXPRESSIONS.index(c) for c in model.classes]
    return measure(answers, faces.labels.numpy(), faces.classes,
                   faces.votes.numpy()[:, order].astype(float), bootstrap=0)


def run(way, per_class, seed, weights, faces, valid, cache):
    "One row: make the folder, train, measure."
    mine, out = cache/f'mine-{per_class}-{seed}', cache/f'{way}-{per_class}-{seed}'.replace(' ', '')
    n = write_folder(mine, faces, per_class, seed)
    does = WAYS[way]
    recipe = Recipe(data=str(mine), targets='hard', size=weights, lr=does['lr'],
                    epochs=does['epochs'], seed=seed, bf16=True,
                    start=weights if does['start'] else None)
    if not finished(out, recipe): train(recipe, out, progress=False)
    about = pd.read_csv(out/'history.csv')
    found = scores(out, valid)
    return dict(way=way, per_class=per_class, seed=seed, faces=n, n=len(valid),
                **{k: found[k] for k in ('accuracy', 'balanced_accuracy', 'ece', 'kl_votes')},
                best_epoch=int(about['accuracy'].idxmax()),
                seconds=round(float(about['seconds'].sum()), 1), lr=does['lr'],
                epochs=does['epochs'], weights=weights, commit=commit(), machine=processor())


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--weights', default='small', help='a shipped size')
    parser.add_argument('--seeds', type=int, default=3, help='how many')
    parser.add_argument('--out', type=Path, default=HERE, help='where the table goes')
    parser.add_argument('--cache', type=Path, default=Path(tempfile.gettempdir())/'grefel-transfer')
    given = parser.parse_args()
    faces, valid = (load_faces('ferplus', split=s, num_classes=7) for s in ('train', 'valid'))
    table, rows = given.out/'E22_transfer.csv', []
    if table.exists(): rows = pd.read_csv(table).to_dict('records')
    done = {(r['way'], r['per_class'], r['seed'], r['weights']) for r in rows}
    for seed in range(given.seeds):
        for per_class in MANY:
            for way in WAYS:
                if (way, per_class, seed, given.weights) in done: continue
                rows.append(run(way, per_class, seed, given.weights, faces, valid, given.cache))
                with open(table, 'w', newline='') as file:
                    writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
                    writer.writeheader()
                    writer.writerows(rows)
                print(time.strftime('%H:%M:%S'), way, per_class, seed,
                      f'{rows[-1]["accuracy"]:.4f}', f'{rows[-1]["seconds"]} s', flush=True)


if __name__ == '__main__': main()
