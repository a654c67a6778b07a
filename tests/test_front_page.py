"""The front page: its table is computed, its sentences quote the numbers of the committed files."""
import json
import re

import front_page
import pandas as pd
import pytest
import readme
from tests.repository import NBS, ROOT, read, source

PROSE = '\n'.join(source(c) for c in read(NBS/'index.ipynb')['cells']
                  if c['cell_type'] == 'markdown')
SCORED = json.loads((front_page.EXPERIMENTS/'heldout.json').read_text(encoding='utf-8'))


def test_readme_is_what_the_index_gives():
    assert readme.README.read_text(encoding='utf-8') == readme.render(), 'run make readme'
    targets = {m[2].split('#')[0] for m in readme.LINK.finditer(readme.render())
               if not re.match(r'[a-z]+:|#', m[2])}
    assert not [t for t in targets if t and not (ROOT/t).exists()]


def test_at_most_seven_hundred_words():
    assert len(PROSE.split()) <= 700


def test_stored_table_is_what_the_files_give():
    stored = [''.join(o['data'].get('text/markdown', [])) for c in read(NBS/'index.ipynb')['cells']
              for o in c.get('outputs', []) if 'data' in o]
    assert front_page.results_table() in stored


@pytest.mark.parametrize('size', ['small', 'nano'])
def test_test_metrics_are_shown_only_with_the_weights_they_belong_to(size, monkeypatch):
    import grefel.method.files
    found = front_page.held_out(size)
    if found is not None: assert found['accuracy'] == SCORED[f'grefel_{size}']['accuracy']
    monkeypatch.setattr(grefel.method.files, 'weights_digest', lambda model: 'others')
    assert front_page.held_out(size) is None


def test_numbers_in_sentences_are_those_of_the_files():
    small = SCORED['grefel_small']
    if front_page.held_out('small') is not None:
        assert f"{small['accuracy']:.1%} of the time" in PROSE
        assert f"off by {100*small['ece']:.1f} points" in PROSE
    assert (f"{small['changed']} of {small['n']:,}, {small['helped']} for the better and "
            f"{small['hurt']}") in PROSE
    noise = pd.read_csv(front_page.EXPERIMENTS/'E13_noise.csv').set_index('row').accuracy*100
    lost = [noise[f'{who}, clean'] - noise[f'{who}, symmetric 30%'] for who in ('grefel', 'plain')]
    assert 'GReFEL loses {:.1f} points and a plain network {:.1f}'.format(*lost) in PROSE
