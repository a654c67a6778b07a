"""Pages of experiments answer first, fold the rest, and quote nothing that no data backs."""
import ast
import re

import pandas as pd
import pytest
from grefel.train.experiments import kept_lines, read_spec
from tests.repository import NBS, ROOT, directives, files, output_text, parsed, read, source

PLACE = NBS/'8_experiments'
QUESTIONS = ('B02_data', 'B03_card', 'E04_imbalance', 'E05_balancing', 'E08_soup', 'E12_seeds',
             'E13_noise', 'E14_sets', 'E15_doubts', 'E16_photographs',
             'E17_robustness', 'E18_parts', 'E21_tools', 'E22_transfer', 'E23_ingredients',
             'B01_speed')  # one question each
PAGES = ('00_findings', 'E90_screens', *QUESTIONS)
EACH, EACH_QUESTION = (pytest.mark.parametrize('page', p) for p in (PAGES, QUESTIONS))
FOLD = '<details>'


def cells(page): return read(PLACE/f'{page}.ipynb')['cells']
def prose(cells): return [source(c) for c in cells if c['cell_type'] == 'markdown']


def until_fold(page):
    "The cells that a reader sees without opening anything."
    found = cells(page)
    return found[:next(i for i, c in enumerate(found) if source(c).startswith(FOLD))]


@EACH_QUESTION
def test_the_question_comes_first(page):
    assert re.match(r'\*\*[^*]+\?\*\*', source(cells(page)[1])), source(cells(page)[1])[:80]


@EACH_QUESTION
def test_answer_one_plot_and_a_table_come_before_anything_folded(page):
    shown = [o for c in until_fold(page) for o in c.get('outputs', [])]
    kinds = [key for o in shown for key in o.get('data', {})]
    assert sum(k.startswith('image/') for k in kinds) == 1
    # their answers are computed, as more runs come in
    written_by_code = page in ('E13_noise', 'E18_parts', 'E23_ingredients')
    assert kinds[0].startswith('image/') or written_by_code
    assert any('|---' in output_text(o) or '|:--' in output_text(o) for o in shown)


@EACH_QUESTION
def test_everything_after_the_table_is_folded(page):
    depth = 0
    for c in cells(page)[len(until_fold(page)):]:
        text, hidden = source(c), 'hide' in directives(c)
        assert depth or hidden or text.startswith((FOLD, '## What comes next')), text
        depth += text.count(FOLD) - text.count('</details>')
    assert not depth


@EACH
def test_folds_open_and_close(page):
    whole = '\n'.join(prose(cells(page)))
    assert re.findall(r'<(/?details)>', whole) == ['details', '/details']*whole.count(FOLD)
    assert whole.count('<summary>') == whole.count('</summary>') == whole.count(FOLD)


@EACH
def test_the_last_cell_says_what_comes_next(page):
    assert re.search(r'What comes next.*\]\(\w+\.ipynb\)', prose(cells(page))[-1], re.S)


@EACH
def test_links_to_pages_are_called_by_title_or_number(page):
    whole = '\n'.join(prose(cells(page)))
    for label, target in re.findall(r'\[([^\]\n]+)\]\((\w+)\.ipynb\)', whole):
        title = source(cells(target)[0]).splitlines()[0].removeprefix('# ')
        assert label in (title, *title.split(': ')[:2]), f'{target} is called {title!r}'


# Numbers. What a reader sees unfolded is typed, so that it reads well. Each number has to stand in
# a check below it, as a literal; whole numbers may stand in a table instead, up to twelve anywhere.

CONDITIONS = {'48', '100', '255'}  # pixels, percent, grey levels
NUMBER = re.compile(r'(?<![\w.,±−-])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w]|\.\d)')


def numbers(text):
    "Numbers of a sentence as written, without names such as E12, code, links and formulas."
    text = re.sub(r'`[^`]*`|\]\([^)]*\)|\$[^$]*\$|\[[EB]\d\d[^\]]*\]', ' ', text)
    return {n.replace(',', '') for n in NUMBER.findall(text)}


def typed(page):
    "Numbers in sentences that stand unfolded."
    found = cells(page)
    if page not in QUESTIONS: depth, open_ = 0, []
    else: return set().union(*map(numbers, prose(until_fold(page)[1:])))
    for text in prose(found[1:]):
        depth += text.count(FOLD) - text.count('</details>')
        if not depth and '</details>' not in text: open_.append(text)
    return set().union(*map(numbers, open_))


def forms(value):
    "A literal as prose may write it: .885 may be 88.5."
    for v in (value, 100*value):
        yield from (f'{v:.{d}f}' for d in range(4) if abs(v - round(v, d)) < 1e-9)


def checked(page):
    "Literals of the cells that hold asserts, and the decimals within their strings."
    found = set()
    for c in cells(page):
        if c['cell_type'] != 'code' or not re.search(r'\bassert\b|test_eq\(', source(c)): continue
        for node in ast.walk(parsed(source(c))):
            if not isinstance(node, ast.Constant): continue
            if isinstance(node.value, str): found |= numbers(node.value.replace('%', ''))
            elif isinstance(node.value, (int, float)): found |= set(forms(node.value))
    return found


def tabled(page):
    "Whole numbers and the like in tables and other outputs."
    code = [c for c in cells(page) if c['cell_type'] == 'code']
    text = [o.get('data', {}).get('text/markdown', o.get('text', '')) for c in code
            for o in c['outputs']]
    return set().union(*(numbers(source(c)) for c in code), *(numbers(''.join(t)) for t in text))


@EACH
def test_a_number_in_an_answer_stands_in_a_check_below_it(page):
    assert not {n for n in typed(page) if '.' in n} - checked(page)


def test_answers_do_quote_numbers():
    "Else the two tests around this one would hold of nothing."
    assert sum(len(typed(page)) for page in PAGES) > 100


@EACH
def test_a_whole_number_in_an_answer_stands_in_a_check_or_a_table(page):
    whole = {n for n in typed(page) if '.' not in n and int(n) > 12} - CONDITIONS
    assert not whole - checked(page) - tabled(page)


@pytest.mark.parametrize('page', ['00_findings', 'E13_noise'])
def test_sentences_written_by_code_are_of_the_committed_results(page):
    "The file may grow by seeds; a page that wasn't run since would quote the old means."
    per = 100*pd.read_csv(PLACE/'E13_noise_long.csv').groupby('row').accuracy.mean()
    said = ' '.join(''.join(o['data'].get('text/markdown', '')) for c in cells(page)
                    for o in c.get('outputs', []) if 'data' in o)
    for method in ('grefel', 'plain'):
        lost = per[f'{method}, clean'] - per[f'{method}, symmetric 30%']
        assert f'{lost:.1f}' in numbers(said), f'{page}: run it anew'


# Data and commands

@EACH
def test_pages_read_files_that_are_there(page):
    named = re.findall(r"[BE]\d\d_\w+\.(?:csv|json|npz|py)", '\n'.join(map(source, cells(page))))
    assert not [n for n in named if not (PLACE/n).exists()]


@EACH
def test_commands_name_what_is_there(page):
    text = '\n'.join(prose(cells(page)))
    specs = re.findall(r'grefel experiment (nbs/8_experiments/\w+\.json)', text)
    scripts = re.findall(r'(?:python |`)((?:nbs|benchmarks|tools)/[\w/]+\.py)', text)
    assert not [s for s in scripts if not (ROOT/s).exists()]
    for spec in specs: assert read_spec(ROOT/spec)['rows']


@pytest.mark.parametrize('table', [p for s in PLACE.glob('E*.json') for p in (
    s.with_suffix('.csv'), s.with_name(f'{s.stem}_long.csv')) if p.exists()], ids=lambda p: p.stem)
def test_each_line_is_what_its_description_says_today(table):
    "So a default that changes doesn't change what a recorded experiment says it did."
    long = table.stem.endswith('_long')
    spec = read_spec(PLACE/f"{table.stem.removesuffix('_long')}.json", long)
    assert len(kept_lines(table, spec)) == len(pd.read_csv(table))


def test_no_committed_result_lies_about_unread():
    text = '\n'.join(p.read_text(encoding='utf-8') for p in files()
                     if p.suffix in ('.ipynb', '.py') or p.name == 'queue.json')
    text += "'E05_balancing_faces', 'E05_balancing_anchors'"  # one f-string reads both
    results = [p for p in files() if p.parent == PLACE and p.suffix in ('.csv', '.json', '.npz')]
    assert results and not [p.name for p in results if p.stem not in text]
