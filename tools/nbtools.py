"""What the scripts here share: where things are, how notebooks and tables are read and written."""
import csv
import datetime
import functools
import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
PACKAGE = ROOT/'grefel'

# Signs of the machine a notebook ran on: folders of a user or of the system, objects' addresses
MACHINE = re.compile(
    r'(?<![\w.~-])/(?:home|Users|root|work|tmp|var|opt|mnt|private)/[\w.~-]+'
    r'|[A-Z]:\\\\?Users\\|\b0x[0-9a-fA-F]{8,}\b')


def settle_environment():
    "Notebooks run offline, and from folders of their own: a relative GREFEL_DATA is made absolute."
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    if os.environ.get('GREFEL_DATA'):
        os.environ['GREFEL_DATA'] = str(Path(os.environ['GREFEL_DATA']).expanduser().resolve())


def cpu_name():
    "The processor in its maker's words, where the system tells (Linux), else its kind."
    try: lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError: lines = []
    named = (line.split(':')[1].strip() for line in lines if line.startswith('model name'))
    return next(named, platform.processor() or platform.machine())


def commit():
    "The short name of the commit that is checked out."
    return subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=ROOT, capture_output=True,
                          text=True).stdout.strip()


def provenance():
    "What a measured row says of when, by what and where it came about."
    return dict(date=datetime.date.today().isoformat(), commit=commit(), cpu=cpu_name(),
                torch=importlib.metadata.version('torch'))


def put_rows(path, rows, fields, same, order=None):
    """Put `rows` into a CSV in place of those that measured the same; whole or not at all.

    `same` names the columns by which a row is known; `order` sorts, else new rows come last.
    """
    from grefel.base.core import write_file
    def known_by(row): return tuple(str(row.get(k, '')) for k in same)
    new, kept = {known_by(r) for r in rows}, []
    if path.exists():
        with open(path, newline='', encoding='utf-8') as file:
            kept = [r for r in csv.DictReader(file) if known_by(r) not in new]
    text = io.StringIO()
    table = csv.DictWriter(text, fields, lineterminator='\n')
    table.writeheader()
    table.writerows(sorted(kept + rows, key=order) if order else kept + rows)
    write_file(path, text.getvalue())


def notebooks():
    "All notebooks in reading order, those of subfolders last."
    found = [p for p in NBS.rglob('*.ipynb')
             if not any(part[0] in '_.' for part in p.relative_to(NBS).parts)]
    return sorted(found, key=lambda p: (len(p.parts), p.name != 'index.ipynb', p))


def files():
    "The project's files: those that git tracks or would add; without git, simply all."
    git = subprocess.run(['git', 'ls-files', '-z', '-co', '--exclude-standard'], cwd=ROOT,
                         capture_output=True, text=True)
    if git.returncode == 0: names = git.stdout.split('\0')
    else: names = [str(p.relative_to(ROOT)) for p in ROOT.rglob('*')]
    return [ROOT/n for n in sorted(names) if n and not (ROOT/n).is_symlink() and (ROOT/n).is_file()]


def relative(path):
    "`path` as seen from the repository's root."
    return Path(path).relative_to(ROOT).as_posix()


@functools.lru_cache(maxsize=None)
def read(path):
    "A notebook as the dictionary that its file holds."
    return json.loads(Path(path).read_text(encoding='utf-8'))


def source(cell):
    "A cell's text."
    return ''.join(cell['source'])


def directives(cell):
    "The `#|` lines of a code cell as a dictionary: `#| echo: false` gives {'echo': 'false'}."
    if cell['cell_type'] != 'code': return {}
    found = re.findall(r'^#\s*\|\s*([\w-]+):?[ \t]*(.*)$', source(cell), re.M)
    return {name: value.strip() for name, value in found}


def exported(cell):
    "Is this cell written into a module?"
    return bool({'export', 'exports', 'exporti'} & directives(cell).keys())


def output_text(output):
    "What an output says in letters: stream, traceback, text and drawings, but no binary images."
    parts = [output.get('text', ''), output.get('traceback', '')]
    parts += [v for k, v in output.get('data', {}).items()
              if k.startswith('text/') or 'svg' in k or 'json' in k]
    return '\n'.join(p if isinstance(p, str) else ''.join(map(str, p)) for p in parts)


def module_name(nb):
    "The module a notebook is written into, or None."
    names = [directives(c)['default_exp'] for c in nb['cells'] if 'default_exp' in directives(c)]
    return names[0] if names else None


def as_stored(nb):
    "The text of a notebook's file as `nbdev_clean` leaves it."
    from nbdev.clean import clean_nb
    nb = json.loads(json.dumps(nb))
    clean_nb(nb)
    for output in (o for c in nb['cells'] for o in c.get('outputs', [])):
        if 'metadata' in output: output['metadata'] = {}
    return json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + '\n'
