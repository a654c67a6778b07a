"""Tables come back as they were written; a journal loses nothing wherever its run was stopped."""
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from grefel.base.core import EXPRESSIONS, GrefelError
from grefel.use.journal import (
    FORMATS, item_rows, Known, read_rows, RowLog, table_columns, table_format, write_rows)
from grefel.use.media import Item
from grefel.use.predict import Face, NO_FACE

CLASSES = ('a', 'b')
COLUMNS = table_columns(CLASSES)
MADE = dict(model='abc', every=1)


def face(emotion='a', found=True, note='', reliable=True, sets=False):
    return Face(emotion, .75, dict(a=.75, b=.25), dict(a=.5, b=.5), None, None, .5, None,
                box=(1., 2., 11., 12.) if found else None, face_found=found, score=.9,
                landmarks=np.arange(136.).reshape(68, 2) if found else None, detector='yunet',
                frame=np.array([[10., 0, 1], [0, 10., 2]]), note=note, reliable=reliable, risk=.1,
                evidence='crops', set=(emotion, 'b') if sets else None,
                ambiguity=.31234567 if sets else None, familiarity=.5 if sets else None)


def image(name, file_id='f1'): return Item(name, None, None, None, file_id)


def frame(n, file='film.avi', file_id='f2'): return Item(file, n, n/10, None, file_id)


def rows_of(item, answer): return item_rows(item, answer, CLASSES)


def lost(item): return rows_of(item, GrefelError(f'{item.file}: no such file'))


def names(path): return [r['file'] for r in read_rows(path)]


# Rows

def test_every_face_has_a_row_and_all_columns():
    rows = rows_of(image('two.png'), [face('a'), face('b')])
    assert [(r['face'], r['faces'], r['emotion']) for r in rows] == [(0, 2, 'a'), (1, 2, 'b')]
    assert all(list(r) == COLUMNS for r in rows)


@pytest.mark.parametrize('answer, faces, found', [
    ([], 0, False), ([face(found=False, note=f'{NO_FACE}: the whole image was read')], 0, False),
    ([face(found=False, note='taken to be a face already')], 1, False), ([face()], 1, True)])
def test_faces_that_were_read_are_counted_and_guesses_are_not(answer, faces, found):
    row, = rows_of(image('wall.png'), answer)
    assert (row['faces'], row['face_found']) == (faces, found)
    assert (row['note'] or NO_FACE).startswith((NO_FACE, 'taken'))


def test_an_image_that_cannot_be_read_has_a_row_with_its_error():
    row, = lost(image('gone.png'))
    assert (row['file'], row['error'], row['faces']) == ('gone.png', 'gone.png: no such file', 0)
    assert {k for k, v in row.items() if v is not None} == {'file', 'error', 'faces', 'file_id'}


# Formats

@pytest.mark.parametrize('ending', FORMATS)
def test_rows_come_back_with_their_types(tmp_path, ending):
    rows = [*rows_of(image('é "quoted",\r\nodd.png'), [face(reliable=False, note='x')]),
            *rows_of(image('wall.png'), []),
            *rows_of(frame(3), [face(), face(reliable=None)]), *lost(image('gone.png')),
            *rows_of(image('wall.png'), [face(found=False)])]
    write_rows(tmp_path/f'table{ending}', iter(rows), COLUMNS)
    back = list(read_rows(tmp_path/f'table{ending}'))
    assert back == rows
    types = [[[type(v) for v in r.values()] for r in table] for table in (back, rows)]
    assert types[0] == types[1]


@pytest.mark.parametrize('ending', FORMATS)
def test_sets_and_doubts_have_columns_that_are_empty_where_nobody_asked(tmp_path, ending):
    rows = rows_of(image('one'), [face(sets=True)]) + rows_of(image('two'), [face()])
    write_rows(tmp_path/f't{ending}', rows, COLUMNS)
    asked, plain = read_rows(tmp_path/f't{ending}')
    assert [asked[k] for k in ('set', 'ambiguity', 'familiarity')] == ['a or b', .3123, .5]
    assert [plain[k] for k in ('set', 'ambiguity', 'familiarity')] == [None]*3


@pytest.mark.parametrize('ending', FORMATS)
def test_a_table_of_more_than_one_group_comes_back_in_order(tmp_path, ending):
    row, = lost(image('gone.png'))
    write_rows(tmp_path/f'table{ending}', (row | dict(face=n) for n in range(10_001)), COLUMNS)
    assert [r['face'] for r in read_rows(tmp_path/f'table{ending}')] == list(range(10_001))


@pytest.mark.parametrize('ending', FORMATS)
def test_a_name_that_is_no_text_is_spelt_out_and_known_again(tmp_path, ending):
    name, path = os.fsdecode(b'strange\xff$_$.png'), tmp_path/f't{ending}'
    for _ in range(2):
        with RowLog(path, COLUMNS, MADE) as log:
            if log.state(name, 'f1') is None: fill(log, image(name))
            log.finish()
    assert names(path) == ['strange\\udcff$_$.png']
    if ending != '.parquet': path.read_text(encoding='utf-8')   # is text for everybody


SAVES = dict(csv=lambda t, p: t.to_csv(p), plain=lambda t, p: t.to_csv(p, index=False),
             jsonl=lambda t, p: t.to_json(p, orient='records', lines=True),
             parquet=lambda t, p: t.to_parquet(p))
READS = dict(csv=pd.read_csv, plain=pd.read_csv, parquet=pd.read_parquet,
             jsonl=lambda p: pd.read_json(p, lines=True, dtype=False))


@pytest.mark.parametrize('how', SAVES)
def test_a_table_that_pandas_has_saved_again_is_the_same_table(tmp_path, how):
    ending = 'csv' if how == 'plain' else how
    rows = [*rows_of(frame(3), [face(), face(reliable=None)]), *lost(image('gone.png')),
            *rows_of(image('wall.png'), []), *rows_of(image('one.png'), [face(reliable=False)])]
    path = tmp_path/f't.{ending}'
    with RowLog(path, COLUMNS, MADE) as log:
        for row in rows: log.add([row])
        log.finish()
    before = list(read_rows(path))
    SAVES[how](READS[how](path), path)
    assert list(read_rows(path)) == before
    with RowLog(path, COLUMNS, MADE) as log:
        assert log.known['one.png'] == Known('f1', None, True)
        log.finish()
    assert list(read_rows(path)) == before


def test_marks_are_never_numbers(tmp_path):
    "Or pandas would take 12e45678 for one."
    for n in range(40):
        with RowLog(tmp_path/f'{n}.csv', COLUMNS, dict(n=n)) as log: pass
        with pytest.raises(ValueError): float(log.mark)


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
    for item in items: log.add(rows_of(item, [face()]))


def known(log): return {(file, k.frame) for file, k in log.known.items()}


def complete(log):
    "End the films, as a run that reads them to their end does."
    for file, k in list(log.known.items()):
        if not k.ended: log.end(file)
    log.finish()


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
            assert known(log) == set(KEYS[:kept]), cut
            fill(log, *(item for item in ITEMS if item.file not in log.known))
            complete(log)
        assert [(r['file'], r['frame']) for r in read_rows(path)] == KEYS, cut


def test_entries_behind_a_broken_line_are_not_trusted(tmp_path, whole):
    lines = whole.splitlines(keepends=True)
    Path(f'{tmp_path}/t.csv.log').write_bytes(b''.join([*lines[:2], b'{"rows": [\n', *lines[3:]]))
    with RowLog(tmp_path/'t.csv', COLUMNS, MADE) as log: assert known(log) == {('one', None)}


def test_a_run_that_ended_before_it_could_remove_its_log_doubles_nothing(tmp_path, whole):
    path = tmp_path/'t.csv'
    for _ in range(2):
        Path(f'{path}.log').write_bytes(whole)
        complete(RowLog(path, COLUMNS, MADE))
        assert names(path) == ['one', 'two', 'film.avi']
    assert not Path(f'{path}.log').exists()


def test_a_finished_table_is_continued(tmp_path):
    path = tmp_path/'t.parquet'
    for name in ('one', 'two'):
        with RowLog(path, COLUMNS, MADE) as log:
            fill(log, image(name))
            log.finish()
    with RowLog(path, COLUMNS, MADE) as log: assert known(log) == {('one', None), ('two', None)}


def test_a_film_in_a_table_is_finished_and_one_in_a_log_only_when_its_end_was_reached(tmp_path):
    path = tmp_path/'t.csv'
    with RowLog(path, COLUMNS, MADE) as log: fill(log, frame(0), frame(1))
    with RowLog(path, COLUMNS, MADE) as log:
        assert log.known['film.avi'] == Known('f2', 1, False)
        log.end('film.avi')
    with RowLog(path, COLUMNS, MADE) as log:
        assert log.known['film.avi'].ended
        log.finish()
    with RowLog(path, COLUMNS, MADE) as log: assert log.known['film.avi'] == Known('f2', 1, True)


def test_a_film_that_was_stopped_and_is_not_named_again_says_so_and_is_then_read_anew(tmp_path):
    path = tmp_path/'t.csv'
    with RowLog(path, COLUMNS, MADE) as log: fill(log, frame(0), frame(1))
    with RowLog(path, COLUMNS, MADE) as log:
        fill(log, image('one'))
        log.finish()
    assert [r['error'] for r in read_rows(path) if r['error']] == [
        'film.avi: was stopped after frame 1; name it again to read it']
    with RowLog(path, COLUMNS, MADE) as log:
        assert known(log) == {('one', None)}
        fill(log, frame(0), frame(1), frame(2))
        complete(log)
    assert [(r['file'], r['frame'], r['error']) for r in read_rows(path)] == [
        ('one', None, None), *(('film.avi', n, None) for n in range(3))]


def test_a_file_that_has_changed_is_forgotten_and_its_rows_are_replaced(tmp_path):
    path = tmp_path/'t.csv'
    with RowLog(path, COLUMNS, MADE) as log:
        fill(log, image('one'), *map(frame, range(3)))
        complete(log)
    with RowLog(path, COLUMNS, MADE) as log:
        assert log.state('one', 'f1') and log.state('film.avi', 'f2')
        assert log.state('one', None)                  # a file that has vanished keeps its answer
        assert log.state('one', 'f9') is None and log.state('film.avi', 'f9') is None
        fill(log, image('one', 'f9'), frame(0, file_id='f9'))
        complete(log)
    assert [(r['file'], r['frame'], r['file_id']) for r in read_rows(path)] == [
        ('one', None, 'f9'), ('film.avi', 0, 'f9')]


def test_a_file_that_changes_while_its_run_is_stopped_is_begun_anew(tmp_path):
    path = tmp_path/'t.csv'
    for identity in ('f1', 'f2', 'f3'):
        with RowLog(path, COLUMNS, MADE) as log:
            log.state('film.avi', identity)
            fill(log, frame(0, file_id=identity), frame(1, file_id=identity))
    with RowLog(path, COLUMNS, MADE) as log: complete(log)
    assert [(r['frame'], r['file_id']) for r in read_rows(path)] == [(0, 'f3'), (1, 'f3')]


def test_what_could_not_be_read_is_tried_again_and_its_row_replaced(tmp_path):
    path = tmp_path/'t.csv'
    with RowLog(path, COLUMNS, MADE) as log:
        log.add(lost(image('late')))
        fill(log, image('one'))
        log.finish()
    with RowLog(path, COLUMNS, MADE) as log:
        assert known(log) == {('one', None)}
        fill(log, image('late'))
        log.finish()
    assert [(r['file'], r['error']) for r in read_rows(path)] == [('one', None), ('late', None)]


def test_within_a_journal_the_last_attempt_counts(tmp_path):
    for answer in (lost(image('late')), rows_of(image('late'), [face()])):
        with RowLog(tmp_path/'t.csv', COLUMNS, MADE) as log: log.add(answer)
    with RowLog(tmp_path/'t.csv', COLUMNS, MADE) as log:
        assert known(log) == {('late', None)}
        log.finish()
    assert [r['error'] for r in read_rows(tmp_path/'t.csv')] == [None]


def test_a_frame_that_could_not_be_decoded_is_done(tmp_path):
    with RowLog(tmp_path/'t.csv', COLUMNS, MADE) as log: log.add(lost(frame(2)))
    with RowLog(tmp_path/'t.csv', COLUMNS, MADE) as log: assert known(log) == {('film.avi', 2)}


def test_what_is_known_does_not_grow_with_the_length_of_a_film(tmp_path):
    with RowLog(tmp_path/'t.csv', COLUMNS, MADE) as log:
        fill(log, *map(frame, range(50)))
        assert (len(log.known), len(log.begins)) == (1, 1)


def test_rows_go_through_a_function_on_their_way_into_the_table(tmp_path):
    with RowLog(tmp_path/'t.csv', COLUMNS, MADE) as log:
        fill(log, image('one'))
        log.finish(lambda rows: (r | dict(person=7) for r in rows))
    assert [r['person'] for r in read_rows(tmp_path/'t.csv')] == [7]


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
        assert json.loads(lines[1])['rows'][0]['file'] == 'one'


# What older versions wrote

OLD_COLUMNS = [c for c in COLUMNS if c not in (
    'person', 'detector', 'score', 'evidence', 'set', 'ambiguity', 'familiarity', 'landmarks',
    'file_id')]
OLD_LOG = '\n'.join(json.dumps(line) for line in [
    dict(columns=OLD_COLUMNS, settings=MADE),
    dict(key=['gone.png', None], rows=[dict.fromkeys(OLD_COLUMNS)])]) + '\n'
OLD_TABLE = '''\
file,frame,seconds,face,faces,face_found,x0,y0,x1,y1,tilt,emotion,confidence,reliable,risk,\
final_a,final_b,primary_a,primary_b,note,error,made_with
one.png,,,0,1,True,1.0,2.0,11.0,12.0,0.0,a,0.75,True,0.1,0.75,0.25,0.5,0.5,,,f303d26d
'''


@pytest.mark.parametrize('name, text', [('t.csv.log', OLD_LOG), ('t.csv', OLD_TABLE)])
def test_what_older_versions_wrote_is_refused_in_a_line_and_kept(tmp_path, name, text):
    "Their seconds were wrong, and their faces found by another detector."
    (tmp_path/name).write_text(text)
    assert_refused(tmp_path/'t.csv', 'older version')
    assert (tmp_path/name).read_text() == text


def test_the_columns_of_older_versions_are_all_there():
    assert ','.join(OLD_COLUMNS) == OLD_TABLE.splitlines()[0]
    assert len(table_columns()) == 27 + 2*len(EXPRESSIONS)
