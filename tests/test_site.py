"""The site's pages as nbdev prepares them: nothing is lost, raw or fetched from elsewhere."""
import json
import re
import shutil
import sys

import check_site
import pytest
import sidebar
from tests.repository import NBS, PACKAGE, ROOT, call, last_line, notebooks, read, source

PREPARE = 'from nbdev.serve import proc_nbs; proc_nbs(n_workers=2)'


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    "Page (as the notebook's path from nbs/) → the cells that Quarto will get."
    copy = tmp_path_factory.mktemp('site')
    shutil.copytree(NBS, copy/'nbs', symlinks=True,
                    ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    for name in ('settings.ini', 'pyproject.toml', '_quarto.yml'): shutil.copy(ROOT/name, copy)
    (copy/'grefel').symlink_to(PACKAGE)
    done = call(sys.executable, '-c', PREPARE, cwd=copy, timeout=900)
    assert not done.returncode, last_line(done)
    made = {p.relative_to(NBS): copy/'_proc'/p.relative_to(NBS) for p in notebooks()}
    assert all(p.exists() for p in made.values())
    return {page: json.loads(p.read_text(encoding='utf-8'))['cells'] for page, p in made.items()}


def words(text):
    return re.sub(r'[^\w ]+', ' ', re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', text)).split()


def test_every_page_keeps_its_introduction(pages):
    "The cell that holds the title is swallowed: the introduction must stand in the next."
    lost = []
    for page, cells in pages.items():
        wanted = ' '.join(words(source(read(NBS/page)['cells'][1]))[:8])
        said = ' '.join(words('\n'.join(source(c) for c in cells if c['cell_type'] == 'markdown')))
        if wanted not in said: lost.append(f'{page}: {wanted!r}')
    assert not lost


def test_front_matter_holds_title_and_summary_only(pages):
    for page, cells in pages.items():
        front = source(cells[0])
        assert front.startswith('---'), page
        keys = set(re.findall(r'^(\w[\w-]*):', front, re.M))
        assert {'title', 'description'} <= keys <= {'title', 'description', 'output-file',
                                                    'skip_showdoc',
                                                    'skip_exec', 'format', 'toc', 'sidebar'}, (page,
            keys)


def test_signatures_hold_no_raw_markdown(pages):
    "In a signature block links are printed as they are written."
    raw = [f'{page}: {line.strip()[:100]}' for page, cells in pages.items() for c in cells
           for o in c.get('outputs', [])
           for text in [''.join(o.get('data', {}).get('text/markdown', ''))]
           for block in re.findall(r'```python(.*?)```', text, re.S) for line in block.splitlines()
           if '](' in line]
    assert not raw, '\n'.join(raw[:10])


def test_nothing_is_fetched_from_elsewhere(pages):
    "HTML outputs bring require.js and jQuery; frames lead to servers that are gone."
    for page, cells in pages.items():
        for c in cells:
            text = source(c) if c['cell_type'] == 'markdown' else ''
            assert not re.search(r'<(script|iframe|link)\b', text), page
            for o in c.get('outputs', []):
                assert 'text/html' not in o.get('data', {}), page
    theme = ''.join(p.read_text(encoding='utf-8') for p in [*NBS.glob('*.scss'),
                                                            *NBS.glob('*.css')])
    assert not re.search(r'@import|https?://', theme)


def test_images_in_prose_exist_and_have_alt_text(pages):
    for page, cells in pages.items():
        for c in cells:
            if c['cell_type'] != 'markdown': continue
            for alt, target in re.findall(r'!\[([^\]]*)\]\(([^)\s]+)', source(c)):
                assert alt.strip(), f'{page}: {target} has no alt text'
                if not target.startswith('http'):
                    assert ((NBS/page).parent/target).exists(), f'{page}: {target}'


def test_links_between_pages_lead_somewhere(pages):
    for page, cells in pages.items():
        for c in cells:
            if c['cell_type'] != 'markdown': continue
            for target in re.findall(r'\]\(((?!https?:|mailto:|#)[^)\s]+?)(?:#[^)]*)?\)',
                                     source(c)):
                if target.startswith('`'): continue
                path = (NBS/page).parent/target.replace('.html', '.ipynb')
                assert path.exists(), f'{page}: {target}'


def test_sidebar_is_written_from_the_folders():
    assert sidebar.SIDEBAR.read_text(encoding='utf-8') == sidebar.render(), 'run make export'
    headings = [f[1:].lstrip('_') for f in sidebar.PARTS]
    assert {p.parent.name for p in notebooks()} - {'nbs'} <= set(sidebar.PARTS), headings


def test_settings_that_cured_faults_are_there():
    text = (ROOT/'_quarto.yml').read_text(encoding='utf-8')
    for wanted in ('repo-subdir: nbs', 'code-overflow: scroll', 'respect-user-color-scheme: true',
                   'favicon:', 'canonical-url: true', 'twitter-card:'):
        assert wanted in text, wanted
    assert (NBS/'404.qmd').exists()


@pytest.mark.parametrize('body, complaint', [
    ('<a href="other.html">x</a>', None),
    ('<a href="gone.html">x</a>', 'leads nowhere'),
    ('<a href="other.html#here">x</a>', None),
    ('<a href="other.html#there">x</a>', 'no such anchor'),
    ('<script src="https://cdn.example/a.js"></script>', 'loads https://cdn.example/a.js'),
    ('<link rel="stylesheet" href="//fonts.example/f.css">', 'loads //fonts.example/f.css'),
    ('<a href="https://arxiv.org">x</a>', None)])
def test_a_built_site_is_checked(body, complaint, tmp_path):
    (tmp_path/'index.html').write_text(body)
    (tmp_path/'other.html').write_text('<h2 id="here">x</h2>')
    found = list(check_site.complaints(tmp_path))
    assert (found == []) if complaint is None else (len(found) == 1 and complaint in found[0])
