"""Finding faces: where they are, how they lean, and nothing where there are none."""
import sys
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from grefel.base.alignment import frame, frame_points
from grefel.base.core import GrefelError
from grefel.base.geometry import mean_shape
from grefel.use import finder
from grefel.use.finder import evidence, find_faces, Found

PHOTO = Image.fromarray(astronaut())
FACE = (174, 68, 272, 166)   # about where her face is

needs_face_alignment = pytest.mark.skipif(not find_spec('face_alignment'),
                                          reason='face-alignment is not installed')


def overlap(a, b):
    "Intersection over union of two boxes."
    w, h = (max(0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1))
    return w*h/((a[2] - a[0])*(a[3] - a[1]) + (b[2] - b[0])*(b[3] - b[1]) - w*h)


@pytest.mark.parametrize('scale', [.5, 1, 3])
def test_one_face_is_found_where_it_is_at_any_size_of_the_image(scale):
    found, = find_faces(PHOTO.resize([round(scale*512)]*2))
    assert overlap(np.divide(found.box, scale), FACE) > .6


def test_the_same_image_gives_the_same_faces():
    assert find_faces(PHOTO) == find_faces(PHOTO)


@pytest.mark.parametrize('lean', [-24, -12, 12, 24])
def test_the_tilt_is_positive_where_the_head_leans_clockwise(lean):
    middle = tuple(np.add(FACE[:2], FACE[2:])/2)
    found, = find_faces(PHOTO.rotate(-lean, Image.Resampling.BILINEAR, center=middle))
    assert abs(found.tilt - lean) < 12 and overlap(found.box, FACE) > .5


def test_faces_come_largest_first():
    image = Image.new('L', (700, 400), 150)
    person = PHOTO.crop((60, 0, 400, 400)).convert('L')
    image.paste(person.resize((204, 240)), (10, 20))
    image.paste(person, (300, 0))
    boxes = [f.box for f in find_faces(image)]
    assert len(boxes) == 2 and boxes[0][0] > 300 > boxes[1][0]


def test_a_face_smaller_than_wanted_is_left_out():
    assert find_faces(PHOTO, smallest=.4) == []


@pytest.mark.parametrize('size', [(1, 1), (24, 24), (25, 25), (3, 900), (900, 3), (30, 5000)])
def test_an_empty_image_of_any_size_has_no_faces(size):
    assert find_faces(Image.new('RGB', size, 'grey')) == []


@pytest.mark.parametrize('wrong, said', [
    (dict(smallest=0), 'smallest'), (dict(smallest=1.5), 'smallest'),
    (dict(detector='guess'), 'guess')])
def test_what_makes_no_sense_is_refused(wrong, said):
    with pytest.raises(GrefelError, match=said): find_faces(PHOTO, **wrong)


# (x, y, side) as the cascade would give them, with votes: what is left of them
GROUPS = [
    ([(100, 100, 60)]*9 + [(115, 130, 30)]*8, [60]),             # a mouth is no face of its own
    ([(100, 100, 60)]*9 + [(170, 100, 60)]*8, [60, 60]),         # two faces side by side
    ([(100, 100, 60)]*6, []),                                    # too few votes
    ([(-50, 100, 60)]*9, []),                                    # beyond the image: a turned corner
]


@pytest.mark.parametrize('windows, sides', GROUPS)
def test_windows_become_faces(monkeypatch, windows, sides):
    given = np.array([(*w, 0.) for w in windows])
    monkeypatch.setattr(finder, '_windows', lambda grey, tilts: given)
    found = find_faces(Image.new('L', (400, 400)))
    assert [round(f.box[2] - f.box[0]) for f in found] == sides


@pytest.mark.parametrize('tilts, votes', [((0.,), 4), ((-25., 0., 25.), 7)])
def test_more_votes_are_asked_for_where_more_is_searched(monkeypatch, tilts, votes):
    for n in (votes - 1, votes):
        given = np.array([(100, 100, 60, 0.)]*n)
        monkeypatch.setattr(finder, '_windows', lambda grey, tilts: given)
        assert len(find_faces(Image.new('L', (400, 400)), tilts=tilts)) == (n == votes)


def test_evidence_follows_its_formula():
    seen, first = Found((0, 0, 60, 60), votes=6), frame((30, 30), 60)
    points = frame_points(mean_shape().numpy(), first)
    for spread in (1, .8):
        found = evidence(seen, first, (points - 30)*spread + 30)
        assert found == pytest.approx(6*spread**5/3, rel=1e-4)
    assert evidence(seen, first) == 6/7   # no landmarks: the votes alone


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
def test_a_networks_faces_are_squares_in_the_images_own_pixels(weights):
    torch.save(StandIn().state_dict(), weights)
    image = np.zeros((640, 800), np.uint8)
    image[192:352, 416:576] = 255
    found = find_faces(Image.fromarray(image), detector='face-alignment')
    x0, y0, x1, y1 = max(found, key=lambda f: f.votes).box
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
