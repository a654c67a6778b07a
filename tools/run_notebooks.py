"""Run notebooks from top to bottom in a Jupyter kernel and store their outputs, cleaned.

Without names, all of them are run.
"""
import argparse
import json
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from nbtools import (
    MACHINE, as_stored, directives, notebooks, output_text, relative, settle_environment, source)

# Tables are stored as Markdown: as HTML each would make the website fetch scripts from elsewhere
PREAMBLE = '''
import warnings
from pandas import DataFrame, concat, set_option
set_option('display.notebook_repr_html', False)
def _as_markdown(df):
    df = df if len(df) <= 60 else concat([df.head(10), df.tail(10)])
    numbered = df.index.name is None and list(df.index) == list(range(len(df)))
    return df.to_markdown(floatfmt='.4g', index=not numbered)
get_ipython().display_formatter.formatters['text/markdown'].for_type(DataFrame, _as_markdown)
warnings.filterwarnings('ignore', '.*torch.jit.*')
'''
PROGRESS = re.compile(r'<progress|progress\s*\{|\d+%\|[^|\n]*\|\s*\d+/\d+')
COLOUR = re.compile(r'\x1b\[[0-9;]*[A-Za-z]')


def last_written(text):
    "What a terminal shows in the end: a carriage return starts its line again."
    return re.sub(r'^.*\r(?!\n)', '', text.replace('\r\n', '\n'), flags=re.M)


def clean_outputs(outputs):
    "Outputs worth keeping: no stderr, progress bars or execution counts; prints in a row as one."
    kept = []
    for o in outputs:
        o = {k: v for k, v in o.items() if k != 'transient'}
        if o['output_type'] == 'stream':
            text = COLOUR.sub('', last_written(o['text']))
            if o['name'] == 'stderr' or not text.strip() or PROGRESS.search(text): continue
            if kept and kept[-1]['output_type'] == 'stream':
                kept[-1]['text'] += text
                continue
            o['text'] = text
        elif PROGRESS.search(o.get('data', {}).get('text/html', '')): continue
        if 'execution_count' in o: o['execution_count'] = None
        if 'metadata' in o: o['metadata'] = {}
        kept.append(o)
    return kept


def warnings_of(nb):
    "The first line of whatever the notebook wrote to stderr, but for progress bars."
    texts = [o['text'] for c in nb.cells for o in c.get('outputs', []) if o.get('name') == 'stderr']
    return [t.strip().splitlines()[0] for t in texts if t.strip() and not PROGRESS.search(t)]


def text_to_store(nb):
    "The notebook's file: sources and ids as they were, outputs cleaned, nothing else."
    for cell in nb.cells:
        cell.metadata = {}
        if cell.cell_type == 'code':
            cell.outputs = [nbformat.from_dict(o) for o in clean_outputs(cell.outputs)]
    nb.metadata = nbformat.from_dict({'kernelspec': {'display_name': 'python3',
                                                     'language': 'python', 'name': 'python3'}})
    return as_stored(json.loads(nbformat.writes(nb)))


def traces(text):
    "Where the outputs of a stored notebook tell of the machine they were made on."
    cells = json.loads(text)['cells']
    found = [(i, MACHINE.search(output_text(o))) for i, c in enumerate(cells)
             for o in c.get('outputs', [])]
    return [f'cell {i} shows {m[0]!r}' for i, m in found if m]


def run(path, timeout):
    "Run one notebook in its own folder and store it; if a cell fails, say which and store nothing."
    nb, start = nbformat.read(path, 4), time.time()
    for cell in nb.cells:
        if directives(cell).get('eval') == 'false': cell.metadata['tags'] = ['skip-execution']
    nb.cells.insert(0, nbformat.v4.new_code_cell(PREAMBLE))
    client = NotebookClient(nb, timeout=timeout, kernel_name='python3',
                            skip_cells_with_tag='skip-execution',
                            extra_arguments=['--log-level=ERROR'],
                            resources={'metadata': {'path': str(path.parent)}})
    try: client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as e:
        done = [i for i, c in enumerate(nb.cells) if c.cell_type == 'code'
                and c.execution_count is not None]
        i = next((i for i, c in enumerate(nb.cells)
                  if any(o.output_type == 'error' for o in c.get('outputs', []))),
                 max(done, default=0))
        print(f'{relative(path)}: cell {i - 1} ({nb.cells[i].id}) '
              f'failed\n{source(nb.cells[i])}\n{COLOUR.sub("", str(e))[-3000:]}', file=sys.stderr)
        return False
    nb.cells.pop(0)
    said = warnings_of(nb)
    text = text_to_store(nb)
    if path.read_text(encoding='utf-8') != text: path.write_text(text, encoding='utf-8')
    for trouble in traces(text): print(f'{relative(path)}: {trouble}', file=sys.stderr)
    for line in said:
        print(f'{relative(path)}: wrote to stderr (not stored): {line}', file=sys.stderr)
    print(f'{relative(path)}  {time.time() - start:.1f} s  {path.stat().st_size/1000:.0f} KB',
          flush=True)
    return not traces(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('notebooks', nargs='*', type=Path)
    parser.add_argument('--timeout', type=int, default=900,
                        help='seconds that one cell may take (900)')
    args = parser.parse_args()
    settle_environment()
    for path in [p.resolve() for p in args.notebooks] or notebooks():
        if not path.is_file(): sys.exit(f'{path}: no such notebook')
        if not run(path, args.timeout): sys.exit(1)


if __name__ == '__main__': main()
