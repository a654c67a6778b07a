"""The site's pages as nbdev prepares them: nothing is lost, raw or fetched from elsewhere."""
import json
import re
import shutil
import sys

import check_site
import pytest
import sidebar
import yaml
from grefel.base.core import EXPRESSIONS
from grefel.data.labels import RULES
from grefel.method.model import SIZES
from tests.repository import (
    NBS, PACKAGE, ROOT, call, last_line, notebooks, output_text, read, source)

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


def signatures(pages):
    "(page, signature) of all that the site documents."
    for page, cells in pages.items():
        for c in cells:
            for o in c.get('outputs', []):
                text = ''.join(o.get('data', {}).get('text/markdown', ''))
                for block in re.findall(r'^>?\s*```python\n(.*?)```', text, re.S | re.M):
                    yield page, block


def test_signatures_say_what_to_give(pages):
    found = [f'{page}: {block.strip()[:80]}' for page, block in signatures(pages)
             if re.search(r'\(\*args, \*\*kwargs\)', block)]
    assert not found, '\n'.join(found)


OWN = r'\[`([\w.]+)`\]\(https://grefel\.github\.io/grefel/([\w./-]+)\.html#([\w.]+)\)'


def test_automatic_links_lead_to_what_they_name(pages):
    "nbdev links every word in backticks that is a public name: a size or class must be none."
    titled = {page.with_name(re.sub(r'^\d\d_', '', page.stem)).as_posix(): cells
              for page, cells in pages.items()}
    ordinary = {*EXPRESSIONS, *RULES, *(s.removeprefix('grefel_') for s in SIZES)}
    wrong = []
    for page, cells in pages.items():
        for label, target, anchor in re.findall(OWN, '\n'.join(map(source, cells))):
            if label in ordinary: wrong.append(f'{page}: {label} leads to {target}')
            if anchor.startswith('_'): continue          # private: its page's top will do
            shown = [''.join(o.get('data', {}).get('text/markdown', ''))
                     for c in titled.get(target, []) for o in c.get('outputs', [])]
            if not any(re.search(rf'^#+ {re.escape(anchor)}\b', t, re.M | re.I) for t in shown):
                wrong.append(f'{page}: {target} has no {anchor}')
    assert not wrong, '\n'.join(wrong[:20])


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


def test_nothing_is_shown_twice_or_as_an_object(pages):
    "A figure that is returned and drawn appears twice; an HTML object leaves its name only."
    for page, cells in pages.items():
        for c in cells:
            outputs = c.get('outputs', [])
            images = [''.join(v) for o in outputs for k, v in o.get('data', {}).items()
                      if k.startswith('image/')]
            assert len(images) == len(set(images)), f'{page}: {source(c)[:80]}'
            bare = [o for o in outputs if len(o.get('data', {})) == 1 and
                    'IPython.core' in output_text(o)]
            assert not bare, f'{page}: {source(c)[:80]}'


def test_sidebar_is_written_from_the_folders():
    assert sidebar.SIDEBAR.read_text(encoding='utf-8') == sidebar.render(), 'run make export'
    headings = [f[1:].lstrip('_') for f in sidebar.PARTS]
    assert {p.parent.name for p in notebooks()} - {'nbs'} <= set(sidebar.PARTS), headings


@pytest.mark.parametrize('setting', [
    'repo-subdir: nbs', 'code-overflow: scroll', 'code-copy: hover', 'canonical-url: true',
    'respect-user-color-scheme: true', 'favicon: images/favicon.svg', 'image: images/social.png',
    'twitter-card:', 'html-math-method: mathml', 'search: true'])
def test_a_setting_that_cured_a_fault_is_there(setting):
    assert setting in (ROOT/'_quarto.yml').read_text(encoding='utf-8')


def test_pages_and_images_that_the_settings_name_are_there():
    text = (ROOT/'_quarto.yml').read_text(encoding='utf-8')
    named = re.findall(r'(?:favicon|image|href): ((?!http)\S+)', text)
    assert len(named) >= 7 and all((NBS/name).exists() for name in [*named, '404.qmd'])


@pytest.mark.parametrize('what, how', [
    ('main table', 'overflow-x: auto'), ('main math[display="block"]', 'overflow-x: auto'),
    ('main pre', 'overflow-x: auto'), ('main img, main svg', 'max-width: 100%'),
    ('main :not(pre) > code', 'white-space: normal'), ('main code', 'overflow-wrap: anywhere')])
def test_no_page_is_wider_than_a_phone(what, how):
    "Wide things scroll inside their box, names in a sentence break."
    styles = (NBS/'styles.css').read_text(encoding='utf-8')
    rule = re.search(rf'^{re.escape(what)} {{([^}}]*)}}', styles, re.M)
    assert rule and how in rule[1]


def test_colours_are_said_for_light_and_for_dark():
    "A colour in the common theme is a white box in the dark; each theme sets what the other does."
    light, dark = ((NBS/f'theme-{t}.scss').read_text(encoding='utf-8') for t in ('light', 'dark'))
    assert not re.search(r'#[0-9a-fA-F]{3,8}\b', (NBS/'theme.scss').read_text(encoding='utf-8'))
    for variable in ('$body-color', '$link-color', '$code-bg', '$code-color', '$navbar-bg'):
        assert variable + ':' in light and variable + ':' in dark, variable


def test_the_site_is_built_by_a_pinned_quarto_and_published_from_main_only():
    flow = yaml.safe_load((ROOT/'.github/workflows/deploy.yaml').read_text(encoding='utf-8'))
    build, publish = flow['jobs']['build'], flow['jobs']['publish']
    quarto, = [s['with']['version'] for s in build['steps'] if 'quarto' in s.get('uses', '')]
    contributing = (ROOT/'CONTRIBUTING.md').read_text(encoding='utf-8')
    assert re.fullmatch(r'\d+\.\d+\.\d+', str(quarto)) and str(quarto) in contributing
    assert 'pull_request' in flow[True]                       # YAML reads `on` as true
    assert any('check_site.py' in s.get('run', '') for s in build['steps'])
    assert "!= 'pull_request'" in publish['if'] and 'github.repository ==' in publish['if']
    assert 'Settings → Pages' in contributing


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
