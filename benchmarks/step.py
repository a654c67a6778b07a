"""Where the time of a training step goes: each part of the network, loss, optimiser.

Writes nbs/8_experiments/B06_step.csv, which B06_step.ipynb shows.

    python benchmarks/step.py              all of SIZES, one and two threads, fp32 and bf16
    python benchmarks/step.py nano         this size anew; the rows of the others stay

A part's time is what it takes forward and backward on the inputs that it gets within the network,
32 faces. `step` is the whole step, with loss and AdamW; what the parts don't explain is
`rest`. The least of several repeats, by processor time on one thread and by the clock on two, where
the machine has to be quiet.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tools'))
from nbtools import ROOT, provenance, put_rows

OUT = ROOT/'nbs'/'8_experiments'/'B06_step.csv'
FIELDS = ('size', 'threads', 'precision', 'part', 'ms', 'repeats', 'bs', 'date', 'commit', 'cpu',
          'torch')
SIZES = {'nano': {}, 'plain': {}, 'small': {},   # what the page calls it → changes to the size
         'nano, six cells': dict(cross_grid=6), 'small, six cells': dict(cross_grid=6)}
BATCH, REPEATS = 32, 12
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


def least(work, clock, repeats=REPEATS):
    "Milliseconds of the quickest of several calls."
    for _ in range(2): work()
    took = []
    for _ in range(repeats):
        since = clock()
        work()
        took.append(clock() - since)
    return 1000*min(took)


def measure(size, threads, precision):
    "Milliseconds by part, printed as JSON."
    import torch

    from grefel.base.core import set_seed
    from grefel.base.synth import synth_faces
    from grefel.method.anchors import anchors_of
    from grefel.method.losses import GReFELLoss
    from grefel.method.model import create_model
    torch.set_num_threads(threads)
    set_seed(0)
    clock = time.process_time if threads == 1 else time.perf_counter
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

    def forward_and_back(part, args, kwargs):
        with cast(): out = [t for t in tensors(part(*args, **kwargs)) if t.requires_grad]
        torch.autograd.backward(out, [torch.ones_like(t) for t in out])

    def step():
        with cast(): out = model(images)
        loss(out, targets, drawn['landmarks'], anchors)['total'].backward()
        opt.step()
        opt.zero_grad()

    with cast(): seen, out = inputs_of(model, images)
    found = {PARTS[name]: least(lambda: forward_and_back(model.get_submodule(name), *given), clock)
             for name, given in seen.items()}
    out = {k: alone(v) for k, v in out.items()}
    found['loss'] = least(lambda: loss(out, targets, drawn['landmarks'], anchors)
                          ['total'].backward(retain_graph=True), clock)
    step()
    for p in model.parameters(): p.grad = torch.zeros_like(p)
    found['optimiser'] = least(opt.step, clock)
    opt.zero_grad()
    found['step'] = least(step, clock)
    found['rest'] = found['step'] - sum(v for k, v in found.items() if k != 'step')
    print(json.dumps(found))


def rows_of(size, threads, precision):
    "The lines of one setting, measured in a process of its own."
    done = subprocess.run([sys.executable, __file__, '--measure', size, str(threads), precision],
                          capture_output=True, text=True, check=True,
                          env=os.environ | dict(OMP_NUM_THREADS=str(threads)))
    same = dict(size=size, threads=threads, precision=precision, repeats=REPEATS, bs=BATCH,
                **provenance())
    return [same | dict(part=part, ms=round(ms, 2)) for part, ms in json.loads(done.stdout).items()]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('sizes', nargs='*', default=list(SIZES), metavar='SIZE')
    p.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    p.add_argument('--measure', nargs=3, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.measure:
        size, threads, precision = args.measure
        return measure(size, int(threads), precision)
    for size in args.sizes:
        for threads in args.threads:
            for precision in ('fp32', 'bf16'):
                new = rows_of(size, threads, precision)
                put_rows(OUT, new, FIELDS, same=('size', 'threads', 'precision'))
                print(size, threads, precision, {r['part']: r['ms'] for r in new}, file=sys.stderr)


if __name__ == '__main__': main()
