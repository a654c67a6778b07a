"Pages: whole by themselves, escaped, described, and right for light and dark."
import base64
import io
import re
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from grefel.base.page import (
    data_uri, face_array, page_answer, page_face, page_picture, page_section, page_table,
    render_page)

VOID = {'meta', 'img', 'source', 'br'}


def bars(title=''):
    fig = Figure(figsize=(4, 2), layout='constrained')
    fig.subplots().bar(['seen', 'not seen'], [3, 1])
    fig.axes[0].set_title(title)
    return fig


@pytest.fixture(scope='module')
def picture(): return page_picture(bars, 'Two "bars"', 'Whether it was seen.')


class Reader(HTMLParser):
    "Tags with their attributes; every tag that was opened must be closed, in order."
    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text = [], [], ''
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID: self.open.append(tag)

    def handle_endtag(self, tag): assert self.open.pop() == tag, tag
    def handle_data(self, data): self.text += data
    def all(self, tag): return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope='module')
def page(picture):
    face = page_face(np.zeros((4, 4), np.uint8), '<b>.png', 'A "black" square', 'happiness 98%',
                     'bad', 'label: <fear>')
    plain = page_face(np.zeros((4, 4, 3), np.uint8), 'c.png', 'Black', 'fear')
    tables = [page_table('Counts', ['what', 'n'], [['seen', 3], ['<other>', 1]]),
              page_table('Keys', ['key', 'word'], [['seen', 'long']], text=True, folded=True)]
    sections = [page_section('Pictures & more', ['A text.'], plots=[picture]),
                page_section('Faces', galleries=[dict(about='Two.', faces=[face, plain])]),
                page_section('Tables', tables=tables)]
    return render_page('A & B', 'two things', [dict(name='Seen', value='75%', more='of 4')],
                       ['It was seen.'], sections, [('All is in', 'all.json')], 'To be trusted.',
                       [page_answer('Is it right?', '75 of 100.', 'mostly', 'good'),
                        page_answer('Why?', 'Nobody <knows>.')])


def test_a_page_is_whole_and_says_all_that_was_put_in(page):
    text = Reader(page).text
    for words in ('A & B', 'two things', 'Seen', '75%', 'of 4', 'It was seen.', 'To be trusted.',
                  'Is it right?', 'mostly', '75 of 100.', 'Nobody <knows>.', 'Pictures & more',
                  'A text.', 'Whether it was seen.', 'happiness 98%', 'label: <fear>', 'Counts',
                  '<other>', 'Keys', 'long', 'All is in'):
        assert words in text, words


def test_nothing_is_loaded_from_anywhere(page):
    used = [v for _, attrs in Reader(page).tags for k, v in attrs.items()
            if k in ('src', 'href', 'srcset')]
    assert {v for v in used if not v.startswith(('data:image/png;base64,', '#'))} == {'all.json'}
    style = re.search('<style>(.*?)</style>', page, re.S)[1]
    assert 'url(' not in style and '@import' not in style and '<script' not in page


def test_whatever_is_put_in_is_escaped():
    evil = '<script>"&'
    face = page_face(np.zeros((2, 2), np.uint8), evil, evil, evil, more=evil)
    plot = dict(light='x', dark='x', width=1, height=1, wide=False, alt=evil, caption=evil)
    section = page_section(evil, [evil], [plot], [dict(about=evil, faces=[face])],
                           [page_table(evil, [evil], [[evil, evil]], folded=True)])
    html = render_page(evil, evil, [dict(name=evil, value=evil, more=evil)], [evil], [section],
                       [(evil, evil)], evil, [page_answer(evil, evil, evil)])
    assert '<script' not in html and '&lt;script&gt;&#34;&amp;' in html
    Reader(html)


def test_every_image_is_described_and_every_table_has_a_caption(page):
    read = Reader(page)
    assert all(attrs['alt'] for attrs in read.all('img')) and len(read.all('img')) == 3
    assert len(read.all('table')) == len(read.all('caption')) == 2
    assert {attrs['scope'] for attrs in read.all('th')} == {'col', 'row'}
    assert {attrs['aria-label'] for attrs in read.all('div') if 'tabindex' in attrs} == {
        'Counts', 'Keys'}  # reached by keyboard


def test_links_within_the_page_lead_somewhere(page):
    read = Reader(page)
    assert [a['href'] for a in read.all('a')] == ['#part1', '#part2', '#part3', 'all.json']
    assert [h['id'] for h in read.all('h2')] == ['part1', 'part2', 'part3']


def test_only_what_is_for_reference_is_folded(page):
    assert page.count('<details>') == page.count('</details>') == 1
    assert re.search('<details><summary>Keys', page)


def test_words_carry_their_mood_and_no_word_shows_none(page):
    classes = [attrs.get('class') for attrs in Reader(page).all('span')]
    assert classes.count('word good') == 1 and not [c for c in classes if c == 'word ']
    assert 'bad' in classes and '' in classes  # the two faces


def test_cells_of_words_are_aligned_as_words(page):
    cells = [attrs.get('class') for attrs in Reader(page).all('td')]
    assert cells == [None, None, 'text']


def test_an_empty_page_is_a_page():
    html = render_page('Nothing', 'no things')
    read = Reader(html)
    assert not read.all('dl') and 'class="verdict"' not in html and not read.all('table')


def test_the_page_follows_the_readers_choice_of_light_and_dark(page, picture):
    assert '@media (prefers-color-scheme: dark)' in page and 'color-scheme: light dark' in page
    source, = Reader(page).all('source')
    assert source['media'] == '(prefers-color-scheme: dark)'
    assert source['srcset'] == picture['dark'] != picture['light']


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(',')[1]))).convert('RGBA'))


def test_plots_are_transparent_and_lettered_for_their_paper(picture):
    light, dark = (pixels(picture[k]).astype(int) for k in ('light', 'dark'))
    assert light[0, 0, 3] == dark[0, 0, 3] == 0
    ink = [p[(p[..., 3] == 255)][:, :3].sum(1) for p in (light, dark)]
    assert ink[0].min() < 150 and ink[1].max() > 600  # dark letters on light paper, and light ones


def test_a_plot_knows_its_size_in_css_pixels(picture):
    assert (picture['width'], picture['height']) == (4*96, 2*96)
    assert pixels(picture['light']).shape[:2] == (2*150, 4*150)
    assert pixels(page_picture(bars, '', '', dpi=50)['light']).shape[:2] == (100, 200)


def test_names_with_dollars_are_no_formulas_and_settings_are_put_back():
    before = dict(mpl.rcParams)
    for name in ('a$_b_$c', '$'): page_picture(lambda: bars(name), '', '')
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize('wide, becomes', [
    ([False], [True]), ([False, False], [False, False]), ([False]*3, [False, False, True]),
    ([False, True, False, False, True], [False, True, False, True, True]), ([True], [True])])
def test_no_hole_is_left_beside_a_plot(wide, becomes):
    plots = [dict(wide=w) for w in wide]
    assert [p['wide'] for p in page_section('x', plots=plots)['plots']] == becomes
    assert [p['wide'] for p in plots] == wide  # those handed in are left as they were


def test_faces_come_from_batches_grey_and_in_colour():
    images = np.arange(2*3*4*5, dtype=np.uint8).reshape(2, 3, 4, 5)
    assert (face_array(images, 1) == images[1].transpose(1, 2, 0)).all()
    assert face_array(images[:, :1], 1).shape == (4, 5)


def test_a_face_is_stored_without_loss():
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert (pixels(page_face(grey[:, ::2], 'n', 'a', 'h')['png'])[..., 0] == grey[:, ::2]).all()


def test_an_address_holds_the_file_itself():
    assert data_uri(b'\0\xff', 'image/jpeg') == 'data:image/jpeg;base64,AP8='
    assert data_uri(b'') == 'data:image/png;base64,'
