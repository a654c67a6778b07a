"""Break lines of the library on purpose and see whether the tests notice.

    tools/mutate.py [--number 120] [--seed 0] [--jobs 2] [--again] [--quick]

Each mutant changes one place: an operator, a comparison, a number, a condition, or a statement that
is left out. They are sampled with a seed, at least one a module and the more the longer it is;
strings, messages, annotations and decorators are left alone. Mutants of tests/mutants.json are
always among them: lines that once broke without anybody noticing.

For each mutant a copy of the repository is changed, module and notebook alike, and runs, until
something fails: the tests of that room, its notebook, the other tests of its part. What came of it
is a line of tests/mutation.csv, written as soon as it is known, so that a run that was stopped goes
on. A line of that table counts as long as the library has it unchanged; --again tries the survivors
anew, with the tests that stand now; --quick leaves out the other tests of the part, which may only
add survivors. tests/MUTATION.md is written from the table; why a survivor may
live is said in tests/mutants.json.
"""
import argparse
import ast
import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from threading import Lock
from typing import NamedTuple

from nbtools import ROOT

TABLE, NAMED, PAGE = (ROOT/'tests'/n for n in ('mutation.csv', 'mutants.json', 'MUTATION.md'))
FIELDS = ['module', 'line', 'before', 'after', 'caught', 'by']
SWAPS = {ast.Lt: ('<', '<='), ast.LtE: ('<=', '<'), ast.Gt: ('>', '>='), ast.GtE: ('>=', '>'),
         ast.Eq: ('==', '!='), ast.NotEq: ('!=', '=='), ast.In: ('in', 'not in'),
         ast.NotIn: ('not in', 'in'), ast.Is: ('is', 'is not'), ast.IsNot: ('is not', 'is'),
         ast.Add: ('+', '-'), ast.Sub: ('-', '+'), ast.Mult: ('*', '/'), ast.Div: ('/', '*'),
         ast.FloorDiv: ('//', '*'), ast.Mod: ('%', '*'), ast.Pow: ('**', '*'),
         ast.And: ('and', 'or'), ast.Or: ('or', 'and')}
LEFT_OUT = {'__init__.py', '__main__.py', '_modidx.py', '_moved.py', 'all.py'}


class Mutant(NamedTuple):
    "One broken line."
    module: str   # 'method/losses'
    line: int     # of the module
    before: str   # the line as it is
    after: str    # the line as it becomes


# ---- Which lines can be broken, and how

class Finder(ast.NodeVisitor):
    "Collects (line, from column, to column, new text) of every place that can be broken."
    def __init__(self, source):
        self.lines, self.found = source.splitlines(), []
        self.inside = 0   # how many functions deep

    def add(self, node, old, new, start, end):
        "Replace `old` by `new` between two positions of one line."
        if start[0] != end[0]: return
        gap = self.lines[start[0] - 1].encode()[start[1]:end[1]].decode()
        at = re.search(r'(?<!\w)' + re.escape(old) + r'(?!\w)' if old.isalpha() else re.escape(old),
                       gap)
        if at is None: return
        first = start[1] + len(gap[:at.start()].encode())
        self.found.append((start[0], first, first + len(old.encode()), new))

    def whole(self, node, new):
        if node.lineno == node.end_lineno:
            self.found.append((node.lineno, node.col_offset, node.end_col_offset, new))

    def visit_FunctionDef(self, node):
        self.inside += 1
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        for default in node.args.defaults + node.args.kw_defaults:
            if default is not None: self.visit(default)
        for child in body: self.visit(child)
        self.inside -= 1

    def visit_Raise(self, node): pass
    def visit_JoinedStr(self, node): pass
    def visit_AnnAssign(self, node): node.value and self.visit(node.value)

    def visit_Expr(self, node):
        if self.inside and isinstance(node.value, ast.Call): self.whole(node, 'pass')
        self.generic_visit(node)

    def visit_Compare(self, node):
        if len(node.ops) == 1 and (swap := SWAPS.get(type(node.ops[0]))):
            right = node.comparators[0]
            self.add(node, *swap, (node.left.end_lineno, node.left.end_col_offset),
                     (right.lineno, right.col_offset))
        self.generic_visit(node)

    def visit_BinOp(self, node):
        text = any(isinstance(n, (ast.JoinedStr, ast.Constant)) and not isinstance(
            getattr(n, 'value', 0), (int, float)) for n in (node.left, node.right))
        if not text and (swap := SWAPS.get(type(node.op))):
            self.add(node, *swap, (node.left.end_lineno, node.left.end_col_offset),
                     (node.right.lineno, node.right.col_offset))
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        a, b = node.values[:2]
        self.add(node, *SWAPS[type(node.op)], (a.end_lineno, a.end_col_offset),
                 (b.lineno, b.col_offset))
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        if isinstance(node.op, ast.Not):
            self.add(node, 'not ', '', (node.lineno, node.col_offset),
                     (node.operand.lineno, node.operand.col_offset))
        self.generic_visit(node)

    def visit_If(self, node):
        if node.test.lineno == node.test.end_lineno and not isinstance(node.test, ast.Compare):
            t = node.test
            self.found.append((t.lineno, t.col_offset, t.col_offset, 'not '))
        self.generic_visit(node)

    def visit_Constant(self, node):
        if isinstance(node.value, bool): self.whole(node, str(not node.value))
        elif isinstance(node.value, int): self.whole(node, str(node.value + 1))
        elif isinstance(node.value, float): self.whole(node, repr(2*node.value + .5))


def breaks(path):
    "Every mutant of a module."
    source = path.read_text(encoding='utf-8')
    finder = Finder(source)
    finder.visit(ast.parse(source))
    module = path.relative_to(ROOT/'grefel').with_suffix('').as_posix()
    for line, first, last, new in finder.found:
        before = finder.lines[line - 1]
        raw = before.encode()
        yield Mutant(module, line, before, (raw[:first] + new.encode() + raw[last:]).decode())


def standing():
    "The mutants tried before whose line the library still has, where it has it now."
    for m in known().values():
        path = ROOT/'grefel'/f"{m['module']}.py"
        lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
        if lines.count(m['before']) == 1:
            line = lines.index(m['before']) + 1
            yield Mutant(m['module'], line, m['before'], m['after'])


def sample(number, seed, kept=()):
    """So many mutants, at most one a line: one for each module, the others by the modules' length.

    `kept` are of an earlier sample, and are filled up.
    """
    if not number: return []
    modules = [p for p in sorted((ROOT/'grefel').rglob('*.py')) if p.name not in LEFT_OUT]
    dice, chosen, left = random.Random(seed), [], []
    for path in modules:
        per_line = {}
        for m in breaks(path): per_line.setdefault(m.line, []).append(m)
        one_each = [dice.choice(ms) for ms in per_line.values()]
        dice.shuffle(one_each)
        own = [m for m in kept if one_each and m.module == one_each[0].module]
        tried = {m.line for m in own}
        one_each = [m for m in one_each if m.line not in tried]
        chosen += own or one_each[:1]
        left += one_each[not own:]
    return chosen + dice.sample(left, max(0, min(len(left), number - len(chosen))))


def named():
    "The mutants that must always be caught: a line as it begins, and what becomes of it."
    out = []
    for m in json.loads(NAMED.read_text(encoding='utf-8'))['always']:
        lines = (ROOT/'grefel'/f"{m['module']}.py").read_text(encoding='utf-8').splitlines()
        at = [i for i, s in enumerate(lines) if m['find'] in s]
        if len(at) != 1:
            sys.exit(f"{NAMED.name}: {m['find']!r} is in {len(at)} lines of {m['module']}; "
                     'name another part of the line')
        before = lines[at[0]]
        out.append(Mutant(m['module'], at[0] + 1, before, before.replace(m['find'], m['become'])))
    return out


# ---- One mutant at a time

def copy_to(folder):
    "The repository's files, without its history."
    shutil.rmtree(folder, ignore_errors=True)
    names = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, check=True)
    for name in names.stdout.decode().split('\0')[:-1]:
        source, target = ROOT/name, folder/name
        if not source.exists() and not source.is_symlink(): continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)


def notebook_of(lines, number):
    "Notebook (relative to the root) and cell that a module's line was exported from."
    for line in reversed(lines[:number]):
        if at := re.match(r'# %% (?:\.\./)*(nbs/\S+\.ipynb) #(\S+)', line): return at.groups()


def apply(mutant, folder):
    "Change module and notebook; the files as they were, and the notebook's name."
    module = folder/'grefel'/f'{mutant.module}.py'
    source = module.read_text(encoding='utf-8')
    lines = source.splitlines()
    if lines[mutant.line - 1] != mutant.before: sys.exit(f'{module} has changed: start anew')
    name, cell_id = notebook_of(lines, mutant.line)
    notebook = folder/name
    saved = {module: source, notebook: notebook.read_text(encoding='utf-8')}
    lines[mutant.line - 1] = mutant.after
    module.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    nb = json.loads(saved[notebook])
    for cell in nb['cells']:
        if cell.get('id') == cell_id:
            text = ''.join(cell['source']).replace(mutant.before, mutant.after, 1)
            cell['source'] = text.splitlines(keepends=True)
    notebook.write_text(json.dumps(nb), encoding='utf-8')
    return saved, notebook


def stages(mutant, folder, notebook, quick=False):
    "What may notice, cheapest first: (name, command)."
    part, _, room = mutant.module.partition('/')
    pytest = [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider']
    own = sorted((folder/'tests'/part).glob(f'test_{room}*.py'))
    if own: yield 'tests of the room', [*pytest, *map(str, own)]
    nbdev_test = Path(sys.executable).with_name('nbdev_test')
    yield 'notebook', [str(nbdev_test), '--path', str(notebook), '--n_workers', '0']
    others = [str(p) for p in sorted((folder/'tests'/part).glob('test_*.py')) if p not in own]
    if others and not quick: yield 'tests of the part', [*pytest, *others]


def noticed(command, folder, limit):
    "Whether a command fails, or does not come to an end."
    env = os.environ | dict(PYTHONPATH=str(folder), OMP_NUM_THREADS='1', OMP_WAIT_POLICY='passive',
                            PYTHONDONTWRITEBYTECODE='1', MPLBACKEND='agg')
    try:
        return subprocess.run(command, cwd=folder, env=env, timeout=limit,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode != 0
    except subprocess.TimeoutExpired: return True


def restore(saved):
    for path, text in saved.items(): path.write_text(text, encoding='utf-8')


def try_one(mutant, folder, limit, healthy, quick=False):
    "The stage that caught a mutant, or ''; one that fails without it counts for nothing."
    saved, notebook = apply(mutant, folder)
    restore(saved)
    for name, command in stages(mutant, folder, notebook, quick):
        key = tuple(part.replace(str(folder), '') for part in command)
        if key not in healthy: healthy[key] = not noticed(command, folder, limit)
        if not healthy[key]: continue
        apply(mutant, folder)
        try: caught = noticed(command, folder, limit)
        finally: restore(saved)
        if caught: return name
    return ''


# ---- All of them

def known():
    "What is known already, by module, line as it was and line as it became."
    if not TABLE.exists(): return {}
    with open(TABLE, newline='', encoding='utf-8') as f:
        return {(r['module'], r['before'], r['after']): r for r in csv.DictReader(f)}


def write(rows):
    "The table, in the modules' order."
    rows = sorted(rows.values(), key=lambda r: (r['module'], int(r['line'])))
    with open(TABLE, 'w', newline='', encoding='utf-8') as f:
        table = csv.DictWriter(f, FIELDS, lineterminator='\n')
        table.writeheader()
        table.writerows(rows)


def run(mutants, folder, jobs, limit, again=False, quick=False):
    "Try what is not known yet, several at a time; with `again` the survivors, too."
    rows, lock, free, healthy = known(), Lock(), Queue(), {}
    wanted = {(m.module, m.before, m.after) for m in mutants}
    rows = {k: r for k, r in rows.items()
            if k in wanted and not (again and r['caught'] == 'no')}
    todo = [m for m in mutants if (m.module, m.before, m.after) not in rows]
    for i in range(jobs):
        copy_to(folder/str(i))
        free.put(folder/str(i))

    def work(mutant):
        place = free.get()
        by = try_one(mutant, place, limit, healthy, quick)
        free.put(place)
        with lock:
            rows[mutant.module, mutant.before, mutant.after] = dict(
                mutant._asdict(), caught='yes' if by else 'no', by=by)
            write(rows)
            where = f'{mutant.module}:{mutant.line}'
            print(f"{len(rows):4}/{len(wanted)} {by or 'SURVIVED':18} {where} "
                  f'{mutant.after.strip()}', flush=True)
    with ThreadPoolExecutor(jobs) as pool: list(pool.map(work, todo))
    write(rows)
    return list(rows.values())


def page(rows):
    "The table in words."
    notes = json.loads(NAMED.read_text(encoding='utf-8'))
    reasons = {(s['module'], s['after']): s['why'] for s in notes['survivors']}
    always = {(m.module, m.after) for m in named()}
    caught = [r for r in rows if r['caught'] == 'yes']
    survivors = [r for r in rows if r['caught'] == 'no']
    old = [r for r in rows if (r['module'], r['after']) in always]
    said = [f"| {r['module']} | `{r['before'].strip()}` | `{r['after'].strip()}` | "
            f"{reasons.get((r['module'], r['after'].strip()), 'not looked into yet')} |"
            for r in survivors]
    return '\n'.join([
        '# Do the tests bite?', '',
        f'We broke {len(rows)} lines of the library on purpose, one at a time. The tests noticed '
        f'{len(caught)} of them: **{len(caught)/len(rows):.0%}**. {len(old)} are lines that once '
        f"broke unnoticed; {sum(r['caught'] == 'yes' for r in old)} of those are caught now. "
        f'{len(rows) - len(old)} others were sampled over all modules, with a seed.', '',
        '`tools/mutate.py` makes `mutation.csv` and this page.', '',
        '## The survivors', '',
        '| module | line | broken | why it may live |', '|---|---|---|---|', *said, ''])


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--number', type=int, default=120,
                        help='how many are sampled; 0: only those of tests/mutants.json')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--jobs', type=int, default=2, help='how many at a time')
    parser.add_argument('--limit', type=int, default=300, help='seconds for each command')
    parser.add_argument('--folder', type=Path, default=Path('/tmp/grefel-mutants'),
                        help='where the copies go')
    parser.add_argument('--again', action='store_true', help='try the survivors anew')
    parser.add_argument('--quick', action='store_true',
                        help='no other tests of the part than those of the room')
    parser.add_argument('--page', action='store_true', help='only write the page anew')
    args = parser.parse_args()
    if args.page: rows = list(known().values())
    else:
        first = named()
        kept = [m for m in standing() if m not in first]
        mutants = list(dict.fromkeys(first + sample(args.number, args.seed, kept)))
        rows = run(mutants, args.folder, args.jobs, args.limit, args.again,
                   args.quick)
    PAGE.write_text(page(rows).replace('|  |', '| |'), encoding='utf-8')


if __name__ == '__main__': main()
