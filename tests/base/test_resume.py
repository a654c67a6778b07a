"Work in parts: nothing twice, nothing lost, never half a file, whenever the run is stopped."
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grefel.base import resume
from grefel.base.core import GrefelError
from grefel.base.resume import (
    ROW_GROUP, Parts, fingerprint, merge_parts, refuse_overwrite, run_parts, write_part)

NAMES, SIZES = '048', (4, 4, 2)


def numbers(name):
    "Four rows of ten, from the part's name on."
    return pa.table(dict(x=pa.array(range(int(name), min(int(name) + 4, 10)), pa.int64())))


@pytest.fixture
def parts(tmp_path): return Parts(tmp_path/'work', dict(rows=10, size=4))


@pytest.fixture
def rows():
    return pd.DataFrame(dict(name=['a', 'b', 'c'], label=['happiness', 'fear', None],
                             age=[1., np.nan, 3.],
                             landmarks=[np.zeros(2000), None, np.ones(2000)]))


# ---- Fingerprints

def test_the_same_rows_have_the_same_fingerprint(rows):
    assert fingerprint(rows) == fingerprint(rows.copy(deep=True)) == fingerprint(rows, list(rows))
    assert len(fingerprint(rows)) == 16


def changed(rows, how):
    table = rows.copy(deep=True)
    if how == 'order': return table[::-1]
    if how == 'fewer': return table.head(2)
    if how == 'cell': table.loc[1, 'label'] = 'anger'
    if how == 'missing': table.loc[1, 'label'] = None
    if how == 'number': table.loc[0, 'age'] = 2.
    if how == 'moved':  # the same cells, in other rows
        table['name'] = ['b', 'a', 'c']
    # one of two thousand numbers, a little: text would leave it out
    if how == 'array': table.at[2, 'landmarks'] = np.ones(2000) + np.eye(2000)[999]*1e-9
    if how == 'type': table.at[2, 'landmarks'] = np.ones(2000, np.float32)
    if how == 'column': table = table.rename(columns=dict(name='file'))
    return table


@pytest.mark.parametrize('how', ['order', 'fewer', 'cell', 'missing', 'number', 'moved', 'array',
                                 'type', 'column'])
def test_other_rows_have_another_fingerprint(rows, how):
    assert fingerprint(changed(rows, how)) != fingerprint(rows)


def test_lists_of_arrow_count_to_the_last_value():
    def table(x):
        lists = pa.array([x, None], pa.list_(pa.float64()))
        return pd.DataFrame(dict(x=pd.Series(pd.arrays.ArrowExtensionArray(lists))))
    x = np.ones(2000)
    y = x + 1e-9*np.eye(2000)[999]
    assert fingerprint(table(x)) == fingerprint(table(x)) != fingerprint(table(y))


def test_only_the_columns_that_count_are_looked_at(rows):
    assert fingerprint(rows.assign(label='x'), ['name']) == fingerprint(rows, ['name'])
    assert fingerprint(rows, ['label']) != fingerprint(rows, ['name'])


def test_neighbouring_cells_do_not_run_together():
    arrays = [pd.DataFrame(dict(a=pd.Series(cells, dtype=object))) for cells in (
        [np.zeros(1, np.uint8), np.zeros(3, np.uint8)],
        [np.zeros(2, np.uint8), np.zeros(2, np.uint8)])]
    assert len({fingerprint(t) for t in arrays}) == 2
    assert fingerprint(pd.DataFrame(dict(a=['ab', 'c']))) != fingerprint(
        pd.DataFrame(dict(a=['a', 'bc'])))


# ---- Parts of a run

def test_finished_parts_are_not_made_again(parts):
    made = []
    def make(name):
        made.append(name)
        return numbers(name)
    assert run_parts(parts, NAMES, SIZES, make) == 0
    parts.path('4').unlink()
    assert run_parts(Parts(parts.folder, dict(size=4, rows=10)), NAMES, SIZES, make) == 2
    assert made == ['0', '4', '8', '4']


@pytest.mark.parametrize('finished, heard', [
    ('', [(4, 10), (8, 10), (10, 10)]), ('0', [(8, 10), (10, 10)]), ('4', [(4, 10), (10, 10)]),
    ('8', [(4, 10), (8, 10), (10, 10)]), ('048', [(10, 10)])])
def test_progress_tells_of_rows_after_every_part_that_was_made(parts, finished, heard):
    for name in finished: write_part(parts.path(name), numbers(name))
    said = []
    run_parts(parts, NAMES, SIZES, numbers, lambda *n: said.append(n))
    assert said == heard


def test_progress_may_be_a_bar(parts, capsys):
    run_parts(parts, NAMES, SIZES, numbers, True)
    assert '10.0/10.0' in capsys.readouterr().err


def test_a_part_that_failed_leaves_those_before_it(parts):
    def fails(name): return numbers(name) if name < '4' else 1/0
    with pytest.raises(ZeroDivisionError): run_parts(parts, NAMES, SIZES, fails)
    assert [n in parts for n in NAMES] == [True, False, False]


def test_another_job_is_told_how_it_differs_and_nothing_is_touched(parts):
    write_part(parts.path('0'), numbers('0'))
    with pytest.raises(GrefelError, match='parts of a run with another colour, size; delete it'):
        Parts(parts.folder, dict(rows=10, size=5, colour='red'))
    assert '0' in parts and json.loads((parts.folder/'job.json').read_text())['size'] == 4


def test_a_job_is_compared_as_json_stores_it(parts):
    other = parts.folder.parent/'tuple'
    Parts(other, dict(size=(1, 2)))
    assert Parts(other, dict(size=(1, 2))).folder == Parts(other, dict(size=[1, 2])).folder


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path/'thesis.tex').touch()
    with pytest.raises(GrefelError, match='holds files of something else'): Parts(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']
    (tmp_path/'empty').mkdir()
    assert Parts(tmp_path/'empty', {}).folder.exists()


def test_a_damaged_note_is_told(tmp_path):
    (tmp_path/'job.json').write_text('{')
    with pytest.raises(GrefelError, match='job.json: cannot be read; delete'): Parts(tmp_path, {})


def test_the_note_is_deleted_last_so_that_a_stop_leaves_a_folder_to_go_on_with(parts, monkeypatch):
    run_parts(parts, NAMES, SIZES, numbers)
    def stopped(folder): raise KeyboardInterrupt
    monkeypatch.setattr(resume.shutil, 'rmtree', stopped)
    with pytest.raises(KeyboardInterrupt): parts.remove()
    again = Parts(parts.folder, dict(rows=10, size=4))
    assert [n in again for n in NAMES] == [False]*3
    monkeypatch.undo()
    again.remove()
    assert not parts.folder.exists()


# ---- Files

def test_a_part_is_stored_in_small_row_groups(tmp_path):
    write_part(tmp_path/'a.parquet', pa.table(dict(x=list(range(2500)))))
    file = pq.ParquetFile(tmp_path/'a.parquet')
    assert [file.metadata.row_group(i).num_rows for i in range(3)] == [ROW_GROUP, ROW_GROUP, 452]


def test_words_share_a_dictionary_and_bytes_do_not(tmp_path):
    table = pa.table(dict(word=['fear', 'fear'], image=[b'1', b'2'], number=[1, 2]))
    write_part(tmp_path/'a.parquet', table)
    merge_parts([tmp_path/'a.parquet'], tmp_path/'b.parquet')
    for name in 'ab':
        group = pq.ParquetFile(tmp_path/f'{name}.parquet').metadata.row_group(0)
        assert [group.column(i).has_dictionary_page for i in range(3)] == [True, False, False]


def test_merged_parts_hold_every_row_in_order_with_the_metadata_asked_for(parts, tmp_path):
    run_parts(parts, NAMES, SIZES, numbers)
    write_part(parts.path('none'), numbers('0').slice(0, 0))  # a part may be empty
    files = [parts.path(n) for n in ('none', *NAMES)]
    one = merge_parts(iter(files), tmp_path/'new'/'one.parquet', {b'k': b'v'})
    assert pq.read_table(one)['x'].to_pylist() == list(range(10))
    assert pq.read_schema(one).metadata == {b'k': b'v'}
    assert [p.name for p in one.parent.iterdir()] == ['one.parquet']


def test_a_kill_while_merging_costs_nothing(parts, tmp_path):
    run_parts(parts, NAMES, SIZES, numbers)
    (tmp_path/'one.parquet.part').write_bytes(b'half of it')
    one = merge_parts([parts.path(n) for n in NAMES], tmp_path/'one.parquet')
    assert pq.read_metadata(one).num_rows == 10 and not (tmp_path/'one.parquet.part').exists()


@pytest.mark.parametrize('step', ['fsync', 'replace'])
def test_a_merge_that_fails_leaves_the_older_file_alone(parts, tmp_path, monkeypatch, step):
    run_parts(parts, NAMES, SIZES, numbers)
    (tmp_path/'one.parquet').write_text('old')
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, step, full)
    with pytest.raises(GrefelError, match='one.parquet: cannot be written .No space left'):
        merge_parts([parts.path(n) for n in NAMES], tmp_path/'one.parquet')
    assert (tmp_path/'one.parquet').read_text() == 'old'
    assert not (tmp_path/'one.parquet.part').exists()


def test_the_merged_file_is_on_the_disk_before_it_takes_its_name(parts, tmp_path, monkeypatch):
    run_parts(parts, NAMES, SIZES, numbers)
    steps, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda d: (steps.append('fsync'), fsync(d)))
    monkeypatch.setattr(os, 'replace', lambda *a: (steps.append('replace'), replace(*a)))
    merge_parts([parts.path(n) for n in NAMES], tmp_path/'one.parquet')
    assert steps == ['fsync', 'replace']


def test_a_result_must_not_take_the_place_of_what_it_is_made_from(tmp_path):
    source, out = tmp_path/'b.parquet', tmp_path/'one.parquet'
    assert refuse_overwrite(str(out), ['a.csv', source]) == out
    with pytest.raises(GrefelError, match='is read to make this; name another file'):
        refuse_overwrite(tmp_path/'new'/'..'/'b.parquet', [str(source)])


# ---- Killed in the middle

SCRIPT = '''
import os, sys, time
import pyarrow as pa
from grefel.base.resume import Parts, run_parts

rename, made = os.replace, []

def slow(part, path):
    if path.name == sys.argv[2]:
        print('about to rename', flush=True)
        time.sleep(600)
    rename(part, path)

def make(name):
    made.append(name)
    return pa.table(dict(x=list(range(int(name), min(int(name) + 4, 10)))))

os.replace = slow
run_parts(Parts(sys.argv[1], dict(rows=10)), '048', (4, 4, 2), make)
print(*made)
'''


def process(folder, stop):
    return subprocess.Popen([sys.executable, '-c', SCRIPT, str(folder), stop],
                            stdout=subprocess.PIPE, text=True)


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path):
    # at the worst moment: a part is written in full and has not got its name yet
    victim = process(tmp_path/'work', '4.parquet')
    assert victim.stdout.readline() == 'about to rename\n'
    victim.kill()
    victim.communicate()
    left = sorted(p.name for p in (tmp_path/'work').iterdir())
    assert left == ['0.parquet', '4.parquet.part', 'job.json']
    assert process(tmp_path/'work', 'none').communicate()[0].split() == ['4', '8']
    one = merge_parts([tmp_path/'work'/f'{n}.parquet' for n in NAMES], tmp_path/'one.parquet')
    assert pq.read_table(one)['x'].to_pylist() == list(range(10))
