"""Turn a finished run into weights that ship with the package: tools/ship.py RUN (needs FER+ in $GREFEL_DATA).

RUN is a run's folder, or a file that `grefel.runs.average_weights` made, with the last run's history.csv beside it.
The weights (a run's best epoch) are stored as float16, calibrated and measured as stored on the validation images, and written with
these figures in their header to grefel/assets/ferplus_SIZE.safetensors, beside the same model as ONNX (ferplus_SIZE.onnx),
a card in words (ferplus_SIZE.md) and the run's history (ferplus_SIZE.csv; where a run went on from another, that of the last).
--from WORDS says what else these weights were chosen from ('six such weights (nbs/experiments/E12_seeds)').
With --no-onnx the ONNX file, twice as large as the weights, is left to who wants it (`grefel export`).
tools/ship.py --onnx SIZE writes the ONNX file of shipped weights anew."""
import json
import shutil
import sys
import tempfile
from pathlib import Path

from grefel.answers import add_metadata, calibrate_weights
from grefel.core import GrefelError
from grefel.data import load_faces
from grefel.evaluate import evaluate
from grefel.export import export_onnx
from grefel.model import load_model, save_model
from grefel.runs import stages

from nbtools import ROOT

KEPT = ('n', 'accuracy', 'accuracy_low', 'accuracy_high', 'balanced_accuracy', 'macro_f1', 'ece', 'nll', 'brier',
        'primary_accuracy', 'primary_ece', 'changed', 'helped', 'hurt', 'p_value', 'crossfit_ece', 'crossfit_nll')

CARD = '''# FER+ weights, `{name}`

| | |
|---|---|
| model | `{name}`, {parameters:.2f} M parameters, {img_size} px grey faces (three equal channels) |
| classes, in order | {classes} |
| trained on | FER+ train ({n_train:,} images of FER2013, {rule_of_train}, {twins} training images with a twin in validation or test removed), nothing else: no outside faces, no pretrained weights |
| labels | the crowd's vote distribution |
| recipe | {course}; all: weight decay {wd}, augmentation `{augment}`, weights averaged (decay {ema}), {precision}, seed {seed} (one run) |
| chosen on | FER+ validation: {chosen}; the test split was not used |
| accuracy on validation | **{accuracy:.2%}** (95% interval {accuracy_low:.2%} to {accuracy_high:.2%}, {n:,} images, landmarks from the model's own head) |
| balanced accuracy, macro-F1 | {balanced_accuracy:.2%}, {macro_f1:.3f} |
| calibration | temperature {temperature:.2f}; with it ECE {crossfit_ece:.3f} and negative log-likelihood {crossfit_nll:.3f}, each face judged with a temperature fitted on others; without it {raw_ece:.3f} and {raw_nll:.3f} |
| reliability balancing | primary head alone {primary_accuracy:.2%}, ECE {primary_ece:.3f}; balancing changed {changed} answers, {helped} for the better and {hurt} for the worse (p = {p_value:.2f}) |
| stored as | float16; the figures above are of the stored weights; {onnx} |

Since {what} chosen on the same images, expect somewhat less on new ones. Some classes have few images ({rare}): their figures are
uncertain.

| class | images | recall | precision | F1 |
|---|---|---|---|---|
{per_class}

## Where the data come from, and what may be done with the weights

FER2013 (Goodfellow et al. 2013, arXiv 1307.0414) was collected from the web and released for research; FER+ labels
(Barsoum et al. 2016, arXiv 1608.01041) are under the MIT licence. The weights are released with this package under the MIT
licence; whether the research terms of the pictures restrict your use of a model trained on them is for you to settle.

They say which expression a crowd would name for a face. They do not tell what a person feels, and must not be used to judge
people: not for hiring, policing, border control, grading, diagnosis or surveillance. FER2013 is not balanced by age, sex or
origin, and how the figures differ between such groups has not been measured.
'''


def teachers(named):
    "Who taught a run, in words."
    if isinstance(named, str): return f'the weights `{Path(named).name}`'
    return f'one of {len(named)} teachers drawn for each batch'


def members(averaged):
    "Of what weights a mean was taken, in words."
    return ', '.join(f"epoch {p['epoch']} of stage {len(p['stages'])}" for p in averaged)


def course(about):
    "The stages of training in words, oldest first: a run may go on from an earlier one's weights."
    recipes, mean = stages(about), about.get('start_mean')
    def stage(i, r):
        before = f'the mean of {members(mean)} (nbs/experiments/E08_soup)' if mean and r is recipes[-1] else f'the best epoch of stage {i}'
        start = f', started from {before}' if i else ''
        every = ', faces without a majority as well' if r.get('train_rule') == 'argmax' else ''
        placed = ', anchors put anew at the centres of their class' if r.get('place_anchors') is not None else ''
        taught = f", {r.get('teacher_share', .5):.0%} of each target said by {teachers(r['teacher'])}" if r.get('teacher') else ''
        shown = f"shown for {1 - r['hide_landmarks']:.0%} of the faces" if r['hide_landmarks'] < 1 else 'never shown'
        ran = f"{about['ran']} of " if 'ran' in about and r is recipes[-1] else ''
        return (f"stage {i + 1}{start}: {ran}{r['epochs']} epochs, batches of {r['bs']}, AdamW with one-cycle to {r['lr']}, "
                f"known landmarks {shown}{placed}{taught}{every}")
    return '; '.join(stage(i, r) for i, r in enumerate(recipes))


def chosen(about):
    "What was chosen on validation, in words, for the table and for the sentence below it."
    if 'averaged' not in about:
        stage = ' of the last stage' if about.get('before') else ''
        short = ', which was stopped there' if 'ran' in about else ''
        best, most = f"the best epoch ({about['epoch']} of 0–{about.get('ran', about['recipe']['epochs']) - 1}{stage}{short}) by accuracy", about.get('chosen_from')
        return (f'{best}, and of {most} the most accurate', 'epoch and run were') if most else (best, 'the epoch was')
    return f'the most accurate of several means of weights on this way (nbs/experiments/E08_soup); it is of {members(about["averaged"])} (counted from 0), in equal shares', 'the mean was'


def per_class(metrics):
    "The table of classes in Markdown."
    share = lambda value: '–' if value is None else f'{value:.1%}'       # of a class that was never answered
    row = lambda c: f"| {c['class']} | {c['n']} | {share(c['recall'])} | {share(c['precision'])} | {c['f1'] or 0:.3f} |"
    return '\n'.join(row(c) for c in metrics['per_class'])


def asset(size):
    "Where the weights of a size lie."
    return ROOT/'grefel'/'assets'/f'ferplus_{size}.safetensors'


def ship_onnx(size):
    "Write the ONNX file beside shipped weights."
    made = export_onnx(asset(size), asset(size).with_suffix('.onnx'))
    print(f"{Path(made['out']).relative_to(ROOT)}: {made['bytes']/2**20:.2f} MiB, at most {made['difference']:.0e} "
          f"from PyTorch on {made['faces']}")
    return made


def measure_stored(model, out, faces):
    "Write the weights, calibrate and measure them as they are stored; the report's figures and the calibration."
    save_model(model, out, half=True, grey=True)
    notes = calibrate_weights(out, faces, out)
    with tempfile.TemporaryDirectory() as scratch: metrics = evaluate(load_model(out), faces, out=scratch)
    add_metadata(out, out, validation={k: metrics[k] for k in KEPT})
    return metrics, notes


def main(run, onnx=True, chosen_from=None):
    model = load_model(run)
    about = model.metadata
    history = (Path(run) if Path(run).is_dir() else Path(run).parent)/'history.csv'
    ran = len(history.read_text().splitlines()) - 1
    about |= dict(chosen_from=chosen_from) if chosen_from else {}
    about |= dict(ran=ran) if ran < about['recipe']['epochs'] else {}
    recipe, name = about['recipe'], model.config['name']
    out = asset(name.removeprefix('grefel_'))
    metrics, notes = measure_stored(model, out, load_faces('ferplus', split='valid'))
    figures, raw = {k: metrics[k] for k in KEPT}, {f'raw_{k}': notes['calibration'][k][0] for k in ('ece', 'nll')}
    told = (f"as ONNX too, whose outputs differ by at most {ship_onnx(name.removeprefix('grefel_'))['difference']:.0e}" if onnx
            else f"`grefel export --size {name.removeprefix('grefel_')}` makes an ONNX file of them")
    train = about['data']['train']
    rare = ', '.join(f"{c['class']} {c['n']}" for c in metrics['per_class'] if c['n'] < 100)
    last = 'those whose most frequent vote is an expression' if recipe.get('train_rule') == 'argmax' else 'majority rule'
    words = dict(name=name, rule_of_train=last, course=course(about),
                 parameters=sum(p.numel() for p in model.parameters())/1e6, img_size=model.config['img_size'],
                 classes=', '.join(model.classes), n_train=train['n'], twins=train['dropped_duplicates'],
                 **dict(zip(('chosen', 'what'), chosen(about))),
                 precision='bfloat16 arithmetic' if recipe['bf16'] else 'float32 arithmetic',
                 temperature=notes['temperature'], onnx=told, per_class=per_class(metrics), rare=rare)
    out.with_suffix('.md').write_text(CARD.format(**recipe | figures | raw | words), encoding='utf-8')
    shutil.copy(history, out.with_suffix('.csv'))
    print(json.dumps(figures, indent=1))
    print(f'{out.relative_to(ROOT)}: {out.stat().st_size/2**20:.2f} MiB')


if __name__ == '__main__':
    given = sys.argv[1:]
    words = given.pop(given.index('--from') + 1) if '--from' in given[:-1] else None
    given = [a for a in given if a not in ('--onnx', '--no-onnx', '--from')]
    try: ship_onnx(*given) if '--onnx' in sys.argv else main(*given, onnx='--no-onnx' not in sys.argv, chosen_from=words)
    except (GrefelError, TypeError) as e: sys.exit(f'{Path(sys.argv[0]).name}: {e}')
