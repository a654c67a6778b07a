"""Camera faults: each does what its name says, spared faces are left alone, landmarks go along."""
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from grefel.base.core import GrefelError
from grefel.base.synth import synth_faces
from grefel.data.augment import make_transform
from grefel.data.camera import (
    CameraFaults, cover_box, FAULTS, fewer_pixels, jpeg_artifacts, motion_blur, sensor_noise,
    uneven_light)


def seeded(seed=0): return torch.Generator().manual_seed(seed)


def only(fault, **how):
    "Faults of one kind, on every face."
    return CameraFaults(clean=0., **{k: float(k == fault) for k in FAULTS}, **how)


@pytest.fixture(scope='module')
def faces(): return synth_faces(16, size=48, seed=3, noise=0., occlusion=0.)


@pytest.fixture
def clean(faces): return faces['images'].float()/255


def test_uneven_light_is_brighter_towards_its_angle_and_keeps_the_middle():
    x = uneven_light(torch.full((2, 1, 49, 49), .5), torch.tensor([.4, 0.]), torch.zeros(2))
    assert_close(x[0, 0, :, 24], torch.full((49,), .5))
    assert_close(x[0, 0, 5, [0, 48]], torch.tensor([.3, .7]))
    assert_close(x[1], torch.full((1, 49, 49), .5))


def test_motion_blur_spreads_a_dot_along_its_path_and_nowhere_else():
    x = torch.zeros(1, 1, 15, 15)
    x[..., 7, 7] = 1
    across = motion_blur(x, torch.tensor([6.]), torch.zeros(1))[0, 0]
    assert_close(across.sum(), torch.tensor(1.))
    assert (across.sum(1) > 1e-6).sum() == 1 and 6 <= (across.sum(0) > 1e-3).sum() <= 8
    down = motion_blur(x, torch.tensor([6.]), torch.full((1,), np.pi/2))[0, 0]
    assert_close(down, across.T, atol=1e-5, rtol=0)


@pytest.mark.parametrize('length', [1., 4., 6., 7.5])
def test_motion_blur_is_the_mean_over_the_whole_path(length):
    x = torch.zeros(1, 1, 15, 15)
    x[..., 7, 7] = 1
    across = motion_blur(x, torch.tensor([length]), torch.zeros(1))[0, 0, 7]
    path = torch.linspace(-length/2, length/2, 4001)
    exact = (1 - (path - torch.arange(-7, 8)[:, None]).abs()).clamp(0).mean(1)        # (15,)
    assert_close(across, exact, atol=.02, rtol=0)


def test_fewer_pixels_keeps_each_image_at_its_own_side(clean):
    x = fewer_pixels(clean[:3], torch.tensor([48, 12, 1]))
    assert_close(x[0], clean[0])
    assert x[2].std() < 1e-6 and x[1].std() > .05   # one pixel is one grey
    assert x[1].diff().abs().mean() < .7*clean[1].diff().abs().mean()


@pytest.mark.parametrize('shot, dark, bright', [(False, 1., 1.), (True, .5, 1.3)])
def test_noise_has_the_spread_it_names_at_half_brightness(shot, dark, bright):
    for grey, times in ((.5, 1.), (.125, dark), (.845, bright)):
        x = torch.full((1, 1, 300, 300), grey)
        noisy = sensor_noise(x, torch.tensor([.03]), torch.tensor([shot]), seeded())
        assert noisy.std().item() == pytest.approx(.03*times, rel=.03)
        assert noisy.mean().item() == pytest.approx(grey, abs=1e-3)


@pytest.mark.parametrize('quality', [10, 30, 60, 90])
def test_jpeg_is_what_an_encoder_makes_of_a_grey_image(faces, clean, quality):
    # an encoder counts cosines in whole numbers: now and then a weight between two steps differs
    ours = jpeg_artifacts(clean, torch.full((16,), float(quality)))*255
    apart = []
    for image, mine in zip(faces['images'].numpy(), ours.numpy()):
        file = io.BytesIO()
        Image.fromarray(image[0]).save(file, 'JPEG', quality=quality)
        apart.append(np.abs(np.asarray(Image.open(file), float) - mine[0]).mean())
    assert np.mean(apart) < .6


def test_jpeg_of_a_side_that_eight_does_not_divide(clean):
    assert jpeg_artifacts(clean[..., :45, :45], torch.full((16,), 50.)).shape == (16, 1, 45, 45)


def test_a_box_covers_its_place_and_no_other(clean):
    x = cover_box(clean[:1], torch.tensor([[.25, .5, .5, 1.]]), torch.tensor([.3]))
    assert_close(x[0, 0, 24:, 12:24], torch.full((24, 12), .3))
    changed = x != clean[:1]
    assert not changed[..., :24, :].any() and not changed[..., :12].any()
    assert not changed[..., 24:].any()


@pytest.mark.parametrize('fault', FAULTS)
def test_each_fault_alone_changes_every_face_and_stays_in_range(clean, fault):
    x, _ = only(fault)(clean, None, seeded())
    assert ((x - clean).abs().amax((1, 2, 3)) > 1e-4).all()
    assert x.min() > -1e-5 and x.max() < 1.00001 and x.isfinite().all()


@pytest.mark.parametrize('fault', FAULTS)
def test_strength_makes_each_fault_milder(clean, fault):
    def harm(strength):
        x, _ = only(fault, strength=strength)(clean, None, seeded())
        return (x - clean).abs().mean().item()
    assert harm(.2) < .8*harm(1.)


def test_the_share_that_is_spared_comes_back_bit_by_bit(clean):
    many = clean[:1].expand(4000, -1, -1, -1)
    x, _ = CameraFaults(clean=.75)(many, None, seeded())
    hit = (x != many).flatten(1).any(1)
    p = 1 - np.prod([1 - v for v in FAULTS.values()])
    assert hit.float().mean().item() == pytest.approx(.25*p, abs=.02)


def test_a_generator_repeats_all_of_it_and_inputs_stay_as_they_were(faces, clean):
    before, landmarks = clean.clone(), faces['landmarks'].clone()
    a, b, c = (CameraFaults()(clean, landmarks, seeded(s)) for s in (5, 5, 6))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and not torch.equal(a[0], c[0])
    assert torch.equal(clean, before) and torch.equal(landmarks, faces['landmarks'])


def test_landmarks_stay_on_the_face_that_a_finder_framed_badly():
    places = torch.rand(64, 68, 2, generator=seeded())*.3 + .35
    t = (torch.arange(96) + .5)/96
    x, y = places[:, 30, 0, None, None], places[:, 30, 1, None, None]
    dots = torch.exp(-((t[None, None] - x)**2 + (t[None, :, None] - y)**2)/(2*.02**2))[:, None]
    seen, moved = only('frame')(dots, places, seeded(1))
    mass = seen[:, 0]/seen[:, 0].sum((1, 2))[:, None, None]
    found = torch.stack([(mass.sum(1)*t).sum(1), (mass.sum(2)*t).sum(1)], 1)
    assert (found - moved[:, 30]).norm(dim=1).max()*96 < .6
    assert (moved - places).abs().amax((1, 2)).min() > .005


def test_an_unknown_fault_is_named():
    with pytest.raises(GrefelError, match="unknown camera fault 'fog'; known: frame, cover"):
        CameraFaults(fog=.5)


def test_the_camera_setting_spares_four_faces_in_ten(faces):
    tfm = make_transform(dict(camera=.6), 48, mean=0., std=1.)
    many = faces['images'].repeat(100, 1, 1, 1)
    x, _ = tfm(many, None, seeded())
    hit = ((x[:, :1] - many/255).abs() > 1e-6).flatten(1).any(1)
    p = 1 - np.prod([1 - v for v in FAULTS.values()])
    assert hit.float().mean().item() == pytest.approx(.6*p, abs=.04)


def test_nothing_random_means_no_faults(faces):
    tfm = make_transform('camera', 48)
    none = make_transform('none', 48)
    assert torch.equal(tfm.apply(faces['images'])[0], none(faces['images'])[0])
