"""Draw the front page's result: six drawn faces, the three opinions and the final answer.

    tools/drawn_answers.py [--weights RUN] [--out FILE.svg]

Without --weights, `nano` is first fine-tuned on drawn faces: some two minutes on two cores, the
same answers each time on one machine. The weights aren't kept, the image is.
"""
import argparse
import tempfile
from pathlib import Path

import matplotlib
import numpy as np

from nbtools import NBS

OUT = NBS/'images'/'answers.svg'
FACES, EPOCHS, TEST = 2000, 2, 400      # to learn from; over them; to choose six from
INK, SOFT, BLUE, ORANGE = '#6f7b8a', '#8a95a3', '#3f7fd1', '#d98324'  # legible on light and dark
OPINIONS = dict(primary=('o', 'classifier'), anchor=('^', 'anchors'),
                attentive=('D', 'second look'))
STYLE = {'svg.hashsalt': 'grefel', 'text.color': INK, 'axes.labelcolor': INK, 'font.size': 10,
         'xtick.color': INK, 'ytick.color': INK, 'axes.edgecolor': SOFT}


def train_on_drawings(out):
    "Fine-tune nano on drawn faces and calibrate it; the run's folder."
    from grefel import Recipe, calibrate_weights, load_faces
    from grefel.train.runs import train
    recipe = Recipe(data='synth', size='nano', start='nano', limit=FACES, epochs=EPOCHS, lr=1e-3,
                    ema=.98, hide_landmarks=.5, augment='none', place_anchors=1)
    train(recipe, out, progress=None)
    weights = Path(out)/'calibrated.safetensors'
    calibrate_weights(out, load_faces('synth', 'valid', n=1000), weights)
    return weights


def read_faces(weights):
    "Drawn faces the model hasn't seen, and its answers."
    from grefel import Predictor, load_faces
    faces = load_faces('synth', 'test', n=TEST, targets='truth', occlusion=0)
    return faces, [f[0] for f in Predictor(weights, crop='whole')(faces.images)]


def top(truth, k):
    "The k-th largest entry of each row, from 1."
    return np.sort(truth, 1)[:, -k]


def choose(truth, answers):
    "Six rows with a word on each: three clear, two between expressions, and the surest mistake."
    final = np.array([list(a.probabilities.values()) for a in answers])     # (n, 8)
    right, distance = final.argmax(1) == truth.argmax(1), np.abs(final - truth).sum(1)
    clear = np.flatnonzero(right & (top(truth, 1) > .95))
    first = {c: i for i, c in reversed([(i, truth[i].argmax()) for i in clear])}
    torn = np.flatnonzero(top(truth, 2) > .35)
    torn = torn[np.argsort(distance[torn])][:2]
    wrong = np.flatnonzero(~right & (top(truth, 1) > .6))
    surest = wrong[final[wrong].max(1).argmax()]
    return {first[1]: 'sure', first[2]: 'sure', torn[0]: 'unsure, and rightly',
            first[4]: 'sure', torn[1]: 'unsure, and rightly', surest: 'wrong, and too sure'}


def draw_answer(ax, truth, answer):
    "The three likeliest expressions: final answer as bars, opinions as marks, the truth as a line."
    names = sorted(answer.probabilities, key=answer.probabilities.get)[-3:]
    order = list(answer.probabilities)
    for y, name in enumerate(names):
        ax.barh(y, answer.probabilities[name], .5, color=BLUE, alpha=.75, lw=0)
        ax.vlines(truth[order.index(name)], y - .38, y + .38, color=INK, lw=2.2)
        for (field, (mark, _)), dy in zip(OPINIONS.items(), (.16, 0, -.16)):
            ax.plot(getattr(answer, field)[name], y + dy, mark, color=ORANGE, ms=4, mew=0,
                    clip_on=False)
        ax.text(-.04, y, name, ha='right', va='center')
    ax.set(xlim=(0, 1), ylim=(-.6, 2.6), yticks=[], xticks=[0, .5, 1],
           xticklabels=['0', '½', '1'])
    ax.spines[['top', 'right', 'left']].set_visible(False)
    ax.tick_params('x', length=2, labelsize=9)


def legend(fig):
    "What bars, marks and lines stand for, below all panels."
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    marks = [Line2D([], [], marker=m, color=ORANGE, lw=0, ms=5, mew=0, label=words)
             for m, words in OPINIONS.values()]
    truth = Line2D([], [], color=INK, lw=0, marker='|', ms=11, mew=2.2, label='what was drawn')
    fig.legend(handles=[Patch(color=BLUE, alpha=.75, lw=0, label='final answer'), *marks, truth],
               loc='outside lower center', ncols=5, frameon=False, handletextpad=.3,
               columnspacing=1)


def figure(faces, answers, rows):
    "Six panels, each a face beside its answer; `rows` holds a word for each."
    from matplotlib.figure import Figure
    truth = faces.targets.numpy()
    fig = Figure(figsize=(7.4, 5.4), layout='constrained')
    axs = fig.subplots(3, 4, width_ratios=(1.3, 1.75)*2)
    for k, (i, word) in enumerate(rows.items()):
        face, bars = axs[k//2, 2*(k % 2)], axs[k//2, 2*(k % 2) + 1]
        face.imshow(faces.images[i, 0], cmap='gray', vmin=0, vmax=255, interpolation='bicubic')
        face.axis('off')
        bars.set_title(word, loc='left', fontsize=10, pad=3)
        draw_answer(bars, truth[i], answers[i])
    legend(fig)
    return fig


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--weights', help='a model trained on drawn faces; else one is trained')
    parser.add_argument('--out', type=Path, default=OUT, help='the SVG')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, matplotlib.rc_context(STYLE):
        faces, answers = read_faces(args.weights or train_on_drawings(scratch))
        rows = choose(faces.targets.numpy(), answers)
        figure(faces, answers, rows).savefig(args.out, transparent=True, metadata=dict(Date=None))
    for i, word in rows.items():
        print(f'{word}: {answers[i]}, drawn as {faces.classes[faces.targets[i].argmax()]}')


if __name__ == '__main__': main()
