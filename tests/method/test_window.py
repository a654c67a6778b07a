"Window cross-attention: cutting and gluing, attention inside a window, the blocks."
import pytest
import torch
from torch import nn

from grefel.method.window import (
    attend, ConcatBlock, DropPath, LayerScale, mlp, relative_index, window_for, window_partition,
    window_reverse, WindowCrossAttention, WindowCrossBlock)


@pytest.mark.parametrize('side,window', [(4, 2), (12, 6), (6, 6), (9, 3)])
def test_gluing_undoes_cutting(side, window):
    x = torch.randn(2, side, side, 5)
    assert torch.equal(window_reverse(window_partition(x, window), window, side, side), x)


def test_windows_are_cut_in_reading_order():
    numbers = torch.arange(16).view(1, 4, 4, 1)
    assert window_partition(numbers, 2)[1, :, 0].tolist() == [2, 3, 6, 7]


@pytest.mark.parametrize('grid,window', [
    (32, 8), (28, 7), (16, 8), (14, 7), (12, 6), (8, 4), (7, 7), (6, 3), (3, 3)])
def test_a_window_divides_its_map(grid, window): assert window_for(grid) == window


def test_an_offset_has_one_index():
    index, cells = relative_index(3), [(i, j) for i in range(3) for j in range(3)]
    offsets = {}
    for a, (i, j) in enumerate(cells):
        for b, (k, m) in enumerate(cells):
            assert offsets.setdefault(index[a, b].item(), (i - k, j - m)) == (i - k, j - m)
    assert sorted(offsets) == list(range(25))


@pytest.fixture
def attention(): return WindowCrossAttention(16, window=4, num_heads=4)


def test_without_bias_it_is_multi_head_attention(attention):
    theirs = nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        attention.bias.zero_()
        theirs.in_proj_weight.copy_(torch.cat([attention.q.weight, attention.kv.weight]))
        theirs.in_proj_bias.copy_(torch.cat([attention.q.bias, attention.kv.bias]))
        theirs.out_proj.load_state_dict(attention.proj.state_dict())
    g, x = torch.randn(2, 16, 16), torch.randn(2, 16, 16)
    torch.testing.assert_close(attention(g, x)[0], theirs(g, x, x)[0])


def test_asking_for_weights_changes_no_answer(attention):
    nn.init.normal_(attention.bias)
    g, x = torch.randn(2, 16, 16), torch.randn(2, 16, 16)
    with torch.no_grad(): fused, none = attention(g, x)
    opened, weights = attention(g, x, need_weights=True)
    torch.testing.assert_close(fused, opened)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 16))
    assert none is None


@pytest.mark.parametrize('biased', [False, True])
def test_both_ways_to_attend_agree(biased):
    q, k, v = (torch.randn(2, 4, n, 8, requires_grad=True) for n in (5, 7, 7))
    bias = torch.randn(4, 5, 7, requires_grad=True) if biased else None
    inputs = [q, k, v] + [bias]*biased
    theirs = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    recorded, none = attend(q, k, v, bias)
    torch.testing.assert_close(recorded, theirs)
    for ours, known in zip(*(torch.autograd.grad(o.square().sum(), inputs)
                             for o in (recorded, theirs))):
        torch.testing.assert_close(ours, known)
    with torch.no_grad(): torch.testing.assert_close(attend(q, k, v, bias)[0], theirs)
    weights = attend(q, k, v, bias, need_weights=True)[1]
    torch.testing.assert_close(weights @ v, theirs)
    assert none is None


def test_the_bias_depends_on_the_offset(attention):
    nn.init.zeros_(attention.q.weight)
    nn.init.zeros_(attention.q.bias)
    nn.init.normal_(attention.bias)
    _, weights = attention(torch.randn(1, 16, 16), torch.randn(1, 16, 16), need_weights=True)
    expected = attention.bias[:, relative_index(4)].softmax(-1)
    torch.testing.assert_close(weights[0], expected)


def test_without_a_query_projection_geometry_asks_itself():
    attention = WindowCrossAttention(16, window=4, query_proj=False)
    assert not [n for n, _ in attention.named_parameters() if n.startswith('q.')]


def test_heads_must_divide_channels():
    with pytest.raises(ValueError, match='do not divide'): WindowCrossAttention(16, 4, num_heads=3)


def test_drop_path_is_right_on_average_and_absent_in_evaluation():
    drop, ones = DropPath(.25), torch.ones(10_000, 1, 2)
    out = drop(ones)
    assert torch.equal(out[..., 0], out[..., 1])                      # whole items
    assert out.unique().tolist() == [0, pytest.approx(1/.75)]
    assert out.mean().item() == pytest.approx(1, abs=.03)
    assert torch.equal(drop.eval()(ones), ones)


def test_layer_scale_and_drop_path_are_timms():
    # ours stand here because importing timm takes longer than answering
    from timm.layers import DropPath as TheirDropPath, LayerScale as TheirScale
    ours, theirs, x = LayerScale(8, .3), TheirScale(8, .3), torch.randn(4, 5, 8)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    with torch.no_grad(): theirs.gamma.normal_()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))
    ones = torch.ones(20_000, 1, 2)
    for rate in (0., .1, .7):
        a, b = (drop(ones) for drop in (DropPath(rate), TheirDropPath(rate)))
        torch.testing.assert_close(a.unique(), b.unique())
        assert a.mean().item() == pytest.approx(b.mean().item(), abs=.06)
        assert torch.equal(DropPath(rate).eval()(x), TheirDropPath(rate).eval()(x))


def dropped(block, x, *more):
    "Of each item, whether nothing was added to it; what was added elsewhere must be doubled."
    with torch.no_grad():
        kept = block.eval()(x, *more)
        out = block.train()(x, *more)
    kept, out = (v[0] if isinstance(v, tuple) else v for v in (kept, out))
    gone = (out == x).flatten(1).all(1)
    torch.testing.assert_close((out - x)[~gone], 2*(kept - x)[~gone], atol=1e-4, rtol=1e-4)
    return gone


@pytest.mark.parametrize('branch', ['scale_attn', 'scale_mlp'])
def test_each_branch_of_a_block_is_dropped(branch):
    block = WindowCrossBlock(8, grid=4, num_heads=2, drop_path=.5, layer_scale=1.)
    other = dict(scale_attn='scale_mlp', scale_mlp='scale_attn')[branch]
    nn.init.zeros_(getattr(block, other).gamma)
    gone = dropped(block, torch.randn(200, 8, 4, 4), torch.randn(200, 8, 4, 4))
    assert 60 < gone.sum() < 140


def test_a_block_with_its_scales_at_zero_is_the_identity():
    block = WindowCrossBlock(16, grid=12, layer_scale=0.)
    image = torch.randn(2, 16, 12, 12)
    assert torch.equal(block(image, torch.randn(2, 16, 12, 12))[0], image)


def test_windows_and_faces_are_independent():
    block = WindowCrossBlock(16, grid=12)
    image, geometry = torch.randn(2, 16, 12, 12), torch.randn(2, 16, 12, 12)
    changed = image.clone()
    changed[1, :, 6:, 6:] += 1
    difference = (block(changed, geometry)[0] - block(image, geometry)[0]).abs().amax(1)
    assert (difference[1, 6:, 6:] > 0).all()
    difference[1, 6:, 6:] = 0
    assert difference.max() < 1e-6


@pytest.mark.parametrize('block', [WindowCrossBlock(16, grid=12), ConcatBlock(16)])
def test_every_weight_of_a_block_learns_and_geometry_takes_part(block):
    image, geometry = torch.randn(2, 2, 16, 12, 12)
    geometry.requires_grad_()
    block(image, geometry)[0].square().mean().backward()
    assert geometry.grad.any()
    for name, p in block.named_parameters(): assert p.grad.isfinite().all() and p.grad.any(), name


def test_side_by_side_a_cell_hears_nothing_of_its_neighbours():
    block, image, geometry = ConcatBlock(8, layer_scale=1.), *torch.randn(2, 2, 8, 6, 6)
    out, weights = block(image, geometry)
    geometry = geometry.clone()
    geometry[:, 0, 5, 5] += 1
    changed = (block(image, geometry)[0] - out).abs().amax((0, 1)) > 1e-6
    assert weights is None and changed.nonzero().tolist() == [[5, 5]]


def test_the_feed_forward_network_has_the_width_and_dropout_it_was_given():
    net = mlp(8, 3., .4)
    assert net[0].out_features == 24 and net[2].p == .4
