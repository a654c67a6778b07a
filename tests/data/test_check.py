"""The page on a data set: what was planted is found, what is whole is left alone."""
import json
import re

import numpy as np
import pandas as pd
import pytest

from grefel.base.core import GrefelError, manifest
from grefel.data.check import check_data, data_list, published_counts
from grefel.data.lookalikes import lookalike, LOOKALIKES
from tests.helpers import needs_ferplus
from .conftest import png, put

# planted kind -> how the page says it; the others are said in the words of their kind
WORDS = {'missing image': 'no such image|labels without', 'duplicate row': 'the same image',
         'label out of range': 'no expression|zero', 'mark and line ends': 'mark and Windows',
         'upper-case ending': 'spelt otherwise', 'stray file': 'not an image',
         'transparent image': 'transparent', 'labels of -1': 'labelled -1',
         'pixels too many': 'pixels, expected', 'frame that is there twice': 'more than one',
         'frame without a label': 'frames without', 'landmarks too few': '136',
         'labels without frames': 'labels without', 'video without labels': 'video without',
         'rows without a name': 'no face', 'votes that sum to zero': 'zero'}


@pytest.mark.parametrize('name', LOOKALIKES)
def test_everything_planted_is_found(tmp_path, name):
    planted = []
    check = check_data(lookalike(name, tmp_path, faults=True, planted=planted))
    if name == 'ferplus': planted = [p for p in planted if p[0] != 'grey image']  # all are grey
    found = [' '.join(f[:2]).replace('\\', '/') for f in (*check.faults, *check.odd)]
    for kind, where in planted:
        word = WORDS.get(kind, kind.removesuffix(' image'))
        assert any(where in f and re.search(word, f) for f in found), (kind, where)
    assert json.dumps(check.as_dict()) and len(check.text.splitlines()) < 80 and not check.ok


@pytest.mark.parametrize('name', [n for n in LOOKALIKES if n not in ('ferplus', 'fer2013')])
def test_each_row_is_counted_or_named(tmp_path, name):
    # not where there are votes: the label rule drops some
    check = check_data(lookalike(name, tmp_path, faults=True))
    used = sum(sum(c.values()) for c in check.counts.values())
    assert used + len(check.faults) == check.rows


@pytest.mark.parametrize('name', LOOKALIKES)
def test_a_whole_copy_is_ok(tmp_path, name):
    check = check_data(lookalike(name, tmp_path))
    assert check.ok and check.faults == [] and check.layout == name
    assert [o for o in check.odd if '-1' not in o[1] and 'the same' not in o[1]] == []
    assert 'Every row can be used.' in check.text


def test_duplicates_are_found_among_files_and_cells(tmp_path, twelve):
    images = [png(twelve.pixels[i]) for i in (0, 1, 0, 2, 1)]
    for name, columns in dict(parquet=dict(image=images), csv=None).items():
        file = tmp_path/f'a.{name}'
        if columns: pd.DataFrame(dict(columns, label='sad')).to_parquet(file)
        else:
            cells = twelve.csv.pixels[[0, 1, 0, 2, 1]]
            pd.DataFrame(dict(emotion='sad', pixels=cells, Usage='train')).to_csv(file, index=False)
        said = [(w.rpartition(', ')[2], t.rpartition(', ')[2]) for w, t, _ in check_data(file).odd]
        first = 2 if name == 'csv' else 0  # lines as an editor counts, rows as pandas does
        word = 'line' if first else 'row'
        assert said == [(f'{word} {first + i}', f'{word} {first + j}') for i, j in ((2, 0), (4, 1))]


def test_a_row_that_repeats_another_cannot_be_used(tmp_path, twelve):
    source = twelve.write('paths', tmp_path)
    lines = source.read_text().splitlines()
    put(source, '\n'.join([*lines, lines[1]]))
    (where, what), = check_data(source).faults
    assert where.endswith('line 14') and what == 'the same image as line 2'


def test_a_parquet_file_is_looked_at_part_by_part(tmp_path):
    lookalike('parquet', tmp_path)
    whole = pd.read_parquet(tmp_path/'valid.parquet')
    many = pd.concat([whole]*300, ignore_index=True).assign(split=['train', 'valid', 'test']*800)
    many.to_parquet(tmp_path/'many.parquet', row_group_size=700)
    seen = []
    found = check_data(tmp_path/'many.parquet', 'valid', progress=lambda *n: seen.append(n))
    assert (found.rows, seen[-1], found.kinds) == (800, (800, 800), dict(colour=800))
    assert found.size == sum(len(x['bytes']) for x in many[many.split == 'valid']['image'])
    assert sum('the same image' in t for _, t, _ in found.odd) == 800 - 8


@pytest.mark.parametrize('decode', (0, 1, 7, 21, 100))
def test_as_many_are_decoded_as_were_asked_for(tmp_path, decode):
    check = check_data(lookalike('rafdb', tmp_path), decode=decode)
    assert check.decoded == min(decode, 21)
    assert (sum(check.kinds.values()), len(check.sides)) == ((21, 3) if decode else (0, 0))


def test_a_damaged_image_is_found_only_by_decoding(tmp_path, twelve):
    cut = png(twelve.pixels[0])[:-700]
    images = [png(twelve.pixels[1]), cut, png(twelve.pixels[2])]
    pd.DataFrame(dict(image=images, label='sad')).to_parquet(tmp_path/'a.parquet')
    assert [w.rpartition(', ')[2] for w, _ in check_data(tmp_path/'a.parquet').faults] == ['row 1']
    assert check_data(tmp_path/'a.parquet', decode=0).ok


@pytest.mark.parametrize('labelled', (False, True))
@pytest.mark.parametrize('votes, said', [
    ([-1] + [1]*9, '0 or more'), ([.91, .09] + [0.]*8, 'whole numbers, not 0.91'),
    ([0.]*10, 'sum to zero'), ([1.]*7, '10 numbers')])
def test_votes_that_cannot_be_are_named_and_the_others_counted(tmp_path, twelve, votes, said,
                                                               labelled):
    ten = (10*np.eye(10)[:4]).tolist()
    more = dict(label=['neutral', 'happiness', 'surprise', 'sadness']) if labelled else {}
    table = pd.DataFrame(dict(image=[png(p) for p in twelve.pixels[:4]],
                              votes=[*ten[:2], votes, ten[3]], **more))
    table.to_parquet(tmp_path/'voted.parquet')
    found = check_data(tmp_path/'voted.parquet')
    (where, what), = found.faults
    assert where.endswith('voted.parquet, row 2') and said in what
    assert found.counts == {'': dict(neutral=1, happiness=1, sadness=1)}


def test_what_stands_for_no_expression_is_counted_apart(tmp_path):
    check = check_data(lookalike('affectnet', tmp_path))
    assert set(check.set_aside) == {'none', 'uncertain', 'non-face'}
    assert 'set aside in training' in check.text


def test_counts_stand_beside_the_published_ones(tmp_path):
    check = check_data(lookalike('rafdb', tmp_path))
    assert check.published['train'][''] == 12271
    assert '2 of 4,772' in check.text
    assert 'Faces in train: 12,257 fewer than published.' in check.text
    only = check_data(tmp_path, 'test')
    said = [line for line in only.text.splitlines() if 'Faces in' in line]
    assert said == ['Faces in test: 3,061 fewer than published.']


def test_columns_of_the_counts_end_under_each_other(tmp_path):
    lines = check_data(lookalike('rafdb', tmp_path/'rafdb')).text.splitlines()
    table = [line for line in lines if line.split()[0:1] in (['neutral'], ['fear'], ['all'])]
    assert len(table) == 3
    for of in re.finditer(r'\d of [\d,]+', table[-1]):     # of how many, in each split
        assert all(re.search(r'\d$', line[:of.end()]) and line[of.end():of.end() + 1] in ('', ' ')
                   for line in table)


@pytest.mark.parametrize('name, split', [('rafdb', 'train'), ('rafdb', 'test'), ('expw', ''),
                                         ('fer2013_own', 'train')])
def test_published_classes_add_up(name, split):
    counts = published_counts(name)
    assert sum(n for (s, c), n in counts.items() if s == split and c) == counts[split, '']


def test_data_list(tmp_path):
    lookalike('rafdb', tmp_path/'rafdb')
    known = data_list(tmp_path)
    assert [r['name'] for r in known.rows if r['here']] == ['rafdb']
    for r in known.rows: assert manifest(r['page']).exists()
    assert json.dumps(known.as_dict()) and f'looked for in {tmp_path}' in known.text
    head, *lines = known.text.splitlines()[:len(known.rows) + 1]
    at = head.index('here')
    assert [line[at:at + 4].strip() for line in lines] == [
        'yes' if r['name'] == 'rafdb' else 'no' for r in known.rows]


def test_the_first_bad_row_is_an_error_if_it_shall_be(tmp_path):
    faulty = lookalike('rafdb', tmp_path, faults=True)
    with pytest.raises(GrefelError, match='list_patition_label.txt, line 3'):
        check_data(faulty, strict=True)


@pytest.mark.parametrize('source, kw, said', [
    ('rafdb', dict(decode=-1), 'decode is -1'), ('jaffe', {}, 'manifests/jaffe.md')])
def test_what_cannot_be_checked(tmp_path, source, kw, said):
    lookalike('rafdb', tmp_path/'rafdb')
    with pytest.raises(GrefelError, match=said): check_data(source, data_home=tmp_path, **kw)


@pytest.mark.slow
@needs_ferplus
def test_the_duplicates_of_ferplus_are_those_of_the_manifest():
    real = check_data('ferplus')
    assert (real.ok, real.counts['train']) == (True, real.published['train'])
    groups = pd.read_csv(manifest('ferplus_duplicates.csv')).query('split != "test"')['group']
    assert len(real.odd) == int(groups.duplicated().sum())
