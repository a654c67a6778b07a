"""The app's page says what is sure and what is not, fetches nothing, and answers every input."""
import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.use.films import write_film

from grefel.base.core import EXPRESSIONS
from grefel.use.app_page import (
    about_html, album_html, answer_html, example, heat, image_uri, MAX_BYTES, MAX_FACES,
    message_html, percent, read_album, read_photo, style, verdict)
from grefel.use.journal import table_columns
from grefel.use.predict import Predictor


@pytest.fixture(scope='module')
def predictor(): return Predictor()


@pytest.fixture(scope='module')
def portrait(predictor): return example(), predictor(example(), explain=True)


@pytest.fixture(scope='module')
def group(predictor): return example('group'), predictor(example('group'), explain=True)


def in_words(page): return re.sub(r'\s+', ' ', re.sub(r'<[^>]+>', ' ', page))


def pixels(uri):
    "What a data URI shows."
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(',')[1]))))


class Page(HTMLParser):
    "The tags of a page, and what it would fetch."
    def __init__(self, html):
        super().__init__()
        self.fetched, self.tags = [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.fetched += [v for k, v in attrs if k in ('src', 'href', 'action', 'srcset') and v]

    def all(self, tag): return [attrs for name, attrs in self.tags if name == tag]


# ---- Words

@pytest.mark.parametrize('p, said', [
    (0, '<1%'), (.006, '<1%'), (.01, '1%'), (.5, '50%'), (.99, '99%'), (.991, '>99%'), (1, '>99%')])
def test_nobody_reads_zero_or_a_hundred_percent(p, said): assert percent(p) == said


def face(**kw):
    usual = dict(probabilities=dict(neutral=0.35, sadness=0.41, anger=0.24), face_found=True,
                 note='', reliable=None, risk=0.1, set=None)
    return SimpleNamespace(**usual | kw)


SURE, EVEN, HALF = dict(a=.51, b=.49), dict(a=.49, b=.51), dict(a=.5, b=.5)
NOBODY = dict(face_found=False, note='no face found: the middle of the image was read')


@pytest.mark.parametrize('given, sure, reason', [
    (dict(), False, 'No expression is more probable than all the others together.'),
    (dict(probabilities=SURE), True, 'not measured for these weights'),
    (dict(probabilities=HALF), True, 'not measured'),
    (dict(reliable=True), True, 'at most 10% were wrong'),
    (dict(reliable=False, probabilities=SURE), False, 'at most 10% of the answers are wrong'),
    (dict(reliable=False, risk=0.05), False, 'at most 5%'),
    (dict(reliable=True, **NOBODY), False, 'No face was found'),
    (dict(reliable=False, **NOBODY), False, 'No face was found'),   # the first reason that holds
    (dict(reliable=True, face_found=False, note='taken to be a face already'), True, 'at most')])
def test_a_verdict_says_whether_and_why(given, sure, reason):
    said = verdict(face(**given))
    assert said['sure'] is sure and reason in said['reason']


def test_an_unsure_verdict_names_the_two_most_probable():
    said = verdict(face())
    assert said['headline'] == 'Unsure'
    assert said['guess'] == 'perhaps sadness (41%) or neutral (35%)'


@pytest.mark.parametrize('given, guess', [
    (dict(), 'perhaps sadness or neutral'),
    (dict(reliable=True), '41% sure; it may be sadness or neutral'),
    (dict(reliable=True, set=('sadness',)), '41% sure')])
def test_a_verdict_says_the_set_in_words(given, guess):
    assert verdict(face(**dict(set=('sadness', 'neutral')) | given))['guess'] == guess


def test_a_sure_verdict_names_the_most_probable():
    said = verdict(face(probabilities=EVEN))
    assert (said['headline'], said['guess']) == ('B', '51% sure')


# ---- Images inside the page

def test_images_are_made_smaller_and_never_larger():
    assert pixels(image_uri(Image.new('RGB', (60, 30)), 20)).shape == (10, 20, 3)
    assert pixels(image_uri(Image.new('RGB', (60, 30)))).shape == (30, 60, 3)
    assert image_uri(Image.new('L', (4, 4)), kind='PNG').startswith('data:image/png;base64,')
    assert image_uri(Image.new('L', (4, 4))).startswith('data:image/jpeg;base64,')


def test_attention_is_clear_where_it_is_least_and_warm_where_it_is_largest():
    wave = np.hypot(*np.mgrid[-1:1:12j, -1:1:12j])
    drawn = pixels(heat(wave)).astype(int)                     # (12, 12, 4)
    assert drawn.shape == (12, 12, 4)
    assert (drawn[0, 0, 3], drawn[6, 6, 3]) == (190, 0)
    assert drawn[0, 0, 0] == 255 and drawn[0, 0, 1] < drawn[6, 6, 1]


@pytest.mark.filterwarnings('error')
def test_even_attention_shows_nothing(): assert not pixels(heat(np.ones((3, 3))))[..., 3].any()


# ---- The page about a photograph

def test_the_page_says_what_a_face_shows(portrait):
    words = in_words(answer_html(*portrait))
    for wanted in ('Happiness', 'Where the model looked', 'Nearest anchors', 'kept the answer'):
        assert wanted in words


def test_the_page_fetches_nothing(portrait, group):
    for image, faces in (portrait, group):
        page = Page(answer_html(image, faces))
        assert len(page.fetched) >= 4
        assert all(a.startswith('data:image/') for a in page.fetched)
    assert 'url(' not in style() and '@import' not in style()


def test_bars_are_sorted_and_hold_both_probabilities(portrait):
    image, faces = portrait
    words = in_words(answer_html(image, faces))
    bars = words[words.index('Primary'):words.index('How the answer came about')]
    order = sorted(faces[0].probabilities, key=faces[0].probabilities.get, reverse=True)
    assert [w for w in bars.split() if w in order] == order
    widths = [float(a['style'].split()[1].rstrip('%')) for a in Page(answer_html(image, faces)).all(
        'div') if 'gf-bar ' in a.get('class', '')]
    wanted = [100*p for c in order for p in (faces[0].probabilities[c], faces[0].primary[c])]
    assert widths == pytest.approx(wanted, abs=1e-3)


def test_each_face_has_its_card_button_mark_and_spot(group):
    image, faces = group
    page = Page(answer_html(image, faces))
    assert len(faces) == 4
    assert [i.get('checked', 'no') for i in page.all('input')] == [None, 'no', 'no', 'no']
    assert len(page.all('article')) == len(page.all('polygon')) == 4
    assert len(page.all('circle')) == 4*68
    spots = [a for a in page.all('label') if 'gf-spot' in a['class']]
    for spot, f in zip(spots, faces, strict=True):
        left = float(re.search(r'left: ([-\d.]+)%', spot['style'])[1])
        assert left == pytest.approx(100*f.box[0]/image.width, abs=6)


def test_research_detail_is_folded_and_verdict_and_bars_are_not(portrait):
    page = answer_html(*portrait)
    shown, folded = page.split('<details', 1)
    assert 'gf-headline' in shown and 'gf-bars' in shown
    assert 'Nearest anchors' not in shown and 'Where the model looked' in folded


def test_doubts_are_a_sentence_and_their_numbers_are_folded(portrait):
    image, faces = portrait
    doubted = replace(faces[0], set=('happiness', 'neutral'), ambiguity=.5, familiarity=.02)
    page = answer_html(image, [doubted])
    verdict, folded = page.split('<details')
    assert 'About half of people would say otherwise.' in in_words(verdict)
    assert 'stranger' not in verdict                         # of a photograph it's told folded
    words = in_words(folded)
    assert 'The set happiness, neutral' in words and 'Ambiguity' in words
    assert 'stranger than 19 in 20 faces, which were small and grey' in words
    plain = replace(faces[0], set=None, ambiguity=None, familiarity=None)
    assert not re.search('The set|Ambiguity|Familiarity', in_words(answer_html(image, [plain])))


def test_what_sets_promise_is_explained_where_there_are_any():
    sets = dict(sets=dict(source='drawn faces'))
    said = in_words(about_html(sets | dict(doubts=dict()), .1, .9, 'annotators'))
    assert 'hold what one person would say for 90% of faces' in said and 'drawn faces' in said
    assert 'what most people would say' in in_words(about_html(sets, .1, .9, 'labels'))
    assert not re.search('Sets|Ambiguity', in_words(about_html({})))


def test_a_changed_answer_is_told(portrait):
    image, (told,) = portrait
    other = dict(told.primary) | {'anger': 1., told.emotion: 0.}
    changed = replace(told, primary=other)
    assert 'changed the answer: anger &gt;99% before it, happiness' in answer_html(image, [changed])


def test_no_mark_is_drawn_where_no_face_was_found(predictor):
    image = Image.new('RGB', (300, 200), (90, 120, 90))
    page = answer_html(image, predictor(image, explain=True))
    assert 'No face found' in page and not Page(page).all('circle')
    assert not Page(page).all('table')   # nothing was read
    assert not [a for a in Page(page).all('label') if 'gf-spot' in a['class']]


def test_of_a_crowd_the_largest_faces_are_shown_and_all_are_counted(portrait):
    image, faces = portrait
    many = answer_html(image, faces*30)
    assert many.count('<article') == MAX_FACES == 12
    assert f'the {MAX_FACES} largest of 30 faces' in many
    assert answer_html(image, faces*MAX_FACES).count(f'{MAX_FACES} faces') > 0
    assert 'largest of' not in answer_html(image, faces*MAX_FACES)


def test_the_style_has_a_rule_for_every_face_that_can_be_chosen():
    assert f'#gf-{MAX_FACES - 1}:checked ~ .gf-card-{MAX_FACES - 1}' in style()


# ---- What goes wrong

def test_a_file_name_stays_text_and_its_folder_is_not_told(predictor, tmp_path):
    bad = tmp_path/'<b>cat<b>.png'
    bad.write_text('no picture')
    sorry = read_photo(predictor, bad)
    assert str(tmp_path) not in sorry and '<b>' not in sorry and '&lt;b&gt;cat' in sorry
    assert 'role="alert"' in sorry
    named = read_photo(predictor, str(bad), 'holiday.jpg')
    assert 'holiday.jpg' in named and 'cat' not in named and str(tmp_path) not in named


def test_a_photograph_of_too_many_pixels_is_refused_undecoded(predictor):
    Image.new('1', (9000, 9000)).save(bomb := io.BytesIO(), 'PNG')
    said = read_photo(predictor, bomb.getvalue())
    assert 'could not be read' in said and ('81,000,000 pixels' in said or '9,000×9,000' in said)


def test_a_photograph_of_too_many_bytes_is_refused_in_our_own_words(predictor, tmp_path):
    (tmp_path/'large.png').write_bytes(bytes(MAX_BYTES + 1_000_000))
    said = read_photo(predictor, tmp_path/'large.png')
    assert '21 MB are more than the 20 MB that a photograph may have here' in said


# ---- Several photographs, or a film

def test_an_album_gives_a_line_a_face_and_a_table_to_download(predictor, tmp_path):
    example().save(tmp_path/'a.png')
    (tmp_path/'b.png').write_text('no image')
    Image.new('RGB', (300, 200)).save(tmp_path/'c.png')
    *_, page = read_album(predictor, [(str(tmp_path/f'{n}.png'), f'my <{n}>.png') for n in 'abc'])
    words = in_words(page)
    assert 'happiness (' in words and 'no face found' in words and str(tmp_path) not in page
    assert 'my &lt;b&gt;.png' in page and '<b>' not in page
    data = base64.b64decode(Page(page).all('a')[0]['href'].split(',')[1]).decode()
    assert data.startswith('file,frame,') and data.count('my <') >= 3 and str(tmp_path) not in data


@pytest.mark.parametrize('emotion, reliable, said', [
    ('fear', True, 'fear (60%)'), ('fear', False, 'unsure, perhaps fear (60%)'),
    ('fear', None, 'fear (60%)'), (None, None, 'no face found')])
def test_a_line_of_an_album_says_when_the_answer_is_unsure(emotion, reliable, said):
    blank = dict.fromkeys(table_columns(EXPRESSIONS))
    page = album_html([blank | dict(file='a.png', emotion=emotion, reliable=reliable,
                                    confidence=.6)], EXPRESSIONS)
    assert said in page and ('perhaps' in page) == (reliable is False)


def test_a_film_says_how_far_it_is_and_then_who_showed_what(predictor, tmp_path):
    photo = example().resize((240, 240))
    path = write_film(tmp_path/'film.mp4', np.arange(40)/20, (240, 240), lambda i: photo)
    *progress, page = read_album(predictor, [(str(path), 'film.mp4')])
    assert 'of about' in progress[0]
    assert 'Share of time of each person' in page and 'happiness' in in_words(page)


def test_a_fault_inside_costs_a_sentence_and_tells_nothing(capsys):
    def failing(image, explain): raise RuntimeError('secret\n/home/name')
    said = read_photo(failing, example())
    assert 'RuntimeError' in said and 'secret' not in said and 'This image' in said
    assert capsys.readouterr().err == 'grefel demo: RuntimeError: secret /home/name\n'


def test_a_message_is_escaped():
    assert '<script>' not in message_html('<script>', '<script>')


# ---- What the numbers mean

def test_the_numbers_come_from_the_weights(predictor):
    words, measured = in_words(about_html(predictor.metadata)), predictor.metadata['validation']
    assert f'{measured["n"]:,} faces' in words and f'{measured["accuracy"]:.1%}' in words
    assert 'at most 10% of the answers were wrong' in words
    assert 'at most 5% of' in about_html(predictor.metadata, 0.05)


@pytest.mark.parametrize('metadata, risk, said', [
    ({}, 0.1, 'carry no figures'),
    (dict(validation=dict(n=9, accuracy=.5)), 0.1, 'carry no figures'),
    ({}, 0.1, 'it was not measured how often'),
    (dict(risk=[[.1, .5, .9]]), None, 'it was not measured how often'),
    (dict(risk=[[.1, .5, .9]]), 0.1, '(on validation)'),
    (dict(risk=[[.1, .5, .9]], risk_from='<script>'), 0.1, '(&lt;script&gt;)')])
def test_what_was_not_measured_is_not_claimed(metadata, risk, said):
    assert said in about_html(metadata, risk)


def test_the_limits_of_an_upload_are_told():
    assert 'up to 20 MB and 50 million pixels' in about_html({})
