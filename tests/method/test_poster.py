"POSTER++ as published: its answers, its checkpoints, and its place in a GReFEL model."
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from grefel.base.core import CLASS_ORDERS, GrefelError
from grefel.base.geometry import mean_shape
from grefel.method.files import load_model, save_model
from grefel.method.fusion import MultiScaleFeatureExtractor
from grefel.method.model import create_model, GReFELModel
from grefel.method.poster import (
    from_poster_v2, load_poster_v2, MobileFaceNetPyramid, poster_name, PosterBlock,
    PosterExtractor, PosterV2)
from grefel.method.pyramid import image_pyramid
from grefel.method.window import relative_index
from tests.method.published import checkpoint, part

TINY = dict(embed_dim=32, num_heads=4, depth=1)


@pytest.fixture(scope='module')
def weights(): return checkpoint()


@pytest.fixture(scope='module')
def published(weights): return load_poster_v2(weights)


@pytest.fixture(scope='module')
def folder(weights, tmp_path_factory):
    "The published files: both networks', and a whole checkpoint."
    folder = tmp_path_factory.mktemp('published')
    torch.save(part(weights, 'ir_back.'), folder/'ir50.pth')
    torch.save(dict(state_dict=part(weights, 'face_landback.')),
               folder/'mobilefacenet_model_best.pth.tar')
    torch.save(weights, folder/'poster.pth')
    return folder


@pytest.fixture
def faces(): return torch.randn(2, 3, 112, 112)


def test_the_answers_are_those_of_the_original_code(published):
    # computed by commit aec8d8e of Talented-Q/POSTER_V2 from the same weights and images
    g = torch.Generator().manual_seed(1)
    blocks = F.interpolate(3*torch.randn(2, 3, 7, 7, generator=g), 224)
    images = blocks + torch.randn(2, 3, 224, 224, generator=g)
    original = torch.tensor([
        [-0.82758, 0.47799, -0.86216, 0.01466, 1.92917, 0.80151, -0.96444, 1.42960],
        [-0.85022, 0.40233, -0.82151, -0.02159, 1.98947, 0.79443, -1.02705, 1.38150]])
    with torch.no_grad(): torch.testing.assert_close(published(images), original, atol=1e-4, rtol=0)


def test_every_weight_has_a_name_of_its_own_in_the_checkpoint(published, weights):
    theirs = [poster_name(n) for n in published.state_dict()]
    assert len(set(theirs)) == len(theirs) and set(theirs) <= set(weights)


@pytest.mark.parametrize('branch', ['scale_attn', 'scale_mlp'])
def test_each_branch_of_a_block_is_dropped(branch):
    block = PosterBlock(8, grid=3, num_heads=2, drop_path=.5)
    for name in ('scale_attn', 'scale_mlp'):
        nn.init.constant_(getattr(block, name).gamma, name == branch)
    image, asks = torch.randn(2, 200, 8, 3, 3)
    normed = F.layer_norm(image.flatten(2).mT, (8,)).mT.view_as(image)
    added = (block(image, asks)[0] - normed).abs().flatten(1).amax(1)
    assert 60 < (added < 1e-5).sum() < 140


def test_a_block_with_its_scales_at_zero_is_the_normed_image():
    block, image = PosterBlock(16, grid=5, num_heads=4).eval(), torch.randn(2, 16, 5, 5)
    nn.init.zeros_(block.scale_attn.gamma)
    nn.init.zeros_(block.scale_mlp.gamma)
    normed = F.layer_norm(image.flatten(2).mT, (16,)).mT.view_as(image)
    torch.testing.assert_close(block(image, torch.randn(2, 16, 5, 5))[0], normed)


def test_drop_path_rises_over_the_scales():
    assert [b.drop_path.rate for b in PosterV2(**TINY).cross] == [0, .125, .25]


def test_dropout_and_depth_reach_the_layers():
    net = PosterV2(embed_dim=32, num_heads=4, depth=3, drop_rate=.3)
    assert [b.mlp[2].p for b in net.blocks] == [.3]*3


def test_wrapped_checkpoints_with_other_classes_are_read():
    seven = checkpoint(7)
    net = load_poster_v2(dict(state_dict={f'module.{k}': v for k, v in seven.items()}, epoch=3))
    assert not net.training and torch.equal(net.head.weight, seven['VIT.head.linear.weight'])


@pytest.mark.parametrize('change,says', [
    (lambda s: s.pop('attn2.qkv.weight'), "lacks 'attn2.qkv.weight'"),
    (lambda s: s.update({'attn3.relative_position_bias_table': torch.zeros(8, 169)}),
     r"'attn3.relative_position_bias_table' is \(8, 169\), expected \(169, 8\)"),
    (lambda s: s.update({'VIT.blocks.2.norm1.weight': torch.zeros(768)}),
     "'VIT.blocks.2.norm1.weight'")])
def test_a_wrong_checkpoint_is_refused_in_its_own_words(weights, change, says):
    state = dict(weights)
    change(state)
    with pytest.raises(GrefelError, match=says): load_poster_v2(state)


def test_what_measuring_tools_left_behind_is_ignored(weights):
    counted = {'total_ops': torch.zeros(1), 'conv1.total_params': torch.zeros(1)}
    assert torch.equal(load_poster_v2(weights | counted).place, weights['VIT.pos_embed'])


def test_index_tables_are_used_as_they_stand_if_they_are_any(weights):
    key, own = 'attn3.relative_position_index', relative_index(7)
    turned = load_poster_v2(weights | {key: own.flip(0)})
    assert torch.equal(turned.cross[2].attn.index, own.flip(0))
    odd = load_poster_v2(weights | {key: torch.randn(49, 49)*1e4})
    assert torch.equal(odd.cross[2].attn.index, own)


def test_both_backbones_start_from_their_files(folder, published, faces):
    started = PosterV2(0, embed_dim=32, num_heads=4, pretrained=folder)
    for ours, theirs in ((started.image.net, published.image.net),
                         (started.geometry.net, published.geometry.net)):
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()):
            assert torch.equal(a, b)
    assert started.image.net.training and not started.geometry.net.training
    assert started(faces).shape == (2, 32)   # no classes: the embedding comes out


def test_everything_but_the_landmark_network_learns(faces):
    net = PosterV2(**TINY).train()
    net(faces).square().mean().backward()
    for name, p in net.named_parameters():
        assert (p.grad is None) == name.startswith('geometry.net'), name
        assert p.grad is None or p.grad.isfinite().all(), name
    assert net.image.net.training and not any(m.training for m in net.geometry.net.modules())


def test_linear_layers_start_small():
    net = PosterV2(**TINY)
    for layer in (net.blocks[0].qkv, net.gate[0], net.head):
        assert layer.weight.std() < .011 and not layer.bias.any()


def test_the_pyramids_by_name_take_their_files(folder, published):
    pyramid = image_pyramid('ir50', pretrained=folder)
    assert torch.equal(pyramid.net.stem[0].weight, published.image.net.stem[0].weight)
    geometry = MobileFaceNetPyramid(folder)
    assert torch.equal(geometry.net.top.conv.weight, published.geometry.net.top.conv.weight)
    with pytest.raises(GrefelError, match='name the folder that holds ir50.pth'):
        image_pyramid('ir50', pretrained=True)


def test_with_the_landmark_network_as_geometry_no_points_are_needed(faces):
    extractor = MultiScaleFeatureExtractor(img_size=112, pyramid='ir50', geometry='mobilefacenet',
                                           query_proj=False, **TINY).eval()
    with torch.no_grad():
        assert torch.equal(extractor(faces, mean_shape().expand(2, -1, -1)), extractor(faces))


def test_the_extractor_answers_as_ours_does(faces):
    extractor, given = PosterExtractor(**TINY).eval(), mean_shape().expand(2, -1, -1)
    out = extractor.forward_features(faces, given, need_attention=True)
    assert torch.equal(out['embedding'], extractor.net(faces))
    assert torch.equal(out['landmarks_used'], given)
    assert out['tokens'].shape == (2, 147, 32)
    assert [tuple(m.shape) for m in out['attention']] == [(2, g, g) for g in (28, 14, 7)]
    for m in out['attention']: torch.testing.assert_close(m.sum((1, 2)), torch.ones(2))
    assert 'attention' not in extractor.forward_features(faces)


@pytest.mark.parametrize('output,reached', [('embedding', 'net'), ('landmarks', 'landmark_head')])
def test_the_landmark_head_looks_on(faces, output, reached):
    # each output teaches its own part, all of it, and no other
    extractor = PosterExtractor(**TINY)
    extractor.forward_features(faces)[output].square().mean().backward()
    for name, p in extractor.named_parameters():
        assert (p.grad is not None) == (name.startswith(reached) and p.requires_grad), name


def test_a_model_starts_from_the_backbones_or_from_a_whole_checkpoint(folder, weights):
    kw = dict(img_size=112, pyramid='poster_v2', num_heads=4, anchor_dim=32)
    backbones = GReFELModel(**kw, embed_dim=64, depth=1, pretrained=folder)
    whole = GReFELModel(**kw, embed_dim=768, depth=2, pretrained=str(folder/'poster.pth'))
    for model in (backbones, whole):
        assert torch.equal(model.extractor.net.image.net.stem[0].weight,
                           weights['ir_back.input_layer.0.weight'])
        assert model.config['pretrained'] is False   # no path travels with the weights
        assert model.extractor.net.training
    assert torch.equal(whole.extractor.net.place, weights['VIT.pos_embed'])


@pytest.mark.parametrize('pretrained', ['nowhere', True])
def test_published_files_must_be_there(tmp_path, pretrained):
    where = tmp_path/pretrained if pretrained == 'nowhere' else pretrained
    with pytest.raises(GrefelError):
        GReFELModel(img_size=112, pyramid='poster_v2', **TINY, pretrained=where)


def test_a_model_on_the_published_extractor_is_saved_and_loaded(tmp_path):
    model = GReFELModel(img_size=112, pyramid='poster_v2', anchor_dim=16, **TINY)
    again = load_model(save_model(model, tmp_path/'w.safetensors'))
    state = again.state_dict()
    for name, value in model.state_dict().items(): assert torch.equal(value, state[name]), name
    assert not any(p.requires_grad for p in again.extractor.net.geometry.net.parameters())


def test_a_published_checkpoint_becomes_a_model_of_this_library(weights, published, faces):
    model = from_poster_v2(weights, 'affectnet8')
    assert model.classes == CLASS_ORDERS['affectnet8'] and model.metadata['grey'] is False
    assert not model.training and model.config == create_model(
        'poster_v2', classes=model.classes).config
    faces = F.interpolate(faces, model.config['img_size'])
    with torch.no_grad():
        torch.testing.assert_close(model(faces)['logits'], published(faces))
    named = from_poster_v2(weights, list('abcdefgh'))
    assert named.classes == tuple('abcdefgh')


@pytest.mark.parametrize('classes,says', [('rafdb', '8 classes, 7 are named'),
                                          ('nobody', "unknown class order 'nobody'"),
                                          (['a', 'b'], '8 classes, 2 are named')])
def test_the_class_order_must_be_named(weights, classes, says):
    with pytest.raises(GrefelError, match=says): from_poster_v2(weights, classes)
