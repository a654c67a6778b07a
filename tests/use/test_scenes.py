"""Scenes: the same for the same seed, and with the truth they tell."""
import numpy as np
import pytest

from grefel.base.alignment import cut, frame_points, frame_size
from grefel.base.synth import synth_faces
from grefel.use.scenes import make_scene

FACE = synth_faces(1, size=96, seed=3, occlusion=0, pose=0)['images'][0, 0].numpy()
SEEDS = range(12)


def test_a_seed_decides_everything():
    (scene, frame), (again, frame_again) = make_scene(FACE, 5), make_scene(FACE, 5)
    assert scene.tobytes() == again.tobytes() and (frame == frame_again).all()
    assert make_scene(FACE, 6)[0].tobytes() != scene.tobytes()


@pytest.mark.parametrize('seed', SEEDS)
def test_the_frame_cuts_out_the_face_upright(seed):
    scene, frame = make_scene(FACE, seed, shares=(.4, .5))   # large, so that detail survives
    back = np.asarray(cut(scene, frame, 96), float)[12:-12, 12:-12]   # without the soft rim
    assert np.corrcoef(back.ravel(), FACE[12:-12, 12:-12].ravel())[0, 1] > .97


def test_sizes_and_leans_keep_their_bounds_and_use_them():
    sizes = np.array([frame_size(make_scene(FACE, s, tilt=15.)[1]) for s in SEEDS])
    assert (360/8 - 1 <= sizes[:, 0]).all() and (sizes[:, 0] <= 180.5).all()
    assert (np.abs(sizes[:, 1]) <= 15).all() and sizes[:, 1].min() < -5 and sizes[:, 1].max() > 5


def test_the_middle_of_the_face_lies_in_the_scene():
    for seed in SEEDS:
        scene, frame = make_scene(FACE, seed, size=(320, 240))
        assert scene.size == (320, 240) and scene.mode == 'L'
        assert (0 < (middle := frame_points([.5, .5], frame))).all() and (middle < (320, 240)).all()


def test_the_rim_fades_out():
    "A white and a black face differ by 255 inside and by little at the rim."
    frames = [make_scene(np.full((96, 96), v, np.uint8), 4, tilt=0.) for v in (0, 255)]
    apart = [np.asarray(cut(scene, frame, 96), float) for scene, frame in frames]
    difference = apart[1] - apart[0]
    assert difference[48, 48] > 250 and difference[48, 0] < 80 and difference[95, 48] < 80
