"""Where the time of a training step goes: each part of the network, loss, optimiser.

Writes nbs/8_experiments/B06_step.csv, which B06_step.ipynb shows.

    python benchmarks/step.py              all of SIZES, one and two threads, fp32 and bf16
    python benchmarks/step.py --threads 1  the rows of other numbers of threads stay

A part's time is what it takes forward and backward on the inputs that it gets within the network,
32 faces. `step` is the whole step, with loss and AdamW; what the parts don't explain is
`rest`. The least of several repeats, in which all sizes take turns; by processor time on one thread
and by the clock on two, where the machine has to be quiet.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tools'))
from nbtools import ROOT, provenance, put_rows

OUT = ROOT/'nbs'/'8_experiments'/'B06_step.csv'
FIELDS = ('size', 'threads', 'precision', 'part', 'ms', 'repeats', 'bs', 'date', 'commit', 'cpu',
          'torch')
SIZES = {'nano': {}, 'plain': {}, 'small': {},   # what the page calls it → changes to the size
         'nano, six cells': dict(cross_grid=6), 'small, six cells': dict(cross_grid=6)}
BATCH, REPEATS = 32, 20
# module → what the page calls it; the maps' first is the finest
PARTS = {'extractor.pyramid': 'image pyramid', 'pyramid': 'image pyramid',
         'extractor.landmark_head': 'landmark head', 'extractor.geometry': 'geometry maps',
         'extractor.cross.0': 'cross-attention, finest',
         'extractor.cross.1': 'cross-attention, middle',
         'extractor.cross.2': 'cross-attention, coarsest', 'extractor.tokens': 'tokens',
         'extractor.fusion': 'fusion', 'head': 'head', 'balancing': 'balancing'}


def tensors(x):
    "All tensors in nested lists, tuples and dictionaries."
    import torch
    if torch.is_tensor(x): return [x]
    if isinstance(x, dict): x = list(x.values())
    return [t for part in x for t in tensors(part)] if isinstance(x, (list, tuple)) else []


def alone(x):
    "The same values, no longer part of a graph; what had a gradient has one again."
    import torch
    if torch.is_tensor(x): return x.detach().clone().requires_grad_(x.requires_grad)
    if isinstance(x, (list, tuple)): return type(x)(map(alone, x))
    return x


def inputs_of(model, images):
    "What each part is called with, by the module's name, and what the model answers."
    seen, hooks = {}, []
    def keep(name):
        def hook(module, args, kwargs):
            seen[name] = alone(args), {k: alone(v) for k, v in kwargs.items()}
        return hook
    for name, module in model.named_modules():
        if name in PARTS:
            hooks.append(module.register_forward_pre_hook(keep(name), with_kwargs=True))
    out = model(images)
    for hook in hooks: hook.remove()
    return seen, out


def in_turns(works, clock):
    "Milliseconds of the quickest call of each; they take turns, so that a slow minute meets all."
    took = {name: [] for name in works}
    for _ in range(2 + REPEATS):  # the first two warm up
        for name, work in works.items():
            since = clock()
            work()
            took[name].append(clock() - since)
    return {name: 1000*min(times[2:]) for name, times in took.items()}


def works_of(size, precision):
    "The parts of a step with a network of this size, and the whole step, each ready to be called."
    import torch

    from grefel.base.core import set_seed
    from grefel.base.synth import synth_faces
    from grefel.method.anchors import anchors_of
    from grefel.method.losses import GReFELLoss
    from grefel.method.model import create_model
    set_seed(0)
    def cast():
        return torch.autocast('cpu', torch.bfloat16) if precision == 'bf16' else nullcontext()
    model = create_model(size.split(',')[0], **SIZES[size]).train()
    model = model.to(memory_format=torch.channels_last)
    drawn, loss = synth_faces(BATCH, size=48), GReFELLoss()
    images = drawn['images'].float().div(255).expand(-1, 3, -1, -1).contiguous(
        memory_format=torch.channels_last)
    targets = torch.eye(8)[torch.arange(BATCH) % 8]
    anchors = None if anchors_of(model) is None else anchors_of(model).anchors
    opt = torch.optim.AdamW(model.parameters(), fused=True)

    def loss_of(out): return loss(out, targets, drawn['landmarks'], anchors)['total']

    def forward_and_back(part, args, kwargs):
        with cast(): out = [t for t in tensors(part(*args, **kwargs)) if t.requires_grad]
        torch.autograd.backward(out, [torch.ones_like(t) for t in out])

    def step():
        with cast(): out = model(images)
        loss_of(out).backward()
        opt.step()
        opt.zero_grad()

    zeros = [torch.zeros_like(p) for p in model.parameters()]

    def optimise():
        for p, zero in zip(model.parameters(), zeros): p.grad = zero
        opt.step()

    with cast(): seen, out = inputs_of(model, images)
    out = {k: alone(v) for k, v in out.items()}
    step()
    return {**{PARTS[name]: partial(forward_and_back, model.get_submodule(name), *given)
               for name, given in seen.items()},
            'loss': lambda: loss_of(out).backward(), 'optimiser': optimise, 'step': step}


def measure(threads, precision):
    "Milliseconds by size and part, printed as JSON."
    import torch
    torch.set_num_threads(threads)
    works = {(size, part): work for size in SIZES
             for part, work in works_of(size, precision).items()}
    took = in_turns(works, time.process_time if threads == 1 else time.perf_counter)
    found = {size: {part: ms for (of, part), ms in took.items() if of == size} for size in SIZES}
    for parts in found.values():
        parts['rest'] = 2*parts['step'] - sum(parts.values())
    print(json.dumps(found))


def rows_of(threads, precision):
    "The lines of one setting, measured in a process of its own."
    done = subprocess.run([sys.executable, __file__, '--measure', str(threads), precision],
                          capture_output=True, text=True, check=True,
                          env=os.environ | dict(OMP_NUM_THREADS=str(threads)))
    same = dict(threads=threads, precision=precision, repeats=REPEATS, bs=BATCH, **provenance())
    return [dict(size=size, part=part, ms=round(ms, 2)) | same
            for size, parts in json.loads(done.stdout).items() for part, ms in parts.items()]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    p.add_argument('--measure', nargs=2, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.measure:
        threads, precision = args.measure
        return measure(int(threads), precision)
    for threads in args.threads:
        for precision in ('fp32', 'bf16'):
            new = rows_of(threads, precision)
            put_rows(OUT, new, FIELDS, same=('threads', 'precision'))
            whole = {row['size']: row['ms'] for row in new if row['part'] == 'step'}
            print(threads, precision, whole, file=sys.stderr)


if __name__ == '__main__': main()
