"""Landmarks: from a model, a file or another network, and for a whole data set."""
import contextlib
import importlib
import importlib.util
import sys
from pathlib import Path
from unittest.mock import patch as replaced

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from grefel.base.core import GrefelError
from grefel.base.geometry import interocular
from grefel.base.synth import synth_faces
from grefel.data.warp import to_grey
from grefel.data.faces import load_faces
from grefel.data.landmarks import (
    agreed_landmarks, alignment_landmarks, builtin_landmarks, error_table, find_landmarks,
    landmark_error, make_landmarks, quality_table, read_landmarks, write_landmarks)
from grefel.method.files import load_model
from .conftest import png, put


@pytest.fixture(scope='module')
def drawn(): return synth_faces(5, size=96, seed=3, occlusion=0)

@pytest.fixture(scope='module')
def seen(drawn): return builtin_landmarks(drawn['images'])


# the built-in head

def test_rows_do_not_depend_on_their_batch(drawn, seen):
    assert seen.shape == (5, 68, 2) and seen.isfinite().all()
    assert_close(builtin_landmarks(drawn['images'], bs=2), seen)


def test_grey_as_colour(drawn, seen):
    colour = drawn['images'].expand(-1, 3, -1, -1)
    assert_close(builtin_landmarks(colour), seen, atol=2e-3, rtol=0)


def test_colour_is_removed_where_the_weights_were_trained_on_grey(drawn):
    colour = drawn['images']*torch.tensor([1, 0, 0], dtype=torch.uint8)[:, None, None]
    assert_close(builtin_landmarks(colour), builtin_landmarks(to_grey(colour)))


def test_no_faces_no_points(drawn):
    none = drawn['images'][:0]
    assert builtin_landmarks(none).shape == (0, 68, 2)
    assert [x.shape for x in agreed_landmarks(none)] == [(0, 68, 2), (0,)]


def test_quality_is_low_for_what_is_no_face(drawn):
    images = drawn['images'][:3].clone()
    images[2] = torch.randint(0, 256, images[2].shape, generator=torch.Generator().manual_seed(0))
    points, quality = agreed_landmarks(images)
    assert ((quality > 0) & (quality <= 1)).all() and quality[2] < quality[:2].min()
    same = agreed_landmarks(images.flip(-1)[:2])[1]
    assert (quality[:2] - same).abs().max() < .1  # a mirror image is as good


def test_four_looks_are_brought_back_to_where_they_belong(drawn, seen):
    points, _ = agreed_landmarks(drawn['images'])
    assert landmark_error(points, seen).mean() < .05


# files

NAMES = list('abcde')

@pytest.fixture
def points(drawn):
    points = drawn['landmarks'].clone()
    points[2] = float('nan')  # face c was not found
    return points


@pytest.mark.parametrize('ending', ('csv', 'parquet'))
def test_a_file_gives_back_what_was_written(tmp_path, points, ending):
    path = write_landmarks(tmp_path/f'p.{ending}', NAMES, points, quality=[1, .9, 0, .8, .7])
    assert_close(read_landmarks(path), points, equal_nan=True)
    got = read_landmarks(path, ['d', 'x', 'a', 'c'])  # another order, and one that is not there
    assert_close(got[[0, 2]], points[[3, 0]])
    assert got[[1, 3]].isnan().all()
    table = (pd.read_csv if ending == 'csv' else pd.read_parquet)(path)
    assert table['quality'].tolist() == [1, .9, 0, .8, .7]


@pytest.mark.parametrize('ending', ('csv', 'parquet'))
def test_one_missing_point_is_a_face_not_found(tmp_path, points, ending):
    points[0, 3, 1] = float('nan')
    path = write_landmarks(tmp_path/f'p.{ending}', NAMES, points)
    assert read_landmarks(path)[0].isnan().all()
    table = (pd.read_csv if ending == 'csv' else pd.read_parquet)(path)
    assert table.drop(columns='name').iloc[0].isna().all()  # and so for every other reader


def test_a_face_of_which_a_cell_is_empty_is_not_found(tmp_path, points):
    path = write_landmarks(tmp_path/'p.csv', NAMES, points)
    table = pd.read_csv(path)
    table.loc[0, 'x5'] = None
    table.to_csv(path, index=False)
    assert read_landmarks(path)[0].isnan().all() and read_landmarks(path)[1].isfinite().all()


def test_a_file_of_nobody(tmp_path, points):
    assert read_landmarks(write_landmarks(tmp_path/'n.csv', [], points[:0])).shape == (0, 68, 2)


def cell(column, row, value):
    def change(table):
        table.loc[row, column] = value
        return table
    return change

@pytest.mark.parametrize('change, said', [
    (cell('x5', 1, 'left'), 'line 3: needs 136'),
    (cell('name', 3, 'a'), "line 5: 'a' occurs twice"),
    (cell('x5', 4, '31'), 'line 6: points far outside'), (cell('x5', 4, 'inf'), 'line 6'),
    (lambda t: t.drop(columns='name'), "no column 'name'"),
    (lambda t: t.drop(columns='y9'), "'landmarks' or")])
def test_a_bad_row_of_landmarks_is_named(tmp_path, points, change, said):
    path = write_landmarks(tmp_path/'p.csv', NAMES, points)
    change(pd.read_csv(path, dtype=object)).to_csv(path, index=False)
    with pytest.raises(GrefelError, match=said) as e: read_landmarks(path)
    assert 'p.csv' in str(e.value) and '\n' not in str(e.value)


def test_a_short_list_of_landmarks(tmp_path):
    pd.DataFrame(dict(name=['a'], landmarks=[[.1]*135])).to_parquet(tmp_path/'p.parquet')
    with pytest.raises(GrefelError, match='row 0: needs 136'): read_landmarks(tmp_path/'p.parquet')


@pytest.mark.parametrize('name, said', [('missing.csv', 'no such file'), ('no.xlsx', '.csv or'),
                                        ('no.parquet', 'cannot be read as parquet')])
def test_what_is_no_file_of_landmarks(tmp_path, name, said):
    if name[0] == 'n': put(tmp_path/name, 'no')
    with pytest.raises(GrefelError, match=said): read_landmarks(tmp_path/name)


def test_what_cannot_be_written(tmp_path, points):
    put(tmp_path/'file', '')
    for path, names, said in ((tmp_path/'p.txt', NAMES, '.csv or .parquet'),
                              (tmp_path/'p.csv', NAMES[:2], '2 names for 5'),
                              (tmp_path/'file'/'p.csv', NAMES, 'cannot be written')):
        with pytest.raises(GrefelError, match=said): write_landmarks(path, names, points)


# face-alignment

class SmallFAN(torch.nn.Module):
    "The shape of FAN, as one mean over 16 pixels squared: it peaks where an image is brightest."
    def __init__(self, num_modules):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 68, 16, 4, 6)
        torch.nn.init.constant_(self.conv.weight, 1/768)
        torch.nn.init.zeros_(self.conv.bias)
    def forward(self, x): return [self.conv(x)]


@contextlib.contextmanager
def stand_in(folder):
    "face-alignment with `SmallFAN` in place of its network, whose file is given."
    api = importlib.import_module('face_alignment.api')
    place = Path(folder)/'checkpoints'/api.models_urls['2DFAN-4'].rsplit('/', 1)[-1]
    place.parent.mkdir(exist_ok=True)
    torch.save(SmallFAN(4).state_dict(), place)
    with replaced.object(api, 'FAN', SmallFAN), replaced.object(torch.hub, '_hub_dir', str(folder)):
        yield place


needs_alignment = pytest.mark.skipif(importlib.util.find_spec('face_alignment') is None,
                                     reason='face-alignment is not installed')

@pytest.fixture
def spots():
    spots = torch.zeros(3, 1, 64, 64, dtype=torch.uint8)
    for i, (x, y) in enumerate([(20, 12), (32, 40), (50, 30)]):
        spots[i, 0, y - 4:y + 4, x - 4:x + 4] = 255
    return spots


@needs_alignment
def test_alignment_finds_the_spots_whatever_their_neighbours(tmp_path, spots):
    with stand_in(tmp_path):
        found = alignment_landmarks(spots)
        alone = torch.cat([alignment_landmarks(spots[i:i + 1]) for i in range(3)])
        assert_close(alignment_landmarks(spots, bs=2), found)
    assert_close(found, alone)
    assert_close(found[:, 0]*64, torch.tensor([[20., 12], [32, 40], [50, 30]]), atol=2.1, rtol=0)


@needs_alignment
def test_a_damaged_network_names_its_file(tmp_path, spots):
    with stand_in(tmp_path) as place:
        place.write_bytes(place.read_bytes()[:200])
        with pytest.raises(GrefelError, match='face-alignment cannot load it') as e:
            alignment_landmarks(spots)
    assert str(e.value).startswith(str(place))


def test_without_the_package_one_line_says_so(spots):
    with replaced.dict(sys.modules, {'face_alignment': None}):
        with pytest.raises(GrefelError, match=r'grefel\[landmarks\]'): alignment_landmarks(spots)


# one function for all

def test_find_landmarks(tmp_path, drawn, seen, points):
    assert_close(find_landmarks(drawn['images']), seen)
    path = write_landmarks(tmp_path/'p.csv', NAMES, points)
    assert_close(find_landmarks(None, 'file', path=path, names=['b']), points[1:2])
    for kw, said in ((dict(source='guess'), 'builtin, face-alignment, file'),
                     (dict(source='file'), 'names'),
                     (dict(source='file', path=path, names=['a']), '1 names for 5')):
        with pytest.raises(GrefelError, match=said): find_landmarks(drawn['images'], **kw)


# a whole data set

@pytest.fixture
def folder(tmp_path, drawn):
    "Three tall images of faces, and a file that is none."
    for i in range(3):
        tall = Image.new('L', (96, 144), 128)
        tall.paste(Image.fromarray(drawn['images'][i, 0].numpy()), (0, 24))
        put(tmp_path/'d'/'happy'/f'{i}.png', png(tall))
    put(tmp_path/'d'/'happy'/'3.png', 'no image')
    return tmp_path/'d'


def test_points_are_those_of_the_image_and_not_of_the_square(tmp_path, folder):
    made = make_landmarks(folder, tmp_path/'l.parquet')
    assert (made['rows'], made['found'], made['failed']) == (4, 3, 1)
    table = pd.read_parquet(tmp_path/'l.parquet')
    assert 'not an image' in table['problem'][3] and table['landmarks'][3] is None
    faces = load_faces(folder, None, img_size=load_model().config['img_size'])
    in_square = 0.5 + (read_landmarks(tmp_path/'l.parquet')[:3] - 0.5)*torch.tensor([96/144, 1.])
    assert_close(in_square, agreed_landmarks(faces.images)[0], atol=1e-4, rtol=0)
    # and load_faces puts them into the square again
    again = load_faces(folder, None, landmarks=tmp_path/'l.parquet')
    assert_close(again.landmarks, in_square, atol=1e-4, rtol=0)


def stored(tmp_path, drawn, names='abcde'):
    rows = pd.DataFrame(dict(name=list(names), image=[png(x[0]) for x in drawn['images']],
                             label='happy'))
    rows.to_parquet(tmp_path/'p.parquet')
    return tmp_path/'p.parquet'


def test_a_stopped_run_goes_on_and_gives_the_same_file(tmp_path, drawn):
    file = stored(tmp_path, drawn)
    def stop(done, total):
        if done == 2: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        make_landmarks(file, tmp_path/'a.parquet', part_rows=2, progress=stop)
    for out, reused in (('a.parquet', 1), ('b.parquet', 0)):
        assert make_landmarks(file, tmp_path/out, part_rows=2)['reused'] == reused
    assert (tmp_path/'a.parquet').read_bytes() == (tmp_path/'b.parquet').read_bytes()
    assert pd.read_parquet(tmp_path/'a.parquet')['name'].tolist() == list('abcde')


def test_progress_is_told_in_rows(tmp_path, drawn):
    told = []
    make_landmarks(stored(tmp_path, drawn), tmp_path/'a.parquet', part_rows=2,
                   progress=lambda *n: told.append(n))
    assert told[-3:] == [(2, 5), (4, 5), (5, 5)]


def test_two_images_of_one_name(tmp_path, drawn):
    with pytest.raises(GrefelError, match="'a' is the name of two"):
        make_landmarks(stored(tmp_path, drawn, 'aabcd'), tmp_path/'m.parquet')


def test_a_source_is_never_overwritten(tmp_path, drawn):
    file = stored(tmp_path, drawn)
    before = file.read_bytes()
    with pytest.raises(GrefelError, match='is read to make this'): make_landmarks(file, file)
    assert file.read_bytes() == before


@pytest.mark.parametrize('out, kw, said', [
    ('l.csv', {}, 'kept as .parquet'), ('l.parquet', dict(method='guess'), 'known: builtin')])
def test_landmarks_that_cannot_be_made(tmp_path, folder, out, kw, said):
    with pytest.raises(GrefelError, match=said): make_landmarks(folder, tmp_path/out, **kw)


@needs_alignment
def test_a_whole_data_set_with_face_alignment(tmp_path, folder):
    with stand_in(tmp_path):
        made = make_landmarks(folder, tmp_path/'f.parquet', method='face-alignment', bs=2)
    assert (made['found'], made['failed']) == (3, 1)
    assert pd.read_parquet(tmp_path/'f.parquet')['quality'][:3].between(0, 1).all()


# how good they are

def test_the_error_of_a_known_shift(drawn):
    known = drawn['landmarks']
    assert landmark_error(known, known).max() == 0
    shifted = known + .1*interocular(known)[:, None, None]*torch.tensor([.6, .8])
    assert_close(landmark_error(shifted, known), torch.full((5, 68), .1))
    table = error_table(shifted, known)
    assert table.index.tolist() == ['all', 'jaw', 'brows', 'nose', 'eyes', 'mouth']
    np.testing.assert_allclose(table.to_numpy(), .1, rtol=1e-4)


def test_faces_without_points_are_left_out(drawn, points):
    assert error_table(points, drawn['landmarks'])['mean'].max() == 0


def test_quality_that_means_something():
    g = torch.Generator().manual_seed(0)
    known = synth_faces(100, size=48, seed=1)['landmarks']
    size = torch.rand(100, generator=g)
    found = known + size[:, None, None]*.1*torch.randn(100, 68, 2, generator=g)
    table = quality_table(1 - size, found, known)
    assert table['faces'].tolist() == [20]*5 and table.attrs['spearman'] < -.9
    assert table['median'].is_monotonic_decreasing and table['quality'].is_monotonic_increasing
