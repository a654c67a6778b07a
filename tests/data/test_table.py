"""The one table: columns in their types, names translated, files found, splits made."""
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grefel.base.core import GrefelError
from grefel.data.table import (
    all_files, boxes, column_values, find_column, find_layout, join_tables, LAYOUTS, locate,
    made_splits, make_table, read_parquet, read_table, read_text_table, register_layout, repeated,
    row_place, split_of_file, stored_images, stray_files, vectors)
from .conftest import png, put


# columns

def test_columns_have_their_types():
    t = make_table(name=['a', 'b'], label=pd.Categorical(['fear', None]), missing=None,
                   box=[[0, 0, 48, 48], None], row=pa.array([0, None], pa.int32()))
    assert list(t.columns) == ['name', 'label', 'box', 'row']
    assert str(t.dtypes['label']) == 'category' and str(t.dtypes['row']) == 'Int32'
    assert isinstance(t.dtypes['box'], pd.ArrowDtype)  # no Python object for each row
    assert t.row.isna().tolist() == [False, True]


def test_joined_tables_keep_all_rows_and_remarks():
    a = make_table(odd=['x'], name=['a'], label=pd.Categorical(['fear']))
    b = make_table(odd=['y'], name=['b'], label=pd.Categorical(['anger']), age=[3])
    both = join_tables([a, b])
    assert (both.name.tolist(), both.label.tolist()) == (['a', 'b'], ['fear', 'anger'])
    assert both.attrs['odd'] == ['x', 'y'] and both.age.isna().tolist() == [True, False]
    assert isinstance(both.label.dtype, pd.CategoricalDtype)


@pytest.mark.parametrize('column', [
    [[1, 2], None, [3], [4, 5]], pd.Series([[1, 2], None, [3], [4, 5]], dtype=object),
    pa.array([[1, 2], None, [3], [4, 5]]), pa.chunked_array([[[1, 2], None], [[3], [4, 5]]])])
def test_vectors_of_any_column(column):
    numbers, lengths = vectors(column, 2)
    assert lengths.tolist() == [2, -1, 1, 2]
    np.testing.assert_array_equal(numbers, [[1, 2], [np.nan]*2, [np.nan]*2, [4, 5]])


def test_lists_of_pairs_lie_flat():
    numbers, lengths = vectors(pa.array([[[1, 2], [3, 4]], None, [[5, 6]]]), 4)
    assert (numbers[0].tolist(), lengths.tolist()) == ([1, 2, 3, 4], [4, -1, 2])


@pytest.mark.parametrize('column', [
    pa.array(['1 2', None]), pd.array(['1 2', None], 'string'), pa.array([['a', 'b'], None]),
    pa.array([True, None]), pa.array([[['a'], []], None])])
def test_what_is_no_numbers_has_none_of_them(column):
    assert vectors(column, 2)[1].tolist() == [0, -1]


def test_boxes_are_missing_where_a_side_is():
    column = pa.array(boxes([0, np.nan], [1, 1], [2, 2], [3, 3]))
    assert column.to_pylist() == [[0, 1, 2, 3], None]


def test_column_values_of_a_column_that_may_be_missing():
    t = make_table(name=['a', None])
    assert (column_values(t, 'name'), column_values(t, 'age')) == (['a', None], [None, None])


def test_repeated_stores_a_value_once():
    column = repeated(['a', 'b'], [2, 1])
    assert column.to_pylist() == ['a', 'a', 'b'] and len(column.dictionary) == 2


# Parquet

def test_stored_images_come_in_the_order_of_the_rows(tmp_path):
    for s in ('train', 'valid'):
        rows = pa.table(dict(image=[f'{s} {i}'.encode() for i in range(3000)], label=['fear']*3000))
        pq.write_table(rows, tmp_path/f'{s}.parquet', row_group_size=700)
    t = read_parquet(tmp_path, images=False)[lambda t: t.row % 7 == 3]
    assert 'image' not in t
    assert list(stored_images(t, 100)) == [f'{s} {i}'.encode() for s, i in zip(t.split, t.row)]


def test_files_of_other_names_count_only_alone(tmp_path):
    table = pd.DataFrame(dict(image=[b''], label=['sad']))
    table.to_parquet(tmp_path/'more.parquet')
    assert read_table(tmp_path).name.tolist() == ['more_0']
    table.to_parquet(tmp_path/'train.parquet')
    assert read_table(tmp_path).name.tolist() == ['train_0']


def test_a_shard_has_a_number():
    assert split_of_file(Path('train-00000-of-00002.parquet')) == 'train'
    assert split_of_file(Path('faces.parquet')) is None


# text

def test_oddities_of_a_csv_are_forgiven_and_noted(tmp_path):
    text = '\ufeffEmotion,Image\r\nhappy,a.png\r\nsad\r\nfear,ü b.PNG\r\n'
    cells, odd = read_text_table(put(tmp_path/'a.csv', text))
    assert find_column(cells, 'a.csv', 'emotion').tolist() == ['happy', 'fear']
    assert cells.row.tolist() == [2, 4]  # the line that was left out keeps its number
    assert [(Path(o.where).name, o.what) for o in odd] == [
        ('a.csv', 'written with a byte order mark and Windows line ends; read all the same'),
        ('a.csv, line 3', '1 cells instead of 2')]


@pytest.mark.parametrize('content, said', [
    (b'', 'first line is empty'), (png(np.zeros((9, 9), np.uint8)), 'not a readable text')])
def test_what_is_no_csv(tmp_path, content, said):
    with pytest.raises(GrefelError, match=said): read_table(put(tmp_path/'a.csv', content))


def test_missing_column_names_those_there_are():
    with pytest.raises(GrefelError, match='a.csv: no column emotion or label; it has x'):
        find_column(pd.DataFrame(dict(x=['1'])), 'a.csv', 'emotion', 'label')


# files

@pytest.fixture
def images(tmp_path):
    for name in ('Face 1.JPG', 'u\u0308.png', 'Thumbs.db'): put(tmp_path/'pics'/name, b'x')
    return tmp_path/'pics'


def test_files_are_found_as_they_are_spelt(images):
    paths, faults, odd = locate(images, ['face 1.jpg', 'ü.png', 'gone.png', 'gone.png'])
    assert [Path(p).name for p in paths] == ['Face 1.JPG', 'u\u0308.png', 'gone.png', 'gone.png']
    assert faults[:2] == [None, None] and all('no such image' in f for f in faults[2:])
    assert [(Path(o.where).name, o.what) for o in odd] == [
        ('Thumbs.db', 'not an image'), ('Face 1.JPG', 'spelt otherwise in the list'),
        ('u\u0308.png', 'spelt otherwise in the list')]


def test_many_strays_are_told_in_one(tmp_path):
    many = stray_files(tmp_path, [f'{i}.db' for i in range(25)])
    assert (len(many), sum(o.n for o in many)) == (21, 25)
    assert many[-1].what == '5 more: not an image'


def test_all_files_leaves_out_what_is_hidden(tmp_path):
    for f in ('a/b.png', '.git/c', '__MACOSX/d.png', 'a/.e', 'f.png'): put(tmp_path/f, b'')
    assert all_files(tmp_path) == (['f.png', 'a/b.png'], [])


# splits

LABELS, NAMES = ['anger']*50 + ['fear']*10, [f'{i}.png' for i in range(60)]
TEST = [f'{i}.png' for i in (8, 21, 34, 39, 40, 55)]
VALID = [f'{i}.png' for i in (2, 10, 17, 20, 48, 54)]


def test_made_splits_do_not_depend_on_the_order_of_rows():
    made = made_splits(NAMES, LABELS)
    order = np.random.default_rng(0).permutation(60)
    again = made_splits([NAMES[i] for i in order], [LABELS[i] for i in order])
    assert again.tolist() == [made[i] for i in order]


def test_made_splits_are_those_of_yesterday():
    # other machines, and runs of last year, have to find the same faces in the same split
    made = made_splits(NAMES, LABELS)
    assert [NAMES[i] for i in np.flatnonzero(made == 'test')] == TEST
    assert [NAMES[i] for i in np.flatnonzero(made == 'valid')] == VALID


def test_every_class_has_its_share_in_every_split():
    table = pd.crosstab(pd.Series(LABELS), pd.Series(made_splits(NAMES, LABELS)))
    assert table.to_dict('index') == {'anger': dict(test=5, train=40, valid=5),
                                      'fear': dict(test=1, train=8, valid=1)}


def test_equal_keys_share_a_split():
    keys = [f'{i//2}' for i in range(60)]
    made = made_splits(keys, ['fear']*60)
    assert made[::2].tolist() == made[1::2].tolist()


def test_new_files_move_only_those_at_the_borders():
    before = made_splits(NAMES, ['fear']*60)
    after = made_splits([*NAMES, 'x.png', 'y.png'], ['fear']*62)[:60]
    assert sum(a != b for a, b in zip(before, after)) <= 2


@pytest.mark.parametrize('unknown', (0, 12))
def test_groups_stay_together_whatever_the_order(unknown):
    people = [None if i < unknown else f'p{i//6}' for i in range(60)]
    made = made_splits(NAMES, None, people)
    by_person = pd.DataFrame(dict(person=people, split=made)).groupby('person')['split'].nunique()
    assert by_person.max() == 1 and set(made) == {'train', 'valid', 'test'}
    order = np.random.default_rng(0).permutation(60)
    again = made_splits([NAMES[i] for i in order], None, [people[i] for i in order])
    assert again.tolist() == [made[i] for i in order]


def test_what_belongs_to_nobody_is_no_group():
    made = made_splits(NAMES, None, [None]*60)
    assert pd.Series(made).value_counts().to_dict() == dict(train=48, valid=6, test=6)


def test_three_groups_are_three_splits():
    assert sorted(made_splits(None, None, ['a', 'b', 'c'])) == ['test', 'train', 'valid']


# sources

@pytest.fixture
def own(images):
    lines = ['emotion,image,subject', 'happy,pics/face 1.jpg,Ann', 'sad,pics/ü.png,Bo',
             'fear,pics/gone.png,Cy']
    return put(images.parent/'own.csv', '\n'.join(lines))


def test_a_table_of_paths(own):
    t = read_table(own)
    assert t.label.tolist() == ['happiness', 'sadness', 'fear']
    assert t.fault.isna().tolist() == [True, True, False]
    assert sorted(t.split) == ['test', 'train', 'valid']


def test_words_of_this_library_get_an_underscore(images):
    text = 'emotion,image,Row,file,fault,odd\nhappy,pics/ü.png,4,a,b,c\n'
    t = read_table(put(images.parent/'taken.csv', text))
    assert (t['row_'][0], t['fault_'][0], t['row'][0]) == ('4', 'b', 2) and 'fault' not in t


@pytest.mark.parametrize('kw, said', [
    (dict(source='nowhere'), 'no such file'), (dict(source='pics'), 'not a known layout'),
    (dict(source='own.csv', split='dev'), 'unknown split'),
    (dict(source='own.csv', colour=1), "no option 'colour'"),
    (dict(source='void'), 'empty')])
def test_what_cannot_be_read(own, kw, said):
    (own.parent/'void').mkdir()
    with pytest.raises(GrefelError, match=said):
        read_table(**kw | dict(source=own.parent/kw['source']))


def test_a_data_set_that_is_not_here_names_its_page(tmp_path):
    with pytest.raises(GrefelError, match='manifests/jaffe.md says how to get it'):
        find_layout('jaffe', tmp_path)


def test_a_row_of_no_split_is_lost_from_no_report(tmp_path):
    text = 'emotion,image,Usage\nhappy,a.png,train\nsad,b.png,Sunday\nsad,c.png,test\n'
    file = put(tmp_path/'two.csv', text)
    t = read_table(file, 'train')
    assert (len(t), t.fault.str.contains('unknown split').tolist()) == (2, [False, True])
    with pytest.raises(GrefelError, match='valid_share=0.1'): read_table(file, 'valid')


def test_a_share_of_train_becomes_valid(tmp_path):
    lines = ['emotion,image,Usage', *(f'happy,{i}.png,train' for i in range(20))]
    file = put(tmp_path/'three.csv', '\n'.join(lines))
    counts = read_table(file, valid_share=.1).split.value_counts()
    assert (counts['train'], counts['valid']) == (18, 2)
    assert len(read_table(file, 'valid', valid_share=.1)) == 2
    put(tmp_path/'four.csv', '\n'.join([*lines, 'happy,x.png,valid']))
    with pytest.raises(GrefelError, match='leave valid_share out'):
        read_table(tmp_path/'four.csv', valid_share=.1)


def test_a_parquet_file_counts_for_more_than_a_csv_beside_it(tmp_path):
    put(tmp_path/'fer2013.csv', 'emotion,pixels\n0,1 2 3 4\n')
    pd.DataFrame(dict(image=[b''], votes=[[9, 1] + [0]*8])).to_parquet(tmp_path/'train.parquet')
    assert read_table(tmp_path).attrs['layout'] == 'parquet'


def test_numbers_need_their_names(tmp_path):
    pd.DataFrame(dict(image=[png(np.zeros((2, 2), np.uint8))], label=[3])).to_parquet(
        tmp_path/'a.parquet')
    with pytest.raises(GrefelError, match='numbers without class names'):
        read_table(tmp_path/'a.parquet')


def test_the_latest_layout_is_asked_first(tmp_path):
    put(tmp_path/'happy'/'a.png', b'')
    @register_layout(lambda path: path == tmp_path)
    def read_mine(path, split=None): return make_table(name=['mine'])
    try:
        t = read_table(tmp_path)
        assert (t.attrs['layout'], t.name.tolist()) == ('mine', ['mine'])
    finally: del LAYOUTS['mine']
    assert find_layout(tmp_path)[1] == 'folder'


# folders

def face_folders(root, *names):
    for name in names: put(root/name/'a.png', png(np.zeros((4, 4), np.uint8)))
    return root


def test_linked_class_folders_are_followed(tmp_path):
    face_folders(tmp_path/'other', 'sad')
    face_folders(tmp_path/'set', 'happy')
    (tmp_path/'set'/'sad').symlink_to(tmp_path/'other'/'sad')
    assert sorted(read_table(tmp_path/'set').label) == ['happiness', 'sadness']


def test_a_link_that_leads_back_ends_and_is_noted(tmp_path):
    face_folders(tmp_path, 'happy')
    (tmp_path/'happy'/'again').symlink_to(tmp_path)
    files, odd = all_files(tmp_path)
    assert files == ['happy/a.png'] and [o.what for o in odd] == [
        'a link into a folder above it, not followed']


@pytest.mark.parametrize('name, leaves', [
    ('../out.png', True), ('/etc/motd', True), ('sub/../../out.png', True), ('..\\out.png', True),
    ('sub/../in.png', False), ('..png', False), ('{inside}/in.png', False)])
def test_a_list_may_not_leave_its_folder(tmp_path, name, leaves):
    inside = tmp_path/'in'
    for f in ('out.png', 'in/in.png', 'in/..png', 'in/sub/x.png'): put(tmp_path/f, b'x')
    name = name.format(inside=inside)
    _, faults, odd = locate(inside, [name])
    assert bool(faults) == leaves and (not leaves or '--allow-outside' in faults[0])
    assert not [o for o in odd if not o.where.startswith(str(inside))]  # strangers' files unlisted
    paths, faults, odd = locate(inside, [name], outside=True)
    assert not faults and Path(paths[0]).exists()
    assert not [o for o in odd if not o.where.startswith(str(inside))]


def test_class_folders_in_other_words_want_classes(tmp_path):
    face_folders(tmp_path, 'wut', 'freude')
    with pytest.raises(GrefelError, match='--classes'): read_table(tmp_path)
    t = read_table(tmp_path, classes=dict(wut='anger', freude='happiness'))
    assert sorted(t.label) == ['anger', 'happiness']


def test_numbered_class_folders_want_classes(tmp_path):
    face_folders(tmp_path, 'train/0', 'train/1', 'test/0')
    with pytest.raises(GrefelError, match='whole numbers without class names.*--classes'):
        read_table(tmp_path)
    assert read_table(tmp_path, classes='fer2013').label.tolist() == ['anger', 'anger', 'disgust']


@pytest.mark.parametrize('file, row, place', [
    ('a.csv', 2, 'a.csv, line 2'), ('a.parquet', 0, 'a.parquet, row 0'), ('a.png', None, 'a.png'),
    ('label.lst', 7, 'label.lst, line 7'), ('a.csv', pd.NA, 'a.csv')])
def test_a_place_is_said_as_an_editor_or_pandas_counts(file, row, place):
    assert row_place(file, row) == place
