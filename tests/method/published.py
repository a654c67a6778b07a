"Random numbers under all names of POSTER++'s published checkpoints, for tests."
import pandas as pd
import torch

from grefel.base.core import manifest
from grefel.method.window import relative_index


def checkpoint(num_classes=8, seed=0):
    "As notebook 21 makes it: chosen so that every part has a say."
    names = pd.read_csv(manifest('poster_v2_names.csv'), keep_default_na=False)
    state, g = {}, torch.Generator().manual_seed(seed)
    for name, shape in zip(names.name, names['shape']):
        size = [int(d) for d in shape.split('x') if d]
        if name.startswith('VIT.head'): size[0] = num_classes
        x = torch.randn(size, generator=g)
        if name.endswith('relative_position_index'): x = relative_index(round(size[0]**0.5))
        elif name.endswith('num_batches_tracked'): x = torch.tensor(0)
        elif name.endswith('running_var'): x = 0.5 + x.abs()
        elif name.endswith('weight'):
            sharp = 4 if 'qkv' in name else 1
            x = sharp*x/x[0].numel()**0.5 if x.ndim > 1 else 0.6 + 0.3*x
        state[name] = x
    return state


def part(state, prefix):
    "The tensors whose names begin so, without it."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
