"""How fast are faces read, and how much memory does it take?

Writes nbs/8_experiments/B02_data.csv, which B02_data.ipynb shows.

    python benchmarks/data.py                   all of it, in under 15 minutes: 500,000 images
                                                and a table of 3 million rows
    python benchmarks/data.py --n 5000 --rows 100000 --out /tmp/small.csv    a small trial
    python benchmarks/data.py --stage shards    one stage anew

Everything is read in a process of its own, so that memory is that reader's. What the stages `make`,
`convert` and `table-make` made stays in --work, and is used again, until it is deleted.
"""
import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tools'))
from nbtools import ROOT, commit, cpu_name, put_rows

STAGES = ('make', 'convert', 'imagefolder', 'datasets', 'datasets-stream', 'shards',
          'shards-workers', 'training-step', 'table-make', 'table', 'table-split', 'table-pandas')
COLUMNS = ('stage', 'what', 'n', 'open_s', 'read', 'seconds', 'per_s', 'mb_start', 'mb_open',
           'mb_peak', 'mb_curve', 'cores', 'machine', 'versions', 'commit')
SIDE, BATCH, SEED = 48, 256, 0


# ---- Memory: what processes hold for themselves; pages of mapped files do not count

def megabytes():
    "Memory of this process and its children, shared pages divided among those that share them."
    import psutil
    me = psutil.Process()
    return sum(private(p) for p in [me, *me.children(recursive=True)])/1e6


def private(process):
    """Bytes of anonymous memory where the system tells (Linux).

    Elsewhere, what would be free if the process ended.
    """
    import psutil
    try:
        lines = Path(f'/proc/{process.pid}/smaps_rollup').read_text().splitlines()
        return 1024*next(int(line.split()[1]) for line in lines if line.startswith('Pss_Anon'))
    except (OSError, StopIteration): pass
    try: return process.memory_full_info().uss
    except psutil.Error: return 0


# ---- What is read

def make(work, n):
    "`n` images of 48×48 grey pixels in class folders: drawn faces, each moved and with noise."
    import cv2
    from grefel.base.core import EXPRESSIONS
    from grefel.base.synth import synth_faces
    done = work/'images'/f'{n}.done'
    if done.exists(): return
    shutil.rmtree(work/'images', ignore_errors=True)
    faces = synth_faces(min(n, 2000), size=SIDE, seed=SEED)
    images, labels = faces['images'][:, 0].numpy(), faces['labels'].tolist()
    folders = [work/'images'/'train'/e for e in EXPRESSIONS]
    for f in folders: f.mkdir(parents=True)
    g = np.random.default_rng(SEED)
    noise = g.integers(-6, 7, (64, SIDE, SIDE), dtype=np.int16)
    for i in range(n):
        k = i % len(images)
        face = np.roll(images[k], (i//len(images)) % 5 - 2, 1) + noise[g.integers(64)]
        cv2.imwrite(str(folders[labels[k]]/f'{i:07d}.png'), face.clip(0, 255).astype(np.uint8))
    done.touch()


def convert(work, n):
    "Shards of those images; how fast that goes."
    from grefel.data.convert import convert as to_shards
    fresh = not (work/'shards'/f'{n}.done').exists()
    if fresh: shutil.rmtree(work/'shards', ignore_errors=True)
    start = time.perf_counter()
    made = to_shards(work/'images', work/'shards')
    seconds = time.perf_counter() - start
    (work/'shards'/f'{n}.done').touch()
    if fresh:
        return dict(what='grefel convert', read=made['rows'], seconds=seconds, mb_peak=megabytes())


def table_make(work, rows):
    """Shards of a table as long as Aff-Wild2's.

    It has names, labels, splits, subjects, and images of a few bytes.
    """
    import pyarrow as pa
    from grefel.base.core import EXPRESSIONS
    from grefel.base.resume import write_part
    from grefel.data.convert import plain_pixels
    folder, size = work/f'table-{rows}', 100_000
    if (folder/'done').exists(): return
    g, image_bytes = np.random.default_rng(SEED), plain_pixels(np.zeros((4, 4), np.uint8))
    count = -(-rows//size)
    def words(values, codes):
        codes = codes.astype(np.int32)
        return pa.DictionaryArray.from_arrays(codes, pa.array(values)).cast(pa.string())
    for k in range(count):
        at = np.arange(k*size, min((k + 1)*size, rows))
        name = pa.array([f'video{i//5000:04d}/{i % 5000:05d}.jpg' for i in at])
        image = pa.StructArray.from_arrays([pa.array([image_bytes]*len(at), pa.binary()), name],
                                           ['bytes', 'path'])
        write_part(folder/f'train-{k:05d}-of-{count:05d}.parquet', pa.table(dict(
            name=name, image=image, label=words(EXPRESSIONS, g.integers(0, 8, len(at))),
            split=words(['train', 'valid'], at//5000 % 10 == 9),
            subject=words([f'v{j}' for j in range(rows//5000 + 1)], at//5000),
            pixel_hash=pa.array(g.integers(-2**62, 2**62, len(at))))))
    (folder/'done').touch()


# ---- Readers: each gives a function that opens, and batches of (B, …, 48, 48) bytes

def stack(rows):
    "A batch of Hugging Face's rows: images (B, 48, 48) and labels."
    import torch
    return (torch.stack([torch.from_numpy(np.array(r['image'])) for r in rows]),
            [r['label'] for r in rows])


def imagefolder(work, workers):
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import PILToTensor
    data = ImageFolder(work/'images'/'train', transform=PILToTensor())
    return torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=workers,
                                       persistent_workers=True)


def datasets(work, workers):
    import datasets as hf
    import torch
    hf.disable_progress_bars()
    files = sorted(str(f) for f in (work/'shards').glob('*.parquet'))
    data = hf.load_dataset('parquet', data_files=files, split='train',
                           cache_dir=str(work/'cache')).select_columns(['image', 'label'])
    return torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=workers,
                                       persistent_workers=True, collate_fn=stack)


def datasets_stream(work, workers):
    import datasets as hf
    import torch
    hf.disable_progress_bars()
    files = sorted(str(f) for f in (work/'shards').glob('*.parquet'))
    data = hf.load_dataset('parquet', data_files=files, split='train',
                           streaming=True).select_columns(['image', 'label'])
    return torch.utils.data.DataLoader(data.shuffle(seed=SEED, buffer_size=8192), BATCH,
                                       num_workers=workers, collate_fn=stack)


def shards(work, workers):
    from grefel.data.stream import ShardDataset
    return ShardDataset(work/'shards', bs=BATCH, shuffle=True, drop_duplicates=False,
                        threads=workers)


def shards_workers(work, workers):
    import torch
    from grefel.data.stream import ShardDataset
    data = ShardDataset(work/'shards', bs=BATCH, shuffle=True, drop_duplicates=False, threads=1)
    return torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers,
                                       persistent_workers=True)


# stage → how it is opened, a module to import beforehand, and what it is, with {w} workers
READERS = {
    'imagefolder': (imagefolder, 'torchvision.datasets', 'torchvision ImageFolder, {w} workers'),
    'datasets': (datasets, 'datasets', 'Hugging Face datasets, from its cache, {w} workers'),
    'datasets-stream': (datasets_stream, 'datasets',
                        'Hugging Face datasets, streaming, {w} workers'),
    'shards': (shards, 'grefel.data.stream', 'grefel ShardDataset, {w} threads'),
    'shards-workers': (shards_workers, 'grefel.data.stream', 'grefel ShardDataset, {w} workers')}


def count(batch):
    "Images in a batch of any reader."
    return len(batch) if hasattr(batch, 'names') else len(batch[0])


def read(stage, work, n, workers, limit):
    """One epoch, or as much of it as fits into `limit` seconds.

    Images a second, and memory at every tenth of the epoch.
    """
    open_reader, module, what = READERS[stage]
    mb_start = megabytes()
    importlib.import_module(module)  # the time to import it is not the time to open
    start = time.perf_counter()
    batches = open_reader(work, workers)
    opened, mb_open = time.perf_counter() - start, megabytes()
    done, curve, start = 0, [], time.perf_counter()
    for batch in batches:
        done += count(batch)
        if done >= n*(len(curve) + 1)/10: curve.append(round(megabytes()))
        if time.perf_counter() - start > limit: break
    seconds = time.perf_counter() - start
    return dict(what=what.format(w=workers), open_s=opened, read=done, seconds=seconds,
                mb_start=mb_start, mb_open=mb_open, mb_peak=max(curve, default=megabytes()),
                mb_curve=' '.join(map(str, curve)))


def training_step(limit):
    "What a training step of the smallest model takes: the reader has to be faster than this."
    import torch
    from grefel.method.model import create_model
    model = create_model('nano').train()
    size = model.config['img_size']
    images, n = torch.randn(64, 3, size, size), 0
    def step(): model(images)['final_probs'].log().mean().backward()
    step()
    start = time.perf_counter()
    while n < 64*200 and time.perf_counter() - start < min(limit, 20):
        step()
        n += 64
    return dict(what=f'grefel_nano, one training step at {size} px, all cores', read=n,
                seconds=time.perf_counter() - start)


def table(stage, work, rows):
    "Seconds and memory to open the long table."
    from grefel.data.stream import ShardDataset, open_table
    from grefel.data.table import read_table
    folder = work/f'table-{rows}'
    how = {'table': ('grefel open_table: names, labels, splits, subjects',
                     lambda: open_table(folder)),
           'table-split': ('grefel ShardDataset, ready to stream, duplicates looked for',
                           lambda: ShardDataset(folder)),
           'table-pandas': ('grefel read_table without images',
                            lambda: read_table(folder, images=False))}
    what, opens = how[stage]
    mb_start, seen, done = megabytes(), [], threading.Event()
    def watch():
        while not done.wait(0.05): seen.append(megabytes())
    threading.Thread(target=watch, daemon=True).start()
    start = time.perf_counter()
    opened = opens()
    seconds = time.perf_counter() - start
    done.set()
    assert getattr(opened, 'num_rows', None) or len(getattr(opened, 'labels', opened))
    return dict(what=what, open_s=seconds, read=rows, mb_start=mb_start, mb_open=megabytes(),
                mb_peak=max([*seen, megabytes()]))


# ---- All of them

def child(args):
    "Do one stage and print its row as JSON."
    stage, work = args.stage[0], args.work
    if stage == 'make': row = make(work, args.n)
    elif stage == 'convert': row = convert(work, args.n)
    elif stage == 'table-make': row = table_make(work, args.rows)
    elif stage == 'training-step': row = training_step(args.limit)
    elif stage.startswith('table'): row = table(stage, work, args.rows)
    else: row = read(stage, work, args.n, args.workers, args.limit)
    print('ROW' + json.dumps(row))


def versions():
    from importlib.metadata import version
    names = ('torch', 'torchvision', 'pyarrow', 'datasets')
    def of(n):
        try: return f'{n} {version(n)}'
        except ImportError: return ''
    return ' '.join(filter(None, map(of, names)))


def rounded(row): return {k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}


def parsed():
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--n', type=int, default=500_000, help='images (500,000)')
    parser.add_argument('--rows', type=int, default=3_000_000,
                        help='rows of the long table (3 million)')
    parser.add_argument('--stage', nargs='+', choices=STAGES, default=STAGES, metavar='STAGE',
                        help=f'only these: {" ".join(STAGES)}')
    parser.add_argument('--work', type=Path,
                        default=Path(tempfile.gettempdir())/'grefel-bench-data',
                        help='folder for what is made')
    parser.add_argument('--out', type=Path, default=ROOT/'nbs/8_experiments/B02_data.csv')
    parser.add_argument('--workers', type=int, default=min(8, os.cpu_count() or 1),
                        help='worker processes or threads (one a core)')
    parser.add_argument('--limit', type=float, default=90,
                        help='seconds that one reader may read (90)')
    parser.add_argument('--child', action='store_true', help=argparse.SUPPRESS)
    return parser.parse_args()


def run_stage(stage, args):
    "Do one stage in a process of its own: its row, or None where there is nothing to note."
    command = [sys.executable, __file__, '--child', '--stage', stage, '--n', args.n,
               '--rows', args.rows, '--work', args.work, '--workers', args.workers,
               '--limit', args.limit]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True,
                          env=os.environ | {'HF_HUB_OFFLINE': '1'})
    if done.returncode: sys.exit(f'{stage} failed: {done.stderr[-3000:]}')
    row = json.loads(next(line for line in done.stdout.splitlines()
                          if line.startswith('ROW'))[3:])
    if row and row.get('seconds'): row['per_s'] = round(row['read']/row['seconds'])
    return row


def main():
    args = parsed()
    if args.child: return child(args)
    begin = time.time()
    about = dict(cores=os.cpu_count(), machine=cpu_name(), versions=versions(), commit=commit())
    for stage in args.stage:
        if stage.startswith('datasets') and 'datasets ' not in about['versions']:
            print(f'{stage}: skipped, needs pip install datasets')
            continue
        start, row = time.time(), run_stage(stage, args)
        if row:
            n = args.rows if stage.startswith('table') else args.n
            args.out.parent.mkdir(parents=True, exist_ok=True)
            put_rows(args.out, [rounded(dict(stage=stage, n=n) | row | about)], COLUMNS,
                     same=('stage',), order=lambda r: STAGES.index(r['stage']))
        print(f'{stage:16s} {time.time() - start:6.1f} s  {json.dumps(rounded(row or {}))}',
              flush=True)
    print(f'{time.time() - begin:.0f} s; results in {args.out}; {args.work} may be deleted')


if __name__ == '__main__': main()
