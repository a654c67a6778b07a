"""Loading faces: the same from every layout, and no row lost without a word."""
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from grefel.base.core import CLASS_ORDERS, data_home, EXPRESSIONS, GrefelError, manifest
from grefel.data.faces import (
    check_repeats, decode_images, FaceData, ferplus_duplicates, has_ferplus_splits, load_faces,
    natural_size, row_faults)
from grefel.data.lookalikes import lookalike, LOOKALIKES
from grefel.data.table import read_table, row_place, SPLITS
from tests.helpers import needs_ferplus
from .conftest import png, put

LAYOUTS = ('csv', 'paths', 'folder', 'parquet', 'ferplus', 'fer2013')


# faces in memory

@pytest.fixture
def tiny():
    return FaceData(torch.arange(3*64, dtype=torch.uint8).view(3, 1, 8, 8),
                    torch.eye(8)[[1, 0, 1]], torch.tensor([1, 0, 1]),
                    torch.full((3, 68, 2), torch.nan), ['a', 'b', 'c'],
                    votes=10*torch.eye(10)[[1, 0, 1]], extra=dict(age=np.array([20, 30, 40])))


@pytest.mark.parametrize('index, names', [
    ([2, 0], 'ca'), (torch.tensor([True, False, True]), 'ac'), (np.array([1]), 'b'), ([], '')])
def test_a_subset_keeps_all_columns_in_step(tiny, index, names):
    part = tiny.subset(index)
    rows = ['abc'.index(n) for n in names]
    assert ''.join(part.names) == names
    for column in ('images', 'targets', 'labels', 'votes'):
        assert torch.equal(getattr(part, column), getattr(tiny, column)[rows])
    assert part.extra['age'].tolist() == [(20, 30, 40)[i] for i in rows]


def test_a_sample_is_random_and_in_order(tiny):
    drawn = {''.join(tiny.sample(2, seed).names) for seed in range(20)}
    assert drawn == {'ab', 'ac', 'bc'}
    assert len(tiny.sample(9)) == 3
    with pytest.raises(GrefelError, match='a limit of faces is 0'): tiny.sample(0)


def test_what_a_faces_table_tells(tiny):
    table = tiny.describe()
    assert table['count'].tolist() == [1, 2, 0, 0, 0, 0, 0, 0]
    assert table['agreement'][:2].tolist() == [1, 1]
    assert (tiny.grey, tiny.face_size, tiny.share[1]) == (True, 8, 2/3)


def test_other_classes_are_matched_by_name(tiny):
    named = ('happiness', 'fear', 'neutral')
    other = tiny.with_classes(named)
    assert (other.names, other.classes) == (['a', 'b', 'c'], named)
    assert other.labels.tolist() == [0, 2, 0]
    assert torch.equal(other.targets, torch.eye(3)[[0, 2, 0]])
    assert torch.equal(other.images, tiny.images) and torch.equal(other.votes, tiny.votes)
    back = other.with_classes(EXPRESSIONS)
    assert torch.equal(back.targets, tiny.targets) and torch.equal(back.labels, tiny.labels)
    assert tiny.with_classes(EXPRESSIONS) is tiny


def test_faces_of_other_classes_stay_behind_and_targets_sum_to_one(tiny):
    tiny.targets = torch.tensor([[.2, .6, .2], [.7, .1, .2], [.5, .5, 0.]]).double()
    tiny.targets = torch.nn.functional.pad(tiny.targets, (0, 5))
    kept = tiny.with_classes(('surprise', 'happiness'))
    assert kept.names == ['a', 'c'] and kept.labels.tolist() == [1, 1]
    assert kept.extra['age'].tolist() == [20, 40]
    torch.testing.assert_close(kept.targets, torch.tensor([[.25, .75], [0., 1.]]).double())
    with pytest.raises(GrefelError, match='no face of 3 is of a class among fear, anger'):
        tiny.with_classes(['fear', 'anger'])


# every layout

@pytest.mark.parametrize('layout', LAYOUTS)
def test_the_same_faces_from_every_layout(tmp_path, twelve, layout):
    source = twelve.write(layout, tmp_path)
    for s, rows in twelve.splits.items():
        d = load_faces(source, s)
        d = d.subset(d.labels.argsort(stable=True))  # folders come sorted by class
        order = twelve.labels[rows].argsort(kind='stable')
        assert d.labels.tolist() == twelve.labels[rows][order].tolist()
        np.testing.assert_array_equal(d.images[:, 0], twelve.pixels[rows][order])
        assert d.split == s
    whole, same = load_faces(source, None), load_faces(source, 'all')
    assert len(same) == 12 and same.names == whole.names and same.split == 'all'
    assert torch.equal(same.images, whole.images) and torch.equal(same.labels, whole.labels)


def test_a_single_parquet_file_is_its_own_split(tmp_path, twelve):
    file = twelve.write('parquet', tmp_path)/'valid.parquet'
    for s in SPLITS: assert load_faces(file, s).names == twelve.names[8:10]
    one = load_faces(file, 'test')
    assert (one.notes['own_split'], one.notes['dropped_duplicates'], one.split) == (True, 0, 'all')


def test_landmarks_and_votes_come_along(tmp_path, twelve):
    d = load_faces(twelve.write('parquet', tmp_path), targets='votes')
    assert d.landmarks[0].isnan().all() and d.landmarks[1:].unique().tolist() == [.5]
    torch.testing.assert_close(d.targets[0], torch.tensor([.7, .3, 0, 0, 0, 0, 0, 0]))


def test_seven_classes_leave_out_contempt(tmp_path, twelve):
    d = load_faces(twelve.write('parquet', tmp_path), num_classes=7)
    assert (len(d), d.targets.shape, d.classes) == (7, (7, 7), EXPRESSIONS[:7])


def test_numbers_in_emotion_are_those_of_fer2013(tmp_path, twelve):
    seven = twelve.csv.iloc[:7]
    numbers = seven.assign(emotion=[CLASS_ORDERS['fer2013'].index(e) for e in seven.emotion])
    file = put(tmp_path/'numbers.csv', numbers.to_csv(index=False))
    assert load_faces(file).labels.tolist() == list(range(7))


def test_class_names_from_the_metadata_of_hugging_face(tmp_path, twelve):
    t = pa.table(dict(image=[dict(bytes=png(p), path='') for p in twelve.pixels[:2]], label=[1, 0]))
    info = json.dumps(dict(info=dict(features=dict(label=dict(names=['Sad', 'Happy'])))))
    pq.write_table(t.replace_schema_metadata({'huggingface': info}), tmp_path/'hf.parquet')
    assert load_faces(tmp_path/'hf.parquet').labels.tolist() == [1, 3]


def test_a_split_column_inside_one_file(tmp_path, twelve):
    file = put(tmp_path/'s.parquet', twelve.parquet(split=['train', 'val', 'train']))
    assert [len(load_faces(file, s)) for s in ('train', 'valid')] == [2, 1]
    with pytest.raises(GrefelError, match='no rows in split'): load_faces(file, 'test')


def test_oddly_written_csv(tmp_path, twelve):
    cells = twelve.csv.pixels[:3]
    text = '\ufeffEmotion,Pixels\r\n' + ''.join(f'happy,{c}\r\n' for c in cells)
    assert load_faces(put(tmp_path/'a.csv', text), None).labels.tolist() == [1]*3


def test_columns_of_ones_own_are_kept(tmp_path, twelve):
    tags = [['a', 'b'], ['c', 'd'], ['e', 'f']]
    d = load_faces(put(tmp_path/'t.parquet', twelve.parquet(tags=tags, age=[1, 2, 3])))
    assert list(d.extra['tags'][1]) == ['c', 'd'] and d.extra['age'].tolist() == [1, 2, 3]


# classes

@pytest.mark.parametrize('targets', ('hard', 'votes'))
def test_classes_in_another_order(tmp_path, twelve, targets):
    source, order = twelve.write('parquet', tmp_path), CLASS_ORDERS['affectnet8']
    usual, other = (load_faces(source, targets=targets, classes=c) for c in (None, order))
    assert [order[i] for i in other.labels] == [EXPRESSIONS[i] for i in usual.labels]
    torch.testing.assert_close(other.targets,
                               usual.targets[:, [EXPRESSIONS.index(c) for c in order]])


def test_fewer_classes(tmp_path, twelve):
    few = load_faces(twelve.write('parquet', tmp_path), targets='votes',
                     classes=('sadness', 'surprise'))
    assert (few.labels.tolist(), few.names) == ([1, 0], twelve.names[2:4])
    torch.testing.assert_close(few.targets, torch.tensor([[.3, .7], [1, 0]]))


def test_true_distributions_in_another_order():
    order = CLASS_ORDERS['affectnet8']
    usual, other = (load_faces('synth', 'valid', n=12, targets='truth', classes=c).targets
                    for c in (None, order))
    torch.testing.assert_close(other, usual[:, [EXPRESSIONS.index(c) for c in order]])


def test_other_is_a_class_where_it_is_asked_for(tmp_path):
    wild = lookalike('affwild2', tmp_path)
    with_other = load_faces(wild, 'valid', classes=CLASS_ORDERS['affwild2'])
    without = load_faces(wild, 'valid')
    assert 7 in with_other.labels
    assert without.notes['set_aside'] == dict(other=len(with_other) - len(without))


# pixels

def test_a_tall_image_is_padded_and_its_landmarks_move(tmp_path):
    tall = np.zeros((90, 60, 3), np.uint8)
    tall[..., 0] = 200
    table = pd.DataFrame(dict(image=[png(tall)], label=['happy'],
                              landmarks=[np.tile([.25, .5], 68)]))
    d = load_faces(put(tmp_path/'t.parquet', table.to_parquet()), img_size=48)
    assert d.images.shape == (1, 3, 48, 48) and (d.images[0, 0] == 200).all()
    torch.testing.assert_close(d.landmarks[0, 0], torch.tensor([(60*.25 + 15)/90, .5]))


def test_grey_in_three_channels_is_grey(tmp_path, twelve):
    three = pd.DataFrame(dict(image=[png(np.dstack([twelve.pixels[0]]*3))], label=['sad']))
    d = load_faces(put(tmp_path/'t.parquet', three.to_parquet()))
    np.testing.assert_array_equal(d.images, twelve.pixels[None, :1])


@pytest.mark.parametrize('size', (None, 24))
def test_images_are_stored_at_the_size_that_is_asked_for(tmp_path, twelve, size):
    d = load_faces(twelve.write('csv', tmp_path), img_size=size)
    assert d.images.shape == (8, 1, size or 48, size or 48)
    assert natural_size(read_table(tmp_path/'own.csv')) == 48


def plain(pixels):
    kind = b'P5' if pixels.ndim == 2 else b'P6'
    return b'%s\n8 8\n255\n' % kind + pixels.tobytes()

@pytest.mark.parametrize('damage', [None, 'mixed', 'missing', 'shape', 'range', 'short'])
@pytest.mark.parametrize('colour', (False, True))
def test_plain_pixels_all_at_once_or_one_by_one(colour, damage):
    noise = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    if not colour: noise = noise[..., 0]
    blobs = [plain(x) for x in noise]
    if damage == 'mixed': blobs.append(png(noise[0]))
    if damage == 'missing': blobs.append(None)
    if damage == 'shape': blobs.append(blobs[0].replace(b'8 8', b'4 16'))
    if damage == 'range': blobs.append(blobs[0].replace(b'255', b'127'))  # as long as the others
    if damage == 'short': blobs.append(blobs[0][:-1])
    images, shape, wrong = decode_images(pd.DataFrame(dict(image=blobs)), 8)
    expected = noise.transpose(0, 3, 1, 2) if colour else noise[:, None]
    np.testing.assert_array_equal(images[:3], expected)
    assert set(wrong) == ({3} if damage == 'missing' else set())
    if damage in ('shape', 'range'): assert not torch.equal(images[3], images[0])
    assert shape[:3].tolist() == [[8, 8]]*3


# duplicates

@pytest.fixture
def pairs(tmp_path, twelve):
    "Twenty images, each once as anger and once as fear; the made splits part some of the pairs."
    for c in ('anger', 'fear'):
        for i in range(20):
            put(tmp_path/'pairs'/c/f'{c}{i}.png', png(twelve.pixels[i % 12] ^ np.uint8(i)))
    return tmp_path/'pairs'


def pixels(*parts): return {i.numpy().tobytes() for p in parts for i in p.images}


def test_images_of_later_splits_are_dropped_from_train(pairs):
    every = {s: load_faces(pairs, s, drop_duplicates=False) for s in SPLITS}
    assert sum(map(len, every.values())) == 40
    train = load_faces(pairs)
    later = pixels(every['valid'], every['test'])
    assert pixels(every['train']) & later and not pixels(train) & later
    dropped = sum(i.numpy().tobytes() in later for i in every['train'].images)
    assert train.notes['dropped_duplicates'] == len(every['train']) - len(train) == dropped > 0
    assert f'less {dropped} with a duplicate' in train.summary


def test_valid_keeps_its_duplicates_unless_asked(pairs):
    assert load_faces(pairs, 'valid').notes['dropped_duplicates'] == 0
    valid, test = load_faces(pairs, 'valid', drop_duplicates=True), load_faces(pairs, 'test')
    assert not pixels(valid) & pixels(test)


def test_duplicates_of_splits_of_ones_own_are_those_of_these_splits(tmp_path, twelve):
    # the names are FER+'s, but the manifest speaks of the published splits
    put(tmp_path/'train.parquet', twelve.parquet(slice(0, 8)))
    assert load_faces(tmp_path, valid_share=.25).notes['twins'] == 0
    copies = pd.read_parquet(tmp_path/'train.parquet')
    copies['image'] = [copies['image'][0]]*8
    copies.to_parquet(tmp_path/'train.parquet')
    assert len(load_faces(tmp_path, 'valid', valid_share=.25)) > 0
    with pytest.raises(GrefelError, match='no face left of'): load_faces(tmp_path, valid_share=.25)


def test_ferplus_is_known_by_its_names(tmp_path, twelve):
    # no other split is here, and the pixels differ: the manifest alone tells
    names = [*sorted(ferplus_duplicates('train'))[:3], *twelve.names[3:8]]
    put(tmp_path/'train.parquet', twelve.parquet(slice(0, 8), name=names))
    d = load_faces(tmp_path)
    assert d.names == names[3:] and d.notes['dropped_duplicates'] == 3
    assert load_faces(tmp_path, drop_duplicates=False).names == names


def test_ferplus_duplicates_by_name():
    assert (len(ferplus_duplicates('train')), len(ferplus_duplicates('valid'))) == (692, 46)
    known = pd.read_csv(manifest('ferplus_duplicates.csv'))[:50]
    assert has_ferplus_splits(known)
    assert not has_ferplus_splits(known.assign(split='test'))
    assert not has_ferplus_splits(known.assign(name='a.png'))


def test_a_list_may_not_name_a_face_twice():
    df = pd.DataFrame(dict(path=['a', 'b', 'a', 'a'], file='a.csv', row=[5, 6, 7, 8],
                           box=[[0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4], [4, 0, 8, 4]]))
    assert check_repeats(df) == {2: 'the same image as line 5'}
    assert set(check_repeats(df.drop(columns='box'))) == {2, 3}


# faults

def csv(twelve, **columns):
    return twelve.csv.head(3).assign(**columns).dropna(axis=1).to_csv(index=False)


def faulty_csv(twelve):
    cells = twelve.csv.pixels[:3].tolist()
    return dict(
        short=(dict(pixels=[cells[0], cells[1].rsplit(' ', 1)[0], cells[2]]),
               'line 3: 2303 pixels'),
        words=(dict(pixels=[cells[0], cells[1], 'x' + cells[2]]), 'line 4: pixels are not whole'),
        bright=(dict(pixels=[cells[0], '999 ' + cells[1].split(' ', 1)[1], cells[2]]),
                'line 3: pixels must be 0 to 255'),
        dark=(dict(pixels=[cells[0], '-1 ' + cells[1].split(' ', 1)[1], cells[2]]),
              'line 3: pixels must be 0 to 255'),
        number=(dict(emotion=[0, 6, 7]), "line 4: label '7' is no expression"),
        label=(dict(emotion=['happy', 'bored', 'sad']), "line 3: label 'bored' is no expression"),
        nolabel=(dict(emotion=['happy', '', 'sad']), 'line 3: no label'),
        split=(dict(Usage=['Training', 'Sunday', 'Training']), "line 3: unknown split 'Sunday'"),
        gone=(dict(pixels=None, image=['gone.png']*3), 'line 2: no such image'))


@pytest.mark.parametrize('fault', ('short', 'words', 'bright', 'dark', 'number', 'label', 'nolabel',
                                   'split', 'gone'))
def test_a_bad_row_of_a_csv_is_named(tmp_path, twelve, fault):
    columns, said = faulty_csv(twelve)[fault]
    file = put(tmp_path/'a.csv', csv(twelve, **columns))
    with pytest.raises(GrefelError) as e: load_faces(file, strict=True)
    assert str(e.value).startswith(f'{file}, {said}') and '\n' not in str(e.value)
    if fault == 'gone': return  # nothing is left
    d = load_faces(file)
    assert (len(d), [w for w, _ in d.notes['bad']]) == (2, [f'{file}, {said.split(":")[0]}'])
    assert '1 bad rows skipped' in d.summary


POINTS = np.full(136, .5, np.float32)
CELLS = dict(
    nan=('landmarks', np.where(np.arange(136) == 7, np.nan, POINTS), 'landmarks hold NaN'),
    few=('landmarks', POINTS[:100], '100 landmark numbers'),
    zero=('votes', np.zeros(10, np.uint8), 'votes sum to zero'),
    seven=('votes', np.ones(7, np.uint8), 'votes must be 10 numbers'),
    text=('image', dict(bytes=b'this is text', path=''), ''),
    empty=('image', dict(bytes=None, path=''), 'no image bytes'))

@pytest.mark.parametrize('column, value, said', CELLS.values(), ids=CELLS)
def test_a_bad_row_of_parquet_is_named(tmp_path, twelve, column, value, said):
    file = put(tmp_path/'a.parquet', twelve.with_cell(column, value))
    with pytest.raises(GrefelError) as e: load_faces(file, strict=True)
    assert str(e.value).startswith(f'{file}, row 1: {said}') and '\n' not in str(e.value)
    d = load_faces(file)
    assert (d.names, [w for w, _ in d.notes['bad']]) == (twelve.names[:3:2], [f'{file}, row 1'])


def test_a_truncated_image_is_named(tmp_path, twelve):
    cut = dict(bytes=png(twelve.pixels[0])[:300], path='')
    file = put(tmp_path/'a.parquet', twelve.with_cell('image', cut))
    d = load_faces(file)
    assert d.notes['bad'][0][0] == f'{file}, row 1'
    assert (len(d), d.notes['kept']) == (2, 2)


@pytest.mark.parametrize('content, said', [
    (b'', 'first line is empty'),
    ('emotion,Usage\nhappy,train\n', 'no column image .*it has emotion, Usage.*image=NAME'),
    ('image,Usage\na.png,train\n', 'no column label .*it has image, Usage.*label=NAME')])
def test_what_is_no_table(tmp_path, content, said):
    with pytest.raises(GrefelError, match=said): load_faces(put(tmp_path/'a.csv', content))


@pytest.mark.parametrize('content, said', [
    (b'this is text', 'not a readable Parquet'),
    (pd.DataFrame(dict(votes=[[1]*10])).to_parquet(), 'no column image'),
    (pd.DataFrame(dict(image=[b''])).to_parquet(), 'no column label'),
    (pd.DataFrame(dict(image=['a'], label=['sad'])).to_parquet(), 'no column image')])
def test_what_is_no_parquet_of_faces(tmp_path, content, said):
    with pytest.raises(GrefelError, match=said): load_faces(put(tmp_path/'a.parquet', content))


@pytest.mark.parametrize('kw, said', [
    (dict(rule='median'), 'known: majority'), (dict(targets='soft'), 'known: hard'),
    (dict(num_classes=5), '7 without'), (dict(targets='truth'), 'has no true'),
    (dict(split=None, drop_duplicates=True), 'needs a split'),
    (dict(split='dev'), 'unknown split')])
def test_choices_that_there_are_not(tmp_path, twelve, kw, said):
    with pytest.raises(GrefelError, match=said): load_faces(twelve.write('parquet', tmp_path), **kw)


def test_without_votes_the_labels_are_learned_unless_raw_votes_were_asked_for(tmp_path, twelve):
    path = twelve.write('csv', tmp_path)
    faces = load_faces(path, targets='votes')
    assert faces.notes['targets'] == 'hard' and faces.votes is None
    assert torch.equal(faces.targets, load_faces(path).targets)
    with pytest.raises(GrefelError, match='has no votes'): load_faces(path, targets='raw')


@pytest.mark.parametrize('name', LOOKALIKES)
def test_nothing_planted_is_lost(tmp_path, name):
    planted = []
    path = lookalike(name, tmp_path, faults=True, planted=planted)
    d = load_faces(path, None, img_size=48)
    n = d.notes
    assert n['rows'] == len(d) + len(n['bad']) + sum(n['set_aside'].values())
    told = [text for bad in n['bad'] for text in bad] + [t for o in n['odd'] for t in o[:2]]
    told = [t.replace('\\', '/') for t in told]
    for kind, where in planted:
        # these are no faults of a row, and pixels have no name that could repeat
        if kind.split()[0] in ('grey', 'palette', 'transparent', 'rows'): continue
        if kind == 'duplicate row' and name in ('fer2013', 'parquet'): continue
        assert any(where in t for t in told), (kind, where)
    with pytest.raises(GrefelError): load_faces(path, None, strict=True)


@pytest.mark.parametrize('name', LOOKALIKES)
def test_row_faults_are_those_of_loading(tmp_path, name):
    path = lookalike(name, tmp_path, faults=True)
    bad, df = load_faces(path, None).notes['bad'], read_table(path)
    faults = row_faults(df)
    where = [row_place(df['file'][i], df['row'][i]) for i in faults]
    assert set(where) <= {w for w, _ in bad}
    assert bool(faults) == (name not in ('jaffe', 'ferg'))  # there only decoding tells


def test_damaged_files_in_a_folder(tmp_path, twelve):
    source = twelve.write('folder', tmp_path)
    whole = png(twelve.pixels[0])
    for name, content in {'Happy/broken.png': whole[:100], 'Happy/empty.jpg': b'',
                          'Happy/text.png': b'no image', 'bored/x.png': whole}.items():
        put(source/'Training'/name, content)
    d = load_faces(source)
    assert len(d) == 8
    assert sorted(Path(w).name for w, _ in d.notes['bad']) == ['broken.png', 'empty.jpg',
                                                               'text.png', 'x.png']


# landmarks from a file

def test_landmarks_from_a_file_go_by_name(tmp_path, twelve):
    source = twelve.write('parquet', tmp_path/'d')
    names = twelve.names[3:0:-1]
    table = pd.DataFrame(dict(name=names, landmarks=[np.full(136, i/100) for i in range(3)]))
    table.to_parquet(tmp_path/'points.parquet')
    d = load_faces(source, landmarks=tmp_path/'points.parquet')
    known = {n: d.landmarks[i, 0, 0].item() for i, n in enumerate(d.names)}
    assert [known[n] for n in names] == pytest.approx([0, .01, .02])
    assert d.landmarks.isnan().all((1, 2)).sum() == 5


@pytest.mark.parametrize('name, said', [('points.parquet', 'knows none of'),
                                        ('nowhere.parquet', 'no file of landmarks')])
def test_landmarks_of_other_faces(tmp_path, twelve, name, said):
    source = twelve.write('parquet', tmp_path/'d')
    pd.DataFrame(dict(name=['x'], landmarks=[POINTS])).to_parquet(tmp_path/'points.parquet')
    with pytest.raises(GrefelError, match=said): load_faces(source, landmarks=tmp_path/name)


# synthetic faces and FER+

def test_synthetic_faces_follow_their_seed():
    a, b, c = (load_faces('synth', n=24, seed=s) for s in (1, 1, 2))
    assert torch.equal(a.images, b.images) and not torch.equal(a.images, c.images)
    truth = load_faces('synth', n=24, seed=1, targets='truth').targets
    torch.testing.assert_close(truth, a.extra['truth'])


def test_the_manifest_has_the_bytes_that_the_checksums_say():
    sums = pd.read_csv(manifest('checksums.csv')).set_index('file')
    file = manifest('ferplus_duplicates.csv')
    content = file.read_bytes().replace(b'\r\n', b'\n')
    assert hashlib.sha256(content).hexdigest() == sums.loc[file.name, 'sha256']


@needs_ferplus
@pytest.mark.parametrize('split', ('train', 'valid'))
def test_ferplus_is_the_published_one(split):
    sums = pd.read_csv(manifest('checksums.csv')).set_index('file')
    df = read_table('ferplus', split)
    lines = ''.join(f'{n},"(0, 0, 48, 48)",{",".join(map(str, v))}\n'
                    for n, v in zip(df.name, df.votes))  # label.csv, rebuilt
    assert hashlib.sha256(lines.encode()).hexdigest() == sums.loc[
        f'FER2013{split.title()}/label.csv', 'sha256']
    new = data_home()/'ferplus'/'fer2013new.csv'
    if new.exists():
        assert hashlib.sha256(new.read_bytes().replace(b'\r\n', b'\n')).hexdigest() == sums.loc[
            'fer2013new.csv', 'sha256']


@needs_ferplus
def test_ferplus_counts():
    train = load_faces('ferplus')
    n = train.notes
    assert (n['rows'], n['rows'] - n['twins'], n['kept']) == (28558, 27866, 25045)
    assert len(train) == n['kept'] - n['dropped_duplicates'] == 24438
    assert not set(train.names) & ferplus_duplicates('train')
    missing = train.landmarks.isnan().flatten(1)
    assert torch.equal(missing.any(1), missing.all(1))  # a face has all its landmarks or none
