"""Conversion: the same faces as before, and every row is stored or listed."""
import os

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch.testing import assert_close

from grefel.base.core import EXPRESSIONS, GrefelError
from grefel.base.images import load_image
from grefel.base.synth import synth_faces
from grefel.data.convert import convert, plain_pixels
from grefel.data.faces import load_faces
from grefel.data.landmarks import write_landmarks
from grefel.data.lookalikes import lookalike, LOOKALIKES
from .conftest import png, put


@pytest.fixture(scope='module')
def drawn(): return synth_faces(60, size=48, seed=0)


@pytest.fixture
def faces(tmp_path, drawn):
    "Sixty drawings in class folders, and four files that are no faces."
    for i in range(60):
        split, label = 'valid' if i % 10 == 9 else 'train', EXPRESSIONS[drawn['labels'][i]]
        put(tmp_path/'faces'/split/label/f'{i:04d}.png', png(drawn['images'][i, 0]))
    face = png(drawn['images'][0, 0])
    for name, content in {'fear/broken.png': face[:90], 'fear/empty.jpg': b'',
                          'fear/text.png': b'no image', 'bored/x.png': face}.items():
        put(tmp_path/'faces'/'train'/name, content)
    return tmp_path/'faces'


def by_name(d): return d.subset(np.argsort(d.names))


def assert_same(a, b):
    a, b = by_name(a), by_name(b)
    assert a.names == b.names and a.classes == b.classes
    assert a.images.equal(b.images) and a.labels.equal(b.labels)
    assert_close(a.targets, b.targets)
    assert_close(a.landmarks, b.landmarks, equal_nan=True)


# images

@pytest.mark.parametrize('shape', [(3, 4), (3, 4, 3)])
def test_plain_pixels_are_read_by_everybody(shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    image = load_image(plain_pixels(array))
    np.testing.assert_array_equal(image.convert('L') if len(shape) == 2 else image, array)


@pytest.mark.parametrize('size', (None, 32, 48))
def test_images_of_any_kind_and_shape(tmp_path, drawn, size):
    (tmp_path/'d'/'Happy').mkdir(parents=True)
    for kind, mode in dict(grey='L', palette='P', alpha='LA', colour='RGB').items():
        image = Image.fromarray(drawn['images'][0, 0].numpy()).convert(mode).resize((60, 44))
        image.save(tmp_path/'d'/'Happy'/f'{kind} é.PNG')
    convert(tmp_path/'d', tmp_path/'d.parquet', img_size=size)
    assert_same(*(load_faces(tmp_path/f, None, img_size=size) for f in ('d', 'd.parquet')))


def test_large_images_are_kept_byte_for_byte(tmp_path, drawn):
    big = png(np.kron(drawn['images'][0, 0], np.ones((2, 2), np.uint8)))
    put(tmp_path/'d'/'happy'/'a.png', big)
    convert(tmp_path/'d', tmp_path/'d.parquet')
    assert pq.read_table(tmp_path/'d.parquet')['image'][0].as_py()['bytes'] == big
    convert(tmp_path/'d', tmp_path/'e.parquet', img_size=32)
    assert pq.read_table(tmp_path/'e.parquet')['image'][0].as_py()['bytes'].startswith(b'P5\n32 32')


# rows

@pytest.mark.parametrize('shards', (False, True))
def test_every_row_is_stored_or_listed_with_its_reason(tmp_path, faces, shards):
    out = tmp_path/('out' if shards else 'out.parquet')
    done = convert(faces, out, shard_rows=20)
    assert (done['rows'], done['stored'], done['bad']) == (64, 60, 4)
    bad = pd.read_csv(done['report'])
    names = {os.path.basename(f) for f in bad.file}
    assert names == {'broken.png', 'empty.jpg', 'text.png', 'x.png'}
    assert bad.reason.str.contains("'bored' is no expression").sum() == 1
    assert sum(pq.read_metadata(f).num_rows for f in done['files']) == 60
    for s in ('train', 'valid'): assert_same(load_faces(faces, s), load_faces(out, s))


@pytest.mark.parametrize('name', LOOKALIKES)
def test_a_converted_data_set_is_the_same(tmp_path, name):
    source = lookalike(name, tmp_path/'d', faults=True)
    done = convert(source, tmp_path/'d.parquet')
    a, b = (load_faces(x, None) for x in (source, tmp_path/'d.parquet'))
    assert done['stored'] + done['bad'] == a.notes['rows']
    assert a.notes['set_aside'] == b.notes['set_aside'] and b.notes['bad'] == []
    assert sorted(zip(a.names, a.labels.tolist())) == sorted(zip(b.names, b.labels.tolist()))


@pytest.mark.parametrize('name', ('affectnet', 'expw'))
def test_a_box_is_cut_out_once(tmp_path, name):
    source = lookalike(name, tmp_path/'d')
    convert(source, tmp_path/'d.parquet', img_size=24)
    a, b = (load_faces(x, None, img_size=24) for x in (source, tmp_path/'d.parquet'))
    assert_same(a, b)
    assert 'box_in_source' in b.extra


def test_shards_hold_one_split_each_in_mixed_order(tmp_path, faces):
    done = convert(faces, tmp_path/'shards', shard_rows=20)
    names = [os.path.basename(f) for f in done['files']]
    assert sorted(names) == ['train-00000-of-00003.parquet', 'train-00001-of-00003.parquet',
                             'train-00002-of-00003.parquet', 'valid-00000-of-00001.parquet']
    order = [n for f in done['files'] for n in pq.read_table(f)['name'].to_pylist()
             if 'train-' in f]
    assert order != sorted(order)
    convert(faces, tmp_path/'one.parquet')
    table = pq.read_table(tmp_path/'one.parquet')
    train = table['name'].filter([s == 'train' for s in table['split'].to_pylist()]).to_pylist()
    assert train == sorted(train)


def test_splits_that_were_made_stay(tmp_path, twelve):
    file = put(tmp_path/'own.csv', twelve.csv.drop(columns='Usage').to_csv(index=False))
    convert(file, tmp_path/'own.parquet')
    for s in ('train', 'valid', 'test'):
        try: before = load_faces(file, s, drop_duplicates=False).names
        except GrefelError: continue
        assert load_faces(tmp_path/'own.parquet', s, drop_duplicates=False).names == before


@pytest.mark.parametrize('size', (None, 64))
def test_votes_landmarks_and_other_columns_survive(tmp_path, drawn, size):
    tall = png(Image.fromarray(drawn['images'][0, 0].numpy()).resize((66, 99)))
    points = drawn['landmarks'][:3].flatten(1).numpy().astype(np.float32)
    rows = pd.DataFrame(dict(name=list('abc'), image=[tall]*3, votes=list(np.eye(10)[:3]*10),
                             subject=[1, 1, 2], landmarks=[points[0], None, points[2]]))
    rows.to_parquet(tmp_path/'t.parquet')
    convert(tmp_path/'t.parquet', tmp_path/'u.parquet', img_size=size)
    a, b = (load_faces(tmp_path/f, None, img_size=64, targets='votes')
            for f in ('t.parquet', 'u.parquet'))
    assert_same(a, b)
    assert a.votes.equal(b.votes) and [int(x) for x in b.extra['subject']] == [1, 1, 2]


def test_landmarks_from_a_file_go_by_name(tmp_path, faces, drawn):
    names = load_faces(faces, 'valid').names
    given = write_landmarks(tmp_path/'p.parquet', names[2:], drawn['landmarks'][:len(names) - 2])
    convert(faces, tmp_path/'with.parquet', split='valid', landmarks=given)
    b = load_faces(tmp_path/'with.parquet', 'valid')
    assert_same(load_faces(faces, 'valid', landmarks=given), b)
    assert int(b.landmarks.isfinite().all((1, 2)).sum()) == len(names) - 2


def test_repeats_and_known_other_classes(tmp_path, drawn):
    for i in range(3): put(tmp_path/'own'/f'{i}.png', png(drawn['images'][i, 0]))
    rows = pd.DataFrame(dict(image=['0.png', '1.png', '1.png', '2.png', 'gone.png'],
                             emotion=['happy', 'sad', 'sad', 'other', 'sad'], usage='Training'))
    rows.to_csv(tmp_path/'own'/'list.csv', index=False)
    done = convert(tmp_path/'own'/'list.csv', tmp_path/'list.parquet')
    assert (done['stored'], done['bad']) == (3, 2)
    for c in (None, (*EXPRESSIONS[:7], 'other')):
        a, b = (load_faces(f, classes=c) for f in (tmp_path/'own'/'list.csv',
                                                   tmp_path/'list.parquet'))
        assert a.labels.equal(b.labels) and a.images.equal(b.images)


def test_pixels_as_text_and_synthetic_faces(tmp_path, twelve):
    source = twelve.write('csv', tmp_path)
    convert(source, tmp_path/'own.parquet')
    assert_same(*(load_faces(f, drop_duplicates=False) for f in (source, tmp_path/'own.parquet')))
    convert('synth', tmp_path/'s.parquet', n=12)
    for targets in ('hard', 'truth'):
        assert_close(load_faces('synth', 'valid', n=12, targets=targets).targets,
                     load_faces(tmp_path/'s.parquet', 'valid', targets=targets).targets)


def test_one_odd_image_does_not_shrink_the_others(tmp_path, twelve):
    table = twelve.csv
    table.loc[0, 'pixels'] = '1 2 3 4'
    source = put(tmp_path/'short.csv', table.to_csv(index=False))
    done = convert(source, tmp_path/'short.parquet')
    assert (done['stored'], done['bad']) == (11, 1)
    assert load_faces(tmp_path/'short.parquet').face_size == 48


# runs that stop, and sources that change

def test_a_stopped_run_goes_on_and_gives_the_same_file(tmp_path, faces):
    def stop(done, total):
        if done == 40: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        convert(faces, tmp_path/'a.parquet', shard_rows=20, progress=stop)
    told = []
    a = convert(faces, tmp_path/'a.parquet', shard_rows=20, progress=lambda *n: told.append(n))
    b = convert(faces, tmp_path/'b.parquet', shard_rows=20)
    assert (a['reused'], b['reused'], told[-1]) == (2, 0, (64, 64))
    assert (tmp_path/'a.parquet').read_bytes() == (tmp_path/'b.parquet').read_bytes()
    assert not (tmp_path/'a.parquet.parts').exists()
    convert(faces, tmp_path/'shards', shard_rows=20)
    assert convert(faces, tmp_path/'shards', shard_rows=20)['reused'] == 4


@pytest.mark.parametrize('column', ('votes', 'landmarks', 'box', 'image'))
def test_a_source_that_changed_is_not_gone_on_with(tmp_path, drawn, column):
    points = drawn['landmarks'][:3].flatten(1).numpy()
    cells = dict(name=list('abc'), image=[png(x[0]) for x in drawn['images'][:3]],
                 box=[[0., 0, 40, 40]]*3, votes=list(np.eye(10)[:3]*10), landmarks=list(points))
    pd.DataFrame(cells).to_parquet(tmp_path/'v.parquet')
    convert(tmp_path/'v.parquet', tmp_path/'v')
    assert convert(tmp_path/'v.parquet', tmp_path/'v')['reused'] == 1
    changed = dict(votes=cells['votes'][::-1], image=cells['image'][::-1],
                   box=[*cells['box'][:2], None],
                   landmarks=[*points[:2], points[2] + np.eye(136)[70]*1e-6])
    pd.DataFrame(cells | {column: changed[column]}).to_parquet(tmp_path/'v.parquet')
    # images are known by their file's time of change, the small columns by their cells as well
    said = 'another source;' if column == 'image' else 'another source, table'
    with pytest.raises(GrefelError, match=said): convert(tmp_path/'v.parquet', tmp_path/'v')


def test_another_file_of_landmarks_is_another_job(tmp_path, faces, drawn):
    names = load_faces(faces, 'valid').names
    given = write_landmarks(tmp_path/'p.parquet', names, drawn['landmarks'][:len(names)])
    convert(faces, tmp_path/'out', split='valid', landmarks=given)
    os.utime(given, (1, 1))
    with pytest.raises(GrefelError, match='another landmarks;'):
        convert(faces, tmp_path/'out', split='valid', landmarks=given)


def test_another_size_is_another_job(tmp_path, faces):
    convert(faces, tmp_path/'out', shard_rows=20)
    with pytest.raises(GrefelError, match='another img_size'):
        convert(faces, tmp_path/'out', shard_rows=20, img_size=24)
    with pytest.raises(GrefelError, match='another shard_rows'):
        convert(faces, tmp_path/'out', shard_rows=9)


# what is refused

def test_the_first_bad_row_is_an_error_if_it_shall_be(tmp_path, faces):
    with pytest.raises(GrefelError, match='bored'):
        convert(faces, tmp_path/'x.parquet', strict=True)
    assert not (tmp_path/'x.parquet').exists()


def test_a_source_is_never_overwritten(tmp_path, twelve):
    file = put(tmp_path/'a.parquet', twelve.parquet())
    before = file.read_bytes()
    with pytest.raises(GrefelError, match='is read to make this'): convert(file, file)
    assert file.read_bytes() == before


def test_nothing_to_store(tmp_path):
    put(tmp_path/'nil'/'happy'/'a.png', b'no')
    with pytest.raises(GrefelError, match='none of its 1 rows'):
        convert(tmp_path/'nil', tmp_path/'y.parquet')


@pytest.mark.parametrize('kw', [dict(img_size=0), dict(img_size=-5), dict(shard_rows=0),
                                dict(threads=-1)])
def test_numbers_have_to_make_sense(tmp_path, twelve, kw):
    with pytest.raises(GrefelError, match='of at least 1'):
        convert(twelve.write('csv', tmp_path), tmp_path/'z.parquet', **kw)


def test_hugging_faces_datasets_reads_it(tmp_path, faces):
    datasets = pytest.importorskip('datasets')
    datasets.disable_progress_bars()
    convert(faces, tmp_path/'out.parquet')
    loaded = datasets.load_dataset('parquet', data_files=str(tmp_path/'out.parquet'),
                                   cache_dir=str(tmp_path/'cache'), split='train')
    assert len(loaded) == 60 and loaded[0]['image'].size == (48, 48)
