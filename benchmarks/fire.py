"""Work that is killed, filled up, spoiled: does the same call finish it, and to the same end?

Adds a line a trial to nbs/8_experiments/B04_fire.csv, which B04_fire.ipynb counts.

    python benchmarks/fire.py                  all trials that the file lacks, in minutes
    python benchmarks/fire.py --only kill      those of one kind: kill, full, memory or nan
    python benchmarks/fire.py --out /tmp/x.csv --seed 1    other moments, another file

One process imports everything and draws the faces; each trial forks from it, so that it starts in
milliseconds, and is a process of its own for the signal that ends it. Which trial does what follows
from the seed; at which moment a signal arrives, from the clock as well.
"""
import argparse
import contextlib
import csv
import errno
import hashlib
import io
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import accelerate  # noqa: E402, F401 (imported once, before processes are forked)
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
import torch._dynamo.utils  # noqa: E402, F401 (likewise: DDP wants it)
import torch.distributed as dist  # noqa: E402
from fastai.basics import Callback  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from grefel.base import core  # noqa: E402
from grefel.base.core import GrefelError  # noqa: E402
from grefel.base.synth import synth_faces  # noqa: E402
from grefel.data import convert as converting  # noqa: E402
from grefel.data.landmarks import make_landmarks  # noqa: E402
from grefel.method.model import create_model  # noqa: E402
from grefel.train import runs  # noqa: E402
from grefel.use.annotate import annotate  # noqa: E402
from grefel.use.predict import Predictor  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ('kind', 'trial', 'job', 'processes', 'how', 'moment', 'begun', 'ended', 'resumed',
           'identical', 'lines', 'seconds', 'said')
FORK = multiprocessing.get_context('fork')
TINY = dict(size='plain', model=dict(widths=[8]*4), epochs=3, bs=16, ema=.9, augment='light')


# ---- the jobs: each does its work in a folder, and `digest` tells two results apart

class World:
    "The faces that all jobs work on."
    def __init__(self, root):
        self.table, self.images = root/'faces.parquet', root/'images'
        converting.convert('synth', self.table, n=48, img_size=32)
        self.images.mkdir()
        for i, face in enumerate(synth_faces(24, size=48, seed=1)['images']):
            Image.fromarray(face[0].numpy()).save(self.images/f'{i:02d}.png')
        torch.manual_seed(0)
        self.model = create_model('nano', widths=(8, 8, 8, 8), embed_dim=16, img_size=32).eval()

    def train(self, out, cbs=()):
        recipe = runs.Recipe(data=str(self.table), **TINY)
        if runs.finished(out/'run', recipe): return  # as the command asks first
        runs.train(recipe, out/'run', progress=None, cbs=cbs)

    def convert(self, out): converting.convert(self.table, out/'shards', shard_rows=16)

    def landmarks(self, out):
        make_landmarks(str(self.table), out/'points.parquet', model=self.model, part_rows=16, bs=8)

    def predict(self, out):
        annotate(self.images, Predictor(self.model, crop='whole', detector='none'),
                 out/'answers.csv', chunk=2, progress=False)


def digest(out):
    "What a job left behind: names and contents, without the seconds that it took."
    parts = []
    for p in sorted(out.rglob('*')):
        if p.is_dir() or p.name in ('.lock', 'config.json', 'job.json'): continue
        if p.suffix == '.safetensors':
            content = repr([(k, v.numpy().tobytes()) for k, v in sorted(load_file(p).items())])
        elif p.name == 'history.csv': content = pd.read_csv(p).drop(columns='seconds').to_csv()
        elif p.suffix == '.parquet': content = pd.read_parquet(p).map(repr_of).to_csv()
        else: content = p.read_text(errors='replace')
        parts.append(f'{p.relative_to(out)} {content}')
    return hashlib.blake2b('\n'.join(parts).encode(), digest_size=8).hexdigest()


def repr_of(cell): return cell.tolist() if isinstance(cell, np.ndarray) else cell


# ---- processes

def child(work, said, rank, world, port):
    "What a trial's process does; its error stream goes to a file."
    if world > 1:
        os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                           LOCAL_WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1',
                           MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE='True')
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    code, errors = 0, io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()):
        try: work()
        except GrefelError as e: code = f'{e}'
        except KeyboardInterrupt: code = 'stopped'
        except SystemExit as e: code = e.code
        except BaseException as e: code = f'{type(e).__name__}\n{e}'
    if code: errors.write(code if isinstance(code, str) else '')
    said.write_text(errors.getvalue())
    os._exit(1 if code else 0)


def start(work, folder, world=1):
    "Processes that do some work together, and the files of what they say."
    store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
    said = [folder/f'said-{r}' for r in range(world)]
    made = [FORK.Process(target=child, args=(work, s, r, world, store.port))
            for r, s in enumerate(said)]
    for p in made:
        p.start()
        p.store = store
    return made, said


def finish(made, seconds=120):
    "Wait for all; whether they ended by themselves, and how long that took."
    since = time.monotonic()
    for p in made: p.join(max(0., since + seconds - time.monotonic()))
    late = [p for p in made if p.is_alive()]
    for p in late: p.kill()
    return not late, time.monotonic() - since


def lines_of(said): return [t for f in said if f.exists() for t in [f.read_text()] if t]


def do(work, folder, world=1):
    "Whether some work went through to its end, and what it said where it didn't."
    made, said = start(work, folder, world)
    ended, _ = finish(made)
    return ended and not any(p.exitcode for p in made), lines_of(said)


# ---- trials

class Trials:
    "Runs trials and writes a line for each."
    def __init__(self, root, seed):
        self.root, self.seed, self.world = root, seed, World(root)
        self.known, self.n = {}, 0

    def folder(self):
        self.n += 1
        out = self.root/f'trial-{self.n}'
        (out/'result').mkdir(parents=True)
        return out

    def reference(self, job, world):
        "The digest and the seconds of a job that nothing disturbs."
        if (job, world) not in self.known:
            out, since = self.folder(), time.monotonic()
            through, said = do(lambda: getattr(self.world, job)(out/'result'), out, world)
            assert through, said
            self.known[job, world] = digest(out/'result'), time.monotonic() - since
        return self.known[job, world]

    def judged(self, out, job, world):
        "The same call once more: did it go through, and is all as if nothing had happened?"
        through, said = do(lambda: getattr(self.world, job)(out/'result'), out, world)
        return through, through and digest(out/'result') == self.reference(job, world)[0], said

    def kill(self, i):
        "A signal at a random moment; of two processes one gets it, and the other has to notice."
        g = random.Random(f'{self.seed} kill {i}')
        job, world = [('train', 1), ('train', 2), ('convert', 1), ('landmarks', 1),
                      ('predict', 1)][i % 5]
        sign = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[g.randrange(3)]
        seconds = self.reference(job, world)[1]
        while True:  # a job that was through before the signal is no trial
            out, moment, since = self.folder(), g.random(), time.monotonic()
            made, said = start(lambda: getattr(self.world, job)(out/'result'), out, world)
            time.sleep(moment*seconds)
            victim = made[g.randrange(world)]
            if victim.is_alive(): os.kill(victim.pid, sign)
            ended, took = finish(made)
            if victim.exitcode: break
            seconds = min(seconds, time.monotonic() - since)  # the machine is quicker now
        begun = any((out/'result').rglob('*'))
        lines = lines_of(said)
        resumed, same, why = self.judged(out, job, world)
        return dict(job=job, processes=world, how=sign.name, moment=round(moment, 3), begun=begun,
                    ended=ended, resumed=resumed, identical=same, lines=sum(map(count, lines)),
                    seconds=round(took, 1), said=first(why or lines))

    def full(self, i):
        "The disk is full at one of the writes."
        g = random.Random(f'{self.seed} full {i}')
        job = ('train', 'convert', 'landmarks', 'train')[i % 4]
        out, at, usual = self.folder(), g.randrange(4), os.fsync
        def fail(fd):
            nonlocal at
            at -= 1
            if at < 0: raise OSError(errno.ENOSPC, 'No space left on device')
            usual(fd)
        def work():
            core.os.fsync = fail
            getattr(self.world, job)(out/'result')
        where = at
        return self.spoiled(out, job, work, f'write {where}')

    def memory(self, i):
        "No memory: while loading, or in a step."
        g, out = random.Random(f'{self.seed} memory {i}'), self.folder()
        epoch, step = g.randrange(3), g.randrange(3)
        class Greedy(Callback):
            def before_batch(self):
                if (self.epoch, self.iter) == (epoch, step): torch.empty(1 << 60)
        def loading():
            runs.load_faces = lambda *_, **__: np.empty(1 << 62, np.uint8)
            self.world.train(out/'result')
        def stepping(): self.world.train(out/'result', [Greedy()])
        if i % 4 == 0: return self.spoiled(out, 'train', loading, 'loading')
        return self.spoiled(out, 'train', stepping, f'epoch {epoch}, step {step}')

    def nan(self, i):
        "A number that is none: in the images, the loss or the gradients of a step."
        g, out = random.Random(f'{self.seed} nan {i}'), self.folder()
        epoch, step, what = g.randrange(3), g.randrange(3), ('data', 'loss', 'gradient')[i % 3]
        class Spoil(Callback):
            order = 2
            def now(self): return self.training and (self.epoch, self.iter) == (epoch, step)
            def before_batch(self):
                if what == 'data' and self.now(): self.xb[0][0] = float('nan')
            def after_loss(self):
                if what == 'loss' and self.now(): self.learn.loss = self.loss*float('nan')
            def before_step(self):
                if what == 'gradient' and self.now():
                    next(self.model.parameters()).grad.fill_(float('nan'))
        def work(): self.world.train(out/'result', [Spoil()])
        return self.spoiled(out, 'train', work, f'{what}, epoch {epoch}, step {step}')

    def spoiled(self, out, job, work, how):
        "Work that has to end in one line with what was good kept, and then goes on."
        through, lines = do(work, out)
        kept = all(v.isfinite().all() for p in out.rglob('*.safetensors')
                   for v in load_file(p).values())
        begun = any((out/'result').rglob('*'))
        resumed, same, why = self.judged(out, job, 1)
        return dict(job=job, processes=1, how=how, begun=begun, ended=True,
                    resumed=kept and not through and resumed, identical=same,
                    lines=sum(map(count, lines)), said=first(why or lines))


def count(text): return len(text.strip().splitlines())


def first(texts): return ' '.join((texts or [''])[0].split())[:160]


COUNTS = dict(kill=50, full=20, memory=8, nan=12)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--out', type=Path, default=ROOT/'nbs'/'8_experiments'/'B04_fire.csv')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--only', choices=COUNTS, nargs='+', default=list(COUNTS))
    args = p.parse_args()
    rows = list(csv.DictReader(args.out.open())) if args.out.exists() else []
    done = {(r['kind'], int(r['trial'])) for r in rows}
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    root = Path(tempfile.mkdtemp(prefix='fire-'))
    trials = Trials(root, args.seed)
    for kind in args.only:
        for i in range(COUNTS[kind]):
            if (kind, i) in done: continue
            found = dict(kind=kind, trial=i) | getattr(trials, kind)(i)
            found['said'] = re.sub(r'\S*/result/', '…/', found['said'])
            new = not args.out.exists()
            with args.out.open('a', newline='') as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
                if new: writer.writeheader()
                writer.writerow(found)
            print(*found.values(), sep=' | ', file=sys.stderr, flush=True)
            for folder in root.glob('trial-*'): shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(root)


if __name__ == '__main__': main()
