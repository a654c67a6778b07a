"Baselines: what each one keeps of its paper, and that all answer alike."
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from grefel.base.core import EXPRESSIONS
from grefel.method.baselines import (
    BASELINES, contrast, count_macs, count_parameters, drop_one, EAC, HeadDropBlock, LANet,
    LocalAttention, MAD, ms_per_face, neighbours, NeighbourLabels, Plain, sure_pairs, VGG13)
from grefel.method.files import load_model, save_model
from grefel.method.fusion import TransformerBlock
from grefel.method.model import ARCHITECTURES, create_dummy_data, create_model, GReFELModel


@pytest.fixture
def images(): return torch.randn(4, 3, 48, 48)


def test_parameters_and_multiply_accumulates_are_counted():
    one = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5*64, 7)).train()
    one.config = dict(img_size=8)
    assert count_parameters(one) == 3*5*9 + 5 + 320*7 + 7
    assert count_macs(one) == 64*3*5*9 + 320*7
    assert one.training


def test_time_is_that_of_one_face():
    one = nn.Sequential(nn.Flatten(), nn.Linear(3*64, 7)).train()
    one.config = dict(img_size=8)
    assert 0 < ms_per_face(one, bs=4, tries=2) < 1000 and one.training


def test_the_register_knows_every_baseline_and_no_other():
    assert list(BASELINES) == list(ARCHITECTURES)


@pytest.mark.parametrize('name', BASELINES)
def test_a_baseline_is_made_saved_and_loaded_by_name(name, tmp_path):
    model = create_model(name, classes=EXPRESSIONS[:7], num_classes=7).eval()
    again = load_model(save_model(model, tmp_path/'w.safetensors'))
    assert type(again) is type(model) and again.config == model.config
    assert again.classes == EXPRESSIONS[:7] and again.config['name'] == name
    images = create_dummy_data(2, model.config['img_size'])[0]
    with torch.no_grad(): a, b = model(images), again(images)
    torch.testing.assert_close(a['final_probs'], b['final_probs'])
    assert a['final_probs'].shape == (2, 7) and a['primary_confidence'].shape == (2,)
    torch.testing.assert_close(a['final_probs'], a['logits'].softmax(-1))


@pytest.mark.parametrize('name', BASELINES)
def test_a_slip_is_not_swallowed(name):
    with pytest.raises(TypeError, match='depht'): create_model(name, depht=1)
    for n, says in ((2, 'class names'), (1, 'two or more')):
        with pytest.raises(ValueError, match=says):
            create_model(name, num_classes=n, classes=['happiness'])


def test_plain_costs_what_grefel_costs():
    assert count_macs(Plain()) == pytest.approx(count_macs(create_model('nano')), rel=.01)


def test_plain_classifies_the_mean_of_its_last_map(images):
    plain = Plain().eval()
    expected = plain.head[1](plain.pyramid(images)[-1].mean((2, 3)))
    torch.testing.assert_close(plain(images)['logits'], expected)
    assert Plain(drop_rate=.4).head[0].p == .4


def test_vgg13_has_the_papers_layers_and_size():
    vgg = VGG13()
    assert round(count_parameters(vgg)/1e6, 2) == 8.76   # the paper says 8.75 million
    convs = [m.out_channels for m in vgg.features if isinstance(m, nn.Conv2d)]
    assert convs == [64]*2 + [128]*2 + [256]*6
    assert [m.p for m in vgg.modules() if isinstance(m, nn.Dropout)] == [.25]*4 + [.5]*2


def test_vgg13_begins_with_a_signal():
    # Glorot's rule would leave a thousandth of it
    vgg, noise = VGG13().eval(), torch.randn(8, 1, 64, 64).expand(-1, 3, -1, -1)
    with torch.no_grad(): assert vgg(noise)['logits'].std(0).mean() > .05


def test_vgg13_sees_grey():
    vgg, images = VGG13().eval(), torch.randn(2, 3, 64, 64)
    grey = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    with torch.no_grad(): torch.testing.assert_close(vgg(images)['logits'], vgg(grey)['logits'])


def test_resnet18_takes_its_dropout():
    assert create_model('resnet18', drop_rate=.3).net.drop_rate == .3


def test_poster_is_grefel_without_what_grefel_adds(images):
    poster = create_model('poster')
    assert isinstance(poster, GReFELModel) and poster.extractor.shortcut is None
    assert isinstance(poster.extractor.cross[0].attn.q, nn.Identity)
    out = poster(images)
    assert torch.equal(out['final_probs'], out['primary_probs'])


@pytest.mark.parametrize('p', [0., .3, 1.])
def test_one_of_several_is_dropped_for_a_share(p):
    left = drop_one(torch.ones(4_000, 4, 2), p)
    assert torch.equal(left[..., 0], left[..., 1])
    lost = 4 - left[..., 0].sum(1)
    assert set(lost.tolist()) <= {0., 1.} and lost.mean().item() == pytest.approx(p, abs=.03)
    each = (1 - left[..., 0]).mean(0).tolist()
    assert each == pytest.approx([p/4]*4, abs=.03)


def test_the_strongest_attention_map_counts():
    attend, x = LocalAttention(16, maps=3).eval(), torch.randn(2, 16, 5, 5)
    torch.testing.assert_close(attend(x), x*attend.maps(x).amax(1, keepdim=True))
    assert attend.maps(x).shape == (2, 3, 5, 5)


def test_a_head_drop_block_is_a_transformer_layer_that_drops_heads():
    block, x = HeadDropBlock(16, 4, head_drop=1.), torch.randn(2, 5, 16)
    plain = TransformerBlock(16, 4)
    plain.load_state_dict(block.state_dict())
    torch.testing.assert_close(block.eval()(x), plain(x))
    assert not torch.allclose(block.train()(x), plain(x))


def test_mad_drops_while_training_and_never_in_use(images):
    mad = MAD(map_drop=.7, head_drop=.4, drop_rate=0.)
    assert {a.drop for a in mad.local} == {.7} and mad.fusion.blocks[0].head_drop == .4
    for m in mad.modules():
        if isinstance(m, nn.BatchNorm2d): m.momentum = 0.
    assert not torch.allclose(mad(images)['logits'], mad(images)['logits'])
    mad.eval()
    assert torch.equal(mad(images)['logits'], mad(images)['logits'])


FEATURES = torch.tensor([[1., 0.], [1., .1], [1., .2], [0., 1.], [.1, 1.], [.2, 1.]])


def test_neighbours_are_others_and_nearest_by_angle():
    lengths = torch.tensor([1, 5, 1, 9, 1, 1.])[:, None]   # which don't count
    near = neighbours(FEATURES*lengths, 2)
    assert [set(n.tolist()) for n in near] == [{1, 2}, {0, 2}, {0, 1}, {4, 5}, {3, 5}, {3, 4}]
    assert neighbours(FEATURES, 99).shape == (6, 5)


@pytest.fixture
def aggregate():
    net = NeighbourLabels(2, k=2)
    nn.init.zeros_(net.score[3].weight)   # equal scores
    return net


def test_a_face_listens_to_its_own_cluster(aggregate):
    opinions = torch.eye(2)[[0, 0, 0, 1, 1, 1]]
    torch.testing.assert_close(aggregate(FEATURES, opinions), opinions)


def test_with_equal_scores_all_others_count_alike(aggregate):
    aggregate.k, opinions = 99, torch.randn(6, 3).softmax(-1)
    torch.testing.assert_close(aggregate(FEATURES, opinions)[0], opinions[1:].mean(0))


def test_contrast_is_infonce_when_nobody_belongs_to_anybody():
    u, v = (F.normalize(torch.randn(6, 8), dim=-1) for _ in range(2))
    torch.testing.assert_close(contrast(u, v, torch.eye(6).bool()),
                               F.cross_entropy(u @ v.T/.1, torch.arange(6)))
    assert contrast(u, v, torch.ones(6, 6).bool()) < 1e-6   # no others: nothing to tell apart


def test_only_sure_faces_of_one_class_belong_together():
    t = torch.tensor([[.8, .2], [.9, .1], [.6, .4], [.1, .9]])
    expected = torch.eye(4).bool()
    expected[0, 1] = expected[1, 0] = True
    assert torch.equal(sure_pairs(t, .7), expected)


def test_lanets_own_terms_are_the_papers(images):
    lanet, targets = LANet(k=2, keep=.6, lambda_kl=2., lambda_el=.3), torch.eye(8)[:4]
    out = lanet(images)
    p, spaces = out['primary_probs'], (out['embedding'], out['landmark_features'])
    near = (lanet.labels[0](spaces[0], p) + lanet.labels[1](spaces[1], p))/2
    t = .6*targets + .4*near
    u, v = (F.normalize(f(s), dim=-1) for f, s in zip(lanet.project, spaces))
    same = sure_pairs(t, .7)
    terms = lanet.extra_loss(out, targets)
    torch.testing.assert_close(terms['kl'], 2*(t*(t.log() - p.log())).sum(-1).mean())
    torch.testing.assert_close(terms['contrast'], .3*(contrast(u, v, same) + contrast(v, u, same)))
    sum(terms.values()).backward()
    learning = *lanet.labels.parameters(), *lanet.project.parameters()
    for q in learning: assert q.grad.isfinite().all()
    assert lanet.extra_loss(lanet.eval()(images[:1]), targets[:1]) == {}   # one face, no neighbours


def test_eacs_maps_are_what_the_classifier_says(images):
    eac = EAC(drop_rate=0.).train()
    out = eac(images)
    maps, mirrored = out['maps']
    said = maps.mean((2, 3)) + eac.head[-1].bias
    torch.testing.assert_close(said, out['logits'], rtol=1e-4, atol=1e-5)
    same_places = dict(maps=(maps, maps.flip(-1)))
    assert eac.extra_loss(same_places, None)['consistency'] == 0
    expected = 5*(maps - mirrored.flip(-1)).square().mean()
    torch.testing.assert_close(eac.extra_loss(out, None)['consistency'], expected)
    expected.backward()
    assert eac.head[-1].weight.grad is None  # consistency leaves the classifier alone …
    assert all(p.grad.any() for p in eac.pyramid.parameters() if p.ndim > 1)  # … not the trunk


def test_eac_compares_nothing_in_use(images):
    out = EAC().eval()(images)
    assert 'maps' not in out and EAC().extra_loss(out, None)['consistency'] == 0
