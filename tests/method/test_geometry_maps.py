"Geometry maps from landmarks, and the head that predicts landmarks."
import pytest
import torch

from grefel.base.geometry import mean_shape
from grefel.method.geometry_maps import (
    geometry_pyramid, heat_maps, LandmarkHead, LandmarkPyramid)


def test_the_highest_cell_is_the_landmarks_own():
    shape = mean_shape()
    heat = heat_maps(shape[None], 47)                      # odd: no landmark between two cells
    peak = heat[0].flatten(1).argmax(1)
    own = (shape*47).floor().long().clamp(0, 46)
    assert torch.equal(torch.stack([peak % 47, peak//47], 1), own)   # x, then y


def test_a_bump_is_a_gaussian_of_one_cells_width():
    heat = heat_maps(torch.tensor([[[.35, .55]]]), 10)[0, 0]   # in the middle of cell (5, 3)
    assert heat[5, 3] == 1
    for r, c in ((5, 4), (6, 3), (4, 3)): assert heat[r, c].item() == pytest.approx(.6065, abs=1e-3)


@pytest.fixture
def pyramid(): return LandmarkPyramid([80, 112, 112], [12, 6, 3])


def test_every_point_and_every_weight_takes_part(pyramid):
    points = (mean_shape() + .02*torch.randn(2, 68, 2)).requires_grad_()
    maps = pyramid(points)
    assert [tuple(m.shape) for m in maps] == [(2, 80, 12, 12), (2, 112, 6, 6), (2, 112, 3, 3)]
    sum(m.square().mean() for m in maps).backward()
    assert points.grad.isfinite().all() and (points.grad.abs().sum((0, 2)) > 0).all()
    for name, p in pyramid.named_parameters(): assert p.grad.any(), name


def test_points_far_outside_the_image_do_no_harm(pyramid):
    assert all(m.isfinite().all() for m in pyramid(torch.full((1, 68, 2), 50.)))


def test_a_small_shift_is_seen_at_the_coarsest_scale(pyramid):
    # the bumps hardly move there; the code of the exact shape does
    raised = mean_shape()[None].clone()
    raised[:, 17:27, 1] -= .03   # brows
    before, after = pyramid(mean_shape()[None])[2], pyramid(raised)[2]
    assert (before - after).abs().mean() > 1e-3


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_coordinates_stay_exact_beside_halved_weights(pyramid, dtype):
    maps = pyramid.to(dtype)(mean_shape()[None])
    assert all(m.dtype == dtype and m.isfinite().all() for m in maps)


def test_a_name_chooses_the_geometry():
    assert geometry_pyramid('none', [80], [12]) is None
    assert geometry_pyramid('landmarks', [80, 112], [12, 6]).takes == 'landmarks'
    assert geometry_pyramid('mobilefacenet', [64, 128, 256], [28, 14, 7]).takes == 'images'


@pytest.mark.parametrize('name,says', [('points', 'there are'), ('mobilefacenet', "'ir50' only")])
def test_a_slip_is_named(name, says):
    with pytest.raises(ValueError, match=says): geometry_pyramid(name, [80, 112, 112], [12, 6, 3])


@pytest.mark.parametrize('grids,scale', [([12, 6, 3], 1), ([28, 14, 7], 2), ([5, 4, 3], 0),
                                         ([8, 16, 32], 0)])
def test_the_head_reads_the_coarsest_map_of_six_cells(grids, scale):
    assert LandmarkHead([8, 8, 8], grids).scale == scale


def test_an_untrained_head_gives_a_sensible_face():
    head = LandmarkHead([8, 8, 8], [12, 6, 3])
    found = head([torch.randn(4, 8, g, g) for g in (12, 6, 3)])
    assert found.shape == (4, 68, 2) and (found - mean_shape()).abs().max() < .1


def test_the_head_learns():
    maps, head = [torch.randn(8, 8, g, g) for g in (12, 6, 3)], LandmarkHead([8, 8, 8], [12, 6, 3])
    target = mean_shape() + .1*torch.randn(8, 68, 2)
    opt, errors = torch.optim.AdamW(head.parameters(), lr=3e-3), []
    for _ in range(60):
        loss = (head(maps) - target).abs().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        errors.append(loss.item())
    assert errors[-1] < errors[0]/3
