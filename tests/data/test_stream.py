"""Streaming: every row once, however many readers there are, from anywhere, as in memory."""
import re
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from fsspec.core import url_to_fs
from PIL import Image
from torch.testing import assert_close
from torch.utils.data import DataLoader

from grefel.base.core import EXPRESSIONS, GrefelError
from grefel.base.synth import synth_faces
from grefel.data.augment import make_transform
from grefel.data.convert import convert
from grefel.data.faces import load_faces
from grefel.data import stream as stream_module
from grefel.data.stream import _cut, _mixed, open_table, shard_files, ShardDataset, StreamBatches
from .conftest import png, put


@pytest.fixture(scope='module')
def drawn(): return synth_faces(100, size=48, seed=0)


@pytest.fixture(scope='module')
def root(tmp_path_factory, drawn):
    "Two hundred faces, 180 of them train, in one file, in even shards and in uneven ones."
    root = tmp_path_factory.mktemp('stream')
    def shade(i): return (drawn['images'][i % 100, 0].int() - 3*(i//100)).clamp(0, 255).byte()
    pd.DataFrame(dict(name=[f'{i:03d}' for i in range(200)],
                      image=[png(shade(i)) for i in range(200)],
                      label=[EXPRESSIONS[drawn['labels'][i % 100]] for i in range(200)],
                      split=['valid' if i % 10 == 9 else 'train' for i in range(200)])
                 ).to_parquet(root/'faces.parquet')
    convert(root/'faces.parquet', root/'shards', shard_rows=70)
    convert(root/'faces.parquet', root/'uneven', split='train', shard_rows=13)
    return root


def everything(dataset, epoch=0):
    dataset.epoch = epoch
    parts = list(dataset)
    columns = {k: torch.cat([getattr(b, k) for b in parts])
               for k in ('images', 'labels', 'targets', 'landmarks')}
    return columns | dict(names=sum((b.names for b in parts), []),
                          index=torch.cat([b.extra['index'] for b in parts]))


def rows(dataset, epoch=0): return everything(dataset, epoch)['index'].tolist()


def uneven(root, **kw):
    return ShardDataset(root/'uneven', **dict(bs=5, drop_duplicates=False) | kw)


# the same faces

@pytest.mark.parametrize('shuffle', (False, True))
def test_the_stream_gives_what_load_faces_gives(root, shuffle):
    whole = load_faces(root/'faces.parquet', 'train')
    stream = ShardDataset(root/'shards', bs=16, shuffle=shuffle, buffer=32)
    found = everything(stream)
    place = {n: i for i, n in enumerate(whole.names)}
    order = [place[n] for n in found['names']]
    assert sorted(order) == list(range(180))
    for column in ('images', 'targets', 'labels'):
        assert found[column].equal(getattr(whole, column)[order])
    assert (stream.grey, stream.face_size, stream.notes['rows']) == (True, 48, 180)
    assert_close(stream.share, whole.share)


@pytest.mark.parametrize('targets, n', [('votes', 8), ('raw', 7), ('hard', 7)])
def test_votes_and_landmarks_are_those_of_load_faces(tmp_path, drawn, targets, n):
    points = drawn['landmarks'][:3].flatten(1).numpy().astype(np.float32)
    tall = png(Image.fromarray(drawn['images'][0, 0].numpy()).resize((66, 99)))
    table = pd.DataFrame(dict(name=list('abc'), image=[tall]*3, votes=list(np.eye(10)[:3]*10),
                              landmarks=[points[0], None, points[2]]))
    table.to_parquet(tmp_path/'t.parquet')
    kw = dict(targets=targets, num_classes=n, img_size=64)
    a = load_faces(tmp_path/'t.parquet', None, **kw)
    b = everything(ShardDataset(tmp_path/'t.parquet', None, **kw))
    assert_close(a.targets, b['targets'])
    assert_close(a.landmarks, b['landmarks'], equal_nan=True)
    assert a.images.equal(b['images']) and a.labels.equal(b['labels'])


def test_true_distributions(tmp_path):
    convert('synth', tmp_path/'s.parquet', n=12)
    a = load_faces('synth', 'valid', n=12, targets='truth')
    b = everything(ShardDataset(tmp_path/'s.parquet', 'valid', targets='truth'))
    assert_close(a.targets, b['targets'])
    assert_close(a.landmarks, b['landmarks'])
    assert a.images.equal(b['images'])


def test_votes_in_another_order_of_classes(tmp_path, drawn):
    votes = [[7, 3] + [0]*8, [0, 6, 4] + [0]*7, [0]*7 + [10, 0, 0], [5, 5] + [0]*8]  # a tie
    table = pd.DataFrame(dict(name=list('abcd'), image=[png(x[0]) for x in drawn['images'][:4]],
                              votes=votes))
    table.to_parquet(tmp_path/'v.parquet')
    usual, other = (ShardDataset(tmp_path/'v.parquet', None, classes=c, targets='votes')
                    for c in (None, EXPRESSIONS[::-1]))
    assert_close(other.share.flip(0), usual.share)
    assert_close(usual.share, everything(usual)['targets'].mean(0))
    assert_close(everything(other)['targets'].flip(1), everything(usual)['targets'])
    assert usual.share[1] == pytest.approx(.3) and len(usual.labels) == 3


@pytest.mark.parametrize('rule', ('majority', 'argmax'))
def test_a_row_without_votes_is_left_out(tmp_path, drawn, rule):
    table = pd.DataFrame(dict(name=list('ab'), image=[png(x[0]) for x in drawn['images'][:2]],
                              votes=[[0]*10, [0, 10] + [0]*8]))
    table.to_parquet(tmp_path/'v.parquet')
    assert everything(ShardDataset(tmp_path/'v.parquet', None, rule=rule))['names'] == ['b']


def labelled(path, drawn, labels=('Happy', 'sad', 'None', 'contempt'), **more):
    table = pd.DataFrame(dict(name=list('abcd')[:len(labels)], label=list(labels),
                              image=[png(x[0]) for x in drawn['images'][:len(labels)]], **more))
    return put(path, table.to_parquet())


def test_labels_in_any_spelling_and_splits_by_files(tmp_path, drawn):
    labelled(tmp_path/'train.parquet', drawn)
    labelled(tmp_path/'valid.parquet', drawn, ['Happy'])
    for s in ('train', 'valid'):
        assert everything(ShardDataset(tmp_path, s))['labels'].equal(
            load_faces(tmp_path, s, drop_duplicates=False).labels)


def test_splits_by_a_column_in_any_spelling(tmp_path, drawn):
    file = labelled(tmp_path/'a.parquet', drawn, split=['Training', 'val', 'train', 'train'])
    assert ShardDataset(file).labels.tolist() == [1, 7]


@pytest.mark.parametrize('classes', (None, (*EXPRESSIONS[:7], 'other')))
def test_other_is_a_class_where_it_is_asked_for(tmp_path, drawn, classes):
    file = labelled(tmp_path/'a.parquet', drawn, ['happy', 'sad', 'other'])
    a, b = load_faces(file, classes=classes), everything(ShardDataset(file, None, classes=classes))
    assert a.labels.equal(b['labels']) and a.images.equal(b['images'])


# every row once

@pytest.mark.parametrize('workers', (0, 2))
@pytest.mark.parametrize('world', (1, 2, 4, 7))
def test_every_row_once_whatever_the_readers(root, world, workers):
    if workers and world != 2: pytest.skip('processes are slow to start: once is enough')
    for epoch in range(2):
        read = []
        for rank in range(world):
            dataset = uneven(root, shuffle=True, rank=rank, world=world, threads=1)
            dataset.epoch = epoch
            loader = DataLoader(dataset, batch_size=None, num_workers=workers)
            batches = [b.extra['index'].tolist() for b in loader]
            assert len(batches) == len(dataset)  # as many with workers as without
            read.append(sum(batches, []))
        assert sorted(sum(read, [])) == list(range(180))
        sizes = [len(r) for r in read]
        assert max(sizes) - min(sizes) <= 1


def test_an_epoch_repeats_and_the_next_is_another(root):
    a, b = uneven(root, shuffle=True), uneven(root, shuffle=True)
    assert rows(a) == rows(b) and rows(a, 1) == rows(b, 1)
    assert rows(a) != rows(a, 1) and rows(a) != rows(uneven(root, shuffle=True, seed=1))
    assert rows(uneven(root)) == list(range(180))  # in order, if not shuffled


def test_groups_come_in_another_order_and_rows_are_mixed(root):
    # a buffer of one row mixes within the thirteen rows of a shard, hardly beyond
    epochs = [rows(uneven(root, shuffle=True, buffer=1), epoch) for epoch in (0, 1)]
    groups = [list(dict.fromkeys(i//13 for i in read)) for read in epochs]
    assert groups[0] != groups[1] and sorted(groups[0]) == sorted(groups[1])
    first = [i for i in epochs[0] if i//13 == groups[0][0]]
    assert first != sorted(first)


def test_shuffling_reaches_far(root):
    place = torch.tensor(rows(uneven(root, shuffle=True, buffer=64))).argsort()
    assert (place - torch.arange(180)).abs().float().mean()/180 > .2  # a perfect shuffle: 1/3


@pytest.mark.parametrize('world', (1, 3, 7))
def test_full_batches_only_and_equally_many(root, world):
    readers = [uneven(root, bs=8, shuffle=True, rank=r, world=world, drop_last=True)
               for r in range(world)]
    lengths = [[len(b) for b in r] for r in readers]
    assert {len(n) for n in lengths} == {len(readers[0])} and {x for n in lengths for x in n} == {8}
    seen = sum(map(rows, readers), [])
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize('kw', [dict(bs=200), dict(bs=100, rank=0, world=2)])
def test_not_one_full_batch(root, kw):
    assert len(uneven(root, **kw))
    with pytest.raises(GrefelError, match='do not fill a batch'): uneven(root, drop_last=True, **kw)


def test_more_readers_than_rows(root):
    many = [uneven(root, rank=r, world=300) for r in (0, 1, 299)]
    assert all(sum(len(b) for b in m) <= 1 for m in many)


def test_any_seed(root): assert len(rows(uneven(root, shuffle=True, seed=2**40))) == 180


@pytest.mark.parametrize('n', (1, 2, 63, 64, 65))
def test_tables_are_cut_into_batches(n):
    cut = [len(t) for t in _cut([pa.table(dict(x=range(n)))]*2, 64)]
    assert cut == [64]*(2*n//64) + [2*n % 64]*(2*n % 64 > 0)


def test_mixing_loses_nothing():
    tables = (pa.table(dict(x=range(i, i + 10))) for i in range(0, 100, 10))
    mixed = sum((t['x'].to_pylist() for t in _mixed(tables, 25, torch.Generator())), [])
    assert sorted(mixed) == list(range(100)) and mixed != sorted(mixed)


def test_mixing_holds_no_more_than_its_buffer():
    read = []
    tables = (read.append(i) or pa.table(dict(x=range(10))) for i in range(100))
    assert len(next(_mixed(tables, 25, torch.Generator()))) == 5 and len(read) == 3


# duplicates and bad rows

def test_duplicates_of_later_splits_are_left_out(tmp_path, drawn):
    face, other = png(drawn['images'][0, 0]), png(255 - drawn['images'][0, 0])
    for path, content in {'train/fear/a': face, 'test/fear/b': face, 'train/fear/c': other}.items():
        put(tmp_path/'d'/f'{path}.png', content)
    convert(tmp_path/'d', tmp_path/'shards')
    dropped = ShardDataset(tmp_path/'shards')
    assert everything(dropped)['names'] == load_faces(tmp_path/'d').names
    assert dropped.notes['dropped_duplicates'] == 1
    assert len(ShardDataset(tmp_path/'shards', drop_duplicates=False).labels) == 2


def test_a_bad_image_is_left_out_and_noted(tmp_path, drawn):
    face = png(drawn['images'][0, 0])
    table = pd.DataFrame(dict(name=list('ab'), image=[face, face[:80]], label='fear'))
    table.assign(split='train').to_parquet(tmp_path/'bad.parquet')
    stream = ShardDataset(tmp_path/'bad.parquet')
    assert [b.names for b in stream] == [['a']] and [i for i, _ in stream.bad] == [1]


def test_without_votes_the_labels_are_learned(root):
    stream, labels = (ShardDataset(root/'shards', targets=t) for t in ('votes', 'hard'))
    assert stream.targets == stream.notes['targets'] == 'hard'
    assert torch.equal(next(iter(stream)).targets, next(iter(labels)).targets)


# what is refused

@pytest.mark.parametrize('source, kw, said', [
    ('nowhere', {}, 'no Parquet files'), ('shards', dict(split='test'), "no faces of split 'test'"),
    ('shards', dict(targets='raw'), 'has no votes'),
    ('shards', dict(split='dev'), 'unknown split'),
    ('shards', dict(rank=4, world=4), 'reader 4 of 4')])
def test_what_cannot_be_streamed(root, source, kw, said):
    with pytest.raises(GrefelError, match=said): ShardDataset(root/source, **kw)


@pytest.mark.parametrize('labels, said', [
    (['Happy', 'bored', 'sad', 'sad'], "'bored' is no expression"),
    ([1, 2, 3, 4], 'translates numbers')])
def test_labels_that_are_none(tmp_path, drawn, labels, said):
    file = labelled(tmp_path/'a.parquet', drawn, labels)
    with pytest.raises(GrefelError, match=said): ShardDataset(file, None)


def test_what_tells_no_split_is_not_trained_on(tmp_path, drawn):
    file = labelled(tmp_path/'whole.parquet', drawn)
    with pytest.raises(GrefelError, match='tells no splits'): ShardDataset(file)
    assert len(ShardDataset(file, None).labels) == 3


# tables and batches

def test_a_table_opens_without_its_images(root):
    table = open_table(root/'shards')
    assert len(table) == 200 and not {'image', 'landmarks'} & {*table.column_names}
    assert len(open_table(root/'shards', split='valid')) == 20
    assert open_table(root/'shards', ['label']).column_names == ['label']
    assert len(shard_files(root/'shards')) == 4
    put(root/'text.parquet', b'no table')
    with pytest.raises(GrefelError, match='not a readable Parquet'): open_table(root/'text.parquet')


def test_batches_for_training(root):
    def stream(): return StreamBatches(ShardDataset(root/'shards', bs=16, shuffle=True,
                                                    drop_last=True), make_transform('light', 32))
    one, two = stream(), stream()
    images, landmarks, targets, index = next(iter(stream()))
    assert [tuple(t.shape) for t in (images, landmarks, targets, index)] == [
        (16, 3, 32, 32), (16, 68, 2), (16, 8), (16,)]
    first, again = list(one), list(two)
    assert all(torch.equal(a, b) for s, t in zip(first, again) for a, b in zip(s, t)
               if not a.isnan().any())
    second = list(one)
    assert len(first) == len(one) == 11 and one.epoch == 2
    assert [i[3].tolist() for i in first] != [i[3].tolist() for i in second]
    one.epoch = 1
    assert all(torch.equal(s[0], t[0]) for s, t in zip(second, one))


# from anywhere

class Ranges(SimpleHTTPRequestHandler):
    "A web server that serves parts of files, as stores do; and that loses connections when told."
    breaks = 0  # so many of the next answers end half-way

    def do_GET(self):
        path = self.translate_path(self.path)
        asked = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range') or '')
        if not asked: return super().do_GET()
        with open(path, 'rb') as file: content = file.read()
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        part = content[first:last + 1]
        self.send_response(206)
        self.send_header('Content-Length', str(len(part)))
        self.send_header('Content-Range', f'bytes {first}-{last}/{len(content)}')
        self.end_headers()
        if Ranges.breaks:
            Ranges.breaks -= 1
            self.wfile.write(part[:len(part)//2])
            self.close_connection = True
        else: self.wfile.write(part)

    def end_headers(self):
        self.send_header('Accept-Ranges', 'bytes')
        super().end_headers()

    def log_message(self, *_): pass


@pytest.fixture
def site(root):
    "The shards behind http://127.0.0.1."
    def handler(*args): return Ranges(*args, directory=str(root))
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Ranges.breaks = 0
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


@pytest.fixture
def memory(root):
    "The shards in fsspec's store in memory."
    fs, _ = url_to_fs('memory://')
    fs.put(f"{root/'shards'}/", '/stored/', recursive=True)
    yield fs
    fs.rm('/stored', recursive=True)


@pytest.fixture
def hurried(monkeypatch): monkeypatch.setattr(stream_module, '_WAITS', (.01, .01, .01))


def test_rows_are_the_same_wherever_shards_lie(root, site, memory):
    near = everything(ShardDataset(root/'shards', bs=16, shuffle=True, buffer=32), 3)
    for where in (f'{site}/shards', 'memory://stored', f"file://{root/'shards'}",
                  [f'{site}/shards/{f.name}' for f in shard_files(root/'shards')]):
        far = everything(ShardDataset(where, bs=16, shuffle=True, buffer=32), 3)
        assert far['names'] == near['names'] and far['images'].equal(near['images'])
        assert open_table(where).to_pydict() == open_table(root/'shards').to_pydict()


def test_a_broken_connection_is_tried_again(site, root, hurried):
    stream = ShardDataset(f'{site}/shards', bs=16)
    Ranges.breaks = 2
    assert rows(stream) == rows(ShardDataset(root/'shards', bs=16)) and Ranges.breaks == 0


def test_a_connection_that_stays_broken_is_one_line(site, hurried):
    stream = ShardDataset(f'{site}/shards', bs=16)
    Ranges.breaks = 10**6
    with pytest.raises(GrefelError, match=r'train-.*\.parquet: cannot be read') as e: rows(stream)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('where, said', [
    ('memory://nowhere', 'memory://nowhere: no Parquet files here'),
    ('nonsense://x', 'nonsense://x: .*nonsense'),
    ('http://127.0.0.1:9/x.parquet', 'x.parquet: cannot be read')])
def test_what_is_not_there(hurried, where, said):
    with pytest.raises(GrefelError, match=said): ShardDataset(where)


@pytest.mark.parametrize('gone', ('train-00000-of-00003', 'train-00002-of-00003'))
def test_a_missing_shard_is_named(root, memory, tmp_path, gone):
    shutil.copytree(root/'shards', tmp_path/'shards')
    (tmp_path/'shards'/f'{gone}.parquet').unlink()
    memory.rm(f'/stored/{gone}.parquet')
    for where in (tmp_path/'shards', 'memory://stored'):
        with pytest.raises(GrefelError, match=f'{gone}.parquet: is missing; 2 of 3'):
            ShardDataset(where)
    memory.touch(f'/stored/{gone}.parquet')


@pytest.mark.parametrize('far', (False, True))
def test_a_shard_that_is_cut_short_is_never_trained_on(root, memory, tmp_path, far, hurried):
    name = 'train-00001-of-00003.parquet'
    shutil.copytree(root/'shards', tmp_path/'shards')
    whole = (tmp_path/'shards'/name).read_bytes()
    where = 'memory://stored' if far else tmp_path/'shards'
    def store(content):
        if far: memory.pipe(f'/stored/{name}', content)
        else: (tmp_path/'shards'/name).write_bytes(content)
    for n in (0, 4, len(whole)//2, len(whole) - 1):
        store(whole[:n])
        with pytest.raises(GrefelError, match=f'{name}: not a readable'): ShardDataset(where)
    store(whole)
    stream = ShardDataset(where, bs=16)
    store(whole[:len(whole)//2])  # while training runs
    with pytest.raises(GrefelError, match=f'{name}: ') as e: rows(stream)
    assert '\n' not in str(e.value)
