"""Somebody else's table, its writing, columns and labels: read right, or refused."""
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grefel.base.core import CLASS_ORDERS, GrefelError
from grefel.data.check import check_data
from grefel.data.columns import (
    canonical_split, column_codes, distinct, find_parts, fits, is_bytes, label_column, name_labels,
    parse_classes, parse_columns, separator, split_column, text_encoding, written_numbers)
from grefel.data.faces import load_faces
from grefel.data.table import read_table
from .conftest import png, put

WORDS = ['happy', 'sad', 'angry', 'fear']


def said(call, *args, **kw):
    "The line with which something is refused."
    with pytest.raises(GrefelError) as error: call(*args, **kw)
    return str(error.value)


# names

@pytest.mark.parametrize('text, split', [
    ('Training', 'train'), ('val', 'valid'), ('PublicTest', 'valid'), ('PrivateTest', 'test'),
    ('Dev', 'valid'), ('Sunday', None)])
def test_canonical_split(text, split): assert canonical_split(text) == split


def test_unknown_splits_are_faults_of_their_rows():
    split, faults = split_column(['val', 'Sunday'])
    assert split.tolist()[0] == 'valid' and split.isna().tolist() == [False, True]
    assert faults[0] is None and "unknown split 'Sunday'" in faults[1]
    assert split_column(['val'])[1] is None


def test_labels_in_any_spelling_stay_if_unknown():
    assert label_column(['Happy', 'joy', 'bored', 'None', 'Non-Face']).tolist() == [
        'happiness', 'happiness', 'bored', 'none', 'non-face']
    assert label_column(['sad', ' ']).isna().tolist() == [False, True]


def test_numbers_are_looked_up_from_the_first_index():
    assert label_column([1, 7, 8], CLASS_ORDERS['rafdb'], first=1).tolist() == [
        'surprise', 'neutral', '8']


STORED = pa.chunked_array([pa.array(['sad', None]).dictionary_encode(),
                          pa.array(['joy', 'sad']).dictionary_encode()])

@pytest.mark.parametrize('column', [STORED, STORED.cast(pa.string()), STORED.to_pylist()])
def test_labels_are_the_same_however_they_are_stored(column):
    found = label_column(column)
    assert found.isna().tolist() == [False, True, False, False]
    assert found[[0, 2, 3]].tolist() == ['sadness', 'happiness', 'sadness']


def test_each_word_is_asked_once():
    asked = []
    distinct(['a', 'b', 'a', None], lambda w: asked.append(w) or w)
    assert asked == ['a', 'b']
    codes, words = column_codes(pa.array(['x', None, 'x']))
    assert (codes.tolist(), words) == ([0, -1, 0], ['x'])


# how a table is written

@pytest.mark.parametrize('encoding', [
    'utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'cp1252', 'latin-1'])
@pytest.mark.parametrize('between', [',', ';', '\t', '|'])
def test_a_table_is_read_however_it_is_written(tmp_path, encoding, between):
    put(tmp_path/'gesicht ä.png', png(np.zeros((4, 4), np.uint8)))
    lines = ('image', 'emotion', 'split'), ('gesicht ä.png', 'happy', 'train')
    text = '\r\n'.join(map(between.join, lines))
    file = put(tmp_path/'table.csv', text.encode(encoding))
    found = check_data(file)
    assert found.counts == dict(train=dict(happiness=1)) and found.ok
    (_, told, _), = found.odd  # how it is written is said, in one line
    assert 'Windows line ends' in told and ('UTF-16' in told) == encoding.startswith('utf-16')
    assert ('cells' in told) == (between != ',')
    assert ('1252' in told) == (encoding in ('cp1252', 'latin-1'))


def test_a_byte_that_windows_does_not_have_is_latin_1(tmp_path):
    assert text_encoding(put(tmp_path/'a.csv', b'name\n\x81\xe4\n')) == 'latin-1'


@pytest.mark.parametrize('content', [
    b'\x89PNG\r\n\x1a\n' + bytes(99), b'PK\x03\x04' + bytes(range(64))])
def test_what_is_no_text_is_no_table(tmp_path, content):
    assert 'not a readable text' in said(read_table, put(tmp_path/'a.csv', content))


@pytest.mark.parametrize('header, sign', [
    ('a;b,c;d', ';'), ('a\tb', '\t'), ('"a;b;c",d', ','), ('alone', ','), ('a|b', '|')])
def test_the_header_tells_what_stands_between_cells(header, sign): assert separator(header) == sign


def test_rows_are_counted_as_an_editor_counts_lines(tmp_path):
    text = 'emotion,image\nhappy,a.png\n\nsad\n"fe\nar",b.png\nsad,c.png\n,\nx,d.png\n'
    table = read_table(put(tmp_path/'a.csv', text))
    lines = text.split('\n')
    assert [lines[row - 1].rpartition(',')[2] for row in table.row] == [
        'a.png', '"fe', 'c.png', 'd.png']  # each row names the line on which it begins
    assert [o.where.rpartition(', ')[2] for o in table.attrs['odd']] == ['line 4']


def test_rows_of_parquet_are_counted_as_pandas_counts(tmp_path):
    pd.DataFrame(dict(image=[png(np.zeros((4, 4)).astype('u1'))]*2, label=['sad', '?'])).to_parquet(
        tmp_path/'a.parquet')
    (where, _), = check_data(tmp_path/'a.parquet').faults
    assert where.endswith('a.parquet, row 1')


# labels, cell by cell

@pytest.mark.parametrize('bad', ['NA', '?', 'x', '', '99', '-1', 'nan', '3.5', 'bored', '7'])
@pytest.mark.parametrize('cells', [list('0123456')*4, WORDS*7], ids=['numbers', 'words'])
def test_one_bad_cell_makes_one_bad_row(bad, cells):
    names, _ = name_labels([*cells, bad])
    known = names.isin(CLASS_ORDERS['fer2013'])
    assert known[:-1].all() and not known[-1]


@pytest.mark.parametrize('word', ['happy', 'JOY', 'ha'])
def test_a_word_among_numbers_is_a_word(word):
    names, told = name_labels([*'0123456', word])
    assert names.tolist() == [*CLASS_ORDERS['fer2013'], 'happiness'] and "FER2013's order" in told


def test_a_number_among_words_is_not_guessed():
    names, told = name_labels([*WORDS, '3'])
    assert names[-1] == '3' and told is None


@pytest.mark.parametrize('kind', [str, int, float, np.int8])
def test_numbers_are_the_same_in_every_type(kind):
    names, _ = name_labels([kind(i) for i in range(7)])
    assert names.tolist() == list(CLASS_ORDERS['fer2013'])


@pytest.mark.parametrize('cells', [[*'1234567'], ['7', '7', '1', '2'], [*'01234567']*9, ['7']*5])
def test_numbers_of_another_order_are_refused_with_what_to_type(cells):
    line = said(name_labels, cells)
    assert '--classes' in line and ('count from 1' in line) == ('0' not in cells)


def test_numbers_without_a_zero_are_asked_about():
    assert 'do they count from 1?' in name_labels(list('123456'))[1]
    assert 'count from 1' not in name_labels(list('0123'))[1]


@pytest.mark.parametrize('classes, cells, names', [
    ('rafdb', '17', ['surprise', 'neutral']), ('affectnet8', '07', ['neutral', 'contempt']),
    ('anger,happy,none', '012', ['anger', 'happiness', 'none']),
    ('0=neutral,1=Happy', '01', ['neutral', 'happiness']),
    (dict(wut='anger', Freude='joy'), ['WUT ', 'freude'], ['anger', 'happiness']),
    ({3: 'fear'}, ['3.0', '03'], ['fear', 'fear']),
    ('a=b=anger', ['a=b'], ['anger']), ('angry=fear', ['Angry', 'sad'], ['fear', 'sadness'])])
def test_labels_mean_what_a_person_says(classes, cells, names):
    found, told = name_labels(list(cells), classes)
    assert found.tolist() == names and told is None


def test_a_number_that_nobody_named_is_a_bad_row():
    assert name_labels(list('012'), '0=anger,1=fear')[0].tolist() == ['anger', 'fear', '2']


@pytest.mark.parametrize('classes, line', [
    ('wut=rage', "unknown expression 'rage'"), ('fer2023', 'or the name of an order .ferplus'),
    ('anger,rage', "'rage'")])
def test_meanings_that_are_none_are_refused(classes, line):
    with pytest.raises(GrefelError, match=line): parse_classes(classes)


# which column is what

FACE = png(np.full((8, 8), 99, np.uint8))
PIXELS = ' '.join(['99']*64)


def own(tmp_path, columns, name='a.csv'):
    "A table of two rows beside two images; what `read_table` is to be given."
    for i in 'ab': put(tmp_path/f'{i}.png', FACE)
    df = pd.DataFrame(columns)
    if name.endswith('.csv'): return put(tmp_path/name, df.to_csv(index=False))
    return put(tmp_path/name, df.to_parquet(index=False))


# columns whose names promise something; what is read, and under which name the column goes on
ORDINARY = {
    'pixels beside image': (dict(image=['a.png', 'b.png'], pixels=[48, 64]), 'pixels_'),
    'votes that are one number': (dict(image=['a.png', 'b.png'], votes=[7, 9]), 'votes_'),
    'landmarks that are counts': (dict(image=['a.png', 'b.png'], landmarks=[68, 5]), 'landmarks_'),
    'image beside path': (dict(image=['cat', 'dog'], path=['a.png', 'b.png']), 'image_'),
    'path beside pixels': (dict(path=['up', 'down'], pixels=[PIXELS]*2), 'path_'),
    'odd': (dict(image=['a.png', 'b.png'], odd=[1, 2]), 'odd_'),
    'box': (dict(image=['a.png', 'b.png'], box=['big', 'small']), 'box_'),
    'a split of folds': (dict(image=['a.png', 'b.png'], split=[1, 2]), 'split_'),
    'an unnamed index': (dict(x=[0, 1], image=['a.png', 'b.png']), 'x'),
    'names of numbers': (dict(name=[1, 2], image=['a.png', 'b.png']), 'name_'),
    'row and file': (dict(row=[5, 6], image=['a.png', 'b.png']), 'row_')}

@pytest.mark.parametrize('kind', ORDINARY)
@pytest.mark.parametrize('name', ['a.csv', 'a.parquet'])
def test_an_ordinary_column_takes_no_part(tmp_path, kind, name):
    columns, carried = ORDINARY[kind]
    file = own(tmp_path, columns | dict(label=['happy', 'sad']), name)
    faces = load_faces(file, None)
    assert faces.labels.tolist() == [1, 3] and not faces.notes['bad']
    assert (faces.images == 99).all() and faces.votes is None
    assert carried in faces.extra


# Parquet files that others write
PARQUET = {
    'bytes': dict(image=[FACE]*2),
    'path beside bytes': dict(image=[FACE]*2, path=['here', 'there']),
    'path of an image beside bytes': dict(image=[FACE]*2, path=['gone.png', 'lost.png']),
    'votes of nothing': dict(image=[FACE]*2, votes=[None, None]),
    'numeric names': dict(image=[FACE]*2, name=[1, 2]),
    'numeric pixels': dict(image=[FACE]*2, pixels=[48, 64]),
    'odd': dict(image=[FACE]*2, odd=[1, 2]),
    'paths instead of bytes': dict(image=['a.png', 'b.png']),
    'bytes null and path set': dict(image=[dict(bytes=None, path='a.png'),
                                           dict(bytes=None, path='b.png')]),
    'one of each': dict(image=[dict(bytes=FACE, path='x'), dict(bytes=None, path='b.png')]),
    'pixels as text': dict(pixels=[PIXELS]*2),
    'pixels as lists': dict(pixels=[[99]*64]*2)}

@pytest.mark.parametrize('kind', PARQUET)
def test_a_parquet_file_of_any_kind_is_read(tmp_path, kind):
    file = own(tmp_path, PARQUET[kind] | dict(label=['happy', 'sad']), 'a.parquet')
    faces = load_faces(file, None)
    assert faces.labels.tolist() == [1, 3] and (faces.images == 99).all(), faces.notes['bad']
    assert (check_data(file).faults, check_data(file).usable) == ([], 2)


@pytest.mark.parametrize('index', [pa.int8(), pa.uint32(), pa.int64()])
@pytest.mark.parametrize('word', [pa.string(), pa.large_string()])
def test_words_stored_as_codes_of_any_kind_are_read(tmp_path, index, word):
    # polars writes its Categorical with 32-bit codes that pandas has no place for
    words = pa.array(['sad', 'happy'], word)
    codes = pa.DictionaryArray.from_arrays(pa.array([1, 0], index), words)
    split = pa.DictionaryArray.from_arrays(pa.array([0, 0], index), pa.array(['train'], word))
    table = pa.table(dict(image=[FACE]*2, label=codes, split=split))
    pq.write_table(table, tmp_path/'a.parquet')
    faces = load_faces(tmp_path/'a.parquet')
    assert faces.labels.tolist() == [1, 3]


@pytest.mark.parametrize('labels, line', [
    ([3, 4], 'numbers without class names.*--classes'), ([[1], [2]], 'not labels')])
def test_labels_of_parquet_that_say_nothing_are_refused(tmp_path, labels, line):
    file = own(tmp_path, dict(image=[FACE]*2, label=labels), 'a.parquet')
    with pytest.raises(GrefelError, match=line): read_table(file)


def test_numbers_of_parquet_are_read_by_what_is_said(tmp_path):
    file = own(tmp_path, dict(image=[FACE]*2, label=[1, 7]), 'a.parquet')
    assert read_table(file, classes='rafdb').label.tolist() == ['surprise', 'neutral']


# a table with words of its own
FOREIGN = dict(bild=['a.png', 'b.png'], stimmung=['Wut', 'Freude'], teil=['train', 'test'])

@pytest.mark.parametrize('name', ['a.csv', 'a.parquet'])
@pytest.mark.parametrize('columns', [
    'label=stimmung,image=bild,split=teil', dict(label='STIMMUNG', image='bild', split='teil')])
def test_columns_are_what_a_person_says(tmp_path, name, columns):
    table = read_table(own(tmp_path, FOREIGN, name), columns=columns,
                       classes='wut=anger,freude=happiness')
    assert table.label.tolist() == ['anger', 'happiness']
    assert table.split.tolist() == ['train', 'test'] and not has_faults(table)


def has_faults(table): return 'fault' in table and table.fault.notna().any()


def test_a_foreign_table_is_refused_with_what_to_type(tmp_path):
    line = said(read_table, own(tmp_path, FOREIGN))
    assert 'it has bild, stimmung, teil' in line and '--columns image=bild,label=NAME' in line
    words = FOREIGN | dict(stimmung=['angry', 'happy'])
    assert '--columns image=bild,label=stimmung' in said(read_table, own(tmp_path, words))


@pytest.mark.parametrize('columns, line', [
    ('label=mood', "no column 'mood' to take for the label; it has bild"),
    ('colour=bild', 'write PART=COLUMN'), ('label', 'write PART=COLUMN')])
def test_columns_that_there_are_not_are_refused(tmp_path, columns, line):
    assert line in said(read_table, own(tmp_path, FOREIGN), columns=columns)


@pytest.mark.parametrize('header', ['filename,label,split', 'file_name;Expression;Subset',
                                    'img\tEmotion\tUSAGE', 'image_path,class,set'])
def test_usual_names_need_no_word(tmp_path, header):
    sign = separator(header)
    put(tmp_path/'a.png', FACE)
    file = put(tmp_path/'a.csv', f'{header}\na.png{sign}happy{sign}val\n')
    assert check_data(file).counts == dict(valid=dict(happiness=1))


def test_the_words_of_a_person_count_for_more_than_ours(tmp_path):
    columns = dict(image=['a.png', 'b.png'], label=['happy', 'sad'], second=['fear', 'anger'])
    assert read_table(own(tmp_path, columns), columns='label=second').label.tolist() == [
        'fear', 'anger']


def test_contents_decide_in_a_sample_spread_over_the_column():
    late = pa.array(['']*5000 + [PIXELS]*5000)
    assert fits(late, 'pixels') and not fits(pa.array(['12 13']*9), 'pixels')
    rare = pa.array([None]*9999 + [[1]*10], pa.list_(pa.int64()))
    assert fits(rare, 'votes')


def test_chosen_columns_may_be_said_as_text_or_dictionary():
    assert parse_columns(' label=a b, image=c') == parse_columns(dict(label='a b', image='c'))
    table = dict(A=pa.array(['x.png']), B=pa.array(['sad']))
    assert find_parts(table, 'image=a,label=b').parts == dict(path='A', label='B')


def test_nothing_that_can_be_used_is_told(tmp_path):
    found = check_data(own(tmp_path, dict(image=['a.png', 'b.png'], label=['x', '?'])))
    assert (found.usable, found.ok) == (0, False)
    assert 'None of 2 rows can be used.' in found.text


def test_check_says_in_which_order_numbers_were_read(tmp_path):
    found = check_data(own(tmp_path, dict(image=['a.png', 'b.png'], emotion=[0, 3])))
    assert "FER2013's order (0 anger, 1 disgust" in found.text and '--classes' in found.text


def test_an_image_with_two_labels_is_said_to_have_two(tmp_path):
    columns = dict(image=['a.png', 'a.png', 'b.png', 'b.png'], label=['sad', 'fear', 'sad', 'sad'])
    for f in 'ab': put(tmp_path/f'{f}.png', png(np.full((8, 8), ord(f), np.uint8)))
    text = pd.DataFrame(columns).to_csv(index=False)
    faults = check_data(put(tmp_path/'a.csv', text)).faults
    assert [t for _, t in faults] == ['the same image as line 2, labelled sadness there',
                                      'the same image as line 4']


def test_copies_with_two_labels_are_said_to_have_two(tmp_path):
    columns = dict(image=[FACE, FACE], label=['sad', 'fear'])
    (_, told, _), = check_data(own(tmp_path, columns, 'a.parquet')).odd
    assert told.endswith('row 0, labelled sadness there')


# numbers written as text

@pytest.mark.parametrize('text, numbers', [
    ('[3, 1, 0]', [3, 1, 0]), ('3 1 0', [3, 1, 0]), ('3;1;0', [3, 1, 0]), ('(3,1,0)', [3, 1, 0]),
    ('[[.1, .2], [.3, .4]]', [.1, .2, .3, .4]), ('[3. 1. 0.]', [3, 1, 0]),
    ('', None), ('[]', None), ('3 of 4', None), ('many', None), ("{'a': 3}", None)])
def test_numbers_in_a_text(text, numbers): assert written_numbers(text) == numbers


TEXTS = dict(python=lambda v: str([*map(int, v)]), plain=lambda v: ' '.join(map(str, v)),
             numpy=lambda v: str(np.array(v)), semicolons=lambda v: ';'.join(map(str, v)))

@pytest.mark.parametrize('kind', TEXTS)
def test_votes_and_landmarks_may_be_written_as_text(tmp_path, twelve, kind):
    points = np.random.default_rng(1).random((12, 136)).round(3).tolist()
    write = TEXTS[kind]
    with np.printoptions(threshold=1000):
        columns = dict(image=twelve.names, votes=[*map(write, twelve.votes)],
                       landmarks=[' '.join(map(str, p)) for p in points])
    for name, pixels in zip(twelve.names, twelve.pixels): put(tmp_path/name, png(pixels))
    table = put(tmp_path/'faces.csv', pd.DataFrame(columns).to_csv(index=False))
    faces = load_faces(table, None)
    assert faces.labels.tolist() == twelve.labels.tolist()
    assert faces.votes.tolist() == twelve.votes.tolist()
    np.testing.assert_allclose(faces.landmarks.reshape(12, -1), points, atol=1e-6)


@pytest.mark.parametrize('cell, why', [
    ('many', "votes are 'many', not numbers such as 3 1 0"), ('3 1 0', 'votes must be 10 numbers'),
    ('9 x 0 0 0 0 0 0 0 1', "votes are '9 x 0"), ('9 -1 0 0 0 0 0 0 0 1', 'must be 0 or more')])
def test_a_cell_of_votes_that_is_no_list_spoils_its_row_alone(tmp_path, twelve, cell, why):
    votes = [' '.join(map(str, v)) for v in twelve.votes]
    votes[4] = cell
    table = pd.DataFrame(dict(pixels=[' '.join(map(str, p.ravel())) for p in twelve.pixels],
                              votes=votes))
    file = put(tmp_path/'faces.csv', table.to_csv(index=False))
    faces = load_faces(file, None)
    assert len(faces) == 11 and len(faces.notes['bad']) == 1
    found = check_data(file)
    (where, what), = found.faults
    assert where.endswith('line 6') and why in what


@pytest.mark.parametrize('kind, images', [
    (pa.binary(), True), (pa.large_binary(), True), (pa.string(), False), (pa.int64(), False),
    (pa.struct([('bytes', pa.binary()), ('path', pa.string())]), True),
    (pa.struct([('bytes', pa.null()), ('path', pa.string())]), True),
    (pa.struct([('bytes', pa.int64()), ('path', pa.string())]), False),
    (pa.struct([('path', pa.string())]), False)])
def test_a_column_holds_images_if_it_is_of_bytes_or_has_bytes_in_it(kind, images):
    assert is_bytes(kind) is images
