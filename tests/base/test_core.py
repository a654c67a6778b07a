"Names, orders and places: what every other part stands on."
import math
import os
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from grefel.base import core
from grefel.base.core import (
    CLASS_ORDERS, DEFAULT_SIZE, EXPRESSIONS, GrefelError, NO_EXPRESSION, as_path, canonical,
    class_map, data_home, in_range, late, manifest, set_seed, shipped_size, weights_file,
    write_file)


def test_an_error_is_one_line_whatever_was_put_into_it():
    assert str(GrefelError('faces.csv:\n\n  no\tcolumn')) == 'faces.csv: no column'


def test_a_long_error_keeps_its_start_and_its_end():
    line = str(GrefelError('faces.csv, row 7: ' + 'ha'*10_000 + '; known: anger'))
    assert len(line) < 500
    assert line.startswith('faces.csv, row 7: ha') and line.endswith('; known: anger')


@pytest.mark.parametrize('value, limits', [
    (0, (0, 1)), (1, (0, 1)), (0.5, (0, 1)), (10**9, (0,)), (0, ())])
def test_a_number_within_its_limits_is_given_back(value, limits):
    assert in_range(value, 'share', *limits) is value


@pytest.mark.parametrize('value', [-1, 1.01, math.nan, -math.inf, 'half', None, True, [1]])
def test_a_number_out_of_place_is_refused_with_its_limits(value):
    with pytest.raises(GrefelError, match='share is .*; it must be a number from 0 to 1'):
        in_range(value, 'share', 0, 1)


@pytest.mark.parametrize('value', [-1, math.inf, math.nan])
def test_a_number_without_an_upper_limit_is_still_a_number(value):
    with pytest.raises(GrefelError, match='it must be a number of at least 0'):
        in_range(value, 'rate')


@pytest.mark.parametrize('value', [0, 1.5, math.inf, 2., True])
def test_a_whole_number_is_asked_for_as_one(value):
    with pytest.raises(GrefelError, match='epochs is .*; it must be a whole number of at least 1'):
        in_range(value, 'epochs', 1, whole=True)


@pytest.mark.parametrize('name, expression', [
    ('Happy', 'happiness'), ('joy', 'happiness'), ('HA', 'happiness'), ('happiness ', 'happiness'),
    ('an', 'anger'), ('Fearful', 'fear'), ('SU', 'surprise'), ('calm', 'neutral'),
    ('contemptuous', 'contempt'), ('di', 'disgust'), ('sad', 'sadness')])
def test_usual_spellings_are_understood(name, expression):
    assert canonical(name) == expression


def test_every_expression_is_its_own_name():
    assert [canonical(e) for e in EXPRESSIONS] == list(EXPRESSIONS)


@pytest.mark.parametrize('name', ['hungry', '', 'none', 'other', None])
def test_what_is_no_expression_is_refused(name):
    with pytest.raises(GrefelError, match='unknown expression'): canonical(name)


def test_every_order_lists_known_classes_once():
    for name, order in CLASS_ORDERS.items():
        assert len(set(order)) == len(order), name
        assert set(order) <= {*EXPRESSIONS, *NO_EXPRESSION}, name


# Written down a second time on purpose: a swap of two names would crash nothing anywhere
@pytest.mark.parametrize('order, in_ours', [
    ('ferplus', [0, 1, 2, 3, 4, 5, 6, 7]), ('fer2013', [4, 5, 6, 1, 3, 2, 0]),
    ('rafdb', [2, 6, 5, 1, 3, 4, 0]), ('affectnet7', [0, 1, 3, 2, 6, 5, 4]),
    ('affectnet8', [0, 1, 3, 2, 6, 5, 4, 7]),
    ('affectnet', [0, 1, 3, 2, 6, 5, 4, 7, None, None, None]),
    ('affwild2', [0, 4, 5, 6, 1, 3, 2, None]), ('expw', [4, 5, 6, 1, 3, 2, 0]),
    ('jaffe', [4, 5, 6, 1, 0, 3, 2]), ('ferg', [4, 5, 6, 1, 0, 3, 2])])
def test_classes_are_matched_by_name(order, in_ours):
    assert class_map(order) == in_ours


def test_there_and_back_is_the_identity():
    there, back = class_map('rafdb'), class_map(EXPRESSIONS, 'rafdb')
    assert [back[i] for i in there] == list(range(7))
    assert back[EXPRESSIONS.index('contempt')] is None
    assert class_map(['joy', 'anger'], ['anger']) == [None, 0]      # by the very name


def test_data_lie_where_they_are_said_to(tmp_path, monkeypatch):
    monkeypatch.setenv('GREFEL_DATA', '~/faces')
    assert data_home() == Path('~/faces').expanduser().resolve()
    assert data_home(tmp_path/'x'/'..') == tmp_path.resolve()
    monkeypatch.delenv('GREFEL_DATA')
    assert data_home() is None


@pytest.mark.parametrize('text, meant', [
    ('~/t.csv', '{home}/t.csv'), ('~', '{home}'), ('~$a.png', '~$a.png'), ('a~b/c', 'a~b/c'),
    ('C:/faces', 'C:/faces'), ('./a.png', 'a.png'), ('faces:2/a.png', 'faces:2/a.png'),
    ('./~nobody-here/x', '{here}/~nobody-here/x')])
def test_a_path_is_what_a_person_means(tmp_path, monkeypatch, text, meant):
    monkeypatch.setenv('HOME', str(tmp_path))
    wanted = Path(meant.format(home=tmp_path, here=Path.cwd()))
    assert as_path(text) == wanted
    assert as_path(as_path(text)) == wanted  # asked again, it says the same


@pytest.mark.parametrize('text, said', [
    ('~nobody-here/x', './~nobody-here/x'), ('', 'empty'), ('a\0b', 'zero byte'),
    ('https://example.org/a.png', 'https'), (Path('https://example.org/a.png'), 'address'),
    ('s3://faces/train', 'address'), ('hf://datasets/x', 'nothing is downloaded')])
def test_what_is_no_path_is_refused_with_what_to_type(text, said):
    with pytest.raises(GrefelError, match=said): as_path(text)


def test_without_a_home_folder_only_a_path_into_it_is_refused(monkeypatch):
    def nowhere(self): raise RuntimeError('Could not determine home directory.')
    monkeypatch.setattr(Path, 'expanduser', nowhere)
    with pytest.raises(GrefelError, match='no home folder is known for ~; write the whole path'):
        as_path('~/t.csv')
    assert as_path('~$a.png') == Path('~$a.png') and as_path('t.csv') == Path('t.csv')


def test_a_file_is_written_into_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.chdir(tmp_path)
    assert write_file('~/t.csv', 'a') == tmp_path/'home'/'t.csv'
    assert not Path('~').exists()


@pytest.mark.parametrize('own', ['nano', 'nano/weights.safetensors'])
def test_a_name_that_is_a_size_and_a_path_is_refused(tmp_path, monkeypatch, own):
    monkeypatch.chdir(tmp_path)
    Path('nano').mkdir()  # a folder alone is no run
    assert shipped_size('nano') == 'nano'
    if own == 'nano': Path('nano').rmdir()
    Path(own).touch()
    with pytest.raises(GrefelError, match='write ./nano for .*, shipped:nano for'):
        weights_file('nano')
    assert weights_file('./nano') == Path(own)
    assert weights_file('shipped:nano') == weights_file()


def test_manifests_ship_with_the_package():
    assert manifest('landmark_template.csv').is_file()
    with pytest.raises(GrefelError, match='nothing.csv: no such manifest'): manifest('nothing.csv')


def test_weights_are_found_by_size_file_and_folder(tmp_path, monkeypatch):
    assets = tmp_path/'assets'
    assets.mkdir()
    for size in (DEFAULT_SIZE, 'other'): (assets/f'ferplus_{size}.safetensors').touch()
    monkeypatch.setattr(core, 'PACKAGE', tmp_path)
    assert weights_file() == assets/f'ferplus_{DEFAULT_SIZE}.safetensors'
    assert weights_file('other') == assets/'ferplus_other.safetensors'
    mine = tmp_path/'weights.safetensors'
    mine.touch()
    assert weights_file(tmp_path) == weights_file(str(mine)) == mine


def test_missing_weights_are_named_with_what_ships(tmp_path):
    shipped = rf'none: no such weights file \(shipped: .*{DEFAULT_SIZE}'
    with pytest.raises(GrefelError, match=shipped):
        weights_file(tmp_path/'none')
    with pytest.raises(GrefelError, match='weights.safetensors: no such weights file'):
        weights_file(tmp_path)


def test_a_written_file_holds_all_and_leaves_nothing_beside_it(tmp_path):
    file = write_file(tmp_path/'new'/'report.txt', 'é')
    assert file.read_bytes() == 'é'.encode('utf-8')
    assert write_file(str(file), b'\0\r\n').read_bytes() == b'\0\r\n'
    assert [p.name for p in file.parent.iterdir()] == ['report.txt']


class Refused(OSError):
    "What a full disk says."
    strerror = 'No space left on device'


@pytest.mark.parametrize('step', ['fsync', 'replace'])
def test_a_write_that_fails_leaves_the_older_file_alone(tmp_path, monkeypatch, step):
    file = write_file(tmp_path/'report.txt', 'old')
    def refuse(*args): raise Refused
    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(GrefelError, match='report.txt: cannot be written .No space left'):
        write_file(file, 'new')
    assert file.read_text() == 'old' and [p.name for p in tmp_path.iterdir()] == ['report.txt']


def test_a_file_takes_its_name_only_when_all_of_it_is_on_the_disk(tmp_path, monkeypatch):
    steps, fsync, replace = [], os.fsync, os.replace
    def synced(descriptor):
        steps.append(('fsync', os.fstat(descriptor).st_size))
        fsync(descriptor)
    def renamed(part, path):
        steps.append(('replace', Path(part).stat().st_size))
        replace(part, path)
    monkeypatch.setattr(os, 'fsync', synced)
    monkeypatch.setattr(os, 'replace', renamed)
    write_file(tmp_path/'report.txt', 'x'*999)
    assert steps == [('fsync', 999), ('replace', 999)]


def test_a_file_is_no_folder(tmp_path):
    file = write_file(tmp_path/'report.txt', 'kept')
    with pytest.raises(GrefelError, match='cannot be written'): write_file(file/'below.txt', '')
    with pytest.raises(GrefelError, match='cannot be written'): write_file(tmp_path, '')
    assert file.read_text() == 'kept' and not tmp_path.with_name(tmp_path.name + '.part').exists()


def test_threads_that_write_one_file_do_not_meet(tmp_path, monkeypatch):
    # all threads write the same temporary name, so two at once would mix what they write
    inside, most, fsync = [], [], os.fsync
    def counted(descriptor):
        inside.append(threading.get_ident())
        most.append(len(inside))
        fsync(descriptor)
        threading.Event().wait(0.01)
        inside.pop()
    monkeypatch.setattr(os, 'fsync', counted)
    texts = [str(i)*9999 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda t: write_file(tmp_path/'report.txt', t), texts))
    assert max(most) == 1 and (tmp_path/'report.txt').read_text() in texts


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='this system knows no pipes')
def test_a_pipe_is_written_to_and_never_replaced(tmp_path):
    pipe = tmp_path/'pipe'
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # somebody listens
    write_file(pipe, 'said')
    heard = os.read(end, 99)
    os.close(end)
    assert heard == b'said' and pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def test_a_late_part_is_imported_when_it_is_asked_for(tmp_path, monkeypatch):
    (tmp_path/'seldom_wanted.py').write_text('def answer(): return 42\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert 'seldom_wanted' not in sys.modules
    assert late('seldom_wanted:answer')() == 42
    monkeypatch.delitem(sys.modules, 'seldom_wanted')


def draw():
    "A number from each of the three global generators."
    return random.random(), np.random.rand(), torch.rand(()).item()


@pytest.mark.parametrize('seed', [0, 42, 2**32, 2**70])
def test_a_seed_repeats_all_three_generators(seed):
    set_seed(seed)
    first = draw()
    set_seed(seed)
    assert draw() == first
    set_seed(seed + 1)
    assert not set(first) & set(draw())
