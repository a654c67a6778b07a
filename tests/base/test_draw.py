"Drawn faces: muscles move what they should, landmarks lie on the picture, chunks change nothing."
import numpy as np
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
    assert (right - straight)[30, 0] > (right - straight)[27, 0] + .02  # its tip stands out
    assert ((right - straight)[ears].abs() < .05).all()
    assert_close(mirror_landmarks(left), right, atol=1e-5, rtol=0)


def test_neither_eyes_nor_lips_turn_inside_out():
    g = torch.Generator().manual_seed(0)
    au = 1.2*(torch.rand(200, len(ACTION_UNITS), generator=g) < .5)
    _, points = draw_faces(au, 2*torch.randn(200, len(TRAITS), generator=g).sign(), size=8)
    y = points[..., 1]
    for above, below in ((37, 41), (38, 40), (43, 47), (44, 46), (51, 62), (66, 57)):
        assert (y[:, above] < y[:, below]).all(), (above, below)
    for above, below in ((61, 67), (62, 66), (63, 65)):  # closed lips touch
        assert (y[:, above] <= y[:, below] + 1e-6).all(), (above, below)
    assert (points[:, 22, 0] > points[:, 21, 0]).all()  # brows stay apart


# ---- Pictures

# Grey levels of twelve faces, averaged over squares of 8 pixels, in hex, three lines a face.
# Every result on drawn faces rests on how they look, and no other test would miss a wrinkle.
LOOKS = """
999d8d403838383842a1bcc093964c38455959453851b5ba8d7a5191b3b6b6b3915192b488626c8a84b0b0848a6c72ae
8260857a74b3b37975856ca87c819cabaeb2b2aeab9c8aa2767c9bafb6afafb6af9b8c9d70728daab29a9ab2aa8e9197
6a6e7ca1a59595a5a1848d9165686992997f7f99927d888b5f62666e8f9b9b8f767e8285595c6071767777767a787c7f
999d8d403838383842a1bcc093964c38455959453851b5ba8d7a5191b3b6b6b3915192b488626c8a84b0b0848a6c72ae
82607e7974b3b377767e6ca87c8196a5a9b2b2a9a5968aa2767c9bafb6afafb6af9b8c9d70728daaa89a9aa8aa8e9197
6a6e7c9797adad9797848d91656869909a73739a917d888b5f62666e8f98988f767e8285595c6071767777767a787c7f
999d8d403838383842a1bcc093964c37455959453751b5ba8d7a496a809d9d806a4992b4886275a9b0b7b7b0a97572ae
826085857eb3b38380856ca87c819caaadb2b2adaa9c8aa2767c9bafb6afafb6af9b8c9d707191abb29b9bb2ab918f97
6a6e80a5ad9898ada5868d9165686d9a9b53539b9a7c888b5f62647a9b85859b7e7c8285595c606d7884847876787c7f
999d8d403838383842a1bcc093964c38455959453851b5ba8d7a5191ada4a4ad915192b488627387818c8c81877372ae
82607d7a72adad77767d6ca87c819caaafb2b2afaa9c8aa2767c9bafb6afafb6af9b8c9d70728daab29a9ab2aa8e9197
6a6e7ca2ab8787aba2848d9165686992908d8d90927d888b5f62666e8f9b9b8f767e8285595c6071767777767a787c7f
999d8d403838383842a1bcc093964c38455959453851b5ba8d7a5191b3b6b6b3915192b488626a8788a1a188876a72ae
8260857e7099997679856ca87c819cacb0b2b2b0ac9c8aa2767c9bafb6afafb6af9b8c9d70728daab29a9ab2aa8e9197
6a6e7ca2a9a1a1a9a2848d91656869929f8a8a9f927d888b5f62666e8f9b9b8f767e8285595c6071767777767a787c7f
999d8d403838383842a1bcc093964c38455959453851b5ba8d7a5191b3b6b6b3915192b488626c8a86b2b2868a6c72ae
8260857972b0b07675856ca87c819ca9ada1a1ada99c8aa2767c9bafb3adadb3af9b8c9d70728daaa69999a6aa8e9197
6a6e7c9ca49191a49c848d916568699293858593927d888b5f62666e8f9b9b8f767e8285595c6071767777767a787c7f
999d8d403838383842a1bcc093964c37455959453751b5ba8d7a5072819a9a81725092b488626b99a89595a8996b72ae
8260857d75adad7b78856ca87c819cacb1b2b2b1ac9c8aa2767c9bafb6afafb6af9b8c9d707191abb29b9bb2ab918f97
6a6e80a4a8a0a0a8a4868d9165686d9a6c40406c9a7c888b5f62647a987979987e7c8285595c606d7884847876787c7f
999d8d403838383842a1bcc093964c38455959453851b5ba8d7a5191b3b6b6b3915192b488626c8a84b0b0848a6c72ae
8260857a74b3b37975856ca87c819cabaeb2b2aeab9c8aa2767c9bafb6afafb6af9b8c9d70728daab29a9aaaaa8e9197
6a6e7ca1aca9a08b9b848d91656869928e777da1917d888b5f62666e8f9a9a8f767e8285595c6071767777767a787c7f
999d9883808080808194bcc093958490a2a698828081a1ba8d889ed1dde3e3d9a78187b48883a7948fcee5bcbaaa83a8
827588a5779bb68b6fa3889f7c83bcb2b9bcc0b6b391789c7787c7dce3d5d8d4bcc8859a737fc1d7ddbfbfdfd7be7f97
6e7daccdbdb9ccd8cc9e8291668089c0c3a4a4c4b880838b5f787e97b9c2c0b1848081855962809b91959494817d7c7f
999da06c383838383881bcc093977e39383e423f393eaeba8d914c43545a5b5a554283b488833946484b5c51484468ae
82753946404b5e4f41445ba87c6f3a4e52576556534d57a2766d3b51595b645b5950599d70723b4a5556514f54486497
6a6e5e3b434d5650443f849165686c4f383c393b3a60888b5f62666738383b39377c8285595c60633f3a38393d787c7f
53625f191214151728c9feff505e211014344b482745f8ff4d4611365f95a2868f5abdff493149869ab0bfc6cc8386fc
4630595982abba7bb29f7ef543506e8698abbac1cec8bded404e6e8a9fa8b6cdb684a8e43d4764879c94a1c99e8990dc
3a455982978e9ac2a19f99d336414b78875057aeae8fadcb333d485c867d89ad93a3b3c3303a4458687e8886919caaba
999c5c002d38383a77b9bcc093793a0037646a5c3f8eb6ba8d544700a3c9cfd8bc50b0b4884cc2007fbaa694a25d9cae
8248a4009dd5ca7ebaa6a9a87c59c000a6dddbe2dbc2a1a2769cc500b6d8d6e0dac3939d7084af00b3c2c2d9d6c08d97
6a6e8b00accd9daecdb1889165686b00a2abb1bdba92888b5f6266008cbcc1bb9c878285595c6000669394919a917c7f
"""


def test_faces_look_as_they_did(prototypes):
    who = people(12, hair_length=[0]*8 + [1, .5, 0, 0], glasses=[0]*8 + [1, 0, 0, 0],
                 beard=[0]*9 + [1, 0, 0], skin=[0]*8 + [1, -2, 0, 1], hair=[0]*8 + [2, 0, -1, 0],
                 gaze=[0]*8 + [1, 0, -1, 0], face_width=[0]*8 + [1, -1, 0, 0],
                 jaw_shape=[0]*10 + [1, -1], lip_thickness=[0]*8 + [-1, 1, 1, 0])
    held = scenes(12, tilt=[0]*8 + [.1, 0, 0, -.2], yaw=[0]*8 + [0, .06, 0, 0],
                  light_x=[0]*10 + [.5, 0], bar=[0]*11 + [1], bar_width=.05, bar_offset=-.2,
                  hand=[0]*10 + [1, 0], hand_x=.3, hand_y=.2, hand_r=.1)
    images, _ = draw_faces(torch.cat([prototypes, prototypes[:4]]), who, held)
    now = torch.nn.functional.avg_pool2d(images.float(), 8)[:, 0].flatten(1)
    then = torch.tensor([list(bytes.fromhex(''.join(LOOKS.split())))]).view(12, 144)
    assert (now - then).abs().max() < 1.

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
    images, _ = draw_faces(torch.stack([action_units(e) for e in EXPRESSIONS]), size=16)
    plain = show_faces(images, EXPRESSIONS)
    barred = show_faces(images, bars=torch.eye(8))
    assert plain.width == barred.width == 780, 'eight faces would be wider than a page'
    assert barred.height > 1.3*plain.height
    assert show_faces(images, rows=2).width == 4*1.25*100
    room = plain.height - show_faces(images).height
    assert room > 10 and (np.asarray(plain.convert('L'))[:room] < 128).any(), 'letters above'


@pytest.mark.parametrize('shares', [
    [.5, .5, 0, 0, 0, 0, 0, 0], [0, 0, .3, .3, .4, 0, 0, 0], [0, 0, .3, 0, .3, 0, 0, .4]])
def test_bars_share_a_scale_and_names_of_neighbours_do_not_cover_one_another(monkeypatch, shares):
    kept = []
    monkeypatch.setattr('grefel.base.draw.few_colours', kept.append)
    bars = torch.tensor([shares]*8 + [[1/8]*8])
    show_faces(torch.zeros(9, 1, 8, 8, dtype=torch.uint8), bars=bars)
    kept[0].draw_without_rendering()
    axes = kept[0].axes[9:]
    for ax in axes: assert ax.get_ylim() == pytest.approx((0, max(shares)))
    names = [t.get_window_extent() for t in axes[0].texts]
    assert len(names) == sum(s >= .15 for s in shares)
    assert not any(a.overlaps(b) for i, a in enumerate(names) for b in names[:i])


def test_figures_are_kept_with_few_colours():
    from matplotlib.figure import Figure
    figure = Figure(figsize=(2, 2))
    figure.subplots().imshow(np.arange(256).reshape(16, 16))
    assert len(few_colours(figure, 4).getcolors()) == 4
    assert few_colours(figure, 8, 'RGB').convert('RGB').getcolors() is not None
