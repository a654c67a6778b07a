"""Several processes in a test: forked, so that they start at once, and told what torchrun says."""
import contextlib
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

import accelerate  # noqa: F401 (imported once, before processes are forked)
import torch
import torch.distributed as dist
import torch._dynamo.utils  # noqa: F401 (likewise: DDP wants it)

from grefel.base.core import GrefelError

FORK = multiprocessing.get_context('fork')


def _child(work, rank, world, port, out):
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                       LOCAL_WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port),
                       TORCHELASTIC_USE_AGENT_STORE='True', OMP_NUM_THREADS='1')
    torch.set_num_threads(1)
    said, code, found = io.StringIO(), 0, None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try: found = work(rank)
        except SystemExit as e: code = e.code
        except GrefelError as e:  # as the command says it
            code = 1
            print(e, file=said)
        except BaseException:
            code = 1
            traceback.print_exc()
    (out/f'{rank}.json').write_text(json.dumps(dict(code=code, said=said.getvalue(), found=found)))
    os._exit(code)


def start(world, work, out):
    "Processes, each doing `work(rank)`; what becomes of them is read from the folder `out`."
    store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)  # as torchrun's
    processes = [FORK.Process(target=_child, args=(work, r, world, store.port, out))
                 for r in range(world)]
    for p in processes:
        p.start()
        p.store = store  # it lives as long as they do
    return processes


def wait(processes, out, seconds=60):
    "Of each process: its exit code, its error stream, its result; None for one that was killed."
    end = time.monotonic() + seconds
    for p in processes: p.join(max(0, end - time.monotonic()))
    late = [p for p in processes if p.is_alive()]
    for p in late: p.kill()
    assert not late, f'{len(late)} of {len(processes)} processes did not end'
    files = [out/f'{r}.json' for r in range(len(processes))]
    return [json.loads(f.read_text()) if f.exists() else None for f in files]


def on_ranks(world, work):
    "The results of `work(rank)` on each of several processes."
    with tempfile.TemporaryDirectory() as folder:
        ended = wait(start(world, work, Path(folder)), Path(folder))
    for e in ended:
        if e['code']: print(e['said'], file=sys.stderr)
    assert not any(e['code'] for e in ended)
    return [e['found'] for e in ended]
