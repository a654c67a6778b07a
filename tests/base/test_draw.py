"Drawn faces: muscles move what they should, landmarks lie on the picture, chunks change nothing."
import pytest
import torch
from torch.testing import assert_close

from grefel.base.core import EXPRESSIONS, GrefelError
from grefel.base.draw import (
    ACTION_UNITS, AU_INDEX, PROTOTYPES, SCENE, TRAITS, action_units, draw_faces, few_colours,
    show_faces)
from grefel.base.geometry import REGIONS, face_measures, mean_shape, mirror_landmarks


def columns(names, n, **values):
    "A table of zeros (n, columns) with some columns filled."
    table = torch.zeros(n, len(names))
    for k, v in values.items(): table[:, names.index(k)] = torch.as_tensor(v).float()
    return table


def scenes(n=1, **values): return columns(SCENE, n, **values)
def people(n=1, **values): return columns(TRAITS, n, **values)


def at(images, points):
    "Grey levels (n, k) of images (n, S, S) at points (n, k, 2), nearest pixel."
    size = images.shape[-1]
    x, y = (points*size).long().clamp(0, size - 1).unbind(-1)
    return images[torch.arange(len(images))[:, None], y, x]


@pytest.fixture(scope='module')
def prototypes(): return torch.stack([action_units(e) for e in EXPRESSIONS])


@pytest.fixture(scope='module')
def crowd():
    "Sixty faces of any muscles and traits, strong ones included, in scenes of their own."
    g = torch.Generator().manual_seed(4)
    au = 1.2*(torch.rand(60, len(ACTION_UNITS), generator=g) < .35)
    who = 2*torch.randn(60, len(TRAITS), generator=g).clamp(-1, 1)
    who[:, TRAITS.index('glasses')] = torch.arange(60) % 4 == 0
    held = scenes(60, tilt=.2*torch.randn(60, generator=g),
                  yaw=.07*(2*torch.rand(60, generator=g) - 1), noise=.05*(torch.arange(60) % 2),
                  bar=torch.arange(60) % 5 == 0, bar_width=.06, bar_offset=-.1, bar_tone=.1,
                  hand=torch.arange(60) % 7 == 0, hand_x=.2, hand_y=.3, hand_r=.12)
    return au, who, held


# ---- Action units

def test_every_prototype_is_made_of_known_units():
    assert tuple(PROTOTYPES) == EXPRESSIONS and action_units('neutral').sum() == 0
    assert list(AU_INDEX) == list(ACTION_UNITS)


def test_a_unit_without_a_side_means_both():
    both = action_units('6 12')
    assert (action_units('happiness') == both).all()
    assert [c for c, i in AU_INDEX.items() if both[i]] == ['6', 'R12', 'L12']
    assert (action_units('R12') + action_units('L12') == action_units('12')).all()


def test_intensity_scales_all_units():
    assert (action_units('surprise', .25) == .25*action_units('surprise')).all()


@pytest.mark.parametrize('codes', ['6 99', 'R6', 'joy'])
def test_an_unknown_unit_is_refused(codes):
    with pytest.raises(GrefelError, match='unknown action unit'): action_units(codes)


# What each unit does to the measures of the neutral face: '+' and '-' by more than 0.02
@pytest.mark.parametrize('codes, grows, shrinks', [
    ('1', 'brow_raise brow_slope', ''), ('2', 'brow_raise', 'brow_slope'),
    ('4', '', 'brow_raise brow_gap brow_slope'), ('5', 'eye_opening', ''), ('7', '', 'eye_opening'),
    ('6', '', 'eye_opening'), ('9', '', 'brow_raise brow_slope'),
    ('12', 'corner_lift mouth_width', ''),
    ('R12', 'corner_skew corner_lift', ''), ('L12', 'corner_lift', 'corner_skew'),
    ('15', '', 'corner_lift'), ('20', 'mouth_width', ''), ('23', '', 'mouth_width'),
    ('25', 'mouth_opening', ''), ('26', 'mouth_opening jaw_drop', 'mouth_width')])
def test_a_unit_moves_what_its_muscle_moves(codes, grows, shrinks):
    before, after = (face_measures(draw_faces(action_units(c)[None], size=8)[1][0])
                     for c in ('neutral', codes))
    change = {k: (after[k] - before[k]).item() for k in after}
    for k in grows.split(): assert change[k] > .02, (k, change)
    for k in shrinks.split(): assert change[k] < -.02, (k, change)


def test_raised_and_drawn_together_brows_turn_oblique():
    "The brow of grief: units 1 and 4 together are not the sum of their parts."
    neutral, raised, lowered, both = (
        draw_faces(action_units(c)[None], size=8)[1] for c in ('neutral', '1', '4', '1 4'))
    more = both - raised - lowered + neutral
    assert more[0, 17, 1] > .02 > -.01 > more[0, 21, 1]  # outer end down, inner end up
    assert more[0, REGIONS['mouth']].abs().max() < 1e-6


@pytest.mark.parametrize('trait, measure', [
    ('mouth_width', 'mouth_width'), ('eye_size', 'eye_opening'), ('face_length', 'jaw_drop')])
def test_people_differ_in_their_measures(trait, measure):
    small, large = face_measures(
        draw_faces(torch.zeros(2, len(ACTION_UNITS)), people(2, **{trait: [-1, 1]}), size=8)[1]
    )[measure]
    assert large > small + .01


# ---- Landmarks

def test_the_neutral_face_is_near_the_mean_face():
    _, points = draw_faces(action_units('neutral')[None], size=8)
    assert (points[0] - mean_shape()).norm(dim=-1).mean() < .05


def test_contours_are_edges_at_their_landmarks(prototypes):
    g = torch.Generator().manual_seed(0)
    held = scenes(200, tilt=.1*torch.randn(200, generator=g), yaw=.04*torch.randn(200, generator=g))
    which = prototypes[torch.randint(8, (200,), generator=g)]
    grey, points = draw_faces(which, scene=held, size=112)
    grey = grey[:, 0].float()/255
    dy, dx = torch.gradient(grey, dim=(1, 2))
    edges = torch.nn.functional.max_pool2d((dx**2 + dy**2).sqrt()[:, None], 3, 1, 1)[:, 0]
    anywhere = at(edges, .15 + .7*torch.rand(200, 300, 2, generator=g)).mean()
    parts = {r: REGIONS[r] for r in ('right_eye', 'left_eye', 'outer_lip', 'inner_lip')}
    for name, i in (parts | dict(chin=range(5, 12))).items():
        assert at(edges, points[:, list(i)]).mean() > 1.3*anywhere, name
    for name in ('right_brow', 'left_brow'):
        here = points[:, REGIONS[name]]
        darker = at(grey, here) < at(grey, here - torch.tensor([0, .045])) - .05
        assert darker.float().mean() > .8, name


def test_scenes_move_landmarks_as_they_say():
    au = action_units('neutral').expand(5, -1)
    held = scenes(5, tilt=[0, .2, 0, 0, 0], scale=[0, 0, .2, 0, 0], shift_x=[0, 0, 0, .1, 0],
                  shift_y=[0, 0, 0, 0, -.1])
    _, (plain, tilted, large, right, up) = draw_faces(au, scene=held, size=8)
    assert_close(face_measures(tilted)['tilt'] - face_measures(plain)['tilt'], torch.tensor(.2),
                 atol=1e-4, rtol=0)
    assert_close((large - large.mean(0))*.92, (plain - plain.mean(0))*1.12, atol=1e-5, rtol=0)
    assert_close(right - plain, torch.tensor([.1, 0]).expand(68, 2), atol=1e-6, rtol=0)
    assert_close(up - plain, torch.tensor([0, -.1]).expand(68, 2), atol=1e-6, rtol=0)


def test_a_turned_head_shifts_its_middle_and_keeps_its_outline():
    au = action_units('neutral').expand(3, -1)
    _, (left, straight, right) = draw_faces(au, scene=scenes(3, yaw=[-.08, 0, .08]), size=8)
    nose, ears = [27, 28, 29, 30], [0, 16]
    assert (right[nose, 0] - straight[nose, 0] > .05).all()
    assert ((right - straight)[ears].abs() < .05).all()
    assert_close(mirror_landmarks(left), right, atol=1e-5, rtol=0)


# ---- Pictures

@pytest.mark.parametrize('chunk', [1, 7, None])
def test_chunks_change_no_byte(crowd, chunk):
    # one by one the rectangles that features are drawn in are small, all at once they are large
    whole, points = draw_faces(*crowd, size=48, chunk=60)
    part, same_points = draw_faces(*crowd, size=48, chunk=chunk)
    assert torch.equal(part, whole) and torch.equal(same_points, points)


def test_landmarks_do_not_depend_on_the_size_and_pictures_little(crowd):
    au, who, held = crowd
    held = held.clone()
    held[:, SCENE.index('noise')] = 0
    small, points = draw_faces(au, who, held, size=48)
    large, points_large = draw_faces(au, who, held, size=96)
    assert_close(points_large, points)
    shrunk = torch.nn.functional.avg_pool2d(large.float(), 2)
    assert (shrunk - small).abs().mean() < 4  # of 255 grey levels


def test_a_mirrored_expression_is_the_mirrored_picture():
    flat = scenes(2, background=-.55)  # the background's gradient is not symmetric
    sided = torch.stack([action_units('L12 L14 25'), action_units('R12 R14 25')])
    images, points = draw_faces(sided, scene=flat)
    assert_close(mirror_landmarks(points[0]), points[1], rtol=0, atol=1e-5)
    off = (images[0].flip(-1).int() - images[1].int()).abs() > 1
    # the lamp's highlights in the eyes stay on their side
    assert off[..., :30, :].sum() == off[..., 42:, :].sum() == 0 and off.sum() < 30


def changed(scene=None, who=None, codes='neutral'):
    "By how much (96, 96) a scene, a person or muscles change the plain neutral face."
    plain, _ = draw_faces(action_units('neutral')[None])
    other, _ = draw_faces(action_units(codes)[None], who, scene)
    return (other.int() - plain.int())[0, 0]


@pytest.mark.parametrize('codes, rows, cols', [
    ('1', (15, 40), (30, 66)), ('2', (10, 40), (15, 81)), ('4', (25, 45), (25, 71)),
    ('9', (25, 80), (20, 76)), ('R14', (65, 80), (20, 45)), ('L14', (65, 80), (51, 76)),
    ('25', (65, 80), (30, 66)), ('16', (65, 85), (30, 66))])
def test_a_unit_is_seen_where_it_acts(codes, rows, cols):
    difference = changed(codes=codes).abs()
    here = difference[slice(*rows), slice(*cols)]
    assert here.max() > 40 and here.sum() > .5*difference.sum()


def test_scenes_show_in_the_picture():
    assert changed(scenes(background=.3))[:5].float().mean() > 30
    side = changed(scenes(light_x=.6)).float()
    assert side[:, 70:].mean() > 10 and side[:, :26].mean() < -10
    above = changed(scenes(light_y=-.5)).float()
    assert above[:20].mean() > 5 and above[-20:].mean() < -5
    assert changed(scenes(gamma=.6)).float().mean() > 10
    plain = draw_faces(action_units('neutral')[None])[0].float()
    for name, value in (('contrast', -.5), ('blur', .33)):
        assert draw_faces(action_units('neutral')[None], scene=scenes(**{name: value}))[0].float(
            ).diff(dim=-1).abs().mean() < .8*plain.diff(dim=-1).abs().mean(), name
    assert changed(scenes(noise=.08)).float().std() > 10


def test_what_covers_a_face_lies_in_front_of_all():
    bar = draw_faces(action_units('neutral')[None], people(glasses=1.), scenes(
        bar=1., bar_width=.06, bar_offset=0., bar_tone=.1, bar_angle=torch.pi/2))[0][0, 0]
    assert bar[45:51].float().std() < 3 and bar[46, 48] < 40
    hand = changed(scenes(hand=1., hand_x=.2, hand_y=.3, hand_r=.12))
    assert hand[70:80, 62:72].abs().float().mean() > 5 and hand[:30, :40].abs().max() == 0


@pytest.mark.parametrize('trait, value, rows, cols', [
    ('glasses', 1, (25, 50), (10, 86)), ('beard', 1, (55, 96), (15, 81)),
    ('hair', 2, (0, 45), (0, 96)), ('skin', -2, (20, 90), (10, 86)),
    ('hair_length', 1, (30, 96), (0, 96))])
def test_what_people_wear_is_seen_where_they_wear_it(trait, value, rows, cols):
    difference = changed(who=people(**{trait: value})).abs()
    assert difference[slice(*rows), slice(*cols)].sum() > .8*difference.sum() > 0


def test_eyes_look_where_the_gaze_goes():
    images, points = draw_faces(torch.zeros(2, len(ACTION_UNITS)), people(2, gaze=[-1.5, -.1]))
    off = (images[0] != images[1]).nonzero()[:, 1:]/96
    eyes = points[0, REGIONS['right_eye'] + REGIONS['left_eye']]
    pixel = 1/96
    assert len(off) > 50 and (off[:, 0] > eyes[:, 1].min() - pixel).all()
    assert (off[:, 0] < eyes[:, 1].max() + pixel).all()


def test_noise_comes_from_its_seed_and_only_where_asked_for():
    au, mixed = action_units('neutral').expand(2, -1), scenes(2, noise=[0, .1])
    first, again, other = (draw_faces(au, scene=mixed, noise_seed=s)[0] for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first[1], other[1])
    assert torch.equal(first[0], other[0])
    assert torch.equal(first[0], draw_faces(au[:1])[0][0])


def test_threads_are_given_back():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        draw_faces(action_units('neutral')[None])
        assert torch.get_num_threads() == 2
    finally: torch.set_num_threads(threads)


def test_rows_of_faces_have_titles_and_bars():
    from matplotlib.figure import Figure
    images, _ = draw_faces(torch.stack([action_units(e) for e in EXPRESSIONS]), size=16)
    plain = show_faces(images, EXPRESSIONS)
    barred = show_faces(images, bars=torch.eye(8))
    assert plain.width == barred.width == 8*1.25*70 and barred.height > 1.4*plain.height
    assert show_faces(images, rows=2).width == plain.width//2
    assert len(few_colours(Figure(), 4).getcolors()) <= 4
