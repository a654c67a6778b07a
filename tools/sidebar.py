"""Write nbs/sidebar.yml, the site's sidebar, from the folders of nbs.

Each part is a section, its rooms in reading order. With --check only compare, and fail where they
differ.
"""
import sys

from nbtools import NBS, notebooks

# folder → heading; the same words stand on the front page
PARTS = {'1_start': 'Start', '2_base': 'Base', '3_method': 'The method', '4_data': 'Data',
         '5_measure': 'Measure', '6_train': 'Train', '7_use': 'Use', '8_experiments': 'Experiments'}
SIDEBAR = NBS/'sidebar.yml'


def reading_order(path):
    "By number; among the experiments the questions come before the benchmarks."
    return path.parent.name, path.name.startswith('B'), path.name


def render():
    "The sidebar's YAML. A folder without a heading is an error: every room has its place."
    lines = ['website:', '  sidebar:', '    collapse-level: 1', '    contents:',
             '      - index.ipynb']
    shown = None
    for path in sorted(notebooks(), key=reading_order):
        folder = path.parent.name
        if path.parent == NBS: continue
        if folder != shown:
            lines += [f'      - section: {PARTS[folder]}', '        contents:']
            shown = folder
        lines.append(f'          - {folder}/{path.name}')
    return '\n'.join(lines) + '\n'


def main():
    if '--check' in sys.argv[1:]:
        if SIDEBAR.read_text(encoding='utf-8') != render():
            sys.exit('nbs/sidebar.yml: run make export')
    else: SIDEBAR.write_text(render(), encoding='utf-8')


if __name__ == '__main__': main()
