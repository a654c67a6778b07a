"""What a training step costs: faces a second and memory of each size, and what sharing it adds.

Writes nbs/8_experiments/B05_cost.csv, which B05_cost.ipynb turns into hours.

    python benchmarks/cost.py              all sizes, then 2 and 4 processes
    python benchmarks/cost.py nano ranks   these stages anew; the rows of the others stay

Each size is measured in a process of its own. Time is processor time, the least of several steps,
which others on the machine hardly touch. It says nothing about a second thread or about waiting for
a network; where the machine is quiet, --threads 2 adds rows by the clock.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tools'))
from nbtools import ROOT, provenance, put_rows

OUT = ROOT/'nbs'/'8_experiments'/'B05_cost.csv'
FIELDS = ('stage', 'threads', 'clock', 'processes', 'bs', 'side', 'parameters', 'seconds',
          'faces_per_s', 'mb', 'repeats', 'date', 'commit', 'cpu', 'torch')
BATCH = dict(nano=64, small=64, base=8, paper=8)   # faces in a batch
RANKS = 1, 2, 4


def measure(size, threads):
    "Seconds of a step, the least of several, and the most memory held; printed as JSON."
    import resource

    import torch

    from grefel.base.core import set_seed
    from grefel.data.faces import load_faces
    from grefel.method.model import create_model
    from grefel.train.learner import grefel_learner
    from grefel.train.loader import face_dls
    torch.set_num_threads(threads)
    set_seed(0)
    bs, model = BATCH[size], create_model(size)
    faces = load_faces('synth', split='train', n=4*bs)
    dls = face_dls(faces, faces.subset(range(8)), model, bs, 'camera')
    learn = grefel_learner(dls, model)
    clock, seconds = time.process_time if threads == 1 else time.perf_counter, []
    learn.create_opt()
    model.train()
    for _ in range(2 if bs < 64 else 4):
        for images, given, targets, known in [*dls.train][:2]:
            since = clock()
            learn.loss_func.out = model(images, given)
            probs = learn.loss_func.out['final_probs']
            learn.loss_func(probs, targets, known).backward()
            learn.opt.step()
            learn.opt.zero_grad()
            seconds.append(clock() - since)
    mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    print(json.dumps(dict(seconds=min(seconds), mb=round(mb), bs=bs, repeats=len(seconds),
                          side=model.config['img_size'],
                          parameters=sum(p.numel() for p in model.parameters()))))


def share(rank, world, port, folder, bs=64, steps=8):
    "One rank's processor time of a step of nano; the least goes to a file."
    import torch
    import torch.distributed as dist

    from grefel.base.core import set_seed
    from grefel.method.model import create_model
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group('gloo', f'tcp://127.0.0.1:{port}', rank=rank, world_size=world)
    set_seed(0)
    model = create_model('nano').train()
    together = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False) \
        if world > 1 else model
    opt = torch.optim.AdamW(model.parameters(), fused=True)
    images = torch.randn(bs//world, 3, 48, 48)
    seconds = []
    for _ in range(steps):
        since = time.process_time()
        answers = [v for v in together(images).values() if torch.is_tensor(v) and v.requires_grad]
        sum(v.float().square().mean() for v in answers).backward()  # DDP waits for all parameters
        opt.step()
        opt.zero_grad()
        seconds.append(time.process_time() - since)
    (folder/f'{rank}').write_text(str(min(seconds)))
    os._exit(0)


def ranks(world):
    "The slowest rank's seconds, of processes that share a batch of 64."
    import socket
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        code = f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import cost; ' \
               f'from pathlib import Path; cost.share({{}}, {world}, {port}, Path({folder!r}))'
        quiet = sys.executable, '-W', 'ignore', '-c'
        started = [subprocess.Popen([*quiet, code.format(r)]) for r in range(world)]
        assert not any(p.wait() for p in started)
        return max(float((Path(folder)/f'{r}').read_text()) for r in range(world))


def row(stage, threads, processes, bs, found):
    "A line of the file."
    return dict(stage=stage, threads=threads, clock='processor' if threads == 1 else 'wall',
                processes=processes, bs=bs, faces_per_s=round(bs/found['seconds'], 2),
                **provenance()) | found


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('stages', nargs='*', default=[*BATCH, 'ranks'], metavar='STAGE')
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--measure', help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.measure: return measure(args.measure, args.threads)
    for stage in args.stages:
        if stage == 'ranks': new = [row(stage, 1, w, 64, dict(seconds=ranks(w))) for w in RANKS]
        else:
            done = subprocess.run([sys.executable, __file__, '--measure', stage, '--threads',
                                   str(args.threads)], capture_output=True, text=True, check=True,
                                  env=os.environ | dict(OMP_NUM_THREADS=str(args.threads)))
            new = [row(stage, args.threads, 1, BATCH[stage], json.loads(done.stdout))]
        put_rows(OUT, new, FIELDS, same=('stage', 'threads'))
        print(*new, sep='\n', file=sys.stderr)


if __name__ == '__main__': main()
