"""Readers of the field's data sets, on look-alikes: each layout is known, each fault placed."""
import io

import numpy as np
import pandas as pd
import pytest

from grefel.base.core import CLASS_ORDERS, EXPRESSIONS, GrefelError, NO_EXPRESSION
from grefel.base.geometry import interocular
from grefel.data.faces import row_faults
from grefel.data.lookalikes import lookalike, LOOKALIKES
from grefel.data.sources import ranges
from grefel.data.table import read_table
from .conftest import put


@pytest.mark.parametrize('faults', (False, True))
@pytest.mark.parametrize('name', LOOKALIKES)
def test_every_layout_is_recognised_for_what_it_is(tmp_path, name, faults):
    t = read_table(lookalike(name, tmp_path, faults=faults))
    assert t.attrs['layout'] == name and len(t)
    assert {'name', 'split', 'file', 'row'} <= set(t.columns)


@pytest.mark.parametrize('name', LOOKALIKES)
def test_a_clean_copy_has_no_faults(tmp_path, name):
    t = read_table(lookalike(name, tmp_path))
    assert [o for o in t.attrs['odd'] if '-1' not in o.what] == []
    assert row_faults(t) == {}
    assert 'label' not in t or t.label.isin((*EXPRESSIONS, *NO_EXPRESSION)).all()


@pytest.mark.parametrize('name, order', [
    ('rafdb', CLASS_ORDERS['rafdb']), ('affectnet', CLASS_ORDERS['affectnet']),
    ('affectnet_npy', CLASS_ORDERS['affectnet8']), ('expw', CLASS_ORDERS['expw'])])
def test_labels_follow_the_data_sets_own_order(tmp_path, name, order):
    t = read_table(lookalike(name, tmp_path))
    labels = list(dict.fromkeys(t.label))
    assert labels[:7] == list(order)[:7]


@pytest.mark.parametrize('name, counts', [
    ('ferplus', dict(train=8, valid=4, test=4)), ('rafdb', dict(train=14, test=7)),
    ('affectnet', dict(train=14, valid=11)), ('affectnet_npy', dict(train=16, valid=8)),
    ('parquet', dict(train=16, valid=8, test=8)), ('folder', dict(train=16, valid=8, test=8))])
def test_splits_are_those_of_the_files(tmp_path, name, counts):
    t = read_table(lookalike(name, tmp_path))
    assert t.split.value_counts().to_dict() == counts
    for s, n in counts.items(): assert len(read_table(tmp_path, s)) == n


@pytest.mark.parametrize('name, group, counts', [
    ('jaffe', 'subject', dict(train=8, valid=1, test=1)),
    ('ferg', 'subject', dict(train=4, valid=1, test=1)), ('expw', 'picture', None)])
def test_nobody_is_in_two_splits(tmp_path, name, group, counts):
    t = read_table(lookalike(name, tmp_path))
    assert t.groupby(group, observed=True)['split'].nunique().max() == 1
    groups = t.groupby('split', observed=True)[group].nunique().to_dict()
    assert counts in (None, groups)


def test_affectnets_landmarks_lie_in_the_box(tmp_path):
    t = read_table(lookalike('affectnet', tmp_path))
    points = np.array(t.landmarks.dropna().tolist()).reshape(-1, 68, 2)
    assert -.2 < points.min() and points.max() < 1.2 and .4 < points.mean() < .6
    assert t[t.label == 'non-face'].landmarks.isna().all()
    assert 'landmarks' not in read_table(tmp_path, landmarks=False)


def test_a_box_without_a_side_is_none(tmp_path):
    folder = lookalike('affectnet', tmp_path)
    file = folder/'Manually_Annotated_file_lists'/'training.csv'
    file.write_text(file.read_text().replace(',20,10,64,64,', ',20,10,0,64,'))
    assert read_table(folder, 'train').box.isna().tolist()[:2] == [True, False]


def test_the_same_face_has_the_same_landmarks_in_both_affectnets(tmp_path):
    old, new = (read_table(lookalike(n, tmp_path/n)) for n in ('affectnet', 'affectnet_npy'))
    a, b = (np.array(t.landmarks[0], float).reshape(68, 2) for t in (old, new))
    import torch
    apart = np.linalg.norm(a - b, axis=1).max()
    assert apart < .02*interocular(torch.tensor(a)[None]).item()


def test_pickled_arrays_are_refused(tmp_path):
    folder = lookalike('affectnet_npy', tmp_path)
    file = io.BytesIO()
    np.save(file, np.array([dict(x=1)], dtype=object), allow_pickle=True)
    put(folder/'train_set/annotations/0_exp.npy', file.getvalue())
    t = read_table(folder, 'train')
    assert t.label.isna().tolist()[0] and t.label.notna().sum() == len(t) - 1


def test_raf_attributes_are_words(tmp_path):
    t = read_table(lookalike('rafdb', tmp_path))
    assert (t.sex[1], t.race[1], t.age[4]) == ('female', 'African-American', '70+')


def test_frames_and_labels_of_a_video_that_do_not_agree(tmp_path):
    t = read_table(lookalike('affwild2', tmp_path, faults=True))
    noted = {what.split(':')[0].split(',')[0] for _, what, _ in t.attrs['odd']}
    assert {'labelled -1', 'labels without a frame', 'frames without a label',
            'frames with more than one image', 'frames of a video without labels',
            'an empty video', 'not an image'} <= noted
    assert not t.name.str.contains('00007').any()  # nobody could judge it
    here = t[t.name.str.startswith('12-30-1280x720')]
    # line 8 is -1, and the frame of line 9 is gone
    assert here.row.tolist() == [2, 3, 4, 5, 6, 7, 10, 11]


def test_two_people_of_one_video_are_one_subject(tmp_path):
    t = read_table(lookalike('affwild2', tmp_path))
    both = t[t.name.str.startswith('7-30-640x360')]
    assert set(both.subject) == {'7-30-640x360'} and len(both) == 18


def test_a_video_without_a_line_of_classes(tmp_path):
    for i in (1, 2): put(tmp_path/'cropped_aligned'/'v'/f'{i:05d}.jpg', b'')
    put(tmp_path/'EXPR'/'Train_Set'/'v.txt', '4\n0\n')
    t = read_table(tmp_path)
    assert t.label.tolist() == [CLASS_ORDERS['affwild2'][4], CLASS_ORDERS['affwild2'][0]]
    assert 'names no classes' in t.attrs['odd'][0].what


@pytest.mark.parametrize('change, said', [
    (lambda t: t.iloc[:-1], 'go row by row'),
    (lambda t: t.assign(Usage=t.Usage[::-1].tolist()), 'do not belong together')])
def test_fer2013_and_its_votes_have_to_fit(tmp_path, change, said):
    folder = lookalike('fer2013', tmp_path)
    new = pd.read_csv(folder/'fer2013new.csv')
    change(new).to_csv(folder/'fer2013new.csv', index=False)
    with pytest.raises(GrefelError, match=said): read_table(folder)


def test_fer2013_rows_without_a_name_are_left_out(tmp_path):
    t = read_table(lookalike('fer2013', tmp_path, faults=True))
    assert len(t) == 15 and 'no face, left out' in t.attrs['odd'][-1].what
    assert t.fer2013[:3].tolist() == ['neutral', 'happiness', 'surprise']


def test_a_list_of_no_faces(tmp_path):
    put(tmp_path/'label.lst', '\n')
    with pytest.raises(GrefelError, match='lists no faces'): read_table(tmp_path)


@pytest.mark.parametrize('numbers, said', [
    ([1, 2, 3, 7, 9, 10], '1–3, 7, 9–10'), ([5], '5'),
    (range(0, 20, 2), '0, 2, 4, 6, 8, 10, …')])
def test_ranges(numbers, said): assert ranges(numbers) == said


def test_synthetic_splits_share_no_face_and_only_train_is_noisy():
    t = read_table('synth', n=200, label_noise=.5)
    wrong = t.label != pd.Series([EXPRESSIONS[c] for c in t.clean_labels])
    assert wrong.groupby(t.split, observed=True).mean().round(1).to_dict() == dict(
        train=.5, valid=0, test=0)
    first = [p.tobytes() for p in t.pixels]
    assert len(set(first)) == 600


# RAF-DB as other people have it

def raf_copy(folder, names):
    for i, name in enumerate(names): put(folder/name/f'train_{i:05d}_aligned.jpg', b'x')
    return folder


@pytest.mark.parametrize('inside', ('.', 'DATASET'))
def test_a_rearranged_copy_of_rafdb_is_recognised(tmp_path, inside):
    raf_copy(tmp_path/inside, ('train/1', 'train/7', 'test/5'))
    t = read_table(tmp_path)
    assert t.attrs['layout'] == 'rafdb'
    assert dict(zip(t.label, t.split)) == dict(surprise='train', neutral='train', sadness='test')


def test_numbers_that_are_not_rafdbs_are_refused(tmp_path):
    raf_copy(tmp_path, ('train/0', 'train/6'))
    with pytest.raises(GrefelError, match='folders 0 to 6, but its labels are 1 to 7.*--classes'):
        read_table(tmp_path)
    assert read_table(tmp_path, classes='0=neutral,6=fear').label.tolist() == ['neutral', 'fear']


@pytest.mark.parametrize('where', ('', 'compound/'))
def test_compound_expressions_are_refused_by_name(tmp_path, where):
    lines = ''.join(f'train_{i:04d}.jpg {i}\n' for i in range(1, 12))
    put(tmp_path/f'{where}EmoLabel'/'list_patition_label.txt', lines)
    with pytest.raises(GrefelError, match='compound expressions'): read_table(tmp_path)


@pytest.mark.parametrize('folder', ('aligned', 'Image/aligned'))
@pytest.mark.parametrize('ending', ('_aligned.jpg', '.jpg'))
def test_aligned_images_lie_where_copies_have_them(tmp_path, folder, ending):
    put(tmp_path/'EmoLabel'/'list_patition_label.txt', 'train_00001.jpg 5\n')
    put(tmp_path/folder/f'train_00001{ending}', b'x')
    t = read_table(tmp_path)
    assert t.label.tolist() == ['sadness'] and 'fault' not in t


@pytest.mark.parametrize('text', ['1;2;3', '', 'NULL', ';'.join(['nan']*136)])
def test_landmarks_that_are_no_136_numbers_are_not_known_and_the_others_stay(tmp_path, text):
    folder = lookalike('affectnet', tmp_path)
    file = next(folder.rglob('training.csv'))
    lines = file.read_text().splitlines()
    cells = lines[2].split(',')
    cells[lines[0].split(',').index('facial_landmarks')] = text
    lines[2] = ','.join(cells)
    file.write_text('\n'.join(lines))
    before = read_table(lookalike('affectnet', tmp_path/'same'), 'train')
    after = read_table(folder, 'train')
    known = [*np.flatnonzero(before.landmarks.notna())]
    assert 1 in known and [*np.flatnonzero(after.landmarks.notna())] == [i for i in known if i != 1]
    for i in np.flatnonzero(after.landmarks.notna()):
        np.testing.assert_array_equal(after.landmarks[i], before.landmarks[i])
