"The 68 points: mirroring, alignment, measures, and faces that are missing."
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from skimage.transform import estimate_transform
from torch.testing import assert_close

from grefel.base import geometry
from grefel.base.core import GrefelError
from grefel.base.geometry import (
    MIRROR, PATHS, REGIONS, apply_affine, face_measures, interocular, invert_affine, make_template,
    mean_shape, mirror_landmarks, normalise_shape, plot_landmarks, similarity_transform)


@pytest.fixture
def template(): return mean_shape()


@pytest.fixture
def faces(template): return template + .008*torch.randn(5, 68, 2)


def similarities(n):
    "n similarities (n, 2, 3) of any rotation, with the angles that they turn by."
    scale, angle = .5 + torch.rand(n).double(), 6*torch.rand(n).double() - 3
    a, b, (tx, ty) = scale*angle.cos(), scale*angle.sin(), torch.randn(2, n).double()
    return torch.stack([torch.stack([a, -b, tx], -1), torch.stack([b, a, ty], -1)], -2), angle


def measured(lmk): return torch.stack(list(face_measures(lmk).values()), -1)
def to_template(lmk): return similarity_transform(lmk, mean_shape().to(lmk))


EACH_FACE_ALONE = pytest.mark.parametrize(
    'f', [mirror_landmarks, interocular, normalise_shape, measured, to_template])


def test_regions_cut_the_face_into_parts_without_overlap():
    parts = [v for k, v in REGIONS.items() if k not in ('nose', 'mouth')]
    assert sorted(sum(parts, [])) == list(range(68))
    assert REGIONS['nose'] == list(range(27, 36)) and REGIONS['mouth'] == list(range(48, 68))


def test_eyes_and_lips_are_closed_and_nothing_else_is():
    closed = {name for name, path in PATHS.items() if path[0] == path[-1]}
    assert closed == {'right_eye', 'left_eye', 'outer_lip', 'inner_lip'}
    assert set(sum(PATHS.values(), [])) == set(range(68))


def test_the_mean_face_is_the_shipped_one_and_symmetric(template):
    assert template.dtype == torch.float32 and template.shape == (68, 2)
    assert_close(mirror_landmarks(template), template, rtol=0, atol=1e-6)
    assert (template[REGIONS['right_eye'], 0] < .5).all()  # the person's right: the image's left
    assert template[8, 1] > template[REGIONS['mouth'], 1].max()  # y runs down


@pytest.mark.parametrize('text, words', [
    ('point,x,y\n0,.1,.2\n', 'needs 68 rows, has 1'), ('a,b\n1,2\n', 'needs columns point, x, y'),
    ('point,x,y\n0,left,.2\n', 'with numbers')])
def test_a_template_that_is_none_is_refused(tmp_path, monkeypatch, text, words):
    (tmp_path/'broken.csv').write_text(text)
    monkeypatch.setattr(geometry, 'manifest', lambda name: tmp_path/'broken.csv')
    with pytest.raises(GrefelError, match=words): mean_shape()


def test_every_point_has_one_partner_in_the_region_across():
    assert MIRROR[MIRROR].tolist() == list(range(68))
    across = dict(jaw='jaw', right_brow='left_brow', right_eye='left_eye', nose='nose',
                  outer_lip='outer_lip', inner_lip='inner_lip')
    for name, other in across.items():
        assert sorted(MIRROR[REGIONS[name]].tolist()) == REGIONS[other]


# Each a pair that nothing but the drawing of 300-W tells: outer ends, corners, lids
@pytest.mark.parametrize('right, left', [
    (0, 16), (17, 26), (21, 22), (31, 35), (36, 45), (37, 44), (41, 46), (48, 54), (50, 52),
    (59, 55), (60, 64), (67, 65), (8, 8), (30, 30), (33, 33), (51, 51), (57, 57), (62, 62)])
def test_points_trade_places_right_with_left(right, left):
    assert MIRROR[right] == left and MIRROR[left] == right


def test_a_raised_right_brow_becomes_a_raised_left_brow(template):
    raised, other = template.clone(), template.clone()
    raised[REGIONS['right_brow'], 1] -= .05
    other[REGIONS['left_brow'], 1] -= .05
    assert_close(mirror_landmarks(raised), other, rtol=0, atol=1e-6)


def test_mirroring_turns_x_around_the_middle_of_the_image(faces):
    moved = mirror_landmarks(faces + torch.tensor([.1, .2]))
    assert_close(moved, mirror_landmarks(faces) + torch.tensor([-.1, .2]))
    assert_close(mirror_landmarks(mirror_landmarks(faces)), faces)


def test_a_template_is_a_symmetric_mean_of_the_faces_that_are_there(faces):
    holed = torch.cat([faces, torch.full((1, 68, 2), torch.nan)])
    made = make_template(holed)
    both = torch.cat([faces, mirror_landmarks(faces)]).double()
    assert_close(made, both.mean(0))
    assert_close(mirror_landmarks(made), made)


def test_the_eyes_outer_corners_are_the_unit_of_length(template):
    assert_close(interocular(template), (template[45] - template[36]).norm())
    assert_close(interocular(3*template + 1), 3*interocular(template))


def test_a_planted_similarity_is_found_and_undone(template):
    planted, _ = similarities(100)
    shapes = (template + .02*torch.randn(100, 68, 2)).double()
    moved = apply_affine(shapes, planted)
    assert_close(similarity_transform(shapes, moved), planted)
    assert_close(apply_affine(moved, invert_affine(planted)), shapes)


def test_any_affine_map_is_undone(faces):
    matrix = torch.randn(5, 2, 3).double()
    moved = apply_affine(faces.double(), matrix)
    assert_close(apply_affine(moved, invert_affine(matrix)), faces.double())


def test_points_move_by_matrix_and_shift():
    quarter_turn = torch.tensor([[0., -1, 5], [1, 0, 7]])
    assert_close(apply_affine(torch.tensor([[1., 0], [0, 2]]), quarter_turn),
                 torch.tensor([[5., 8], [3, 7]]))


def test_the_fit_is_the_least_squares_one_of_umeyama(faces):
    planted, _ = similarities(5)
    x = faces.double()
    y = apply_affine(x, planted) + .05*torch.randn(5, 68, 2)
    for m, a, b in zip(similarity_transform(x, y), x, y):
        theirs = estimate_transform('similarity', a.numpy(), b.numpy()).params[:2]
        np.testing.assert_allclose(m.numpy(), theirs, atol=1e-9)


def test_one_shape_is_fitted_to_many(faces, template):
    one = similarity_transform(template, faces)
    assert one.shape == (5, 2, 3)
    assert_close(one[3], similarity_transform(template, faces[3]))


def test_position_size_and_tilt_are_taken_away(faces, template):
    planted, _ = similarities(5)
    x = faces.double()
    assert_close(normalise_shape(apply_affine(x, planted)), normalise_shape(x))
    assert_close(normalise_shape(2*template[None] + 3, ref=template)[0], template)


def test_measures_do_not_change_when_a_face_is_moved_but_for_its_tilt(faces):
    planted, angle = similarities(5)
    before = face_measures(faces.double())
    after = face_measures(apply_affine(faces.double(), planted))
    turned = after.pop('tilt') - before.pop('tilt') - angle
    assert_close(torch.cos(turned), torch.ones(5).double())  # equal up to whole turns
    for name in before: assert_close(after[name], before[name])


def test_the_tilt_is_positive_where_the_left_eye_is_lower(template):
    lower = template.clone()
    lower[REGIONS['left_eye'], 1] += .1
    assert face_measures(lower)['tilt'] > .1 > abs(face_measures(template)['tilt'])


# points, axis (0: x, 1: y), by how much, and what must answer: nothing else may
@pytest.mark.parametrize('points, axis, by, answers', [
    ([48, 54], 1, -.05, dict(corner_lift='+')),
    ([48], 1, -.05, dict(corner_lift='+', corner_skew='+')),
    ([54], 1, -.05, dict(corner_lift='+', corner_skew='-')),
    (range(17, 27), 1, -.05, dict(brow_raise='+')),
    ([21, 22], 1, -.05, dict(brow_raise='+', brow_slope='+')),
    ([17, 26], 1, -.05, dict(brow_raise='+', brow_slope='-')),
    ([22], 0, .05, dict(brow_gap='+')),
    ([33], 1, -.02, dict(nose_to_lip='+', jaw_drop='+')),
    ([54], 0, .05, dict(mouth_width='+')),
    ([65, 66, 67], 1, .05, dict(mouth_opening='+')),
    ([61, 62, 63], 1, -.05, dict(mouth_opening='+')),
    ([8], 1, .05, dict(jaw_drop='+')),
    ([37, 38, 40, 41, 43, 44, 46, 47], 0, .004, dict())])
def test_each_measure_answers_to_its_own_movement_alone(template, points, axis, by, answers):
    shape = template.clone()
    shape[list(points), axis] += by
    a, b = face_measures(template), face_measures(shape)
    assert {k: '+' if b[k] > a[k] else '-' for k in a if abs(b[k] - a[k]) > .01} == answers


def test_eyes_are_as_open_as_their_lids_are_apart(template):
    wide = template.clone()
    wide[[37, 38, 43, 44], 1] -= .01
    wide[[40, 41, 46, 47], 1] += .01
    more = face_measures(wide)['eye_opening'] - face_measures(template)['eye_opening']
    assert_close(more, .02/interocular(template), atol=1e-5, rtol=0)


# How much of a movement downwards of one point alone a measure shows: all of a group count alike
@pytest.mark.parametrize('measure, points, share', [
    ('mouth_opening', [65, 66, 67], 1/3), ('mouth_opening', [61, 62, 63], -1/3),
    ('eye_opening', [40, 41, 46, 47], 1/4), ('eye_opening', [37, 38, 43, 44], -1/4),
    ('brow_raise', range(17, 27), -1/10), ('brow_slope', [17, 18, 25, 26], 1/4),
    ('brow_slope', [20, 21, 22, 23], -1/4), ('corner_lift', [48, 54], -1/2),
    ('corner_lift', [51, 57], 1/2)])
def test_all_points_of_a_measure_count_alike(template, measure, points, share):
    for point in points:
        lower = template.clone()
        lower[point, 1] += .01
        change = face_measures(lower)[measure] - face_measures(template)[measure]
        assert_close(change*interocular(template)/.01, torch.tensor(share), atol=.02, rtol=0)


@EACH_FACE_ALONE
def test_a_missing_face_stays_missing_and_leaves_its_neighbours_alone(f, faces):
    holed, keep = faces.clone(), [0, 1, 3, 4]
    holed[2] = torch.nan
    assert f(holed)[2].isnan().all()
    assert_close(f(holed)[keep], f(faces)[keep], rtol=0, atol=0)


@EACH_FACE_ALONE
def test_a_face_alone_and_any_leading_dimensions_give_the_same(f, faces):
    assert_close(torch.stack([f(face) for face in faces]), f(faces))
    assert_close(f(faces[None, :, None])[0, :, 0], f(faces))


@EACH_FACE_ALONE
@pytest.mark.parametrize('fallen', [False, True])
def test_gradients_are_finite_even_where_all_points_have_fallen_onto_one(f, fallen, faces):
    x = (torch.full((2, 68, 2), .5) if fallen else faces).clone().requires_grad_()
    f(x).square().sum().backward()
    assert x.grad.isfinite().all()


def test_a_plot_shows_every_point_and_joins_the_paths(template):
    ax = plot_landmarks(np.zeros((8, 8)), template, numbers=True)
    assert len(ax.collections[0].get_offsets()) == 68 and len(ax.lines) == len(PATHS)
    assert [t.get_text() for t in ax.texts] == [str(i) for i in range(68)]
    assert ax.get_ylim() == (1, 0)  # y runs down


def test_numbers_of_points_do_not_cover_one_another():
    figure = Figure(figsize=(7.5, 7.5))
    axes = plot_landmarks(None, mean_shape(), figure.add_axes((0, 0, 1, 1)), numbers=True)
    figure.draw_without_rendering()
    boxes = [t.get_window_extent().padded(0, -2) for t in axes.texts]  # digits have no descent
    assert len(boxes) == 68
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
