"""Tables come back as they were written; a journal loses nothing wherever its run was stopped."""
import json
import os
from pathlib import Path

import numpy as np
import pytest

from grefel.base.core import EXPRESSIONS, GrefelError
from grefel.use.journal import (
    FORMATS, item_rows, read_rows, RowLog, table_columns, table_format, write_rows)
from grefel.use.media import Item
from grefel.use.predict import Face

CLASSES = ('a', 'b')
COLUMNS = table_columns(CLASSES)
MADE = dict(model='abc', every=1)


def face(emotion='a', found=True, note='', reliable=True):
    return Face(emotion, .75, dict(a=.75, b=.25), dict(a=.5, b=.5), None, None, .5, None,
                (1., 2., 11., 12.) if found else None, None, found,
                np.array([[10., 0, 1], [0, 10., 2]]), note, reliable, .1)


def image(name): return Item(name, None, None, None)


def frame(n): return Item('film.avi', n, n/10, None)


def rows_of(item, answer): return item_rows(item, answer, CLASSES)


def lost(item): return rows_of(item, GrefelError(f'{item.file}: no such file'))


def names(path): return [r['file'] for r in read_rows(path)]


# Rows

def test_every_face_has_a_row_and_all_columns():
    rows = rows_of(image('two.png'), [face('a'), face('b')])
    assert [(r['face'], r['faces'], r['emotion']) for r in rows] == [(0, 2, 'a'), (1, 2, 'b')]
    assert all(list(r) == COLUMNS for r in rows)


def test_the_middle_of_an_image_without_faces_is_no_face():
    row, = rows_of(image('wall.png'), [face(found=False, note='no face found')])
    kept = [row[k] for k in ('faces', 'face_found', 'x0', 'note')]
    assert kept == [0, False, None, 'no face found']


def test_an_image_that_cannot_be_read_has_a_row_with_its_error():
    row, = lost(image('gone.png'))
    assert (row['file'], row['error'], row['faces']) == ('gone.png', 'gone.png: no such file', 0)
    assert {k for k, v in row.items() if v is not None} == {'file', 'error', 'faces'}


# Formats

@pytest.mark.parametrize('ending', FORMATS)
def test_rows_come_back_with_their_types(tmp_path, ending):
    rows = [*rows_of(image('é "quoted",\r\nodd.png'), [face(reliable=False, note='x')]),
            *rows_of(frame(3), [face(), face(reliable=None)]), *lost(image('gone.png')),
            *rows_of(image('wall.png'), [face(found=False)])]
    write_rows(tmp_path/f'table{ending}', iter(rows), COLUMNS)
    back = list(read_rows(tmp_path/f'table{ending}'))
    assert back == rows
    types = [[[type(v) for v in r.values()] for r in table] for table in (back, rows)]
    assert types[0] == types[1]


@pytest.mark.parametrize('ending', FORMATS)
def test_a_table_of_more_than_one_group_comes_back_in_order(tmp_path, ending):
    row, = lost(image('gone.png'))
    write_rows(tmp_path/f'table{ending}', (row | dict(face=n) for n in range(10_001)), COLUMNS)
    assert [r['face'] for r in read_rows(tmp_path/f'table{ending}')] == list(range(10_001))


@pytest.mark.parametrize('ending', FORMATS)
def test_a_name_that_is_no_text_is_written(tmp_path, ending):
    name = os.fsdecode(b'strange\xff$_$.png')
    write_rows(tmp_path/f'table{ending}', lost(image(name)), COLUMNS)
    row, = read_rows(tmp_path/f'table{ending}')
    assert row['file'].startswith('strange') and row['file'].endswith('$_$.png')


@pytest.mark.parametrize('name, text, said', [
    ('odd.csv', 'file,frame\na,one\n', 'odd.csv'),
    ('odd.jsonl', '[1, 2]\n', 'line 1'),
    ('odd.jsonl', '{"file": \n', 'odd.jsonl'),
    ('odd.parquet', 'no Parquet', 'odd.parquet'),
])
def test_a_broken_table_is_told_in_one_line(tmp_path, name, text, said):
    (tmp_path/name).write_text(text)
    with pytest.raises(GrefelError, match=said) as e: list(read_rows(tmp_path/name))
    assert '\n' not in str(e.value)


def test_a_table_that_is_not_there_is_told():
    with pytest.raises(GrefelError, match='none.csv: cannot be read'): list(read_rows('none.csv'))


def test_other_endings_are_refused():
    with pytest.raises(GrefelError, match='.parquet'): table_format('table.xlsx')
    assert table_format('TABLE.CSV') == '.csv'


# The journal

ITEMS = image('one'), image('two'), frame(4)
KEYS = [('one', None), ('two', None), ('film.avi', 4)]


def fill(log, *items):
    for item in items: log.add(item, rows_of(item, [face()]))


@pytest.fixture
def whole(tmp_path):
    "The bytes of a journal with three whole entries."
    with RowLog(tmp_path/'whole.csv', COLUMNS, MADE) as log: fill(log, *ITEMS)
    return Path(f'{tmp_path}/whole.csv.log').read_bytes()


def test_every_whole_entry_is_known_wherever_the_power_failed(tmp_path, whole):
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord('\n')]
    near_ends = {min(e + d, len(whole)) for e in ends for d in (-1, 0, 1)}
    for cut in sorted({*range(0, len(whole), 97)} | near_ends):
        path = tmp_path/f'cut{cut}.jsonl'
        Path(f'{path}.log').write_bytes(whole[:cut])
        kept = max(0, sum(e <= cut for e in ends) - 1)   # the first line is no entry
        with RowLog(path, COLUMNS, MADE) as log:
            assert log.done == set(KEYS[:kept]), cut
            fill(log, *(item for item in ITEMS if (item.file, item.frame) not in log.done))
            log.finish()
        assert [(r['file'], r['frame']) for r in read_rows(path)] == KEYS, cut


def test_entries_behind_a_broken_line_are_not_trusted(tmp_path, whole):
    lines = whole.splitlines(keepends=True)
    Path(f'{tmp_path}/t.csv.log').write_bytes(b''.join([*lines[:2], b'{"key": [\n', *lines[3:]]))
    with RowLog(tmp_path/'t.csv', COLUMNS, MADE) as log: assert log.done == {('one', None)}


def test_a_run_that_ended_before_it_could_remove_its_log_doubles_nothing(tmp_path, whole):
    path = tmp_path/'t.csv'
    for _ in range(2):
        Path(f'{path}.log').write_bytes(whole)
        RowLog(path, COLUMNS, MADE).finish()
        assert names(path) == ['one', 'two', 'film.avi']
    assert not Path(f'{path}.log').exists()


def test_a_finished_table_is_continued(tmp_path):
    path = tmp_path/'t.parquet'
    for name in ('one', 'two'):
        with RowLog(path, COLUMNS, MADE) as log:
            fill(log, image(name))
            log.finish()
    with RowLog(path, COLUMNS, MADE) as log: assert log.done == {('one', None), ('two', None)}


def test_what_could_not_be_read_is_tried_again_and_its_row_replaced(tmp_path):
    path = tmp_path/'t.csv'
    with RowLog(path, COLUMNS, MADE) as log:
        log.add(image('late'), lost(image('late')))
        fill(log, image('one'))
        log.finish()
    with RowLog(path, COLUMNS, MADE) as log:
        assert log.done == {('one', None)}
        fill(log, image('late'))
        log.finish()
    assert [(r['file'], r['error']) for r in read_rows(path)] == [('one', None), ('late', None)]


def test_within_a_journal_the_last_attempt_counts(tmp_path):
    for answer in (lost(image('late')), rows_of(image('late'), [face()])):
        with RowLog(tmp_path/'t.csv', COLUMNS, MADE) as log: log.add(image('late'), answer)
    with RowLog(tmp_path/'t.csv', COLUMNS, MADE) as log:
        assert log.done == {('late', None)}
        log.finish()
    assert [r['error'] for r in read_rows(tmp_path/'t.csv')] == [None]


def test_a_frame_that_could_not_be_decoded_is_done(tmp_path):
    with RowLog(tmp_path/'t.csv', COLUMNS, MADE) as log: log.add(frame(2), lost(frame(2)))
    with RowLog(tmp_path/'t.csv', COLUMNS, MADE) as log: assert log.done == {('film.avi', 2)}


def test_only_one_run_at_a_time(tmp_path):
    pytest.importorskip('fcntl')
    with RowLog(tmp_path/'t.csv', COLUMNS, MADE), pytest.raises(GrefelError, match='another run'):
        RowLog(tmp_path/'t.csv', COLUMNS, MADE)
    RowLog(tmp_path/'t.csv', COLUMNS, MADE).finish()   # now it is free


def assert_refused(table, said, columns=COLUMNS, settings=MADE):
    with pytest.raises(GrefelError, match=said) as e: RowLog(table, columns, settings)
    assert '\n' not in str(e.value)


OTHERS = [dict(MADE, model='other'), dict(MADE, every=2), dict(MADE, risk=.1)]


@pytest.mark.parametrize('settings', OTHERS)
def test_other_settings_do_not_continue_a_log(tmp_path, whole, settings):
    log = tmp_path/'t.csv.log'
    log.write_bytes(whole)
    assert_refused(tmp_path/'t.csv', 'other settings', settings=settings)
    assert log.read_bytes() == whole


@pytest.mark.parametrize('settings', OTHERS)
def test_other_settings_do_not_continue_a_table(tmp_path, whole, settings):
    table, log = tmp_path/'t.csv', tmp_path/'t.csv.log'
    log.write_bytes(whole)
    RowLog(table, COLUMNS, MADE).finish()
    before = table.read_bytes()
    assert_refused(table, 'other settings', settings=settings)
    assert table.read_bytes() == before and not log.exists()


def test_other_columns_are_other_settings(tmp_path, whole):
    (tmp_path/'t.csv.log').write_bytes(whole)
    assert_refused(tmp_path/'t.csv', 'other settings', columns=table_columns(('a', 'b', 'c')))


def test_somebody_elses_table_stays_as_it_is(tmp_path):
    (tmp_path/'own.csv').write_text('file,age\na.png,31\n')
    assert_refused(tmp_path/'own.csv', 'own.csv')
    assert (tmp_path/'own.csv').read_text() == 'file,age\na.png,31\n'
    assert not (tmp_path/'own.csv.log').exists()


def test_a_synced_entry_is_in_the_file(tmp_path):
    with RowLog(tmp_path/'t.csv', COLUMNS, MADE) as log:
        fill(log, image('one'))
        log.sync()
        lines = log.path.read_bytes().splitlines()
        assert json.loads(lines[1])['key'] == ['one', None]


# What version 0.1.0 wrote

MARK = 'f303d26d'
FACE_ROW = dict(zip(COLUMNS, [
    'one.png', None, None, 0, 1, True, 1., 2., 11., 12., 0., 'a', .75, True, .1,
    .75, .25, .5, .5, None, None, MARK]))
FRAME_ROW = FACE_ROW | dict(file='film.avi', frame=4, seconds=.4)
OLD_LOG = '\n'.join(json.dumps(line) for line in [
    dict(columns=COLUMNS, settings=MADE),
    dict(key=['one.png', None], rows=[FACE_ROW]),
    dict(key=['film.avi', 4], rows=[FRAME_ROW])]) + '\n{"key": ["cu'
OLD_TABLE = '''\
file,frame,seconds,face,faces,face_found,x0,y0,x1,y1,tilt,emotion,confidence,reliable,risk,\
final_a,final_b,primary_a,primary_b,note,error,made_with
one.png,,,0,1,True,1.0,2.0,11.0,12.0,0.0,a,0.75,True,0.1,0.75,0.25,0.5,0.5,,,f303d26d
gone.png,,,,0,,,,,,,,,,,,,,,,gone.png: no such file,f303d26d
film.avi,4,0.4,0,1,True,1.0,2.0,11.0,12.0,0.0,a,0.75,True,0.1,0.75,0.25,0.5,0.5,,,f303d26d
'''


def test_the_columns_are_those_of_version_0_1_0():
    assert ','.join(COLUMNS) == OLD_TABLE.splitlines()[0]
    assert len(table_columns()) == 18 + 2*len(EXPRESSIONS)


def test_a_journal_of_version_0_1_0_is_continued(tmp_path):
    (tmp_path/'t.csv.log').write_text(OLD_LOG)
    with RowLog(tmp_path/'t.csv', COLUMNS, MADE) as log:
        assert log.done == {('one.png', None), ('film.avi', 4)}
        log.add(image('new.png'), rows_of(image('new.png'), [face()]))
        log.finish()
    rows = list(read_rows(tmp_path/'t.csv'))
    assert [r['file'] for r in rows] == ['one.png', 'film.avi', 'new.png']
    assert rows[0] == FACE_ROW and rows[2] == FACE_ROW | dict(file='new.png')


def test_a_table_of_version_0_1_0_is_continued(tmp_path):
    (tmp_path/'t.csv').write_text(OLD_TABLE)
    with RowLog(tmp_path/'t.csv', COLUMNS, MADE) as log:
        assert log.done == {('one.png', None), ('film.avi', 4)}
        log.add(image('gone.png'), rows_of(image('gone.png'), [face()]))
        log.finish()
    assert names(tmp_path/'t.csv') == ['one.png', 'film.avi', 'gone.png']
    assert {r['made_with'] for r in read_rows(tmp_path/'t.csv')} == {MARK}
