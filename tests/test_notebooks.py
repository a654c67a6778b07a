"""Notebooks as files: clean, readable, without traces of the machine they ran on."""
import ast
import re

import pytest
from tests.repository import (
    MACHINE, NBS, as_stored, directives, exported, files, module_name, notebooks, output_text,
    parsed, read, relative, source)

NOTEBOOK_KB, FILE_MIB, CELL_LINES, LINE_WIDTH = 400, 16, 60, 100
EACH = pytest.mark.parametrize('path', notebooks(), ids=lambda p: p.relative_to(NBS).as_posix())


def code_cells(path):
    return [(i, c) for i, c in enumerate(read(path)['cells']) if c['cell_type'] == 'code']


def all_outputs(path):
    return [(i, o) for i, c in code_cells(path) for o in c.get('outputs', [])]


@EACH
def test_is_stored_as_nbdev_clean_leaves_it(path):
    assert read(path)['nbformat_minor'] == 5
    assert path.read_text(encoding='utf-8') == as_stored(read(path)), 'not clean: run make export'


@EACH
def test_cells_have_ids_of_their_own(path):
    ids = [c.get('id') for c in read(path)['cells']]
    assert all(ids) and len(set(ids)) == len(ids)


@EACH
def test_first_cell_holds_title_and_summary_and_nothing_else(path):
    "The site takes them for its front matter and drops whatever else is in that cell."
    first = read(path)['cells'][0]
    assert first['cell_type'] == 'markdown'
    assert re.fullmatch(r'# \S[^\n]*\n\n> \S[^\n]*\n?', source(first)), source(first)[:200]


@EACH
def test_second_cell_says_what_it_is_about(path):
    second = read(path)['cells'][1]
    assert second['cell_type'] == 'markdown'
    assert len(source(second).split()) >= 15, source(second)[:100]


@EACH
def test_outputs_hold_no_errors_warnings_or_progress(path):
    residue = re.compile(r'<progress|\d+%\||\r(?!\n)|\d(?:it|s)/(?:s|it)\]')
    for i, o in all_outputs(path):
        assert o['output_type'] != 'error', f'cell {i}: {o.get("ename")}'
        assert o.get('name') != 'stderr', f'cell {i}: {output_text(o).strip().splitlines()[-1:]}'
        assert not residue.search(output_text(o)), f'cell {i}: residue of a progress bar'


@EACH
def test_outputs_tell_nothing_of_the_machine(path):
    found = [(i, MACHINE.search(output_text(o))) for i, o in all_outputs(path)]
    assert not [f'cell {i}: {m[0]}' for i, m in found if m]


@EACH
def test_outputs_are_readable(path):
    "HTML would make the site fetch scripts from elsewhere; a Series prints its type."
    for i, o in all_outputs(path):
        assert 'text/html' not in o.get('data', {}), f'cell {i}: HTML'
        series = re.search(r'^Name: .*dtype: |dtype: object$', output_text(o), re.M)
        assert not series, f'cell {i}: a Series'


def shows_an_image(cell):
    return any(k.startswith('image/') for o in cell.get('outputs', []) for k in o.get('data', {}))


@EACH
def test_images_have_alt_text(path):
    bare = [i for i, c in code_cells(path)
            if shows_an_image(c) and not {'fig-alt', 'hide'} & directives(c).keys()]
    assert not bare, f'cells {bare}: add #| fig-alt: "what one sees"'
    linked = [m[0] for c in read(path)['cells'] if c['cell_type'] == 'markdown'
              for m in re.finditer(r'!\[\s*\]\([^)]*\)', source(c))]
    assert not linked, f'images without alt text: {linked}'


@EACH
def test_size(path):
    assert path.stat().st_size <= NOTEBOOK_KB*1000


@EACH
def test_exported_cells_are_short(path):
    for i, c in code_cells(path):
        if not exported(c): continue
        lines = source(c).splitlines()
        assert len(lines) <= CELL_LINES, f'cell {i}: {len(lines)} lines'


@EACH
def test_docments_hold_no_backticks(path):
    "The site prints them raw in the signature."
    for i, c in code_cells(path):
        if not exported(c): continue
        for node in ast.walk(parsed(source(c))):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)): continue
            if node.lineno == node.body[0].lineno: continue
            head = source(c).splitlines()[node.lineno - 1:node.body[0].lineno - 1]
            comments = [line.partition('  #')[2] or line.partition('# ')[2] for line in head
                        if '#' in line]
            assert not [t for t in comments if '`' in t], f'cell {i}, {node.name}: {comments}'


def is_import(node): return isinstance(node, (ast.Import, ast.ImportFrom))


@EACH
def test_cells_that_import_do_nothing_else(path):
    "nbdev runs such cells alone when it builds the site."
    if not module_name(read(path)): return
    for i, c in code_cells(path):
        if exported(c) or directives(c).get('eval') == 'false': continue
        tree = parsed(source(c))
        mixed = any(map(is_import, ast.walk(tree))) and not all(map(is_import, tree.body))
        assert not mixed, f'cell {i}: move its imports into a cell of their own'


@EACH
def test_links_lead_to_notebooks_and_are_called_by_their_titles(path):
    for i, c in enumerate(read(path)['cells']):
        if c['cell_type'] != 'markdown': continue
        for label, link in re.findall(r'\[([^\]\n]+)\]\(([\w./-]+\.ipynb)', source(c)):
            target = (path.parent/link).resolve()
            assert target.exists(), f'cell {i}: {link} does not exist'
            assert not re.fullmatch(r'`?\d\d_\w+`?', label), f'cell {i}: {label} is no title'


def test_files_are_small():
    assert not [f'{relative(p)}: {p.stat().st_size/2**20:.1f} MiB' for p in files()
                if p.stat().st_size > FILE_MIB*2**20]


def test_no_photographs_in_data_and_nothing_pickled():
    images = {'.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.parquet',
              '.npy', '.npz', '.zip', '.gz'}
    pickled = {'.pkl', '.pickle', '.pt', '.pth', '.ckpt', '.joblib'}
    assert not [relative(p) for p in files()
                if p.suffix.lower() in images and relative(p).startswith('grefel/manifests/')]
    assert not [relative(p) for p in files() if p.suffix.lower() in pickled]
