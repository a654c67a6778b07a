"""Check a built site: links and anchors lead somewhere, other hosts are asked for nothing.

    python tools/check_site.py _docs
"""
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {'script': 'src', 'img': 'src', 'iframe': 'src', 'source': 'src', 'video': 'src'}


class Page(HTMLParser):
    "What a page links to, what it loads, and the anchors that it has."
    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], set()
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if attrs.get('id'): self.anchors.add(attrs['id'])
        if tag == 'a' and attrs.get('href'): self.links.append(attrs['href'])
        if tag in LOADS and attrs.get(LOADS[tag]): self.loads.append(attrs[LOADS[tag]])
        loaded = tag == 'link' and attrs.get('rel') not in ('canonical', 'alternate')
        if loaded and attrs.get('href'): self.loads.append(attrs['href'])


def complaints(root):
    "What is wrong with the site below `root`, a line each."
    files = [p for p in sorted(root.rglob('*.html')) if 'site_libs' not in p.parts]
    pages = {p.resolve(): Page(p) for p in files}
    for path, page in pages.items():
        where = path.relative_to(root.resolve())
        for target in page.loads:
            if re.match(r'(https?:)?//', target): yield f'{where}: loads {target}'
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or link.startswith('//') or where.name == '404.html': continue
            to = (path.parent/unquote(parts.path)).resolve() if parts.path else path
            if to.is_dir(): to = to/'index.html'
            anchors = pages[to].anchors if to in pages else None
            if not to.exists(): yield f'{where}: {link} leads nowhere'
            elif parts.fragment and anchors is not None and unquote(parts.fragment) not in anchors:
                yield f'{where}: {link} has no such anchor'
    for css in root.rglob('*.css'):
        text = css.read_text(encoding='utf-8', errors='ignore')
        if re.search(r'@import\s+url\(["\']?https?:', text):
            yield f'{css.relative_to(root)}: imports from elsewhere'


def main():
    root = Path(sys.argv[1])
    if not (root/'index.html').exists(): sys.exit(f'{root}: holds no site')
    found = list(complaints(root))
    print('\n'.join(found))
    print(f'{len(found)} complaints')
    sys.exit(bool(found))


if __name__ == '__main__': main()
