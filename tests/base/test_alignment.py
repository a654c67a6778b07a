"Frames: where to cut a face, how to turn it, and which frames not to believe."
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from grefel.base.alignment import (
    CROP_SCALE, CROP_SHIFT, FIVE, align_frame, believable, cut, face_frame, found_frame, frame,
    frame_points, frame_size)
from grefel.base.geometry import mean_shape, similarity_transform
from tests.helpers import needs_ferplus

BOX = (178.2, 62.9, 268.1, 176.2)  # YuNet's, around the astronaut's face
CORNERS = [[0, 0], [1, 0], [1, 1], [0, 1]]


@pytest.fixture(scope='module')
def photo(): return Image.fromarray(astronaut())


def difference(a, b): return np.abs(np.asarray(a, float) - np.asarray(b, float)).mean()


def test_a_frame_says_where_the_corners_of_a_crop_lie():
    upright = frame_points(CORNERS, frame((100, 60), 40))
    np.testing.assert_allclose(upright, [[80, 40], [120, 40], [120, 80], [80, 80]])
    clockwise = frame_points(CORNERS, frame((100, 60), 40, 90))  # a quarter turn: up is right
    np.testing.assert_allclose(clockwise, [[120, 40], [120, 80], [80, 80], [80, 40]], atol=1e-9)


@pytest.mark.parametrize('side, tilt', [(40, 0), (1, 25), (300, -100)])
def test_side_and_tilt_are_read_back(side, tilt):
    assert frame_size(frame((7, -3), side, tilt)) == pytest.approx((side, tilt))


def test_a_face_is_framed_a_little_larger_and_higher_than_its_box():
    found = face_frame((10, 20, 110, 120))
    assert frame_size(found) == pytest.approx((100*CROP_SCALE, 0))
    middle = frame_points([.5, .5], found)
    assert middle == pytest.approx([60 + 100*CROP_SHIFT[0], 70 + 100*CROP_SHIFT[1]])


def test_the_shift_leans_with_the_face():
    straight, fallen = face_frame((0, 0, 100, 100)), face_frame((0, 0, 100, 100), 90)
    up = frame_points([.5, .5], straight) - 50
    assert frame_points([.5, .5], fallen) - 50 == pytest.approx([-up[1], up[0]])


def test_a_box_that_is_no_square_is_framed_by_the_root_of_its_area():
    assert frame_size(face_frame((0, 0, 40, 90)))[0] == pytest.approx(60*CROP_SCALE)


def test_an_upright_frame_is_cut_as_the_box_that_it_is(photo):
    crop = cut(photo, frame((200, 110), 96), 96)
    assert (np.asarray(crop) == np.asarray(photo)[62:158, 152:248]).all()


@pytest.mark.parametrize('size', [24, 96, 150])  # a crop smaller and larger than the face
@pytest.mark.parametrize('tilt', [20, -35])
def test_a_leaning_face_is_cut_upright(photo, size, tilt):
    centre = ((BOX[0] + BOX[2])/2, (BOX[1] + BOX[3])/2)
    leaning = photo.rotate(-tilt, Image.Resampling.BICUBIC, center=centre)  # clockwise as seen
    upright, turned = cut(photo, face_frame(BOX), size), cut(leaning, face_frame(BOX, tilt), size)
    assert (turned.size, turned.mode) == ((size, size), 'RGB')
    assert difference(turned, upright) < 3.5 < 9 < difference(cut(leaning, face_frame(BOX), size),
                                                              upright)


def test_both_ways_of_cutting_agree_where_they_meet(photo):
    near, upright = cut(photo, face_frame(BOX, .01)), cut(photo, face_frame(BOX))
    assert near.size == upright.size == (48, 48)
    assert difference(near, upright) < 4


def test_a_large_face_loses_its_finest_detail_smoothly():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400), np.uint8))
    for tilt in (0, 30):
        crop = np.asarray(cut(noise, frame((200, 200), 240, tilt), 24), float)
        assert crop.std() < 6  # averaged over 100 pixels; picking single ones would leave 74


def test_beyond_the_image_its_border_is_repeated(photo):
    corner = np.asarray(cut(photo, face_frame((-40, -40, 60, 60)), 50), int)
    assert np.ptp(corner[:, :15], axis=1).max() == 0
    turned = cut(photo.convert('L'), face_frame((-40, -40, 60, 60), 30), 50)
    assert (turned.size, turned.mode) == ((50, 50), 'L')


def test_the_mean_face_gives_its_own_frame_back():
    where = frame((200, 150), 80, -12)
    points = frame_points(mean_shape().numpy(), where)
    np.testing.assert_allclose(align_frame(points), where, atol=1e-4)


@pytest.mark.parametrize('tilt', [0, -30, 100])
def test_five_points_that_agree_with_the_box_leave_its_frame(tilt):
    where = face_frame(BOX, tilt)
    five = frame_points(FIVE, where)
    np.testing.assert_allclose(align_frame(five), where, atol=1e-9)
    np.testing.assert_allclose(found_frame(BOX, five), where, atol=1e-9)


def test_box_and_points_are_averaged_and_the_points_say_the_lean():
    boxed, own = face_frame(BOX), frame((240, 130), 150, 20)
    found = found_frame(BOX, frame_points(FIVE, own))
    side, tilt = frame_size(found)
    assert tilt == pytest.approx(20) and side == pytest.approx((frame_size(boxed)[0]*150)**.5)
    turned = frame_points([.5, .5], face_frame(BOX, 20))
    assert frame_points([.5, .5], found) == pytest.approx((turned + (240, 130))/2)


def test_without_points_the_box_alone_decides():
    np.testing.assert_array_equal(found_frame(BOX), face_frame(BOX))


@needs_ferplus
def test_the_finder_frames_faces_as_the_data_set_did():
    "On FER+ faces, enlarged: the frame's side and middle are right on average."
    from grefel.data.faces import load_faces
    from grefel.use.finder import find_faces
    sides, middles = [], []
    for face in load_faces('ferplus', 'valid').images[:60, 0].numpy():
        image = Image.new('L', (224, 224), 128)
        image.paste(Image.fromarray(face).resize((160, 160), Image.Resampling.BICUBIC), (32, 32))
        for found in find_faces(image)[:1]:
            where = found_frame(found.box, found.points)
            sides.append(np.log(frame_size(where)[0]/160))
            middles.append((frame_points([.5, .5], where) - 112)/160)
    assert len(sides) > 50 and abs(np.median(sides)) < .05
    assert np.abs(np.median(middles, 0)).max() < .03


def test_numpy_and_pytorch_find_the_same_frame():
    points = frame_points(mean_shape().numpy(), frame((200, 150), 80, 40))
    points += np.random.default_rng(0).normal(0, 2, (68, 2))
    theirs = similarity_transform(mean_shape().double(), torch.tensor(points))
    np.testing.assert_allclose(align_frame(points), theirs.numpy(), atol=1e-4)


# A side of 60 around (100, 100): a third of it is 20 pixels, one and a half of it 90. Each pair
# stands just inside and just outside of a bound, so that a looser bound is as wrong as a tighter.
@pytest.mark.parametrize('other, may_be', [
    (frame((100, 100), 60), True),
    (frame((100, 100), 60*1.49), True), (frame((100, 100), 60*1.51), False),
    (frame((100, 100), 60/1.49), True), (frame((100, 100), 60/1.51), False),
    (frame((119.9, 100), 60), True), (frame((120.1, 100), 60), False),
    (frame((100, 80.1), 60), True), (frame((100, 79.9), 60), False),
    (frame((114, 114), 60), True), (frame((115, 115), 60), False),
    (frame((100, 100), 60, 39.9), True), (frame((100, 100), 60, 40.1), False),
    (frame((100, 100), 60, -39.9), True), (frame((100, 100), 60, -40.1), False),
    (frame((100, 100), 60, 180), False)])
def test_a_frame_that_contradicts_the_detector_is_not_believed(other, may_be):
    assert believable(other, frame((100, 100), 60)) is may_be


def test_the_bounds_are_those_of_the_first_frame_not_of_the_other():
    first, other = frame((100, 100), 60), frame((125, 100), 80)  # 25 is a third of 75
    assert not believable(other, first) and believable(first, other)


def test_a_lean_is_compared_around_the_circle():
    first = frame((100, 100), 60, 170)
    assert believable(frame((100, 100), 60, -170), first)
    assert not believable(frame((100, 100), 60, -140), first)
