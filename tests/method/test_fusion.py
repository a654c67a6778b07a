"From maps to one embedding: the transformer, the tokens, the extractor."
import einops
import pytest
import torch
from torch import nn

from grefel.base.geometry import mean_shape
from grefel.method.fusion import (
    attention_map, choose_landmarks, cross_blocks, Fusion, MultiScaleFeatureExtractor, Tokens,
    TransformerBlock)
from grefel.method.window import ConcatBlock
from tests.method.test_window import dropped

SMALL = dict(img_size=48, pyramid='conv', widths=(16, 24, 32, 48), embed_dim=64, num_heads=4,
             depth=1, token_grid=3, mlp_ratio=2.)


@pytest.fixture
def faces():
    "Three images and their landmarks."
    return torch.randn(3, 3, 48, 48), mean_shape() + .05*torch.randn(3, 68, 2)


def test_a_layer_is_pytorchs_transformer_layer():
    block = TransformerBlock(16, num_heads=4, mlp_ratio=2)
    theirs = nn.TransformerEncoderLayer(16, 4, 32, dropout=0., activation='gelu', batch_first=True,
                                        norm_first=True)
    names = {'self_attn.in_proj_': 'qkv.', 'self_attn.out_proj.': 'proj.', 'linear1.': 'mlp.0.',
             'linear2.': 'mlp.3.', 'norm1.': 'norm_attn.', 'norm2.': 'norm_mlp.'}
    own = block.state_dict()
    kinds = 'weight', 'bias'
    theirs.load_state_dict({a + k: own[b + k] for a, b in names.items() for k in kinds})
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(block(x), theirs(x))


@pytest.mark.parametrize('branch', ['scale_attn', 'scale_mlp'])
def test_each_branch_of_a_layer_is_dropped(branch):
    block = TransformerBlock(16, num_heads=4, drop_path=.5)
    other = dict(scale_attn='scale_mlp', scale_mlp='scale_attn')[branch]
    nn.init.zeros_(getattr(block, other).gamma)
    assert 60 < dropped(block, torch.randn(200, 5, 16)).sum() < 140


def test_layer_scale_can_be_left_out():
    block = TransformerBlock(16, num_heads=4, layer_scale=False)
    assert not [n for n, _ in block.named_parameters() if n.startswith('scale')]


def test_tokens_know_their_place_and_scale():
    tokens = Tokens([8, 8], [6, 3], embed_dim=16, token_grid=3)
    with torch.no_grad():
        for p in tokens.proj.parameters(): p.zero_()
    out = tokens([torch.randn(2, 8, 6, 6), torch.randn(2, 8, 3, 3)])
    expected = torch.cat([p + s for p, s in zip(tokens.place, tokens.scale)])
    torch.testing.assert_close(out, expected.expand(2, -1, -1))


def test_fine_maps_are_averaged():
    tokens, m = Tokens([8], [6], embed_dim=8, token_grid=3), torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        for p in tokens.parameters(): p.zero_()
        tokens.proj[0].weight.copy_(torch.eye(8)[..., None, None])
    torch.testing.assert_close(tokens([m]), nn.functional.avg_pool2d(m, 2).flatten(2).mT)


def test_normalised_tokens_of_all_scales_are_equally_loud():
    maps = [s*torch.randn(4, 8, 3, 3) for s in (1, 5, 25)]
    def loudness(norm):
        out = Tokens([8]*3, [3]*3, 64, 3, norm=norm)(maps)
        return [t.std().item() for t in out.split(9, 1)]
    assert max(loudness(True)) < 1.2*min(loudness(True))
    assert max(loudness(False)) > 5*min(loudness(False))


def test_without_layers_the_embedding_is_the_gated_mean_of_the_tokens():
    fusion, tokens, extra = Fusion(16, depth=0), torch.randn(2, 5, 16), torch.randn(2, 16)
    cls = fusion.norm(fusion.cls + tokens.mean(1) + extra)
    embedding, encoded = fusion(tokens, extra)
    torch.testing.assert_close(embedding, cls*fusion.gate(cls))
    torch.testing.assert_close(encoded, fusion.norm(tokens))


def test_rates_reach_the_layers():
    fusion = Fusion(16, depth=3, num_heads=4, drop=.3, drop_path=.4)
    assert [b.drop_path.rate for b in fusion.blocks] == pytest.approx([0, .2, .4])
    only, = Fusion(16, depth=1, num_heads=4, drop_path=.4).blocks   # it is the last as well
    assert only.drop_path.rate == pytest.approx(.4)
    assert [b.mlp[2].p for b in fusion.blocks] == [.3]*3


def test_rates_reach_the_extractor():
    extractor = MultiScaleFeatureExtractor(**SMALL | dict(depth=2), drop_rate=.3, drop_path_rate=.4)
    assert [b.mlp[2].p for b in extractor.fusion.blocks] == [.3, .3]
    assert [b.drop_path.rate for b in extractor.fusion.blocks] == pytest.approx([0, .4])


def test_a_scale_gets_the_heads_that_divide_it():
    blocks = cross_blocks('attention', [80, 112, 54], [12, 6, 3], 4, 3., .2, False)
    assert [b.attn.num_heads for b in blocks] == [4, 4, 3]
    assert [b.window for b in blocks] == [6, 3, 3]
    for block, c in zip(blocks, (80, 112, 54)):
        assert block.mlp[0].out_features == 3*c
        assert block.scale_attn.gamma[0].item() == pytest.approx(.2)
        assert isinstance(block.attn.q, nn.Identity)


def test_geometry_may_stand_beside_the_image(faces):
    across = MultiScaleFeatureExtractor(**SMALL, cross='concat', window_mlp_ratio=3.,
                                        layer_scale=.7)
    for block, c in zip(across.cross, across.pyramid.channels):
        assert isinstance(block, ConcatBlock) and block.mlp[0].out_features == 3*c
        assert block.scale_join.gamma[0].item() == pytest.approx(.7)
    out = across.eval().forward_features(*faces, need_attention=True)
    assert 'attention' not in out
    with pytest.raises(ValueError, match="not 'sum'"):
        MultiScaleFeatureExtractor(**SMALL, cross='sum')


def test_a_fine_map_may_meet_geometry_at_fewer_cells(faces):
    coarser = MultiScaleFeatureExtractor(**SMALL, cross_grid=6).eval()
    with torch.no_grad(): out = coarser.forward_features(*faces, need_attention=True)
    assert [m.shape[-1] for m in out['attention']] == [6, 6, 3]
    assert [b.window for b in coarser.cross] == [3, 3, 3]
    maps = coarser.pyramid(faces[0])
    met = []
    coarser.cross[0].register_forward_pre_hook(lambda block, given: met.append(given[0]))
    with torch.no_grad(): coarser.forward_features(*faces)
    fours = maps[0].unflatten(2, (6, 2)).unflatten(4, (6, 2))   # (3, C, 6, 2, 6, 2)
    torch.testing.assert_close(met[0], fours.mean((3, 5)))


def test_an_image_of_another_size_is_not_averaged_away(faces):
    extractor = MultiScaleFeatureExtractor(**SMALL).eval()
    with pytest.raises((RuntimeError, einops.EinopsError)): extractor(torch.randn(1, 3, 64, 64))


def test_as_many_cells_as_there_are_change_nothing(faces):
    whole = MultiScaleFeatureExtractor(**SMALL).eval()
    same = MultiScaleFeatureExtractor(**SMALL, cross_grid=12).eval()
    same.load_state_dict(whole.state_dict())
    with torch.no_grad(): torch.testing.assert_close(same(*faces), whole(*faces))


@pytest.mark.parametrize('kw', [{}, dict(cross='concat'), dict(token_norm=True, shortcut=True),
                                dict(geometry='none'), dict(landmark_grad=True),
                                dict(cross_grid=6), dict(cross_grid=6, geometry='none')])
def test_a_face_gets_the_same_embedding_alone_and_in_a_batch(faces, kw):
    extractor, (images, points) = MultiScaleFeatureExtractor(**SMALL, **kw).eval(), faces
    with torch.no_grad():
        together = extractor(images, points)
        for i in range(3):
            torch.testing.assert_close(extractor(images[i:i+1], points[i:i+1]), together[i:i+1])


@pytest.mark.parametrize('cross', ['attention', 'concat'])
def test_landmarks_matter_and_a_missing_one_is_predicted(faces, cross):
    extractor, (images, points) = MultiScaleFeatureExtractor(**SMALL, cross=cross).eval(), faces
    holes = points.clone()
    holes[1, 30, 0] = float('nan')
    with torch.no_grad():
        mixed, none, given = (extractor(images, p) for p in (holes, None, points))
    torch.testing.assert_close(mixed[1], none[1])
    torch.testing.assert_close(mixed[[0, 2]], given[[0, 2]])
    assert not torch.allclose(none, given, atol=1e-5)


@pytest.mark.parametrize('odd', [float('nan'), float('inf'), -float('inf'), 1e30])
def test_a_row_with_a_point_that_is_no_number_is_not_given(odd):
    given, found = torch.rand(2, 68, 2), torch.rand(2, 68, 2)
    given[1, 4, 0] = odd
    used = choose_landmarks(given, found)
    assert torch.equal(used[0], given[0]) and torch.equal(used[1], found[1])
    assert choose_landmarks(None, found) is found


def test_without_geometry_landmarks_change_nothing(faces):
    extractor, (images, points) = MultiScaleFeatureExtractor(**SMALL, geometry='none').eval(), faces
    assert torch.equal(extractor(images, points), extractor(images))


@pytest.mark.parametrize('kw', [dict(pyramid='patch', patch_sizes=(24, 12, 6), widths=(16, 24, 32)),
                                dict(pyramid='patch', patch_sizes=(6, 24, 12),
                                     widths=(16, 24, 32)), {}])
def test_the_shortcut_takes_the_coarsest_map(faces, kw):
    # which comes first in a pyramid of patches and last in one of convolutions
    extractor, seen = MultiScaleFeatureExtractor(**SMALL | kw, shortcut=True).eval(), []
    extractor.shortcut.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    extractor(*faces)
    coarsest = min(extractor.pyramid(faces[0]), key=lambda m: m.shape[-1])
    torch.testing.assert_close(seen[0], coarsest.mean((2, 3)))


def test_the_shortcut_takes_part(faces):
    extractor = MultiScaleFeatureExtractor(**SMALL, shortcut=True).eval()
    before = extractor(*faces)
    nn.init.zeros_(extractor.shortcut.weight)
    nn.init.zeros_(extractor.shortcut.bias)
    assert not torch.allclose(before, extractor(*faces))


@pytest.mark.parametrize('kw,outputs,unreached', [
    ({}, ['embedding'], {'landmark_head'}),   # predicted points stay points
    ({}, ['embedding', 'landmarks'], set()),
    (dict(landmark_grad=True), ['embedding'], set()),
    (dict(token_norm=True, shortcut=True), ['embedding'], {'landmark_head'})])
def test_gradients_reach_what_they_should(faces, kw, outputs, unreached):
    extractor = MultiScaleFeatureExtractor(**SMALL, **kw)
    out = extractor.forward_features(faces[0])
    sum(out[k].square().mean() for k in outputs).backward()
    parameters = dict(extractor.named_parameters())
    assert all(p.grad is None or p.grad.isfinite().all() for p in parameters.values())
    for name, p in parameters.items():
        assert (p.grad is None) == (name.split('.')[0] in unreached), name


def test_an_attention_map_says_how_much_each_cell_is_listened_to():
    # four windows of 2 × 2 cells, in each of which everybody listens to one cell
    weights, heard = torch.zeros(4, 2, 4, 4), (0, 1, 2, 3)
    for w, cell in enumerate(heard): weights[w, :, :, cell] = 1
    expected = torch.zeros(4, 4)
    for r, c in ((0, 0), (0, 3), (3, 0), (3, 3)): expected[r, c] = 1
    assert torch.equal(attention_map(weights, 4)[0], expected)


def test_attention_comes_when_asked_for(faces):
    extractor = MultiScaleFeatureExtractor(**SMALL).eval()
    assert 'attention' not in extractor.forward_features(*faces)
    maps = extractor.forward_features(*faces, need_attention=True)['attention']
    for m, grid, block in zip(maps, extractor.pyramid.grids, extractor.cross):
        assert m.shape == (3, grid, grid)
        torch.testing.assert_close(m.sum((1, 2)), torch.full((3,), (grid/block.window)**2))
