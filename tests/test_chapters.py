"The chapters of the book, as a reader meets them: question, image, arc, exercises, next room."
import re
import statistics

import pytest
from tests.repository import NBS, directives, exported, part_of, read, source

BOOK = [p for p in sorted(NBS.glob('[1-7]_*/*.ipynb')) if part_of(p)[1] < 20]


def chapters(*parts):
    found = [p for p in BOOK if p.parent.name in parts]
    return pytest.mark.parametrize('path', found, ids=lambda p: f'{p.parent.name}/{p.stem}')


EACH, TRAIN = chapters('3_method', '6_train'), chapters('6_train')
ALL = chapters('2_base', '3_method', '4_data', '5_measure', '6_train', '7_use')


def has_image(cell):
    if cell['cell_type'] == 'markdown': return '![' in source(cell)
    return any(k.startswith('image/') for o in cell.get('outputs', []) for k in o.get('data', {}))


def title(path): return source(read(path)['cells'][0]).splitlines()[0].removeprefix('# ')


def last_cell(path): return source(read(path)['cells'][-1])


def code_of(path):
    return [source(c) for c in read(path)['cells'] if c['cell_type'] == 'code']


def definitions(path):
    "Lines of each exported cell that does more than import; a record's fields are a table."
    cells = [c for c in read(path)['cells'] if c['cell_type'] == 'code' and exported(c)]
    lines = [[line for line in source(c).splitlines() if line.strip() and not line.startswith('#|')]
             for c in cells if '@dataclass' not in source(c)]
    return [len(own) for own in lines
            if not all(re.match(r'import |from |\s|\)', line) for line in own)]


@EACH
def test_the_second_cell_asks(path):
    second = read(path)['cells'][1]
    assert second['cell_type'] == 'markdown' and '?' in source(second)


@ALL
def test_an_image_comes_within_ten_cells(path):
    shown = [c for c in read(path)['cells'] if 'hide' not in directives(c)]
    assert any(map(has_image, shown[:10]))


@EACH
def test_the_end_is_three_exercises_and_the_next_room(path):
    asked = re.findall(r'^- \*\*(Break it and see|Measure it|Replace it)\.\*\* ', last_cell(path),
                       re.M)
    assert asked == ['Break it and see', 'Measure it', 'Replace it']
    assert re.search(r'## What comes next\n\n.*\]\(\S+\.ipynb\)', last_cell(path), re.S)


@EACH
def test_what_comes_next_names_the_next_room(path):
    following = BOOK[BOOK.index(path) + 1]
    links = re.findall(r'\[([^\]]+)\]\(([^)]+)\)', last_cell(path).split('What comes next')[1])
    if following.parent == path.parent: assert (title(following), following.name) in links
    else: assert any(link.startswith(f'../{following.parent.name}/') for _, link in links)
    for label, link in links: assert label == title(path.parent/link)


@ALL
def test_no_exported_cell_is_longer_than_a_screen(path):
    assert max(definitions(path), default=0) <= 40


@TRAIN
def test_the_naive_way_comes_before_the_first_definition(path):
    cells = read(path)['cells']
    naive = next(i for i, c in enumerate(cells) if source(c).startswith('## The naïve way'))
    defined = [i for i, c in enumerate(cells)
               if exported(c) and re.search('^(@|def |class )', source(c), re.M)]
    assert naive < min(defined, default=len(cells))


@TRAIN
def test_half_of_the_exported_cells_have_ten_lines_at_most(path):
    assert statistics.median(definitions(path) or [0]) <= 10


@EACH
def test_plots_share_one_style(path):
    text = '\n'.join(code_of(path))
    assert 'plot_style(' in text
    assert not re.search(r'tab:\w+|\bC\d\b\'|fontsize=[1-8]\b', text)
