"""What the repository's tests share: its files, notebooks and modules, and how to run a command."""
import ast
import functools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))

from nbtools import (  # noqa: E402, F401
    MACHINE, NBS, PACKAGE, as_stored, directives, exported, files, module_name, notebooks,
    output_text, read, relative, source)

BIN = Path(sys.executable).parent
ENV = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | {'OMP_NUM_THREADS': '1'}
# The parts from the ground up; `start` and `experiments` export nothing and may use all of them
PARTS = ('base', 'method', 'data', 'measure', 'train', 'use')
BY_HAND = {'__init__.py', '__main__.py', '_moved.py'}


def call(*command, timeout=300, cwd=None):
    "Run a command; unless a folder is named, where only what is installed is found."
    if cwd is None:
        with tempfile.TemporaryDirectory() as scratch:
            return call(*command, timeout=timeout, cwd=scratch)
    return subprocess.run([str(c) for c in command], cwd=cwd, env=ENV, capture_output=True,
                          text=True, stdin=subprocess.DEVNULL, timeout=timeout)


def last_line(result):
    "What a command said last, its errors first."
    return ((result.stderr.strip() or result.stdout.strip()).splitlines()
            or ['(it said nothing)'])[-1][:300]


def parsed(text):
    "The syntax tree of a cell without its magics, or of nothing if it is no Python."
    try: return ast.parse(re.sub(r'^\s*[%!].*$', '', text, flags=re.M))
    except SyntaxError: return ast.parse('')


def part_of(notebook):
    "('method', 2) for 3_method/02_window: a room's part and number. None for the index."
    folder = re.match(r'\d_(\w+)', notebook.parent.name)
    number = re.match(r'[EB]?(\d+)', notebook.name)
    return (folder[1], int(number[1])) if folder and number else None


@functools.lru_cache(maxsize=None)
def rooms():
    "Module → (part, number) of the notebook that it comes from."
    return {module_name(read(p)): part_of(p) for p in notebooks() if module_name(read(p))}


def modules():
    "The modules that notebooks export, as files."
    return sorted(p for p in PACKAGE.rglob('*.py') if p.name not in BY_HAND | {'_modidx.py'})


def dotted(path):
    "The name of a module within the package: 'method.window'."
    return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)


def own_imports(tree, inside=''):
    "(module, name) of all that a syntax tree imports of grefel, inside functions too."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((a.name[7:], None) for a in node.names if a.name.startswith('grefel.'))
        elif isinstance(node, ast.ImportFrom):
            base = inside.split('.')[:-node.level] if node.level else []
            path = [*(['grefel', *base] if node.level else []), *(node.module or '').split('.')]
            path = [part for part in path if part]
            if path[:1] == ['grefel'] and len(path) > 1:
                yield from (('.'.join(path[1:]), a.name) for a in node.names)
