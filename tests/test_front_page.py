"""The front page: its table is computed, its sentences quote the numbers of the committed files."""
import ast
import json
import re
from types import SimpleNamespace

import drawn_answers
import front_page
import numpy as np
import pandas as pd
import pytest
import readme
from grefel.base.core import weights_file
from grefel.train.experiments import paired_difference
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


def test_the_first_output_doubts():
    "A project about doubt doesn't open with an answer that is sure of itself."
    outputs = [o for c in read(NBS/'index.ipynb')['cells'] for o in c.get('outputs', [])]
    answer = ast.literal_eval(''.join(outputs[0]['data']['text/plain']))
    assert len(answer) >= 3 and .5 < max(answer.values()) < .97 and 0 not in answer.values()


def test_the_index_reads_well_as_a_notebook():
    "Its code lies in a tested module."
    code = [source(c) for c in read(NBS/'index.ipynb')['cells'] if c['cell_type'] == 'code']
    assert max(len(c.splitlines()) for c in code) <= 6


def test_all_first_hours_are_linked():
    start = {f'1_start/{p.name}' for p in (NBS/'1_start').glob('*.ipynb')}
    assert len(start) == 6 and start == set(re.findall(r'\((1_start/[^)]*)\)', PROSE))


@pytest.mark.parametrize('table', [front_page.results_table, front_page.tools_table])
def test_stored_tables_are_what_the_files_give(table):
    stored = [''.join(o['data'].get('text/markdown', [])) for c in read(NBS/'index.ipynb')['cells']
              for o in c.get('outputs', []) if 'data' in o]
    assert table() in stored


@pytest.mark.parametrize('page', ['20_nano', '21_small'])
def test_the_cards_on_the_site_are_the_cards_that_ship(page):
    size, shown = page[3:], [''.join(o['data'].get('text/markdown', []))
                             for c in read(NBS/'7_use'/f'{page}.ipynb')['cells']
                             for o in c.get('outputs', []) if 'data' in o]
    card = weights_file(size).with_suffix('.md').read_text(encoding='utf-8')
    assert card.partition('\n')[2] in shown, f'run make notebooks NB=nbs/7_use/{page}.ipynb'
    assert f'7_use/{page}.ipynb' in PROSE


def test_the_first_screen_names_task_accuracy_calibration_and_what_is_special():
    "Before the first heading, within two hundred words, with an image of a result."
    first = PROSE.partition('\n## ')[0]
    for wanted in ('eight expressions', '% of the time', 'confidences are off by', 'from scratch',
                   'three opinions', 'images/answers.svg'):
        assert wanted in first, wanted
    assert len(re.sub(r'!\[[^]]*\]\([^)]*\)', '', first).split()) <= 240


def answer(final, opinions=None):
    names = [str(i) for i in range(8)]
    fields = dict.fromkeys(drawn_answers.OPINIONS, dict(zip(names, opinions or final)))
    return SimpleNamespace(probabilities=dict(zip(names, final)), **fields)


def one_hot(c, p=.97):
    return [p if i == c else (1 - p)/7 for i in range(8)]


def test_the_six_faces_are_chosen_by_rule():
    "Three clear right answers, the two best-read split faces, the surest clear mistake."
    split, nearly = [.5, .44, *[.01]*6], [.48, .46, *[.01]*6]
    faces = [(one_hot(1), one_hot(7, .5)), (one_hot(1), one_hot(1)), (one_hot(1), one_hot(1)),
             (one_hot(2), one_hot(2)), (one_hot(4), one_hot(4)), (split, split),
             (split, one_hot(0)), (split, nearly), (one_hot(5), one_hot(3, .6)),
             (one_hot(6), one_hot(3, .9))]                      # (truth, answer)
    truth, said = zip(*faces)
    rows = drawn_answers.choose(np.array(truth), [answer(p) for p in said])
    assert list(rows) == [1, 3, 5, 4, 7, 9]
    assert rows[5] == rows[7] == 'unsure, and rightly' and rows[9] == 'wrong, and too sure'


def test_a_panel_shows_the_three_likeliest_the_opinions_and_the_truth():
    from matplotlib.figure import Figure
    ax = Figure().subplots()
    final = [.05, .5, .3, .1, .02, .01, .01, .01]
    drawn_answers.draw_answer(ax, np.array(final[::-1]), answer(final, one_hot(1)))
    assert [bar.get_width() for bar in ax.patches] == [.1, .3, .5]
    assert [t.get_text() for t in ax.texts] == ['3', '2', '1']
    assert len(ax.lines) == 3*len(drawn_answers.OPINIONS)


def test_the_image_of_results_asks_nobody_and_fits_light_and_dark():
    image = (NBS/'images'/'answers.svg').read_text(encoding='utf-8')
    assert image.count('<image ') == 6 and len(image) < 300_000
    assert not re.findall(r'(?:href|src)="https?:', image)
    assert '#ffffff' not in image.replace('fill: none', ''), 'a white ground is a box in the dark'


@pytest.mark.parametrize('size', ['small', 'nano'])
def test_test_metrics_say_whether_they_are_of_the_weights_that_ship(size, monkeypatch):
    import grefel.method.files
    scored = SCORED[f'grefel_{size}']
    for digest, shown in ((scored['digest'], '**{:.2f}**'), ('others', '{:.2f} (former)')):
        monkeypatch.setattr(grefel.method.files, 'weights_digest', lambda model, d=digest: d)
        assert front_page.held_out(size) == shown.format(100*scored['accuracy'])


def test_numbers_in_sentences_are_those_of_the_files():
    small, own = SCORED['grefel_small'], front_page.shipped('small')
    assert f"{own['accuracy']:.1%} of the time" in PROSE
    assert f"off by {100*own['ece']:.1f} points" in PROSE
    assert f"{small['accuracy']:.1%} on images never used for any choice" in PROSE
    assert (f"{own['changed']} of {own['n']:,} for `small`, {own['helped']} for the better, "
            f"{own['hurt']} for the worse") in PROSE
    clean = pd.read_csv(front_page.EXPERIMENTS/'E17_robustness.csv').query('kind == "clean"')
    nearness = clean.set_index('name').kl_votes[['small', 'nano']]
    assert f'what ships is calibrated to labels: {nearness.mean():.2f}' in PROSE
    assert nearness.max() - nearness.min() < .005
    noise = pd.read_csv(front_page.EXPERIMENTS/'E13_noise_long.csv')
    lost = [paired_difference(noise, f'{who}, clean', f'{who}, symmetric 30%')
            for who in ('grefel', 'plain')]
    told = 'GReFEL loses {:.1f} points and a plain network {:.1f} ({})'
    seeds = {1: 'one seed', 2: 'two seeds', 3: 'three seeds'}[min(own['pairs'] for own in lost)]
    assert told.format(*(100*own['mean'] for own in lost), seeds) in PROSE


def test_what_the_figures_hold_for_is_what_was_measured():
    rows = pd.read_csv(front_page.EXPERIMENTS/'E17_robustness.csv')
    noise = rows[(rows.kind == 'noise') & (rows.severity == 3)].set_index('name')
    right, sure = 100*noise.accuracy, 100*noise.mean_confidence
    assert f"`small` is right on {right['small']:.1f}% and `nano` on {right['nano']:.1f}%" in PROSE
    assert (sure[['nano', 'small']] <= right[['nano', 'small']]).all()
