"Anchors: distances with a gradient everywhere, and the distribution that follows from them."
import math

import pytest
import torch
from torch import nn

from grefel.method.anchors import (
    anchor_distances, anchors_of, GeometryAwareAnchors, init_anchors)


@pytest.fixture
def anchors(): return GeometryAwareAnchors(num_classes=3, num_anchors_per_class=2, embed_dim=16)


def test_distances_are_euclidean():
    e, a = torch.randn(4, 16), torch.randn(3, 2, 16)
    torch.testing.assert_close(anchor_distances(e, a), (e[:, None, None] - a).norm(dim=-1))


def test_small_distances_keep_their_digits():
    # a matrix product would lose them: the squares are 10⁶ times larger than the difference
    a = 1000 + torch.randn(30, 2, 16)
    e = a.flatten(0, 1) + 1e-2
    own = anchor_distances(e, a).flatten(1).diagonal()
    torch.testing.assert_close(own, (e - a.flatten(0, 1)).norm(dim=-1))


def test_an_embedding_on_an_anchor_has_a_finite_gradient():
    a = torch.randn(3, 2, 16)
    e = a[1, :1].clone().requires_grad_()
    anchor_distances(e, a).sum().backward()
    assert e.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_distances_are_computed_in_full_precision(dtype):
    assert anchor_distances(torch.randn(2, 16).to(dtype),
                            torch.randn(3, 2, 16).to(dtype)).dtype == torch.float32
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert anchor_distances(torch.randn(2, 16), torch.randn(3, 2, 16)).dtype == torch.float32


def test_the_distribution_is_a_softmax_over_all_anchors(anchors):
    e = torch.randn(4, 16)
    t_g, d = anchors(e)
    s = (-anchor_distances(e, anchors.anchors)/anchors.delta).exp()   # (B, N, K)
    torch.testing.assert_close(t_g, s.sum(-1)/s.sum((1, 2))[:, None])
    torch.testing.assert_close(d, anchor_distances(e, anchors.anchors))


@pytest.mark.parametrize('dim', [64, 512])
def test_delta_starts_in_proportion_to_distances(dim):
    anchors = GeometryAwareAnchors(embed_dim=dim)
    assert anchors.delta.item() == pytest.approx(math.sqrt(dim)/16)
    length = anchors.anchors.norm(dim=-1).mean().item()
    assert length == pytest.approx(.5*math.sqrt(dim), rel=.05)


@pytest.mark.parametrize('learned', [True, False])
def test_delta_learns_unless_told_not_to(learned):
    anchors = GeometryAwareAnchors(3, 2, 16, learn_delta=learned)
    anchors(torch.randn(4, 16))[0].square().sum().backward()
    assert (anchors.log_delta.grad is not None) == learned


def test_anchors_that_are_equally_far_say_nothing():
    anchors = GeometryAwareAnchors(4, 3, 16, scale=0.)
    torch.testing.assert_close(anchors(torch.randn(2, 16))[0], torch.full((2, 4), .25))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_hard_inputs_stay_finite(anchors, dtype):
    on_anchor = anchors.anchors[0, :1].detach()
    hard = torch.cat([torch.zeros(1, 16), 1e4*torch.ones(1, 16), on_anchor])
    t_g, d = anchors(hard.to(dtype))
    assert d.isfinite().all()
    torch.testing.assert_close(t_g.sum(-1), torch.ones(3))


@pytest.fixture
def clusters():
    "Class 0 in two clusters left and right, class 1 between them."
    which = torch.randint(0, 3, (300,))
    centres = torch.tensor([[-3., 0.], [0., 0.], [3., 0.]])
    return centres[which] + .3*torch.randn(300, 2), torch.tensor([0, 1, 0])[which]


def test_k_means_finds_the_clusters_of_each_class(clusters):
    started = init_anchors(GeometryAwareAnchors(2, 2, 2), *clusters)
    assert sorted(round(v) for v in started.anchors[0, :, 0].tolist()) == [-3, 3]
    assert started.anchors[1, :, 0].abs().max() < 1


def test_fewer_faces_than_anchors_are_enough(clusters):
    x, y = clusters
    started = init_anchors(GeometryAwareAnchors(2, 10, 2), x[:3], torch.tensor([0, 0, 1]))
    assert started.anchors.isfinite().all()
    nearest = torch.cdist(started.anchors[0], x[:2]).amin(1)
    assert nearest.max() < .1


def test_a_class_without_faces_keeps_its_anchors(clusters):
    anchors = GeometryAwareAnchors(3, 2, 2)
    before = anchors.anchors[2].clone()
    init_anchors(anchors, *clusters)
    assert torch.equal(anchors.anchors[2], before)


def test_placing_anchors_is_repeatable(clusters):
    one, two = (init_anchors(GeometryAwareAnchors(2, 4, 2), *clusters, seed=3) for _ in range(2))
    assert torch.equal(one.anchors, two.anchors)


def test_anchors_of_a_model_are_found_where_there_are_any(anchors):
    holder = nn.Module()
    assert anchors_of(holder) is None
    holder.balancing = nn.Module()
    holder.balancing.anchors = None
    assert anchors_of(holder) is None
    holder.balancing.anchors = anchors
    assert anchors_of(holder) is anchors
