"""Write README.md from nbs/index.ipynb; with --check only compare, and fail where they differ."""
import os
import re
import sys

from nbtools import NBS, ROOT, directives, read, source

INDEX, README = NBS/'index.ipynb', ROOT/'README.md'
LINK = re.compile(
    r'(\]\(\s*<?|<(?:img|source)\b[^>]*?\bsrc(?:set)?="|<a\b[^>]*?\bhref=")([^)\s">]+)')


def from_root(match):
    "A link that works from nbs/, made to work from the repository's root."
    before, target = match.groups()
    if re.match(r'[a-z][a-z0-9+.-]*:|//|/|#', target, re.I): return match[0]
    path, anchor = re.match(r'([^#?]*)(.*)', target).groups()
    return before + os.path.normpath(os.path.join(NBS.name, path)).replace(os.sep, '/') + anchor


def fenced(text, language=''):
    "A code block, with a fence longer than any inside it."
    fence = max(['```'] + [f + '`' for f in re.findall(r'^`{3,}', text, re.M)], key=len)
    return f'{fence}{language}\n{text}\n{fence}'


def render_markdown(text):
    "Prose as it stands, links outside of code blocks seen from the root."
    parts = re.split(r'(^ {0,3}(`{3,}|~{3,}).*?^ {0,3}\2[ \t]*$)', text, flags=re.M | re.S)
    return ''.join(p if i % 3 else LINK.sub(from_root, p) for i, p in enumerate(parts)
                   if i % 3 != 2).strip()


def join(text):
    "What a notebook stores as one string or as a list of lines."
    return text if isinstance(text, str) else ''.join(text)


def render_output(output):
    "A result as text; images are left out, since a README refers to files in nbs/images instead."
    if output['output_type'] == 'stream':
        return fenced(join(output['text']).rstrip()) if output['name'] == 'stdout' else ''
    data = output.get('data', {})
    if 'text/markdown' in data: return render_markdown(join(data['text/markdown']))
    if any(kind.startswith('image/') for kind in data) or 'text/plain' not in data: return ''
    return fenced(join(data['text/plain']).rstrip())


def render_cell(cell):
    "The blocks of text that one cell becomes."
    text = source(cell)
    if cell['cell_type'] == 'markdown': return [render_markdown(text)]
    flags = directives(cell)
    if cell['cell_type'] != 'code' or 'hide' in flags or flags.get('include') == 'false': return []
    code = re.sub(r'^#\s*\|.*\n?', '', text, flags=re.M).strip()
    shown = bool(code) and flags.get('echo') != 'false'
    outputs = [] if flags.get('output') == 'false' else [render_output(o) for o in cell['outputs']]
    return [fenced(code, 'python')]*shown + outputs


def badges():
    "Only the repository shows these: do the tests pass, where is the site, which licence."
    actions = 'https://github.com/grefel/grefel/actions/workflows/test.yaml'
    return '\n'.join([f'[![tests]({actions}/badge.svg)]({actions})',
                      '[![site](https://img.shields.io/badge/site-grefel.github.io-2f6db3)]'
                      '(https://grefel.github.io/grefel)',
                      '[![licence: MIT](https://img.shields.io/badge/licence-MIT-2f6db3)](LICENSE)'])


def render():
    "The whole README, the badges below its title."
    title, *blocks = [block for cell in read(INDEX)['cells'] for block in render_cell(cell)]
    head = '<!-- Written from nbs/index.ipynb by `make readme`: edit the notebook. -->'
    return '\n\n'.join([head, title, badges(), *filter(None, blocks)]) + '\n'


def main():
    if not INDEX.exists(): sys.exit('nbs/index.ipynb is missing: README.md is written from it')
    if '--check' in sys.argv[1:]:
        if not README.exists() or README.read_text(encoding='utf-8') != render():
            sys.exit('README.md is not what nbs/index.ipynb gives: run make readme')
    elif not README.exists() or README.read_text(encoding='utf-8') != render():
        README.write_text(render(), encoding='utf-8')
        print('README.md written')


if __name__ == '__main__': main()
