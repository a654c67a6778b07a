"""Which doubt tells that people disagree, and which that a face is unlike anything seen.

    python nbs/8_experiments/E15_doubts.py [--weights small nano] [--out nbs/8_experiments]

writes E15_ambiguity.csv, E15_familiarity.csv and E15_strangers.csv, cross-fitted over halves of
FER+ validation. Answers are shared with E14_sets.py in --cache. No image is written anywhere.
"""
import io

import numpy as np
import pandas as pd
import torch
from E14_sets import arguments, corrupted, kept_answers, validation
from PIL import Image
from scipy.stats import spearmanr
from skimage import data as skimages
from sklearn.metrics import roc_auc_score

from grefel.base.core import data_home
from grefel.data.warp import turn_matrix, warp_images
from grefel.measure.calibration import apply_temperature, fit_temperature, make_folds
from grefel.measure.doubts import (
    ambiguity, anchor_distance, disagreement, energy, entropy, familiarity, fit_doubts,
    fit_gaussian, gaussian_distance, neighbour_distance, strangeness)

OPINIONS = ('primary_probs', 'anchor_probs', 'attention_probs')
WITHOUT_FACES = ('brick', 'coffee', 'coins', 'grass', 'gravel', 'moon', 'page', 'text', 'rocket')


def spread_of(found, doubts):
    "Candidates for ambiguity: name → (n,)."
    three = [found[k] for k in OPINIONS]
    return {'entropy, final': entropy(found['final_probs']),
            **{f"entropy, {k.removesuffix('_probs')}": entropy(found[k]) for k in OPINIONS},
            'entropy, mean of three': entropy(np.mean(three, 0)),
            'disagreement of three': disagreement(*three),
            'one minus confidence': 1 - found['final_probs'].max(1),
            'distance to the nearest anchor': anchor_distance(found['distances']),
            'share who say otherwise': ambiguity(found['given'], doubts)}


def distance_of(found, images, known, doubts):
    "Candidates for familiarity, the larger the stranger: name → (n,)."
    three, parts = [found[k] for k in OPINIONS], strangeness(found, images, doubts)
    e = found['embedding']
    return {'entropy': entropy(found['final_probs']), 'disagreement of three': disagreement(*three),
            'distance to the nearest anchor': anchor_distance(found['distances']),
            'energy': energy(found['logits']),
            'embedding, 10th neighbour': neighbour_distance(e, known['embedding']),
            'embedding, Mahalanobis': gaussian_distance(e, known['gaussian']),
            'embedding, 16 directions': parts['embedding'], 'shape': parts['shape'],
            'pixels': parts['pixels'], 'embedding and shape': parts['embedding'] + parts['shape'],
            'pixels, shape, embedding': sum(parts.values())}


def crops(image, count, rng, least=48):
    "Square pieces of a grey image at 48 pixels."
    picture = Image.fromarray(image).convert('L')
    for _ in range(count):
        side = int(rng.integers(least, min(picture.size) + 1))
        x, y = (int(rng.integers(0, s - side + 1)) for s in picture.size)
        yield np.asarray(picture.crop((x, y, x + side, y + side)).resize((48, 48), 1))


def framed(images, scale=1., turn=0., dx=0., dy=0.):
    "Faces in the wrong frame."
    parts = [torch.full((len(images),), float(v)) for v in (turn, scale, dx, dy)]
    out = warp_images(torch.as_tensor(images).float(), turn_matrix(*parts), images.shape[-1])
    return out.round().clamp(0, 255).byte().numpy()


def hardly_faces(images, rng):
    "What is hardly a face: name → (n, 1, 48, 48)."
    picked = [images[r] for r in np.array_split(rng.permutation(len(images))[:400], 4)]
    pieces = [p for name in WITHOUT_FACES for p in crops(getattr(skimages, name)(), 20, rng)]
    return {'cat': np.stack([*crops(skimages.chelsea(), 60, rng, 150)])[:, None],
            'patches': np.stack(pieces)[:, None], 'far too small': framed(picked[0], .4),
            'far too large': framed(picked[1], 2.5),
            'half outside': framed(picked[2], dx=.45, dy=.2),
            'upside down': framed(picked[3], turn=180.)}


def left_out():
    "FER+ training images that nobody trained on: people could not name them, or saw no face."
    table = pd.read_parquet(data_home()/'ferplus'/'train.parquet', columns=['image', 'votes'])
    votes = np.stack(table.votes.to_list())
    def decode(rows):
        return np.stack([np.asarray(Image.open(io.BytesIO(r['bytes'])).convert('L'))
                         for r in table.image[rows]])[:, None]
    return {'people cannot name it': decode(votes[:, 8] >= 5),
            'no face (NF)': decode(votes[:, 9] >= 6)}


def auroc(clean, strange):
    "How often a strange face scores above a clean one."
    return roc_auc_score(np.r_[np.zeros(len(clean)), np.ones(len(strange))], np.r_[clean, strange])


def of_rows(found, rows):
    "The answers about some faces."
    return {k: v[rows] for k, v in found.items()}


def main():
    args, spread, apart, strangers = arguments(), [], [], []
    for weights in args.weights:
        images, labels, votes, same, found = validation(weights, args.cache)
        sets = {(f'{k}{s}', 'corrupted'): (x, rows)
                for k, s, rows, x in corrupted(images, args.faces)}
        odd = hardly_faces(images, np.random.default_rng(1))
        sets |= {(k, 'hardly a face'): (x, None) for k, x in odd.items()}
        sets |= {(k, 'left out'): (x, None) for k, x in left_out().items()}
        said = {key: kept_answers(weights, key[0].replace(' ', '_'), x, args.cache)
                for key, (x, _) in sets.items()}
        shares, top = votes/votes.sum(1, keepdims=True), found['final_probs'].argmax(1)
        spread_of_votes, otherwise = entropy(shares), 1 - shares[np.arange(len(shares)), top]
        for seed in range(args.seeds):
            fold = make_folds(labels, same, 2, seed)
            for k in (0, 1):
                a, b = fold != k, fold == k
                t = fit_temperature(found['final_probs'][a], labels[a])
                def given(f): return f | dict(given=apply_temperature(f['final_probs'], t))
                mine = given(found)
                learned = of_rows(mine, a) | dict(final_probs=mine['given'][a])
                doubts = fit_doubts(learned, images[a], votes[a])
                known = dict(embedding=found['embedding'][a],
                             gaussian=fit_gaussian(found['embedding'][a], 96))
                where = dict(weights=weights, seed=seed, half=k)
                for name, v in spread_of(of_rows(mine, b), doubts).items():
                    spread.append(where | dict(
                        candidate=name, spearman=spearmanr(v, spread_of_votes[b])[0],
                        otherwise=spearmanr(v, otherwise[b])[0], predicted=v.mean(),
                        happened=otherwise[b].mean()))
                clean, pooled = distance_of(of_rows(mine, b), images[b], known, doubts), {}
                rare = (familiarity(of_rows(mine, b), images[b], doubts) < .01).mean()
                strangers.append(where | dict(set='clean', kind='clean', stranger=rare))
                for key, (x, rows) in sets.items():
                    here = slice(None) if rows is None else fold[rows] == k
                    f = of_rows(said[key], here)
                    scores = distance_of(f, x[here], known, doubts)
                    for name, v in scores.items():
                        pooled.setdefault((key[1], name), []).append(v)
                        if key[1] != 'corrupted' or name == 'pixels, shape, embedding':
                            strangers.append(where | dict(set=key[1], kind=key[0], candidate=name,
                                                          auroc=auroc(clean[name], v)))
                    strangers.append(where | dict(set=key[1], kind=key[0], stranger=(
                        familiarity(f, x[here], doubts) < .01).mean()))
                apart += [where | dict(set=what, candidate=name,
                                       auroc=auroc(clean[name], np.concatenate(v)))
                          for (what, name), v in pooled.items()]
    pd.DataFrame(spread).round(4).to_csv(args.out/'E15_ambiguity.csv', index=False)
    pd.DataFrame(apart).round(4).to_csv(args.out/'E15_familiarity.csv', index=False)
    keys = ['weights', 'set', 'kind', 'candidate']
    table = pd.DataFrame(strangers).groupby(keys, dropna=False, sort=False)[['auroc', 'stranger']]
    table.mean().round(4).reset_index().to_csv(args.out/'E15_strangers.csv', index=False)


if __name__ == '__main__': main()
