"""Settings for all tests: offline, one thread, no window; slow tests only with SLOW=1."""
import os
import sys

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('MPLBACKEND', 'agg')
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest  # noqa: E402


def pytest_collection_modifyitems(config, items):
    if os.environ.get('SLOW'): return
    skip = pytest.mark.skip(reason='takes minutes: run with SLOW=1')
    for item in items:
        if 'slow' in item.keywords: item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded():
    "Every test begins from the same random numbers and with no figure open, whatever ran before."
    import random
    import numpy as np
    import torch
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    if 'matplotlib.pyplot' in sys.modules: sys.modules['matplotlib.pyplot'].close('all')
