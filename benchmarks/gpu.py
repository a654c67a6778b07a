"""How well does training use a device? Writes nbs/8_experiments/B03_card.csv.

    python benchmarks/gpu.py --device cuda

For each model and batch size there are

- the milliseconds of each part of a step, every part waited for;
- those of a whole step, as training runs it, and the faces a second that this gives;
- the share of the device's peak that the multiplications of forward and backward pass reach. The
  peak is the rate of a large bfloat16 matrix product, measured on the same device.

Other ways of running a step (--ways) compile the model, record its passes and replay them, or both.
Of these only whole steps are measured. The loss after the same steps tells whether they compute the
same. With --operations a second file says on which operations the device spends a step's time.
"""
import argparse
import csv
import datetime
import itertools
import statistics
import time
from pathlib import Path

import torch
from fastai.basics import Callback, CancelValidException, DataLoaders

from grefel.base.core import set_seed
from grefel.data.augment import make_transform
from grefel.data.faces import load_faces
from grefel.method.baselines import count_macs
from grefel.method.losses import GReFELLoss
from grefel.method.model import create_model
from grefel.train.experiments import commit, processor
from grefel.train.learner import grefel_learner
from grefel.train.loader import FaceLoader
from grefel.train.precision import BFloat16, CompileStep

MODELS = ('nano', 'small', 'plain')
WAYS = dict(usual={}, compiled=dict(compile=True), recorded=dict(graph=True),
            both=dict(compile=True, graph=True))
FIELDS = ('model', 'bs', 'way', 'threads', 'part', 'milliseconds', 'faces_per_second',
          'share_of_peak', 'loss', 'steps', 'machine', 'torch', 'commit', 'date')


def wait(device):
    "Until the device has done what it was given."
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize()


def peak(device, side, tries=20):
    "Floating-point operations a second of a square bfloat16 matrix product."
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in 'ab')
    best = float('inf')
    for _ in range(tries):
        wait(device)
        start = time.perf_counter()
        a @ b
        wait(device)
        best = min(best, time.perf_counter() - start)
    return 2*side**3/best


def enough(faces, n):
    "So many faces, from the first on, again and again if there are fewer."
    return faces.subset(torch.arange(n) % len(faces))


def learner(name, faces, bs, device, way):
    "A learner ready to train, and its model."
    set_seed(0)
    model = create_model(name).to(device)
    c = model.config
    loader = FaceLoader(faces, make_transform('light', c['img_size'], c['mean'], c['std'], True),
                        bs, True, 1., 0, device)
    learn = grefel_learner(DataLoaders(loader, loader, device=torch.device(device)), model,
                           GReFELLoss().to(device), .999,
                           cbs=[BFloat16(), *([CompileStep(**WAYS[way])] if WAYS[way] else [])])
    return learn, model.train(), loader


def one_step(learn, model, batches, timed=lambda what, call: call()):
    "A training step as the learner makes it, part by part; each part goes through `timed`."
    def forward(images, given, targets, known):
        with learn.b_float16.casting():
            learn.loss_func.out = model(images, given)
            return learn.loss_func(learn.loss_func.out['final_probs'].float(), targets, known)
    batch = timed('batch', lambda: next(batches))
    loss = timed('forward', lambda: forward(*batch))
    timed('backward', loss.backward)
    timed('optimiser', learn.opt.step)
    learn.opt.zero_grad()
    timed('averaging', learn.ema.after_step)


def begin(learn, loader):
    "What a fit does before its first step; the batches."
    learn.create_opt()
    learn.opt.set_hypers(lr=1e-4)
    learn.ema.begin()
    return iter(loader)


def parts(learn, model, loader, device, steps):
    "Milliseconds of each part of a step, waited for before and after."
    spent, batches = {}, begin(learn, loader)
    def timed(what, call):
        wait(device)
        start = time.perf_counter()
        out = call()
        wait(device)
        spent.setdefault(what, []).append(1e3*(time.perf_counter() - start))
        return out
    for _ in range(steps): one_step(learn, model, batches, timed)
    return {what: statistics.median_high(times[len(times)//3:]) for what, times in spent.items()}


def longest_operations(learn, model, loader, device, steps, most=12):
    "Which operations take most of the device's time in a step: name, calls, milliseconds, share."
    batches, kinds = begin(learn, loader), [torch.profiler.ProfilerActivity.CPU]
    if torch.device(device).type == 'cuda': kinds.append(torch.profiler.ProfilerActivity.CUDA)
    warm = steps//2
    for _ in range(warm): one_step(learn, model, batches)
    wait(device)
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(steps - warm): one_step(learn, model, batches)
        wait(device)
    return busiest(profile.key_averages(), device, steps - warm, most)


def busiest(events, device, steps, most):
    "The operations that a device works longest on."
    kind = torch.device(device).type.replace('cuda', 'device')
    spent = {e.key: (e.count/steps, getattr(e, f'self_{kind}_time_total')/1e3/steps)
             for e in events if e.key.startswith('aten::')}
    total = sum(ms for _, ms in spent.values())
    longest = sorted(spent.items(), key=lambda item: -item[1][1])[:most]
    return [dict(operation=name.removeprefix('aten::'), calls=round(calls, 1),
                 milliseconds=round(ms, 3), share=round(ms/total, 4))
            for name, (calls, ms) in longest]


class Clock(Callback):
    "Milliseconds of a step in each epoch; nothing is measured on validation faces."
    order = 100

    def __init__(self, device, steps):
        self.device, self.steps, self.times = device, steps, []

    def before_train(self):
        wait(self.device)
        self.start = time.perf_counter()

    def after_train(self):
        wait(self.device)
        self.times.append(1e3*(time.perf_counter() - self.start)/self.steps)

    def before_validate(self):
        raise CancelValidException()


def whole(learn, device, steps):
    "Milliseconds of a step in fastai's loop, the first epoch of `steps` left out; the last loss."
    clock = Clock(device, steps)
    set_seed(0)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(3, 1e-3, cbs=[clock])
    return min(clock.times[1:]), float(learn.recorder.losses[-1])


def measure(name, faces, bs, way, device, steps):
    "Milliseconds of the whole step, and its parts if it runs the usual way; the last loss."
    few = enough(faces, bs*steps)
    step, loss = whole(learner(name, few, bs, device, way)[0], device, steps)
    spent = parts(*learner(name, few, bs, device, way), device, steps) if way == 'usual' else {}
    return spent | dict(step=step), loss


def speed(name, bs, milliseconds, best):
    "Faces a second, and the share of the peak that is reached."
    operations = 6*count_macs(create_model(name))*bs  # forward 2, backward 4
    return bs/milliseconds*1e3, operations/milliseconds*1e3/best


def measure_all(a, faces, best):
    "Measure every model, batch size and way, and write what is there after each."
    rows, same = [], dict(steps=a.steps, machine=processor(a.device), torch=torch.__version__,
                          commit=commit(), date=datetime.date.today().isoformat())
    for name, bs, way in itertools.product(a.models, a.bs, a.ways):
        start = time.perf_counter()
        spent, loss = measure(name, faces, bs, way, a.device, a.steps)
        rate, share = speed(name, bs, spent['step'], best)
        whole_step = dict(faces_per_second=round(rate), share_of_peak=round(share, 4),
                          loss=round(loss, 4))
        rows += [dict(model=name, bs=bs, way=way, threads=torch.get_num_threads(), part=part,
                      milliseconds=round(ms, 3)) | (whole_step if part == 'step' else {}) | same
                 for part, ms in spent.items()]
        said = ', '.join(f'{part} {ms:.1f}' for part, ms in spent.items())
        print(f'{name} bs {bs} {way}: {said} ms; {rate:,.0f} faces/s, {share:.1%} of peak; '
              f'loss {loss:.4f}; measured in {time.perf_counter() - start:.0f} s', flush=True)
        write(rows, a.out)


def write_operations(a, faces):
    "The longest operations of each model and batch size, as a CSV."
    rows = []
    for name, bs in itertools.product(a.models, a.bs):
        few = enough(faces, bs*a.steps)
        found = longest_operations(*learner(name, few, bs, a.device, 'usual'), a.device, a.steps)
        rows += [dict(model=name, bs=bs) | row | dict(machine=processor(a.device), commit=commit())
                 for row in found]
    write(rows, a.operations, tuple(rows[0]))


def write(rows, out, fields=FIELDS):
    "What is measured so far, as a CSV."
    with open(out, 'w', newline='') as f:
        writer = csv.DictWriter(f, fields, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--data', default='ferplus', help="faces to train on (default 'ferplus')")
    parser.add_argument('--models', nargs='+', default=MODELS,
                        choices=(*MODELS, 'base'))
    parser.add_argument('--bs', nargs='+', type=int, default=[64, 256, 1024], help='batch sizes')
    parser.add_argument('--steps', type=int, default=20, help='steps of each measurement')
    parser.add_argument('--side', type=int, default=8192,
                        help='side of the matrices whose product is the peak')
    parser.add_argument('--ways', nargs='+', default=list(WAYS), choices=list(WAYS))
    parser.add_argument('--operations', help='a second CSV, of operations, as B03_operations.csv')
    parser.add_argument('--out', default='nbs/8_experiments/B03_card.csv')
    a = parser.parse_args()
    faces = load_faces(a.data, targets='votes' if a.data == 'ferplus' else 'hard')
    best = peak(a.device, a.side)
    print(f'peak {best/1e12:.1f} TFLOP/s')
    if a.operations: write_operations(a, faces)
    measure_all(a, faces, best)
    print(Path(a.out).resolve())


if __name__ == '__main__': main()
