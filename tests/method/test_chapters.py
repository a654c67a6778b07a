"The chapters of the method, as a reader meets them: question, image, arc, exercises, next room."
import re

import pytest
from tests.repository import directives, NBS, part_of, read, source

CHAPTERS = [p for p in sorted((NBS/'3_method').glob('*.ipynb')) if part_of(p)[1] < 20]
EACH = pytest.mark.parametrize('path', CHAPTERS, ids=lambda p: p.stem)


def has_image(cell):
    if cell['cell_type'] == 'markdown': return '![' in source(cell)
    return any(k.startswith('image/') for o in cell['outputs'] for k in o.get('data', {}))


@EACH
def test_the_second_cell_asks(path):
    second = read(path)['cells'][1]
    assert second['cell_type'] == 'markdown' and '?' in source(second)


@EACH
def test_an_image_comes_within_ten_cells(path):
    shown = [c for c in read(path)['cells'] if 'hide' not in directives(c)]
    assert any(map(has_image, shown[:10]))


@EACH
def test_the_end_is_three_exercises_and_the_next_room(path):
    last = source(read(path)['cells'][-1])
    asked = re.findall(r'^- \*\*(Break it and see|Measure it|Replace it)\.\*\* ', last, re.M)
    assert asked == ['Break it and see', 'Measure it', 'Replace it']
    assert re.search(r'## What comes next\n\n.*\]\(\S+\.ipynb\)', last, re.S)


@EACH
def test_plots_share_one_style(path):
    text = '\n'.join(source(c) for c in read(path)['cells'] if c['cell_type'] == 'code')
    assert 'plot_style(' in text
    assert not re.search(r'tab:\w+|\bC\d\b\'|fontsize=[1-8]\b', text)
