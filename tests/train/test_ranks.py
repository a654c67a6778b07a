"""Several processes: the steps of one, every face once, one writer, one line when one is gone."""
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.basics import Callback
from torch import nn

from grefel.base.core import GrefelError
from grefel.data.faces import load_faces
from grefel.measure.answers import predict_data
from grefel.method.files import load_model
from grefel.method.losses import landmark_loss
from grefel.train.loader import face_dls, FaceLoader
from grefel.train.ranks import (
    average_buffers, join_ranks, rank_and_world, Ranks, same_on_all, share_of, sum_over_ranks)
from grefel.train.runs import Recipe, train
from .processes import on_ranks, start, wait

PLAIN = dict(size='plain', model=dict(widths=[8]*4, drop_rate=0.))
NANO = dict(size='nano', img_size=32, model=dict(widths=[8]*4, depths=[1, 1, 0, 0], embed_dim=16,
                                                 drop_rate=0.))


def weights(folder, name='last.safetensors'): return load_model(folder/name).state_dict()


def same(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


# --- every face once ---

def rows_of(loader): return [b[-1].tolist() for b in loader.batches]


@pytest.mark.parametrize('world', (1, 2, 4, 8))
@pytest.mark.parametrize('n', (96, 90, 16))
def test_ranks_share_the_batches_of_one_process(faces, plain, world, n):
    some, tfm = faces.subset(range(n)), face_dls(faces, faces, plain).valid.transform
    def loader(**kw): return FaceLoader(some, tfm, 16, True, seed=3, **kw)
    ranks, alone = [loader(rank=r, world=world) for r in range(world)], loader()
    for _ in range(2):  # two epochs
        whole, shares = rows_of(alone), [rows_of(r) for r in ranks]
        assert [sum(parts, []) for parts in zip(*shares)] == whole
        assert {len(s) for s in shares} == {len(alone)} == {n//16}
        assert {len(b) for s in shares for b in s} == {16//world}


@pytest.mark.parametrize('world', (1, 2, 3, 5))
def test_ranks_share_validation_faces_without_a_rest(faces, plain, world):
    some, tfm = faces.subset(range(83)), face_dls(faces, faces, plain).valid.transform
    ranks = [FaceLoader(some, tfm, 30, rank=r, world=world) for r in range(world)]
    shares = [rows_of(r) for r in ranks]
    assert sum((sum(s, []) for s in shares), []) == list(range(83))
    assert [len(s) for s in shares] == [len(r) for r in ranks]
    assert max(len(b) for s in shares for b in s) <= 30//world


def test_ranks_augment_and_hide_differently(faces, plain):
    twins = faces.subset([0]*32)  # the same face again and again
    tfm = face_dls(faces, faces, plain, augment='light').train.transform
    a, b = (next(iter(FaceLoader(twins, tfm, 32, True, .5, rank=r, world=2))) for r in (0, 1))
    assert not torch.equal(a[0], b[0]) and not torch.equal(a[1].isnan(), b[1].isnan())


@pytest.mark.parametrize('n, bs, world, said', [
    (96, 32, 3, 'bs is 32; 3 processes share it'), (3, 4, 4, '3 faces .* too few for 4')])
def test_what_cannot_be_shared(faces, plain, n, bs, world, said):
    tfm = face_dls(faces, faces, plain).valid.transform
    with pytest.raises(GrefelError, match=said):
        FaceLoader(faces.subset(range(n)), tfm, bs, True, rank=0, world=world)


def test_alone_nothing_is_exchanged():
    layer = nn.BatchNorm1d(2)
    layer.running_mean.fill_(3)
    average_buffers(layer)
    same_on_all(layer)
    assert (join_ranks('cuda'), rank_and_world(), share_of(7)) == ('cuda', (0, 1), 7)
    assert sum_over_ranks([1, torch.tensor(2)]) == [1., 2.] and layer.running_mean[0] == 3


def test_what_ranks_tell_each_other():
    def work(rank):
        join_ranks()
        layers = [nn.BatchNorm1d(2), nn.Linear(1, 1)]
        for tensor in (*layers[0].buffers(), *layers[1].parameters()): tensor.data.fill_(rank)
        average_buffers(*layers)
        same_on_all(layers[1])
        return [*sum_over_ranks([rank, .5]), layers[0].running_var.tolist(),
                int(layers[0].num_batches_tracked), layers[1].weight.item(), *rank_and_world()]
    assert on_ranks(3, work) == [[3., 1.5, [1., 1.], r, 0., r, 3] for r in range(3)]


def test_unknown_landmarks_leave_a_gradient_of_zeros():
    points = torch.rand(2, 68, 2, requires_grad=True)
    landmark_loss(points, None).backward()  # DDP waits for the gradient of every parameter
    assert points.grad is not None and not points.grad.any()


# --- the same steps ---

class Frozen(Callback):
    "BatchNorm uses its running statistics, and the loss of each step is noted."
    def __init__(self): self.seen = []

    def before_batch(self):
        for m in self.learn.model.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm): m.eval()

    def after_loss(self):
        if self.training: self.seen.append(float(self.loss))


def steps(world, recipe, out):
    "What each of some processes ends with: the losses of its steps, and a sum of its weights."
    def work(rank):
        noted = Frozen()
        learn = train(recipe, out, progress=None, cbs=[noted])
        total = sum(p.double().sum().item() for p in learn.model.parameters())
        return dict(losses=noted.seen, total=total)
    return on_ranks(world, work)


@pytest.mark.parametrize('kind, worlds', [(PLAIN, (2, 4)), (NANO, (2,))])
def test_several_take_the_steps_of_one(recipe, tmp_path, kind, worlds):
    made = recipe(epochs=1, bs=4, augment='none', **kind)
    one, = steps(1, made, tmp_path/'1')
    assert len(one['losses']) >= 20
    for world in worlds:
        found = steps(world, made, tmp_path/str(world))
        mean = np.mean([f['losses'] for f in found], 0)
        np.testing.assert_allclose(mean[:20], one['losses'][:20], atol=1e-5, rtol=0)
        assert len({f['total'] for f in found}) == 1  # all ranks hold the same weights
        theirs, own = (pd.read_csv(tmp_path/str(w)/'history.csv').drop(columns='seconds')
                       for w in (world, 1))
        pd.testing.assert_frame_equal(theirs, own, atol=1e-4, rtol=0)


# --- a run of two ---

class KillAt(Callback):
    "One rank dies in an epoch, as by the kernel's hand."
    order = 90

    def __init__(self, epoch, rank, sign=signal.SIGKILL):
        self.at, self.dies, self.sign = epoch, rank, sign

    def after_batch(self):
        if self.training and (self.epoch, rank_and_world()[0]) == (self.at, self.dies):
            os.kill(os.getpid(), self.sign)


class Spoil(Callback):
    "The loss of one rank is no number in one step."
    order = 1

    def after_loss(self):
        if self.training and (self.epoch, self.iter, rank_and_world()[0]) == (1, 1, 1):
            self.learn.loss = self.loss*float('nan')


def trained(world, recipe, out, *cbs, cut=False):
    "A run on some processes; where it's cut short, what became of each of them."
    def work(rank): return train(recipe, out, progress=None, cbs=[c() for c in cbs]) and None
    if not cut: return on_ranks(world, work)
    with tempfile.TemporaryDirectory() as folder:
        return wait(start(world, work, Path(folder)), Path(folder), 30)


@pytest.fixture(scope='module')
def two(data, tmp_path_factory):
    "A run of two processes, whole; and one of which the second process was killed in epoch 1."
    root = tmp_path_factory.mktemp('two')
    made = Recipe(data=data, epochs=3, bs=32, seed=5, ema=.9, augment='light', hide_landmarks=.5,
                  place_anchors=1, mixup=.2, **NANO)
    trained(2, made, root/'whole')
    since = time.monotonic()
    ended = trained(2, made, root/'cut', lambda: KillAt(1, 1), cut=True)
    return made, root, ended, time.monotonic() - since


def test_the_history_tells_of_all_validation_faces(two, data):
    made, root, *_ = two
    model, faces = load_model(root/'whole'/'last.safetensors'), load_faces(data, 'valid')
    found = predict_data(model, faces, temperature=1)
    last = pd.read_csv(root/'whole'/'history.csv').iloc[-1]
    right = (found['final_probs'].argmax(1) == faces.labels.numpy()).mean()
    assert last.accuracy == pytest.approx(right, abs=1e-6) and last.epoch == 2
    files = {p.name for p in (root/'whole').iterdir()}
    assert files == {'.lock', 'config.json', 'history.csv', 'last.safetensors',
                     'weights.safetensors'}


def test_a_killed_rank_ends_the_others_in_one_line(two):
    *_, ended, seconds = two
    assert ended[1] is None and ended[0]['code'] == 1 and seconds < 30
    assert re.fullmatch('another process of this training has ended; the same command continues '
                        'after the last whole epoch\n', ended[0]['said'])


@pytest.mark.parametrize('world', (2, 1, 4))
def test_the_same_command_resumes_on_any_number_of_ranks(two, tmp_path, world):
    made, root, *_ = two
    shutil.copytree(root/'cut', tmp_path/'run')
    trained(world, made, tmp_path/'run')
    history, whole = (pd.read_csv(f/'history.csv').drop(columns='seconds')
                      for f in (tmp_path/'run', root/'whole'))
    assert history.epoch.tolist() == [0, 1, 2]
    pd.testing.assert_frame_equal(history[:1], whole[:1])
    same_bits = same(weights(tmp_path/'run'), weights(root/'whole'))
    assert same_bits if world == 2 else all(v.isfinite().all()
                                            for v in weights(tmp_path/'run').values())


def test_what_all_ranks_run_into_is_said_once(two):
    made, root, *_ = two
    ended = trained(2, made, root/'whole', cut=True)
    assert [e['code'] for e in ended] == [1, 1]
    said = [e['said'] for e in ended if e['said']]
    assert len(said) == 1 and 'holds this run, finished' in said[0] and said[0].count('\n') == 1


def test_a_loss_that_is_no_number_on_one_rank_ends_all_in_one_line(two, tmp_path):
    made, *_ = two
    ended = trained(2, made, tmp_path/'run', Spoil, cut=True)
    assert [e['code'] for e in ended] == [1, 1]
    said = [e['said'] for e in ended if e['said']]
    assert len(said) == 1 and said[0].count('\n') == 1
    assert 'epoch 1, step 1: the loss is not a finite number' in said[0]
    assert all(v.isfinite().all() for v in weights(tmp_path/'run', 'weights.safetensors').values())


def test_streamed_shards_are_shared_too(recipe, tmp_path):
    made = recipe(epochs=2, stream=True, targets='hard', **PLAIN)
    trained(2, made, tmp_path/'run')
    assert len(pd.read_csv(tmp_path/'run'/'history.csv')) == 2


# --- as one starts it ---

@pytest.mark.slow
@pytest.mark.parametrize('launcher', (
    ['torchrun', '--nproc_per_node', '2'],
    ['accelerate', 'launch', '--cpu', '--num_processes', '2', '--num_machines', '1',
     '--mixed_precision', 'no', '--dynamo_backend', 'no']))
def test_launchers_start_the_command(data, tmp_path, launcher):
    program, *options = launcher
    done = subprocess.run([str(Path(sys.executable).with_name(program)), *options, '-m', 'grefel',
                           'train', '--data', data, '--size', 'plain', '--epochs', '1',
                           '--set', 'model.widths=[8,8,8,8]', '--out', str(tmp_path/'run'),
                           '--quiet'], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count('Best epoch') == 1
    assert len(pd.read_csv(tmp_path/'run'/'history.csv')) == 1


@pytest.mark.slow
def test_two_learn_as_well_as_one(data, tmp_path):
    "With BatchNorm and augmentation at work: accuracy on drawn faces, three seeds each."
    found = {}
    for world in (1, 2):
        for seed in range(3):
            made = Recipe(data='synth', limit=512, epochs=6, bs=32, seed=seed, ema=.95, lr=3e-3,
                          **NANO)
            out = tmp_path/f'{world}-{seed}'
            trained(world, made, out)
            found.setdefault(world, []).append(pd.read_csv(out/'history.csv').accuracy.max())
    a, b = (np.array(found[w]) for w in (1, 2))
    noise = np.sqrt((a.var(ddof=1) + b.var(ddof=1))/3) + .01
    assert abs(a.mean() - b.mean()) < 3*noise


@pytest.mark.parametrize('device, made', [('meta', 1), ('cpu', 0)])
def test_on_gpus_batch_normalisation_counts_the_faces_of_all(monkeypatch, device, made):
    "Several GPUs are asked for as what they aren't here: a device that isn't the CPU."
    converted = []
    monkeypatch.setattr(nn.SyncBatchNorm, 'convert_sync_batchnorm', converted.append)
    monkeypatch.setattr('accelerate.Accelerator', lambda **kw: SimpleNamespace(
        prepare_model=lambda model: model))
    model = nn.Linear(2, 2, device=device)
    assert Ranks._wrapped(SimpleNamespace(model=model)) is model and len(converted) == made
