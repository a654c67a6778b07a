"Scenes: the same for the same seed, and with the truth they tell."
import numpy as np
import pytest

from grefel.base.alignment import cut, frame, frame_points, frame_size
from grefel.base.core import GrefelError
from grefel.base.synth import synth_faces
from grefel.use.scenes import FAULTS, make_scene, match_frames

FACES = synth_faces(20, size=96, seed=3, occlusion=0, pose=0)['images'][:, 0].numpy()
SEEDS = range(12)


def test_a_seed_decides_everything():
    scene, again = (make_scene(FACES, 5, fault=None) for _ in range(2))
    assert scene.image.tobytes() == again.image.tobytes() and scene.fault == again.fault
    assert (scene.frames == again.frames).all() and (scene.rows == again.rows).all()
    assert make_scene(FACES, 6, fault=None).image.tobytes() != scene.image.tobytes()


@pytest.mark.parametrize('seed', SEEDS)
def test_each_frame_cuts_out_its_face_upright(seed):
    scene = make_scene(FACES, seed, n=3, sides=(100, 160))   # large, so that detail survives
    assert len(scene.frames) == len(scene.rows) > 0
    for where, row in zip(scene.frames, scene.rows):
        back = np.asarray(cut(scene.image.convert('L'), where, 96), float)[24:-24, 24:-24]
        alike = [np.corrcoef(back.ravel(), f[24:-24, 24:-24].ravel())[0, 1] for f in FACES]
        assert np.argmax(alike) == row and alike[row] > .85


def test_sizes_and_leans_keep_their_bounds_and_use_them():
    frames = np.concatenate([make_scene(FACES, s, sides=(30, 120), tilt=15.).frames for s in SEEDS])
    side, tilt = np.array([frame_size(f) for f in frames]).T
    assert (side > 30 - 1e-6).all() and (side < 120 + 1e-6).all() and side.max() > 2*side.min()
    assert (np.abs(tilt) <= 15).all() and tilt.min() < -5 and tilt.max() > 5


def test_one_to_eight_faces_keep_apart_and_lie_on_the_scene():
    counts = set()
    for seed in range(30):
        scene = make_scene(FACES, seed, size=(320, 240), sides=(24, 80))
        assert scene.image.size == (320, 240) and scene.image.mode == 'RGB'
        counts.add(len(scene.frames))
        middles = np.array([frame_points([.5, .5], f) for f in scene.frames])
        sides = [frame_size(f)[0] for f in scene.frames]
        assert (middles > 0).all() and (middles < (320, 240)).all()
        for i in range(len(sides)):
            for j in range(i):
                assert np.linalg.norm(middles[i] - middles[j]) > .7*(sides[i] + sides[j])
    assert min(counts) == 1 and max(counts) >= 7


@pytest.mark.parametrize('seed', range(4))
def test_where_there_are_enough_faces_nobody_is_there_twice(seed):
    scene = make_scene(np.full((3, 48, 48), 128, np.uint8), seed, n=3, sides=(24, 60))
    assert sorted(scene.rows.tolist()) == [0, 1, 2]


def test_a_face_has_no_edge_of_a_rectangle():
    "A white and a black face differ in the middle, hardly at the sides and not at the corners."
    images = [make_scene(np.full((96, 96), v, np.uint8), 4, n=1, tilt=0., sides=(100, 101))
              for v in (0, 255)]
    apart = np.subtract(*(np.asarray(cut(s.image.convert('L'), s.frames[0], 96), float)
                          for s in images[::-1]))
    assert apart[48, 48] > 230 and abs(apart[48, 1]) < 60
    assert abs(apart[[2, 2, 93, 93], [2, 93, 2, 93]]).max() < 2


@pytest.mark.parametrize('fault', [f for f in FAULTS if f != 'none'])
def test_each_fault_changes_the_image_and_not_the_truth(fault):
    plain, other = make_scene(FACES, 7), make_scene(FACES, 7, fault=fault)
    assert (plain.frames == other.frames).all() and other.fault == fault
    assert other.image.size == plain.image.size and other.image.tobytes() != plain.image.tobytes()


def test_half_of_the_scenes_have_no_fault_where_it_is_sampled():
    faults = [make_scene(FACES, s, n=1, size=(64, 48), sides=(24, 40), fault=None).fault
              for s in range(60)]
    assert .3 < np.mean([f == 'none' for f in faults]) < .7 and len(set(faults)) > 4


def test_a_fault_that_nobody_knows_is_refused():
    with pytest.raises(GrefelError, match='dark.*drunk'): make_scene(FACES, 1, fault='drunk')


A, B = frame((100, 100), 60), frame((300, 100), 60, 30)


@pytest.mark.parametrize('found, matched', [
    ([B, A], [1, 0]), ([A, frame((104, 98), 58)], [0, -1]), ([frame((100, 300), 60)], [-1]),
    ([frame((100, 100), 130)], [-1]), ([frame((119, 100), 60)], [0]),
    ([frame((121, 100), 60)], [-1]), ([], [])])
def test_a_found_frame_is_a_face_once_or_a_false_one(found, matched):
    assert match_frames(found, [A, B]) == matched
