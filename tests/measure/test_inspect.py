"""Faults that were planted in a data set are found, and nothing else is made of it."""
import io
import json
import re
from types import SimpleNamespace

import imagehash
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from grefel.base.core import EXPRESSIONS, GrefelError
from grefel.base.images import load_image
from grefel.base.synth import synth_faces
from grefel.data.labels import RULES
from grefel.data.lookalikes import lookalike
from grefel.measure.inspect import (
    KINDS, _copy_problems, _health_answers, close_pairs, count_copies, count_rules, cross_probs,
    face_distance, find_copies, inspect_data, joined_groups, judge_labels, near_pairs,
    perceptual_hash, read_images, row_labels, row_votes)
from tests.helpers import needs_ferplus


def encoded(array, kind='PNG', **kw):
    file = io.BytesIO()
    Image.fromarray(np.asarray(array)).save(file, kind, **kw)
    return file.getvalue()


@pytest.fixture(scope='module')
def planted():
    "150 faces: 5 exact duplicates across splits, 5 near ones, 4 clouds of noise, one broken file."
    rng, d = np.random.default_rng(0), synth_faces(150, size=48, seed=3, ambiguity=0.2)
    images, labels = d['images'][:, 0].numpy(), d['labels'].numpy()
    blobs = [encoded(image) for image in images]
    for k in range(5):
        blobs[100 + k] = blobs[k]
        blobs[110 + k] = encoded((images[20 + k]*0.8).astype(np.uint8), 'JPEG', quality=75)
    for k in range(4):
        cloud = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8))
        blobs[90 + k] = encoded(cloud.resize((48, 48), Image.Resampling.BICUBIC))
    blobs[99] = b'no image'
    split = np.array(['train']*100 + ['valid']*50)
    table = pd.DataFrame(dict(name=[f'face_{i}.png' for i in range(150)], image=blobs, split=split,
                              label=[EXPRESSIONS[i] for i in labels], file='x.csv', row=range(150)))
    table.attrs = dict(source='planted', layout='made here')
    return SimpleNamespace(table=table, images=images, labels=labels, split=split, blobs=blobs)


@pytest.fixture(scope='module')
def read(planted): return read_images(planted.table)


@pytest.fixture(scope='module')
def health(planted, tmp_path_factory):
    out = tmp_path_factory.mktemp('health')
    return SimpleNamespace(h=inspect_data(planted.table, out), out=out,
                           page=(out/'health.html').read_text())


def voted(planted, votes):
    table = planted.table[:len(votes)].assign(votes=votes).drop(columns='label')
    table.attrs = planted.table.attrs
    return table


def test_a_row_has_its_own_label_or_that_of_its_votes(planted):
    assert row_labels(planted.table).tolist() == planted.labels.tolist()
    votes = [[0, 9, 1] + [0]*7, [5, 5] + [0]*8, [0]*10]
    assert row_labels(voted(planted, votes), 'majority').tolist() == [1, -1, -1]
    assert row_votes(planted.table) is None


def test_kept_images_are_counted_by_split_and_rule(planted):
    rows = count_rules(planted.table)
    assert [(r['split'], r['rule'], r['rows'], r['kept']) for r in rows] == [
        ('train', 'label', 100, 100), ('valid', 'label', 50, 50)]
    assert sum(r['fear'] for r in rows) == (planted.labels == EXPRESSIONS.index('fear')).sum()
    by_votes = count_rules(voted(planted, [[0, 9, 1] + [0]*7]*3))
    assert {r['rule'] for r in by_votes} == set(RULES)


def test_images_are_read_once_and_faults_noted(planted, read):
    assert list(read['wrong']) == [99] and '8 bytes' in read['wrong'][99]
    np.testing.assert_array_equal(read['squares'][0], planted.images[0])
    assert read['keys'][3] == read['keys'][103]
    assert read['keys'][20] != read['keys'][110] and read['keys'][99] == ''


def test_pixels_as_text_are_the_same_images(planted, read):
    pixels = [' '.join(map(str, p.ravel())) for p in planted.images[:4]]
    table = planted.table[:4].drop(columns='image')
    assert (read_images(table.assign(pixels=pixels))['keys'] == read['keys'][:4]).all()
    odd = read_images(table.assign(pixels=['300 1 2 3', '-1 1 2 3', '1 2 x 3', pixels[3]]))['wrong']
    assert sorted(odd) == [0, 1, 2] and 'must be 0 to 255' in odd[0] and 'whole numbers' in odd[2]


def test_a_box_is_cut_out_and_oblong_images_become_squares(planted):
    wide = np.arange(200, dtype=np.uint8).reshape(10, 20)
    table = pd.DataFrame(dict(image=[encoded(wide)]*2, box=[[5, 2, 15, 12], None]))
    read = read_images(table, 10)
    np.testing.assert_array_equal(read['squares'][0][:8], wide[2:, 5:15])
    assert read['squares'].shape == (2, 10, 10) and read['keys'][0] != read['keys'][1]
    flipped = read_images(pd.DataFrame(dict(image=[encoded(wide[::-1])])), 10)['squares'][0]
    np.testing.assert_allclose(flipped[::-1].astype(int), read['squares'][1], atol=2)   # centred


def test_progress_counts_every_row_broken_ones_too(planted):
    heard = []
    read_images(planted.table, progress=lambda *at: heard.append(at))
    assert heard[-1] == (150, 150) and len(heard) == 150


def test_hashes_are_imagehashs(planted, read):
    bits = perceptual_hash(read['thumbs'])
    for i in (0, 20, 110, 91):
        theirs = imagehash.phash(load_image(planted.blobs[i])).hash.ravel()
        np.testing.assert_array_equal(bits[i], theirs)
    assert perceptual_hash(np.zeros((0, 32, 32))).shape == (0, 64)


def test_close_pairs_are_those_that_differ_in_few_bits():
    bits = np.random.default_rng(0).random((60, 64)) < 0.5
    bits[7], bits[9] = bits[3], bits[3] ^ (np.arange(64) < 6)
    bits[11] = bits[3] ^ (np.arange(64) >= 57)
    want = {(i, j) for i in range(60) for j in range(i + 1, 60) if (bits[i] != bits[j]).sum() <= 6}
    for block in (7, 1024):
        assert {tuple(p) for p in close_pairs(bits, 6, block).tolist()} == want
    assert {(3, 7), (3, 9), (7, 9)} <= want and (3, 11) not in want


def test_pairs_count_only_if_the_thumbnails_agree(read):
    close = {tuple(p) for p in close_pairs(perceptual_hash(read['thumbs']), 20).tolist()}
    near = {tuple(p) for p in near_pairs(read['thumbs'], 20).tolist()}
    assert {(k, 100 + k) for k in range(5)} <= near < close
    for i, j in near:
        assert np.corrcoef(read['thumbs'][i].ravel(), read['thumbs'][j].ravel())[0, 1] >= 0.9699
    assert len(near_pairs(np.zeros((1, 32, 32)))) == 0


def test_groups_are_linked_through_others():
    groups = joined_groups(6, [(0, 1), (1, 4), (2, 3)])
    assert len(set(groups)) == 3 and groups[0] == groups[4] and groups[2] == groups[3]


def test_groups_of_duplicates_are_counted_by_their_splits():
    groups = np.array([0, 0, 1, 2, 2, 2, -1, -1])
    split = np.array(['valid', 'train', 'train', 'test', 'test', 'test', 'train', 'valid'])
    assert count_copies(groups, split) == dict(groups=2, files=5,
                                               across={'train+valid': 1, 'test': 1})


def test_exact_and_near_duplicates_are_found(planted, read):
    copies = find_copies(read, planted.split)
    assert copies['counts']['exact'] == dict(groups=5, files=10, across={'train+valid': 5})
    near = copies['near']
    assert sum(near[20 + k] == near[110 + k] for k in range(5)) >= 4
    assert copies['exact'][99] == near[99] == -1                        # the broken file is no copy


def test_the_first_of_the_earliest_split_is_no_copy():
    copies = dict(exact=np.array([0, 0, 0, 1]), near=np.array([0, 0, 0, 0]))
    found = list(_copy_problems(copies, ['valid', 'train', 'train', 'test'], list('abcd')))
    assert [(p['kind'], p['i'], p['other']) for p in found] == [
        ('copy', 2, 1), ('leak', 0, 1), ('near_leak', 3, 1)]


def test_a_head_never_saw_the_label_it_judges():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    pure_noise = rng.normal(size=(200, 150))                   # learnt by heart, if it were seen
    assert (cross_probs(pure_noise, labels).argmax(1) == labels).mean() < 0.5
    twice = np.concatenate([pure_noise, pure_noise])
    kept = cross_probs(twice, np.r_[labels, labels], groups=np.r_[:200, :200])
    assert (kept.argmax(1) == np.r_[labels, labels]).mean() < 0.5


def test_flipped_labels_are_doubted():
    rng, y = np.random.default_rng(0), np.repeat([0, 3, 5], 60)
    features = rng.normal(size=(180, 6)) + 3*np.eye(6)[y]
    labels, flipped = y.copy(), rng.choice(180, 12, replace=False)
    labels[flipped] = np.where(y[flipped] == 0, 3, 0)
    labels[0] = -1                                             # a row without a label stays out
    judged, wrong = judge_labels(features, labels), labels != y
    assert roc_auc_score(wrong[1:], -judged['quality'][1:]) > 0.95
    assert judged['doubted'][flipped].mean() > 0.7 and judged['doubted'].sum() <= 14
    assert not judged['doubted'][0] and judged['probs'][0].sum() == 0
    assert set(judged['probs'][1:].argmax(1)) == {0, 3, 5}


def test_clouds_lie_far_from_faces():
    rng, cloud = np.random.default_rng(0), np.arange(400) >= 394
    thumbs = synth_faces(400, size=32, seed=3, ambiguity=0.2)['images'][:, 0].numpy()
    for i in np.flatnonzero(cloud):
        noise = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8))
        thumbs[i] = noise.resize((32, 32), Image.Resampling.BICUBIC)
    far = face_distance(thumbs)
    assert roc_auc_score(cloud, far) > 0.95 and (far[cloud] > 0.5).any()
    assert (far >= 0).all() and (far <= 1).all()
    dim = np.where(np.arange(400)[:, None, None] % 2, thumbs//2 + 60, thumbs)
    assert np.abs(face_distance(dim) - far).max() < 0.05        # contrast does not count
    assert (face_distance(thumbs[:10]) == 0).all()              # too few to say


def test_everything_planted_is_counted(health):
    n = health.h['problems']
    assert (n['leak'], n['unreadable'], n['faulty'], n['no_landmarks']) == (5, 1, 0, 0)
    assert n['near_leak'] >= 4
    assert health.h['splits'] == dict(train=100, valid=50) and health.h['model']


def test_files_agree_with_what_the_call_returned(health):
    assert json.loads((health.out/'health.json').read_text()) == health.h
    rows = pd.read_csv(health.out/'problems.csv')
    some = {k: n for k, n in health.h['problems'].items() if n}
    assert rows['kind'].value_counts().to_dict() == some
    order = [list(KINDS).index(k) for k in rows['kind']]
    assert order == sorted(order)                              # the most urgent kinds first
    leak = rows[rows['kind'] == 'leak'].iloc[0]
    assert (leak['name'], leak['row']) == ('face_100.png', 100)
    assert leak['what'] == 'as face_0.png (train)'


def test_the_page_needs_nothing_else_and_folds_its_tables(health):
    links = set(re.findall(r'(?:src|href)="([^"]*)"', health.page))
    assert {k for k in links if not k.startswith(('data:image/png', '#'))} == {
        'health.json', 'problems.csv'}
    folded = ('unreadable', 'faulty', 'mislabelled', 'ambiguous', 'no_face', 'no_landmarks')
    assert health.page.count('<details>') == sum(health.h['problems'][k] > 0 for k in folded)


def test_answers_follow_the_counts(health):
    h = health.h
    leaks = h['problems']['leak'] + h['problems']['near_leak']
    classes, split, copies, labels, faces, landmarks = _health_answers(h)
    assert (split['word'], split['mood']) == (f'{leaks} images', 'bad')
    assert (copies['word'], copies['mood']) == ('5 groups', 'fair')
    assert faces['word'] == 'nearly all' and 'doubtful' in labels['word']
    assert 'no column' in landmarks['text']
    lacking = [r | dict(fear=0) for r in h['counts']]
    assert _health_answers(h | dict(counts=lacking))[0]['word'] == '1 lacking'
    clean = h | dict(problems={k: 0 for k in KINDS}, landmarks=True, model=None)
    assert [a['word'] for a in _health_answers(clean)][1] == 'no'
    assert [a['word'] for a in _health_answers(clean)][3:] == ['not judged', 'yes', 'yes']


def test_a_folder_of_class_folders_can_be_looked_at(planted, tmp_path):
    for i in range(30):
        place = tmp_path/'photos'/EXPRESSIONS[planted.labels[i]]
        place.mkdir(parents=True, exist_ok=True)
        (place/f'{i}.png').write_bytes(planted.blobs[i])
    (place/'broken.jpg').write_bytes(b'nothing')
    h = inspect_data(tmp_path/'photos', tmp_path/'report', weights=False)
    assert (h['rows'], h['problems']['unreadable'], h['model']) == (31, 1, None)


def test_a_csv_of_paths_can_be_looked_at(planted, tmp_path):
    for i in range(20): (tmp_path/f'{i}.png').write_bytes(planted.blobs[i])
    pd.DataFrame(dict(emotion=[EXPRESSIONS[i] for i in planted.labels[:20]],
                      image=[f'{i}.png' for i in range(20)],
                      Usage=['Training']*15 + ['PublicTest']*5)).to_csv(tmp_path/'list.csv')
    h = inspect_data(tmp_path/'list.csv', weights=False)
    assert h['splits'] == dict(train=15, valid=5) and sum(r['kept'] for r in h['counts']) == 20


def test_a_limit_holds_for_each_split():
    h = inspect_data('synth', weights=False, limit=30)
    assert h['splits'] == dict(train=30, valid=30, test=30) and h['problems']['ambiguous'] > 0
    assert h['landmarks'] and h['problems']['no_landmarks'] == 0
    with pytest.raises(GrefelError, match='a limit of rows is 0'):
        inspect_data('synth', weights=False, limit=0)


def test_the_crowd_says_what_is_ambiguous_or_no_face(planted):
    votes = [[5, 5] + [0]*8, [0]*9 + [10], [9, 1] + [0]*8, [0, 5, 4] + [0]*6 + [1]]
    h = inspect_data(voted(planted, votes), weights=False)
    assert (h['problems']['ambiguous'], h['problems']['no_face']) == (2, 1)


def test_votes_that_cannot_be_are_told_and_the_others_counted(planted, tmp_path):
    table = voted(planted, [[-1] + [1]*9, [0.91, 0.09] + [0]*8, [0, 9, 1] + [0]*7])
    h = inspect_data(table, tmp_path, weights=False)
    rows = pd.read_csv(tmp_path/'problems.csv').query('kind == "faulty"')
    assert h['problems']['faulty'] == 2 and rows['row'].tolist() == [0, 1]
    assert rows['what'].str.contains('0 or more|whole numbers').all()
    assert row_labels(table).tolist() == [-1, -1, 1]


def test_other_layouts_and_missing_ones(tmp_path):
    lookalike('jaffe', tmp_path/'jaffe')
    assert inspect_data('jaffe', weights=False, data_home=tmp_path)['rows'] > 0
    with pytest.raises(GrefelError): inspect_data(tmp_path/'nowhere')


def test_a_missing_package_is_told_before_the_work_is_done(planted, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'cleanlab.filter', None)
    monkeypatch.setattr('grefel.measure.inspect.read_images', None)
    with pytest.raises(GrefelError, match='cleanlab is not installed'): inspect_data(planted.table)


@needs_ferplus
@pytest.mark.slow
def test_exact_duplicates_of_ferplus_are_as_counted():
    h = inspect_data('ferplus', weights=False)
    kept = {(r['split'], r['rule']): r['kept'] for r in h['counts']}
    assert (kept['train', 'majority'], kept['valid', 'majority']) == (25_045, 3_191)
    exact = h['copies']['exact']
    assert (exact['groups'], exact['files']) == (1_270, 2_789)
