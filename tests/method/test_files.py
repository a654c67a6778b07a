"Weights files: what goes in comes out, and nothing else is let in."
import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from grefel.base.core import EXPRESSIONS, GrefelError
from grefel.method.files import (
    _NoInit, load_model, read_weights, register_with_timm, save_model, sees_grey, to_device,
    weights_digest)
from grefel.method.model import create_dummy_data, create_model, GReFELModel


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return create_model('nano').eval()


@pytest.fixture(scope='module')
def images(): return create_dummy_data(4, 48)[0]


def written(folder, tensors, **config):
    "A file with these tensors and this config."
    header = {'grefel': json.dumps(config)} if config else None
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder/'w.safetensors', header)
    return folder/'w.safetensors'


def test_a_saved_model_answers_the_same(model, images, tmp_path):
    save_model(model, tmp_path/'run'/'weights.safetensors', data='none', temperature=1.3)
    again = load_model(tmp_path/'run')                       # a folder is enough
    assert again.classes == EXPRESSIONS and not again.training
    assert again.metadata == dict(data='none', temperature=1.3)
    assert again.config == model.config
    state = again.state_dict()
    for name, value in model.state_dict().items(): assert torch.equal(value, state[name]), name
    assert torch.equal(model(images)['final_probs'], again(images)['final_probs'])


def test_the_models_own_metadata_travel_too(tmp_path):
    model = create_model('nano')
    model.metadata = dict(grey=True, data='old')
    again = load_model(save_model(model, tmp_path/'w.safetensors', data='new'))
    assert again.metadata == dict(grey=True, data='new')


def test_half_the_space_costs_little(model, images, tmp_path):
    whole, half = (save_model(model, tmp_path/f'{h}.safetensors', half=h) for h in (False, True))
    assert half.stat().st_size < .6*whole.stat().st_size
    again = load_model(half)
    assert all(v.dtype == torch.float32 for v in again.parameters())
    assert (model(images)['final_probs'] - again(images)['final_probs']).abs().max() < 2e-3


def test_counts_are_not_halved(model, tmp_path):
    state, _, _ = read_weights(save_model(model, tmp_path/'w.safetensors', half=True))
    counts = [v for k, v in state.items() if k.endswith('num_batches_tracked')]
    assert counts and all(v.dtype == torch.int64 for v in counts)


@pytest.mark.parametrize('content', [b'not a safetensors file', b''])
def test_another_file_is_refused_by_name(tmp_path, content):
    (tmp_path/'noise.safetensors').write_bytes(content)
    with pytest.raises(GrefelError, match='noise.safetensors: not a readable safetensors file'):
        load_model(tmp_path/'noise.safetensors')


def test_a_file_that_was_cut_short_is_refused(model, tmp_path):
    path = save_model(model, tmp_path/'w.safetensors')
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(GrefelError, match='w.safetensors: not a readable'): load_model(path)


@pytest.mark.parametrize('header', [None, {'grefel': 'no json'}, *(
    {'grefel': json.dumps(h)} for h in ({}, 3, dict(config=3), dict(config=[]), dict(config='x'),
                                        dict(config=None)))])
def test_a_file_without_a_config_holds_no_model(tmp_path, header):
    save_file({'a': torch.zeros(3)}, tmp_path/'w.safetensors', header)
    with pytest.raises(GrefelError, match='holds no grefel model'):
        load_model(tmp_path/'w.safetensors')


@pytest.mark.parametrize('odd', [
    dict(depth=-1), dict(embed_dim='x'), dict(pyramid=1), dict(name=[]), dict(std=0),
    dict(mean=None), dict(mean=[0.5]), dict(num_anchors_per_class=-1),
    dict(drop_rate=float('nan')), dict(classes=3), dict(no_such_argument=1)])
def test_a_config_that_nobody_could_have_meant_is_refused(model, tmp_path, odd):
    path = written(tmp_path, model.state_dict(), config=model.config | odd)
    with pytest.raises(GrefelError, match='w.safetensors: '): load_model(path)


@pytest.mark.parametrize('odd', [
    dict(depth=500), dict(depths=[500, 1, 1, 1]), dict(num_heads=10**6), dict(embed_dim=10**5),
    dict(num_classes=-10**5)])
def test_no_number_exceeds_what_the_file_could_hold(model, tmp_path, odd):
    # before anything is built: a range of two thousand million layers would fill the memory
    path = written(tmp_path, model.state_dict(), config=model.config | odd)
    (key, value), = odd.items()
    value = value[0] if isinstance(value, list) else value
    with pytest.raises(GrefelError, match=f'{key} is {value}'): load_model(path)


def test_a_model_much_larger_than_its_file_is_not_built(model, tmp_path):
    small = {k: torch.zeros(1) for k in 'abc'}
    path = written(tmp_path, small, config=model.config | dict(embed_dim=4000))
    with pytest.raises(GrefelError, match='much larger than the file'): load_model(path)


def test_room_is_counted_while_a_model_is_built():
    with _NoInit(2**22): assert create_model('nano').head[0].weight.shape == (96, 96)
    with pytest.raises(ValueError, match='much larger'), _NoInit(1000): create_model('nano')


def test_a_loaded_model_gets_no_initial_weights(monkeypatch, model, tmp_path):
    # they would be replaced, and cost more time than all the rest
    path, made = save_model(model, tmp_path/'w.safetensors'), []
    plain = torch.Tensor.uniform_
    def counted(t, *args, **kw):
        made.append(1)
        return plain(t, *args, **kw)
    monkeypatch.setattr(torch.Tensor, 'uniform_', counted)
    load_model(path)
    assert not made
    create_model('nano')
    assert made


@pytest.mark.parametrize('change,says', [
    (lambda s: s.pop('head.0.bias'), "lacks 'head.0.bias'"),
    (lambda s: s.update({'head.0.bias': torch.zeros(5)}),
     r"'head.0.bias' is \(5,\), expected \(96,\)"),
    (lambda s: s.update(extra=torch.zeros(5)), "holds 'extra', which the model has not")])
def test_tensors_that_do_not_fit_are_named(model, tmp_path, change, says):
    state = dict(model.state_dict())
    change(state)
    with pytest.raises(GrefelError, match=f'w.safetensors: .*{says}'):
        load_model(written(tmp_path, state, config=model.config))


def test_the_class_order_can_be_insisted_on(model, tmp_path):
    path = save_model(model, tmp_path/'w.safetensors')
    assert load_model(path, classes=EXPRESSIONS).classes == EXPRESSIONS
    with pytest.raises(GrefelError, match='its classes are neutral, .*; expected happiness'):
        load_model(path, classes=EXPRESSIONS[1:])


def test_nothing_is_fetched_for_weights_at_hand(monkeypatch, tmp_path):
    # the model was started from published weights once; its file replaces them
    asked, create = [], timm.create_model
    def noted(name, **kw):
        asked.append(kw['pretrained'])
        return create(name, **kw | dict(pretrained=False))
    monkeypatch.setattr(timm, 'create_model', noted)
    model = GReFELModel(img_size=64, pyramid='timm:mobilenetv3_small_050', embed_dim=16,
                        num_heads=2, depth=1, pretrained=True)
    assert model.config['pretrained'] is True
    load_model(save_model(model, tmp_path/'w.safetensors'))
    assert asked == [True, False]


def test_a_device_that_is_not_here_is_named(model):
    with pytest.raises(GrefelError, match='device nowhere: not here'): to_device(model, 'nowhere')


def test_a_full_disk_is_said_in_one_line(model):
    if not Path('/dev/full').exists(): pytest.skip('this system has no /dev/full')
    with pytest.raises(GrefelError, match='No space left'): save_model(model, '/dev/full')


def test_loading_leaves_torchs_compiler_alone():
    # it takes seconds to import
    code = ("import sys; from grefel.method.files import load_model; load_model(); "
            "print('torch._dynamo' in sys.modules)")
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == 'False'


@pytest.mark.parametrize('metadata,grey', [(dict(grey=True), True), (dict(grey=False), False),
                                           ({}, False), (None, False)])
def test_a_model_says_whether_it_wants_grey_faces(metadata, grey):
    assert sees_grey(metadata) is grey


def test_the_shipped_weights_saw_grey_faces(): assert sees_grey(load_model().metadata)


def test_a_digest_belongs_to_the_weights(model):
    again = GReFELModel(**model.config)
    again.load_state_dict(model.state_dict())
    assert weights_digest(model) == weights_digest(again) and len(weights_digest(model)) == 16
    with torch.no_grad(): again.head[0].bias[3] += 1e-3
    assert weights_digest(model) != weights_digest(again)


@pytest.fixture
def registered(): register_with_timm()


def test_timm_makes_what_create_model_makes(registered, images):
    def made(make, name):
        torch.manual_seed(3)
        return make(name, num_classes=5, drop_rate=.4, merge='ramp').eval()
    theirs, ours = made(timm.create_model, 'grefel_nano'), made(create_model, 'nano')
    assert theirs.config == ours.config
    assert torch.equal(theirs(images)['final_probs'], ours(images)['final_probs'])


@pytest.mark.parametrize('size', ['nano', 'small'])
def test_timms_pretrained_weights_are_the_shipped_ones(registered, images, size):
    theirs = timm.create_model(f'grefel_{size}', pretrained=True)
    assert torch.equal(theirs(images)['final_probs'], load_model(size)(images)['final_probs'])


def test_timm_lists_every_size(registered):
    register_with_timm()   # twice does no harm
    assert {'grefel_nano', 'grefel_small', 'grefel_base', 'grefel_paper', 'poster_v2'} <= set(
        timm.list_models(module='files'))
