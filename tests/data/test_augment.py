"""Augmentation: geometry that image and landmarks share, colour as torchvision means it, seeds."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from torch.testing import assert_close

from grefel.base.core import GrefelError
from grefel.base.geometry import MIRROR, mirror_landmarks
from grefel.base.synth import synth_faces
from grefel.data.augment import (
    AUGMENTATIONS, batches, BatchTransform, draw_parameters, IMAGENET_MEAN, IMAGENET_STD,
    make_transform)
from grefel.data.warp import (
    colour_jitter, crop_matrix, erase_mask, flip_matrix, gaussian_blur, move_landmarks, shift_hue,
    shrink_images, to_grey, turn_matrix, warp_images)

CLOSE = dict(atol=1e-5, rtol=0)
ROUGH = dict(rotate=8., padding='reflection', shift=.1, gamma=.8, blur=2., noise=.12, erase=1.)
ADJUST = [tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue]


@pytest.fixture(scope='module')
def faces(): return synth_faces(8, size=96, seed=3, noise=0., occlusion=0.)

@pytest.fixture
def images(faces): return faces['images']

@pytest.fixture
def points(faces): return faces['landmarks']

@pytest.fixture
def colours(): return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(2))

def seed(s): return torch.Generator().manual_seed(s)


# geometry

def test_known_maps():
    one = torch.ones(1)
    def at(m, x, y): return (m[0, :2] @ torch.tensor([x, y, 1.])).tolist()
    crop = crop_matrix(.1*one, .2*one, .5)
    assert at(crop, .1, .2) == pytest.approx([0, 0], abs=1e-6)
    assert at(crop, .6, .7) == pytest.approx([1, 1])
    quarter = turn_matrix(90*one, one, 0*one, 0*one)  # counter-clockwise: the right goes to the top
    assert at(quarter, 1., .5) == pytest.approx([.5, 0], abs=1e-6)
    moved = turn_matrix(0*one, 2*one, .1*one, -.2*one)
    assert at(moved, .75, .5) == pytest.approx([1.1, .3])
    assert at(flip_matrix(torch.tensor([True])), .2, .3) == pytest.approx([.8, .3])


def test_warping_with_a_known_answer():
    x, still = torch.rand(2, 3, 12, 12, generator=seed(0)), torch.eye(3).repeat(2, 1, 1)
    one = torch.ones(2)
    assert_close(warp_images(x, still, 12), x, **CLOSE)
    larger = torch.nn.functional.interpolate(x, size=(30, 30), mode='bilinear')
    assert_close(warp_images(x, still, 30), larger, **CLOSE)
    assert_close(warp_images(x, turn_matrix(90*one, one, 0*one, 0*one), 12), x.rot90(1, (2, 3)),
                 **CLOSE)
    assert_close(warp_images(x, flip_matrix(torch.tensor([True, False])), 12),
                 torch.stack([x[0].flip(2), x[1]]), **CLOSE)


@pytest.mark.parametrize('padding, value', [('zeros', 0.), ('border', 1.), ('reflection', 1.)])
def test_what_lies_outside(padding, value):
    m = turn_matrix(torch.zeros(1), torch.ones(1), torch.tensor([.5]), torch.zeros(1))
    assert warp_images(torch.ones(1, 1, 8, 8), m, 8, padding)[0, 0, 4, 0] == value


def test_a_flip_gives_left_and_right_points_each_others_names(points):
    yes = torch.ones(8, dtype=torch.bool)
    assert_close(move_landmarks(points, flip_matrix(yes), yes), mirror_landmarks(points))
    x, lmk = make_transform(dict(flip=1.), 96)(torch.zeros(8, 1, 96, 96), points)
    assert_close(lmk, mirror_landmarks(points))
    # the right mouth corner stays the one on the image's left
    assert (lmk[:, 48, 0] < lmk[:, 54, 0]).all() and (points[:, 48, 0] < points[:, 54, 0]).all()


def test_unflipped_faces_keep_their_points_names(points):
    none = torch.zeros(8, dtype=torch.bool)
    assert_close(move_landmarks(points, flip_matrix(none), none), points)


def dots(places, size):
    t = (torch.arange(size) + .5)/size
    x, y = places[:, 0, None, None], places[:, 1, None, None]
    return torch.exp(-((t[None, None] - x)**2 + (t[None, :, None] - y)**2)/(2*.02**2))[:, None]

def centre(x):
    t = (torch.arange(x.shape[-1]) + .5)/x.shape[-1]
    x = x[:, 0]/x[:, 0].sum((1, 2))[:, None, None]
    return torch.stack([(x.sum(1)*t).sum(1), (x.sum(2)*t).sum(1)], 1)

@pytest.mark.parametrize('name', AUGMENTATIONS)
@pytest.mark.parametrize('point', (36, 54))
def test_a_dot_stays_under_its_landmark(name, point):
    lmk = torch.rand(200, 68, 2, generator=seed(3))*.3 + .35
    motions = ('crop', 'flip', 'rotate', 'scale', 'shift')
    moves = {k: v for k, v in AUGMENTATIONS[name].items() if k in motions}
    tfm = make_transform(moves, 64, mean=0., std=1.)
    params = draw_parameters(tfm.settings, 200, seed(4))
    x, new = tfm.apply(dots(lmk[:, point], 48), lmk, params)
    expected = torch.where(params['flip'][:, None], new[:, MIRROR[point]], new[:, point])
    assert (centre(x) - expected).norm(dim=1).max()*64 < 1


def test_fine_stripes_become_grey_when_shrunk():
    stripes = (torch.arange(200) % 5 < 2).float().expand(1, 1, 200, 200)
    still = torch.eye(3)[None]
    raw, smooth = (warp_images(x, still, 47) for x in (stripes, shrink_images(stripes, 47)))
    assert smooth.std() < .1*raw.std()
    assert shrink_images(stripes, 134) is stripes  # at most 1.5 times as large


# light and colour

def reference(x, factors, order):
    for op in order.tolist(): x = ADJUST[op](x, float(factors[op]))
    return x

@pytest.fixture
def jitter():
    g = seed(5)
    blends, hues = .6 + .8*torch.rand(5, 3, generator=g), .2*torch.rand(5, 1, generator=g) - .1
    return torch.cat([blends, hues], 1), torch.rand(5, 4, generator=g).argsort(1)


@pytest.mark.parametrize('channels', (1, 3))
def test_jitter_is_torchvisions(colours, jitter, channels):
    x, (factors, order) = colours[:, :channels], jitter
    expected = torch.stack([*map(reference, x, factors, order)])
    assert_close(colour_jitter(x, factors, order), expected, **CLOSE)


@pytest.mark.parametrize('alone', (False, True))
@pytest.mark.parametrize('op', range(4))
def test_each_factor_of_jitter_is_used(colours, jitter, op, alone):
    factors = torch.tensor([1., 1., 1., 0.]).repeat(5, 1)
    factors[:, op] = jitter[0][:, op]
    expected = torch.stack([ADJUST[op](c, float(v)) for c, v in zip(colours, factors[:, op])])
    assert not torch.allclose(expected, colours, atol=1e-3)
    active = [not alone or i == op for i in range(4)]
    assert_close(colour_jitter(colours, factors, jitter[1], active), expected, **CLOSE)


@pytest.mark.parametrize('part', ('brightness', 'contrast', 'saturation', 'hue', 'gamma', 'blur',
                                  'noise', 'erase'))
def test_each_part_of_a_setting_changes_the_image_and_no_landmark(colours, part):
    tfm, plain = make_transform({part: .4}, 16), make_transform('none', 16)
    x, lmk = tfm(colours, torch.rand(5, 68, 2, generator=seed(1)), seed(0))
    assert not torch.allclose(x, plain(colours)[0], atol=1e-3)
    assert_close(lmk, torch.rand(5, 68, 2, generator=seed(1)))


def test_hue_turns_the_circle(colours):
    turns = torch.tensor([-.5, -.1, 0., .07, .3])
    expected = torch.stack([tvf.adjust_hue(c, t.item()) for c, t in zip(colours, turns)])
    assert_close(shift_hue(colours, turns), expected, **CLOSE)


def test_grey_has_no_saturation_nor_hue(colours, jitter):
    grey = colours[:, :1]
    assert colour_jitter(grey, *jitter, (0, 0, 1, 1)) is grey


def test_one_channel_and_three_equal_ones_agree(images):
    tfm = make_transform('heavy', 48)
    grey, rgb = (tfm(x, None, seed(1))[0] for x in (images, images.expand(-1, 3, -1, -1)))
    assert_close(grey, rgb, atol=5e-3, rtol=0)  # torchvision's luma weights sum to 0.9999


def test_blur_is_torchvisions(colours):
    blurred = gaussian_blur(colours, torch.tensor([0., .5, 1., 1.5, 2.]))
    assert_close(blurred[0], colours[0])
    assert_close(blurred[2], tvf.gaussian_blur(colours[2], [13, 13], [1., 1.]), **CLOSE)


def test_erasing_blanks_the_share_it_says(images):
    mask = erase_mask(torch.tensor([[.25, 0., .5, 1.], [.3, .3, .3, .9]]), 4)
    assert mask[0, 0].int().tolist() == [[0, 1, 0, 0]]*4 and not mask[1].any()
    x, _ = make_transform(dict(erase=1., erase_area=(.2, .2)), 96)(images + 1, None, seed(0))
    assert_close((x == 0).all(1).float().mean((1, 2)), torch.full((8,), .2), atol=.03, rtol=0)


def test_to_grey_is_torchvisions(colours):
    x = (colours*255).byte()
    assert (to_grey(x).int() - tvf.rgb_to_grayscale(x).int()).abs().max() <= 1


# dice

@pytest.fixture(scope='module')
def dice():
    def throw(name): return draw_parameters(make_transform(name, 48).settings, 20_000, seed(0))
    return {name: throw(name) for name in AUGMENTATIONS}


@pytest.mark.parametrize('name, key, low, high', [
    ('light', 'angle', -10, 10), ('light', 'zoom', .9, 1.1), ('light', 'dx', -.08, .08),
    ('light', 'dy', -.08, .08), ('heavy', 'angle', -15, 15), ('heavy', 'crop_x', 0, .125),
    ('heavy', 'crop_y', 0, .125)])
def test_ranges_are_filled_and_kept(dice, name, key, low, high):
    v = dice[name][key]
    assert v.min() >= low and v.max() <= high
    assert abs(v.mean() - (low + high)/2) < .02*(high - low) and v.std() > .27*(high - low)


@pytest.mark.parametrize('column, reach', [(0, .4), (1, .4), (2, .4), (3, .1)])
def test_colour_factors_fill_their_range(dice, column, reach):
    v = dice['heavy']['factors'][:, column] - (1 if column < 3 else 0)
    assert -reach <= v.min() < -.98*reach and .98*reach < v.max() <= reach


def test_rates_and_shares(dice):
    p = dice['light']
    left, top, right, bottom = p['box'].T
    erased = right > left
    assert abs(p['flip'].float().mean() - .5) < .015 and abs(erased.float().mean() - .25) < .015
    share = ((right - left)*(bottom - top))[erased]
    assert share.min() >= .02*.99 and share.max() <= .2*1.01
    assert (p['order'].sort(1).values == torch.arange(4)).all()


def test_equal_dice_under_another_setting(dice):
    assert torch.equal(dice['heavy']['flip'], dice['light']['flip'])
    assert_close(dice['heavy']['angle'], dice['light']['angle']*1.5)


# the transform

def test_a_crop_magnifies(points):
    x, lmk = make_transform(dict(crop=.5), 32)(torch.zeros(8, 1, 64, 64), points, seed(0))
    assert_close(lmk[:, 0] - lmk[:, 8], 2*(points[:, 0] - points[:, 8]))
    assert lmk[:, 8].sub(points[:, 8]*2).std(0).min() > .05  # at another place for each face


def test_none_normalises_and_nothing_else(images, points):
    none = make_transform('none', 96)
    x, lmk = none(images, points)
    expected = tvf.normalize(images.expand(-1, 3, -1, -1).float()/255, IMAGENET_MEAN, IMAGENET_STD)
    assert_close(x, expected)
    assert lmk is points and not none.random
    assert torch.equal((none.denormalise(x)*255).round().to(torch.uint8),
                       images.expand(-1, 3, -1, -1))
    x, _ = make_transform('none', 40, mean=0., std=1.)(images)
    assert_close(x[:, :1], tvf.resize(images.float()/255, [40, 40], antialias=True), **CLOSE)


def test_flipped_twice_is_not_flipped(images, points):
    always = make_transform(dict(flip=1.), 96, mean=0., std=1.)
    x, lmk = always(*always(images, points))
    assert_close(x[:, :1], images/255, **CLOSE)
    assert_close(lmk, points)


@pytest.mark.parametrize('setting', ('light', 'heavy', ROUGH))
def test_a_seed_repeats_everything(images, points, setting):
    tfm = make_transform(setting, 64)
    a, b, c = (tfm(images, points, seed(s)) for s in (7, 7, 8))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert not torch.allclose(a[0], c[0])


def test_a_face_does_not_depend_on_its_neighbours(images, points):
    tfm, others = make_transform('light', 64), images.flip(0).clone()
    others[2] = images[2]
    whole = tfm(images, points, seed(7))
    assert_close(tfm(others, points, seed(7))[0][2], whole[0][2])
    few = tfm(images[:3], points[:3], seed(7))
    assert_close(few[0], whole[0][:3])
    assert_close(few[1], whole[1][:3])


def test_unknown_landmarks_stay_unknown_and_harm_nobody(images, points):
    part = points.clone()
    part[1] = float('nan')
    x, lmk = make_transform('light', 48)(images, part, seed(0))
    assert lmk.isnan().flatten(1).all(1).nonzero().flatten().tolist() == [1]
    assert x.isfinite().all() and lmk[[0, *range(2, 8)]].isfinite().all()
    assert make_transform('light', 48)(images)[1] is None


def test_the_input_is_left_alone(images):
    floats = images.float()/255
    a, b = images.clone(), floats.clone()
    assert_close(make_transform(ROUGH, 96)(a, None, seed(2))[0],
                 make_transform(ROUGH, 96)(b, None, seed(2))[0])
    assert torch.equal(a, images) and torch.equal(b, floats)


@pytest.mark.parametrize('name', AUGMENTATIONS)
@pytest.mark.parametrize('shape', [(1, 1, 48, 48), (2, 3, 20, 30), (2, 1, 1, 1), (0, 1, 48, 48)])
def test_any_size_becomes_the_one_that_is_wanted(shape, name):
    if shape[0] == 0 and name != 'none': pytest.skip('no sample, nothing to draw')
    x, lmk = make_transform(name, 48)(torch.zeros(shape, dtype=torch.uint8),
                                      torch.zeros(shape[0], 68, 2))
    assert (x.shape, lmk.shape) == ((shape[0], 3, 48, 48), (shape[0], 68, 2))


def test_values_stay_in_range_at_every_extreme():
    wild = dict(brightness=1., contrast=1., saturation=1., hue=.5, gamma=1., blur=2., noise=.3)
    x = torch.randint(0, 256, (64, 3, 48, 48), dtype=torch.uint8, generator=seed(0))
    y, _ = make_transform(wild, 48, mean=0., std=1.)(x, None, seed(1))
    assert y.isfinite().all() and y.min() >= 0 and y.max() <= 1


def test_memory_order(images):
    x, _ = make_transform('light', 32, channels_last=True)(images, None, seed(0))
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_the_config_builds_the_same_transform(images):
    tfm = make_transform('light', 48)
    again = BatchTransform(**json.loads(json.dumps(tfm.config)))
    assert torch.equal(again(images, None, seed(9))[0], tfm(images, None, seed(9))[0])
    assert repr(again) == "BatchTransform('light', img_size=48)"


@pytest.mark.parametrize('setting, said', [
    ('strong', "unknown augmentation 'strong'; known: none, light, camera, heavy"),
    (dict(rotation=5), "unknown augmentation part 'rotation'; known: crop, flip"),
    (dict(crop=2), r"'crop' must be in \(0, 1\], not 2"), (dict(padding='grey'), "not 'grey'")])
def test_bad_settings(setting, said):
    with pytest.raises(GrefelError, match=said): make_transform(setting)


def test_bad_shape(images):
    with pytest.raises(GrefelError, match=r'must be \(B, 1 or 3, H, W\), not \(1, 96, 96\)'):
        make_transform('none', 96)(images[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('setting', ('none', 'light', 'heavy', ROUGH))
def test_a_gpu_gives_what_the_cpu_gives(images, points, setting):
    tfm = make_transform(setting, 48)
    a, b = tfm(images, points, seed(3)), tfm(images.cuda(), points.cuda(), seed(3))
    assert_close(a[0], b[0].cpu(), atol=2e-3, rtol=0)
    assert_close(a[1], b[1].cpu())


# batches

class Faces(SimpleNamespace):
    def __len__(self): return len(self.images)

@pytest.fixture
def data(images, points, faces):
    return Faces(images=images, landmarks=points, targets=faces['truth'])


def shuffled(data): return batches(data, make_transform('light', 48), bs=3, shuffle=True, seed=1)

def order(epoch): return torch.cat([index for *_, index in epoch]).tolist()


def test_every_sample_comes_once_an_epoch_in_another_order(data):
    b = shuffled(data)
    first, second = list(b), list(b)
    assert sorted(order(first)) == sorted(order(second)) == [*range(8)]
    assert order(first) != order(second)
    for _, _, targets, index in first: assert torch.equal(targets, data.targets[index])


def test_the_same_seed_repeats_every_epoch_and_a_resumed_run_too(data):
    a, b, resumed = shuffled(data), shuffled(data), shuffled(data)
    epochs = [(list(a), list(b)) for _ in range(2)]
    resumed.epoch = 1
    for one, two in [*epochs, (epochs[1][0], list(resumed))]:
        assert all(torch.equal(u, v) for s, t in zip(one, two) for u, v in zip(s, t))


@pytest.mark.parametrize('bs, drop_last, sizes', [
    (3, False, [3, 3, 2]), (3, True, [3, 3]), (4, True, [4, 4]), (100, False, [8]),
    (100, True, [])])
def test_sizes_of_batches(data, bs, drop_last, sizes):
    b = batches(data, make_transform('none', 96), bs=bs, drop_last=drop_last)
    assert [len(index) for *_, index in b] == sizes and len(b) == len(sizes)
    assert order(b) == [*range(sum(sizes))] if sizes else True


def test_torchs_own_generator_is_left_alone(data):
    state = torch.get_rng_state()
    list(batches(data, make_transform(ROUGH, 48), bs=3, shuffle=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_no_batch_of_nothing(data):
    with pytest.raises(GrefelError, match='batch size'):
        batches(data, make_transform('none', 96), bs=0)


def test_pil_agrees_within_a_grey_level(images):
    from PIL import Image
    turned = warp_images(images[:2].float()/255, turn_matrix(torch.full((2,), 13.), torch.ones(2),
                                                             *torch.zeros(2, 2)), 96)
    pil = [np.asarray(Image.fromarray(i[0].numpy()).rotate(13, Image.Resampling.BILINEAR))
           for i in images[:2]]
    worst = (turned*255 - torch.from_numpy(np.stack(pil))[:, None])[..., 16:80, 16:80].abs().max()
    assert worst <= 1.5


def test_mixed_precision_leaves_images_as_they_are(images):
    tfm = make_transform('camera', 48)
    exact, _ = tfm(images, None, torch.Generator().manual_seed(0))
    with torch.autocast('cpu', torch.bfloat16):
        within, _ = tfm(images, None, torch.Generator().manual_seed(0))
    assert within.dtype == torch.float32 and torch.equal(exact, within)
