"The whole model: what must hold for every size of it, and that each argument arrives."
import json

import pytest
import torch
from torch import nn

from grefel.base.core import EXPRESSIONS, GrefelError
from grefel.method.balancing import balance
from grefel.method.model import (
    ARCHITECTURES, architecture, class_layers, create_dummy_data, create_model, GReFELModel,
    primary_head, SIZES)
from grefel.method.fusion import MultiScaleFeatureExtractor

TINY = dict(img_size=48, pyramid='conv', widths=(16, 24, 32, 48), embed_dim=64, num_heads=4,
            depth=2, token_grid=3, mlp_ratio=2.)
PAPER = dict(img_size=112, pyramid='poster_v2', embed_dim=64, num_heads=4, depth=1, anchor_dim=32)
PROBS = 'primary_probs', 'anchor_probs', 'attention_probs', 'correction_probs', 'final_probs'


@pytest.fixture(scope='module', params=[TINY, PAPER], ids=['own extractor', 'published extractor'])
def model(request):
    torch.manual_seed(0)
    return GReFELModel(**request.param).eval()


@pytest.fixture(scope='module')
def faces(): return create_dummy_data(4, 48)[:2]


@pytest.fixture(scope='module')
def seen(model): return create_dummy_data(4, model.config['img_size'])[:2]


def test_all_opinions_are_distributions(model, seen):
    out = model(*seen)
    for key in PROBS:
        assert (out[key] >= 0).all(), key
        torch.testing.assert_close(out[key].sum(-1), torch.ones(4))


def test_the_answer_is_what_balancing_makes_of_the_opinions(model, seen):
    out = model(*seen)
    torch.testing.assert_close(out['primary_probs'], out['logits'].softmax(-1))
    final, t = balance(out['primary_probs'], [out['anchor_probs'], out['attention_probs']])
    torch.testing.assert_close(out['final_probs'], final)
    torch.testing.assert_close(out['correction_probs'], t)


@pytest.mark.parametrize('given', ['all', 'some', 'none'])
def test_a_face_gets_the_same_answer_alone_and_in_a_batch(model, seen, given):
    images, landmarks = seen
    third = torch.arange(4)[:, None, None] == 2
    if given == 'some': landmarks = landmarks.masked_fill(third, torch.nan)
    if given == 'none': landmarks = None
    with torch.no_grad():
        together = model(images, landmarks)
        for i in range(4):
            alone = model(images[i:i+1], None if landmarks is None else landmarks[i:i+1])
            for key, value in together.items():
                torch.testing.assert_close(value[i:i+1], alone[key], atol=1e-4, rtol=1e-4,
                                           msg=lambda m: f'{key}: {m}')


def test_the_corrections_work_in_the_reduced_space(faces):
    out = GReFELModel(**TINY, anchor_dim=24, num_anchors_per_class=5)(*faces)
    assert out['embedding'].shape == (4, 24) and out['distances'].shape == (4, 8, 5)


def test_without_corrections_it_is_the_plain_classifier(faces):
    model = GReFELModel(**TINY).eval()
    plain = GReFELModel(**TINY, sources=()).eval()
    own = {k: v for k, v in model.state_dict().items() if not k.startswith('balancing')}
    assert set(own) == set(plain.state_dict())
    plain.load_state_dict(own)
    bare = plain(*faces)
    assert torch.equal(bare['final_probs'], bare['primary_probs'])
    torch.testing.assert_close(bare['primary_probs'], model(*faces)['primary_probs'])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_nothing_overflows(faces, dtype):
    extreme = torch.cat([1e3*faces[0][:2], torch.zeros(2, 3, 48, 48)]).to(dtype)
    probs = GReFELModel(**TINY).to(dtype).eval()(extreme)['final_probs']
    assert probs.isfinite().all()
    torch.testing.assert_close(probs.sum(-1), torch.ones(4), atol=2e-3, rtol=0)


@pytest.mark.parametrize('kw,frozen', [(TINY, set()), (PAPER, {'geometry'})])
def test_all_that_is_not_frozen_learns(kw, frozen):
    model = GReFELModel(**kw)
    out = model(create_dummy_data(4, kw['img_size'])[0])
    nll = -out['final_logits'][:, 0].mean()
    (nll + out['landmarks'].square().mean()).backward()
    for name, p in model.named_parameters():
        assert not p.requires_grad or p.grad is not None and p.grad.isfinite().all(), name
    assert {n.split('.')[2] for n, p in model.named_parameters() if not p.requires_grad} == frozen


@pytest.mark.parametrize('kw', [TINY, PAPER], ids=['own extractor', 'published extractor'])
def test_dropout_reaches_head_and_extractor(kw):
    model = GReFELModel(**kw, drop_rate=.37)
    blocks = getattr(model.extractor, 'fusion', None) or model.extractor.net
    rates = [m.p for part in (model.head, blocks.blocks) for m in part.modules()
             if isinstance(m, nn.Dropout)]
    assert rates == [.37]*(1 + kw['depth'])


def test_arguments_reach_the_parts():
    model = GReFELModel(**TINY, num_classes=5, num_anchors_per_class=3, merge='primary',
                        sources=('anchor',), drop_path_rate=.2, cross='concat')
    assert model.balancing.anchors.anchors.shape == (5, 3, 64)
    assert model.balancing.merge == 'primary' and model.balancing.attention is None
    assert model.extractor.fusion.blocks[-1].drop_path.rate == pytest.approx(.2)
    assert GReFELModel(**TINY).balancing.attention.num_heads == 4


def test_the_temperature_divides_the_logits(faces):
    model = GReFELModel(**TINY).eval()
    before = model(*faces)['logits']
    model.temperature = 2.
    torch.testing.assert_close(model(*faces)['logits'], before/2)
    assert GReFELModel(**TINY, temperature=3.).temperature == 3


def test_the_head_is_what_was_asked_for():
    assert isinstance(primary_head('linear', 8, 3), nn.Linear)
    assert [m.p for m in primary_head('mlp', 8, 3, .4) if isinstance(m, nn.Dropout)] == [.4]


@pytest.mark.parametrize('kw,says', [
    (dict(num_classes=3, classes=('happiness',)), '3 classes, 1 class names'),
    (dict(num_classes=1), '1 classes: there must be two or more'),
    (dict(num_classes=1, classes=('happiness',)), 'two or more'), (dict(num_classes=0), 'two or'),
    (dict(temperature=0.), 'temperature'), (dict(temperature=float('inf')), 'temperature'),
    (dict(head='round'), 'head is'), (dict(merge='vote'), 'merge is'),
    (dict(sources=('oracle',)), 'unknown sources')])
def test_a_slip_is_named(kw, says):
    with pytest.raises(ValueError, match=says): GReFELModel(**TINY | kw)


@pytest.mark.parametrize('shape', [
    (4, 3, 48, 40), (4, 3, 40, 48), (4, 3, 96, 96), (4, 3, 24, 24), (4, 1, 48, 48), (3, 48, 48),
    (48, 48), (4, 48, 48, 3)])
def test_images_of_another_shape_are_refused_in_one_line(shape):
    with pytest.raises(GrefelError) as caught: GReFELModel(**TINY)(torch.zeros(shape))
    assert str(caught.value) == f'images are {shape}; this model takes (faces, 3, 48, 48)'


@pytest.mark.parametrize('shape', [(4, 136), (4, 5, 2), (4, 68), (68, 2)])
def test_landmarks_of_another_shape_are_refused_in_one_line(faces, shape):
    with pytest.raises(GrefelError, match='this model takes .faces, 68, 2.'):
        GReFELModel(**TINY)(faces[0], torch.zeros(shape))


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf'), 1e30])
@pytest.mark.parametrize('points', [(0, 0), (36, 1), slice(None)])   # eyes are a unit of length
def test_a_landmark_that_is_no_number_is_an_unknown_one(faces, value, points):
    model, landmarks = GReFELModel(**TINY).eval(), faces[1].clone()
    landmarks[2][points] = value
    with torch.no_grad():
        out, without, usual = (model(faces[0], p) for p in (landmarks, None, faces[1]))
    for key in PROBS:
        torch.testing.assert_close(out[key][2], without[key][2])
        torch.testing.assert_close(out[key][[0, 1, 3]], usual[key][[0, 1, 3]])


def test_an_answer_that_is_nan_is_an_error_and_no_answer(faces):
    model, images = GReFELModel(**TINY).eval(), faces[0].clone()
    images[1, 0, 5, 5] = float('nan')
    with pytest.raises(GrefelError, match='the answer to image 1 of 4 is NaN'): model(images)
    with torch.no_grad(): model.head[-1].weight[0, 0] = float('nan')
    with pytest.raises(GrefelError, match='the answer to image 0 of 4 is NaN'): model(faces[0])
    model.train()(faces[0])   # while training it's the loss that is watched


def test_the_two_halves_are_the_whole(model, seen):
    features = model.forward_features(*seen)
    whole, halves = model(*seen), model.forward_head(features)
    for key in PROBS: torch.testing.assert_close(halves[key], whole[key])
    embedding = model.forward_head(features, pre_logits=True)
    assert embedding.shape == (4, model.num_features)
    torch.testing.assert_close(model.head(embedding).float()/model.temperature, whole['logits'])


@pytest.mark.parametrize('kw', [TINY, PAPER, TINY | dict(sources=('anchor',), anchor_dim=24)])
def test_a_reset_classifier_knows_other_classes_and_all_else_as_before(kw):
    model, names = GReFELModel(**kw), ('a', 'b', 'c')
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.reset_classifier(3, classes=names)
    again, after = GReFELModel(**model.config), model.state_dict()
    again.load_state_dict(after)   # the config describes what there is now
    assert model.classes == again.classes == names
    out = model.eval()(create_dummy_data(2, kw['img_size'])[0])
    assert all(out[k].shape == (2, 3) for k in PROBS if k in out)
    other = {k for k, v in after.items() if not torch.equal(v, before[k])}
    assert other == {k for k, v in after.items() if v.shape != before[k].shape}
    layers = {f'{layer}.{w}' for layer in class_layers(model) for w in ('weight', 'bias')}
    assert other == layers | {k for k in after if k.endswith('anchors.anchors')}


@pytest.mark.parametrize('kw', [TINY, PAPER])
def test_weight_decay_reaches_matrices_and_kernels_only(kw):
    model = GReFELModel(**kw)
    spared, layers = model.no_weight_decay(), (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
    decayed = {f'{name}.{w}' for name, m in model.named_modules() if isinstance(m, layers)
               for w, p in m.named_parameters(recurse=False) if p.ndim > 1}
    assert {n for n, _ in model.named_parameters()} - spared == decayed
    own = 'log_delta', 'anchors.anchors', '.cls', 'gamma'
    for part in own: assert any(name.endswith(part) for name in spared), part


def test_a_config_survives_json_and_builds_the_model_again():
    model = GReFELModel(**TINY, num_classes=3, classes=('a', 'b', 'c'), name='mine')
    config = json.loads(json.dumps(model.config))
    again = GReFELModel(**config)
    assert config == model.config == again.config and again.classes == ('a', 'b', 'c')
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize('size', SIZES)
def test_a_size_answers_to_both_of_its_names(size):
    # on no device, so that even the largest takes no time
    with torch.device('meta'):
        full, short = create_model(size), create_model(size.removeprefix('grefel_'))
    assert full.config == short.config and full.config['name'] == size


@pytest.mark.parametrize('size,most', [('nano', 1e6), ('small', 8e6)])
def test_small_sizes_are_small(size, most):
    assert sum(p.numel() for p in create_model(size).parameters()) <= most


def test_sizes_take_other_arguments():
    assert create_model('nano', num_classes=7).classes == EXPRESSIONS[:7]


def test_an_unknown_size_is_named_with_those_there_are():
    with pytest.raises(GrefelError, match="unknown size 'huge'; there are nano, small.*vgg13"):
        create_model('huge')


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_other_architectures_are_imported_by_name(name):
    assert callable(architecture(name)) and architecture(name) is not GReFELModel


def test_whatever_has_no_architecture_of_its_own_is_grefel(monkeypatch):
    assert architecture('anything') is GReFELModel
    monkeypatch.setitem(ARCHITECTURES, 'mine', nn.Identity)   # an object, and not a path
    assert architecture('mine') is nn.Identity


def test_the_extractor_follows_from_the_pyramid(model):
    published = model.config['pyramid'] == 'poster_v2'
    assert isinstance(model.extractor, MultiScaleFeatureExtractor) != published


def test_dummy_data_have_the_shapes_of_faces():
    images, landmarks, labels = create_dummy_data(5, 32, num_classes=3)
    assert (images.shape, landmarks.shape, labels.shape) == ((5, 3, 32, 32), (5, 68, 2), (5,))
    assert set(labels.tolist()) <= {0, 1, 2} and 0 < landmarks.mean() < 1
    assert torch.equal(create_dummy_data(5, 32)[0], images)
    assert not torch.equal(create_dummy_data(5, 32, seed=1)[0], images)
