"""Turn a finished run into weights that ship with the package.

    tools/ship.py RUN [--from WORDS] [--no-onnx] [--all-the-same]
    tools/ship.py --notes SIZE
    tools/ship.py --onnx SIZE

RUN is a run's folder, or a file that `grefel.train.runs.average_weights` made, with the last run's
history.csv beside it. Its best epoch is stored as float16. What is stored is then calibrated on a
mixture of clean and spoiled faces (temperature, risk) and on clean ones (sets, doubts, shares,
finds), and measured clean and under every camera fault of the
robustness page, all on the validation images of FER+, which must lie in $GREFEL_DATA.

Weights that are worse than what ships are refused: on clean faces more than 0.2 points less
accurate, or less accurate in the mean over the camera faults. Otherwise these files change:

    grefel/assets/ferplus_SIZE.safetensors  the weights, all that was measured in their header
    grefel/assets/ferplus_SIZE.onnx         the same model as ONNX, twice as large; --no-onnx
                                            leaves it out: `grefel export` makes it
    grefel/assets/ferplus_SIZE.md           a card in words
    grefel/assets/ferplus_SIZE.csv          the run's history; the last one's, where a run went on
                                            from another
    nbs/8_experiments/E17_robustness.csv    a row for each camera fault
    nbs/index.ipynb, README.md              the table of weights

--notes SIZE only fits anew what shipped weights know about their answers (sets, doubts, shares and
finds), with the temperature that they have; --onnx SIZE only writes their ONNX file anew.
"""
import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from grefel.base.core import GrefelError
from grefel.data.augment import AUGMENTATIONS
from grefel.data.faces import load_faces
from grefel.measure.answers import (
    add_metadata, calibrate_weights, in_model_order, predict_data, reliability_notes,
    stored_temperature)
from grefel.measure.corruptions import camera_mixture
from grefel.measure.rare import counting_notes
from grefel.measure.report import evaluate
from grefel.method.files import load_model, save_model
from grefel.train.runs import stages
from grefel.use.onnx import export_onnx

import robustness
from nbtools import ROOT

KEPT = ('n', 'accuracy', 'accuracy_low', 'accuracy_high', 'balanced_accuracy', 'macro_f1', 'ece',
        'nll', 'brier', 'primary_accuracy', 'primary_ece', 'changed', 'helped', 'hurt', 'p_value',
        'crossfit_ece', 'crossfit_nll')
FAULTY = ('accuracy', 'mean_confidence', 'ece')   # of the mean over all camera faults
TOLERANCE = .002                                  # accuracy on clean faces that may be lost

# The card's first table: what a row is about, and what it says
FACTS = {
    'model': '`{name}`, {parameters:.2f} M parameters, '
             '{img_size} px grey faces (three equal channels)',
    'classes, in order': '{classes}',
    'trained on': 'FER+ train ({n_train:,} images of FER2013, {train_rule_words}, {duplicates} '
                  'training images with a duplicate in validation or test removed), nothing else: '
                  'no outside faces, no pretrained weights',
    'labels': "the crowd's vote distribution",
    'recipe': '{training}; all: weight decay {wd}, weights averaged (the last stage with decay '
              '{ema}), {precision}, one run',
    'chosen on': 'FER+ validation: {chosen}; the test split was not used',
    'accuracy on validation': '**{accuracy:.2%}** (95% interval {accuracy_low:.2%} to '
                              '{accuracy_high:.2%}, {n:,} images, '
                              "landmarks from the model's own head)",
    'balanced accuracy, macro-F1': '{balanced_accuracy:.2%}, {macro_f1:.3f}',
    'under camera faults': '{faulty_accuracy:.1%} right, {faulty_mean_confidence:.1%} sure, ECE '
                           '{faulty_ece:.3f}: means over sixteen kinds at five severities '
                           '(nbs/8_experiments/E17_robustness)',
    'calibration': 'temperature {temperature:.2f}, fitted on faces of which half went through '
                   'camera faults (ECE {raw_ece:.3f} without it, {fitted_ece:.3f} with it, each '
                   'face judged with a temperature fitted on others); clean faces: ECE {ece:.3f}, '
                   'negative log-likelihood {nll:.3f}',
    'reliability balancing': 'primary head alone {primary_accuracy:.2%}, ECE {primary_ece:.3f}; '
                             'balancing changed {changed} answers, {helped} for the better and '
                             '{hurt} for the worse (p = {p_value:.2f})',
    'stored as': 'float16; the figures above are of the stored weights; {onnx}'}

CARD = '''# FER+ weights, `{name}`

| | |
|---|---|
{facts}

Since {what} chosen on the same images, expect somewhat less on new ones. Some classes have few
images ({rare}): their figures are uncertain.

| class | images | recall | precision | F1 |
|---|---|---|---|---|
{per_class}

## Where the data come from, and what may be done with the weights

FER2013 (Goodfellow et al. 2013, arXiv 1307.0414) was collected from the web and released for
research; FER+ labels (Barsoum et al. 2016, arXiv 1608.01041) are under the MIT licence. The weights
are released with this package under the MIT licence; whether the research terms of the images
restrict your use of a model trained on them is for you to settle.

They say which expression a crowd would name for a face. They do not tell what a person feels, and
must not be used to judge people: not for hiring, policing, border control, grading, diagnosis or
surveillance. FER2013 is not balanced by age, sex or origin, and how the figures differ between such
groups has not been measured.
'''


# ---- How the weights came about, in words

def teachers(named):
    "Who taught a run."
    if isinstance(named, str) and ' ' in named: return named
    if isinstance(named, str): return f'the weights `{Path(named).name}`'
    return f'one of {len(named)} teachers drawn for each batch'


def members(averaged):
    "Of what weights a mean was taken."
    return ', '.join(f"epoch {p['epoch']} of stage {len(p['stages'])}" for p in averaged)


def landmarks_shown(recipe):
    "For how many faces the model was given the known landmarks."
    hidden = recipe['hide_landmarks']
    return f'shown for {1 - hidden:.0%} of the faces' if hidden < 1 else 'never shown'


def augmentation(setting):
    "Its name; with camera faults added, on how many faces; or all of a setting of one's own."
    if isinstance(setting, str): return f'`{setting}`'
    rest = json.dumps({k: v for k, v in setting.items() if k != 'camera'})
    for name, parts in AUGMENTATIONS.items():
        if 'camera' in setting and json.dumps(parts) == rest:
            return f'`{name}` and camera faults on {setting["camera"]:.0%} of the faces'
    return ', '.join(f'{k} {v}' for k, v in setting.items())


def special(recipe):
    "What a stage did beyond the usual: each with its comma, or nothing."
    said = ''
    if recipe.get('place_anchors') is not None:
        said += ', anchors put anew at the centres of their class'
    if recipe.get('teacher'):
        share = recipe.get('teacher_share', .5)
        said += f', {share:.0%} of each target said by {teachers(recipe["teacher"])}'
    if recipe.get('train_rule') == 'argmax': said += ', faces without a majority as well'
    return said + f", augmentation {augmentation(recipe['augment'])}"


def start_of(about, i, last):
    "What weights stage `i` (from 0) started from; the first started from none."
    if i == 0: return ''
    if words := stages(about)[i].get('started_from'): return f', started from {words}'
    mean = about.get('start_mean') if last else None
    before = (f'the mean of {members(mean)} (nbs/8_experiments/E08_soup)' if mean
              else f'the best epoch of stage {i}')
    return f', started from {before}'


def training(about):
    "The stages of training, oldest first: a run may go on from an earlier one's weights."
    recipes, said = stages(about), []
    for i, r in enumerate(recipes):
        last = r is recipes[-1]
        ran = f"{about['ran']} of " if last and 'ran' in about else ''
        stopped = f" (stopped after {r['stopped_after']})" if 'stopped_after' in r else ''
        said.append(f"stage {i + 1}{start_of(about, i, last)}: {ran}{r['epochs']} epochs{stopped}, "
                    f"batches of {r['bs']}, AdamW with one-cycle to {r['lr']}, "
                    f"known landmarks {landmarks_shown(r)}{special(r)}")
    return '; '.join(said)


def best_epoch(about):
    "Which epoch was the best, and of how many."
    last = about.get('ran', about['recipe']['epochs']) - 1
    stage = ' of the last stage' if about.get('before') else ''
    short = ', which was stopped there' if 'ran' in about else ''
    return f"the best epoch ({about['epoch']} of 0–{last}{stage}{short}) by accuracy"


def chosen(about):
    "What was chosen on validation, for the card's table and for the sentence below it."
    if 'mixture' in about: return about['mixture'], 'the mixture was'   # in words
    if 'averaged' in about:
        return ('the most accurate of several means of weights on this way '
                f"(nbs/8_experiments/E08_soup); it is of {members(about['averaged'])} "
                '(counted from 0), in equal shares', 'the mean was')
    best, others = best_epoch(about), about.get('chosen_from')
    if others: return f'{best}, and of {others} the most accurate', 'epoch and run were'
    return best, 'the epoch was'


# ---- The card

def percent(value):
    "A share; a dash for a class that was never answered."
    return '–' if value is None else f'{value:.1%}'


def per_class(metrics):
    "The table of classes in Markdown."
    return '\n'.join(f"| {c['class']} | {c['n']} | {percent(c['recall'])} | "
                     f"{percent(c['precision'])} | {c['f1'] or 0:.3f} |"
                     for c in metrics['per_class'])


def model_words(model):
    "What the card says of the model."
    return dict(name=model.config['name'], img_size=model.config['img_size'],
                classes=', '.join(model.classes),
                parameters=sum(p.numel() for p in model.parameters())/1e6)


def training_words(about):
    "What the card says of the training."
    recipe, train = about['recipe'], about['data']['train']
    rule = ('those whose most frequent vote is an expression'
            if recipe.get('train_rule') == 'argmax' else 'majority rule')
    precision = 'bfloat16 arithmetic' if recipe['bf16'] else 'float32 arithmetic'
    best, what = chosen(about)
    return dict(n_train=train['n'], duplicates=train['dropped_duplicates'], train_rule_words=rule,
                training=training(about), precision=precision, chosen=best, what=what)


def measured_words(metrics, notes):
    "What the card says of the measurement."
    raw, fitted = notes['calibration']['ece']
    rare = ', '.join(f"{c['class']} {c['n']}" for c in metrics['per_class'] if c['n'] < 100)
    faulty = {f'faulty_{k}': metrics['corruptions'][k] for k in FAULTY}
    return {k: metrics[k] for k in KEPT} | faulty | dict(
        raw_ece=raw, fitted_ece=fitted, temperature=notes['temperature'],
        per_class=per_class(metrics), rare=rare)


def card(model, metrics, notes, onnx):
    "The card in Markdown; `onnx` says in words where the ONNX file is."
    about = model.metadata
    words = (about['recipe'] | measured_words(metrics, notes) | training_words(about)
             | model_words(model) | dict(onnx=onnx))
    facts = '\n'.join(f'| {what} | {said.format(**words)} |' for what, said in FACTS.items())
    return CARD.format(**words, facts=facts)


# ---- The files

def asset(size):
    "Where the weights of a size lie."
    return ROOT/'grefel'/'assets'/f'ferplus_{size}.safetensors'


def ship_onnx(size):
    "Write the ONNX file beside shipped weights."
    made = export_onnx(asset(size), asset(size).with_suffix('.onnx'))
    print(f"{Path(made['out']).relative_to(ROOT)}: {made['bytes']/2**20:.2f} MiB, "
          f"at most {made['difference']:.0e} from PyTorch on {made['faces']}")
    return made


def fit_notes(weights, faces):
    "What weights know about their answers to clean faces; the weights and temperature stay."
    model = load_model(weights)
    labels, votes = in_model_order(faces, model.classes)
    found = predict_data(model, faces)
    notes = reliability_notes(found, labels, faces, votes)
    stored = dict(temperature=stored_temperature(model))
    notes |= counting_notes(stored, found, labels, faces, model.classes)
    add_metadata(weights, weights, **notes)


def ship_notes(size):
    "Fit what shipped weights know about their answers anew; weights and temperature stay."
    fit_notes(asset(size), load_faces('ferplus', split='valid'))
    if asset(size).with_suffix('.onnx').exists(): ship_onnx(size)


def onnx_words(size, onnx):
    "Where the ONNX file is, for the card; it is written here if it is wanted."
    if not onnx: return f'`grefel export --size {size}` makes an ONNX file of them'
    return f"as ONNX too, whose outputs differ by at most {ship_onnx(size)['difference']:.0e}"


def measure_stored(model, out, size, faces):
    "Write the weights, then calibrate and measure what is stored: the metrics and the calibration."
    save_model(model, out, half=True, grey=True)
    notes = calibrate_weights(out, camera_mixture(faces), out)
    fit_notes(out, faces)
    model = load_model(out)
    with tempfile.TemporaryDirectory() as scratch: metrics = evaluate(model, faces, out=scratch)
    rows = robustness.measure(model, size, faces)
    rows = rows[rows.severity > 0]
    metrics['corruptions'] = {k: round(float(rows[k].mean()), 5) for k in FAULTY}
    add_metadata(out, out, validation={k: metrics[k] for k in (*KEPT, 'corruptions')})
    return metrics, notes


def refuse_worse(size, new):
    "Stop, in one line, where new weights are worse than those that ship."
    old = load_model(asset(size)).metadata['validation']
    lost = old['accuracy'] - new['accuracy']
    if lost > TOLERANCE:
        raise GrefelError(f'clean faces: {new["accuracy"]:.2%} right, and {old["accuracy"]:.2%} '
                          'with the weights that ship; --all-the-same ships them')
    under = {k: m.get('corruptions', {}).get('accuracy') for k, m in (('old', old), ('new', new))}
    if under['old'] is not None and under['new'] < under['old']:
        raise GrefelError(f"camera faults: {under['new']:.2%} right, and {under['old']:.2%} with "
                          'the weights that ship; --all-the-same ships them')


def refresh_pages():
    "Run the front page anew, and write README.md from it."
    for script in (['run_notebooks.py', 'nbs/index.ipynb'], ['readme.py']):
        subprocess.run([sys.executable, str(ROOT/'tools'/script[0]), *script[1:]], cwd=ROOT,
                       check=True)


def note_origin(about, history, chosen_from):
    "Note in a model's metadata how many epochs it ran, if not all, and what it was chosen from."
    ran = len(history.read_text().splitlines()) - 1
    if chosen_from: about['chosen_from'] = chosen_from
    if ran < about['recipe']['epochs']: about['ran'] = ran


def ship(run, onnx=True, chosen_from=None, all_the_same=False):
    "Write all files of a run, or refuse it and leave everything as it was."
    model = load_model(run)
    history = (Path(run) if Path(run).is_dir() else Path(run).parent)/'history.csv'
    note_origin(model.metadata, history, chosen_from)
    size = model.config['name'].removeprefix('grefel_')
    rows = robustness.TABLE.read_bytes() if robustness.TABLE.exists() else None
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)/asset(size).name
        metrics, notes = measure_stored(model, out, size, load_faces('ferplus', split='valid'))
        try: all_the_same or refuse_worse(size, metrics)
        except GrefelError:
            if rows is not None: robustness.TABLE.write_bytes(rows)
            raise
        shutil.copy(out, asset(size))
    text = card(model, metrics, notes, onnx_words(size, onnx))
    asset(size).with_suffix('.md').write_text(text, encoding='utf-8')
    shutil.copy(history, asset(size).with_suffix('.csv'))
    print(json.dumps({k: metrics[k] for k in (*KEPT, 'corruptions')}, indent=1))
    print(f'{asset(size).relative_to(ROOT)}: {asset(size).stat().st_size/2**20:.2f} MiB')
    refresh_pages()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('run', nargs='?', metavar='RUN', help="a run's folder or a weights file")
    what.add_argument('--notes', metavar='SIZE', help='only fit sets, doubts, shares and finds of '
                      'shipped weights')
    what.add_argument('--onnx', metavar='SIZE', help='only write the ONNX file of shipped weights')
    parser.add_argument('--from', dest='chosen_from', metavar='WORDS',
                        help='what else these weights were chosen from, for the card: '
                             "'six such weights (nbs/8_experiments/E12_seeds)'")
    parser.add_argument('--no-onnx', action='store_true', help='write no ONNX file')
    parser.add_argument('--all-the-same', action='store_true', help='ship even what is worse')
    args = parser.parse_args()
    try:
        if args.onnx: ship_onnx(args.onnx)
        elif args.notes: ship_notes(args.notes)
        else: ship(args.run, not args.no_onnx, args.chosen_from, args.all_the_same)
    except GrefelError as e: sys.exit(f'{parser.prog}: {e}')


if __name__ == '__main__': main()
