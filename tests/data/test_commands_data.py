"""`grefel data …` on what other people have: read, or refused with exit code 1 and what to type."""
import json

import numpy as np
import pandas as pd
import pytest

from grefel.use.cli import main
from .conftest import png, put

FACE = png(np.full((8, 8), 99, np.uint8))


@pytest.fixture
def grefel(tmp_path, monkeypatch, capsys):
    "Run a command in a folder of two images; its exit code, output and error."
    monkeypatch.chdir(tmp_path)
    for i in 'ab': put(tmp_path/f'{i}.png', FACE)
    def run(*args):
        code = main([str(a) for a in args])
        return code, *capsys.readouterr()
    return run


def table(folder, text, name='t.csv'): return put(folder/name, text)


@pytest.mark.parametrize('labels, code', [
    ('happy sad', 0), ('happy ?', 0), ('x ?', 1), ('none other', 1)])
def test_check_fails_only_if_no_row_can_be_used(tmp_path, grefel, labels, code):
    first, second = labels.split()
    table(tmp_path, f'image,label\na.png,{first}\nb.png,{second}\n')
    assert grefel('data', 'check', 't.csv')[0] == code
    done, out, _ = grefel('data', 'check', 't.csv', '--json')
    assert done == code and (json.loads(out)['usable'] == 0) == bool(code)


@pytest.mark.parametrize('text', ['image,label\na.png,x\nb.png,?\n', 'image,label\n'])
def test_convert_of_nothing_fails(tmp_path, grefel, text):
    table(tmp_path, text)
    code, _, err = grefel('data', 'convert', 't.csv', 'out.parquet')
    assert code == 1 and err.startswith('grefel: ') and not (tmp_path/'out.parquet').exists()


SAID = ('--columns', 'label=gefühl,image=bild', '--classes', 'wut=anger,freude=happiness')

def test_columns_and_classes_reach_check_and_convert(tmp_path, grefel):
    put(tmp_path/'t.csv', 'bild;gefühl\na.png;Wut\nb.png;Freude\n'.encode('latin-1'))
    code, _, err = grefel('data', 'check', 't.csv')
    assert code == 1 and '--columns image=bild' in err
    code, out, _ = grefel('data', 'check', 't.csv', *SAID)
    assert code == 0 and 'anger' in out and 'semicolons' in out and '1252' in out
    assert grefel('data', 'convert', 't.csv', 'out.parquet', *SAID)[0] == 0
    assert pd.read_parquet('out.parquet').label.tolist() == ['anger', 'happiness']


def test_images_outside_are_read_only_if_that_is_said(tmp_path, grefel):
    table(tmp_path/'in', 'image,label\n../a.png,sad\n')
    code, _, err = grefel('data', 'convert', 'in/t.csv', 'out.parquet')
    assert code == 1 and '--allow-outside' in err
    assert grefel('data', 'convert', 'in/t.csv', 'out.parquet', '--allow-outside')[0] == 0
    assert len(pd.read_parquet('out.parquet')) == 1


def test_all_is_every_split(tmp_path, grefel):
    table(tmp_path, 'image,label,split\na.png,sad,train\nb.png,fear,test\n')
    whole, part = (json.loads(grefel('data', 'check', 't.csv', '--json', '--split', s)[1])
                   for s in ('all', 'test'))
    assert (whole['rows'], part['rows'], whole['split']) == (2, 1, None)


def test_a_result_goes_into_the_home_folder(tmp_path, grefel, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    table(tmp_path, 'image,label\na.png,sad\nb.png,fear\n')
    assert grefel('data', 'convert', 't.csv', '~/out.parquet')[0] == 0
    assert (tmp_path/'home'/'out.parquet').exists() and not (tmp_path/'~').exists()


@pytest.mark.parametrize('source, said', [
    ('~nobody-here/x', './~nobody-here/x'),
    ('https://example.org/faces.csv', 'nothing is downloaded'),
    ('~$t.csv', 'no such file')])
def test_what_is_no_path_is_said_in_one_line(grefel, source, said):
    code, _, err = grefel('data', 'check', source)
    assert code == 1 and said in err and len(err.splitlines()) == 1


def test_a_full_disk_is_named_with_the_file(tmp_path, grefel, monkeypatch):
    def full(*_): raise OSError(28, 'No space left on device')
    table(tmp_path, 'image,label\na.png,sad\nb.png,fear\n')
    monkeypatch.setattr('os.fsync', full)
    code, _, err = grefel('data', 'convert', 't.csv', 'out.parquet')
    assert code == 1 and 'out.parquet' in err and 'No space left' in err


def test_a_folder_that_cannot_be_read_is_named_and_fails(tmp_path, grefel, monkeypatch):
    import os
    for c in ('happy', 'sad'): put(tmp_path/'set'/c/'x.png', FACE)
    scandir = os.scandir
    def closed(path='.'):
        if str(path).endswith('sad'): raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)
    monkeypatch.setattr(os, 'scandir', closed)
    code, out, _ = grefel('data', 'check', 'set')
    assert code == 1 and 'sad could not be read' in out and 'Every row' not in out
