"Weights files: what goes in comes out, and nothing else is let in."
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import timm.data
import timm.optim
import torch
from safetensors.torch import save_file

from grefel.base.core import EXPRESSIONS, GrefelError, weights_file
from grefel.method.files import (
    _NoInit, adapt_weights, current_names, load_model, read_weights, register_with_timm, RENAMED,
    resize_table, save_model, sees_grey, to_device, transfer, weights_digest)
from grefel.method.model import class_layers, create_dummy_data, create_model, GReFELModel, SIZES


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


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('name', ['head.0.bias', 'extractor.pyramid.stem.0.1.running_var'])
def test_weights_that_are_no_numbers_are_not_written(tmp_path, name, value):
    model, path = create_model('nano'), tmp_path/'w.safetensors'
    save_model(model, path)
    good = path.read_bytes()
    with torch.no_grad(): model.state_dict()[name][1] = value
    with pytest.raises(GrefelError, match=f"w.safetensors: not written, since '{name}' holds NaN"):
        save_model(model, path)
    assert path.read_bytes() == good   # the last good ones are kept


def test_what_only_a_half_can_not_hold_is_said_so(tmp_path):
    model = create_model('nano')
    with torch.no_grad(): model.head[0].bias[0] = 1e5
    save_model(model, tmp_path/'w.safetensors')
    with pytest.raises(GrefelError, match='infinity as float16'):
        save_model(model, tmp_path/'w.safetensors', half=True)


# --- other versions, classes, sizes ---

def test_settings_of_older_files_are_read_in_todays_names(model, tmp_path, images):
    old = dict(cls=1, source=0, anchor=2, center=3, landmark=4, label_smoothing=.1)
    assert current_names(old) == {RENAMED.get(k, k): v for k, v in old.items()}
    path = written(tmp_path, model.state_dict(), config=model.config | dict(merge='ramp'))
    assert load_model(path).config == model.config | dict(merge='primary')


@pytest.fixture(scope='module')
def shipped(): return load_model('nano')


@pytest.mark.parametrize('order', [EXPRESSIONS[::-1], EXPRESSIONS[:7], EXPRESSIONS[:0:-2]])
def test_classes_are_matched_by_name(shipped, images, order):
    # fewer classes: each opinion is the old one without the rest, in the order asked for
    model, places = load_model('nano', classes=order), [EXPRESSIONS.index(c) for c in order]
    old, new = shipped(images), model(images)
    assert model.classes == order and not model.training
    torch.testing.assert_close(new['logits'], old['logits'][:, places])
    for key in ('primary_probs', 'anchor_probs', 'attention_probs'):
        p = old[key][:, places]
        torch.testing.assert_close(new[key], p/p.sum(-1, keepdim=True))
    told = model.metadata['adapted']
    assert told['new'] == [] and 'balancing.anchors.anchors' in told['reordered']


def test_the_same_classes_in_the_same_order_change_nothing(shipped):
    model = load_model('nano', classes=EXPRESSIONS, img_size=48)
    assert model.metadata['adapted']['reordered'] == model.metadata['adapted']['resized'] == []
    assert weights_digest(model) == weights_digest(shipped)


def test_an_answer_for_a_class_that_was_never_learned_is_refused():
    with pytest.raises(GrefelError, match='has not learned boredom; its classes are neutral, hap'):
        load_model('nano', classes=('happiness', 'boredom'))


@pytest.mark.parametrize('make', [transfer, lambda w, **kw: create_model(w, pretrained=True, **kw)])
def test_a_class_that_was_never_learned_gets_new_rows(shipped, make):
    model = make('nano', classes=('happiness', 'boredom', 'neutral'))
    assert model.training and model.metadata['adapted']['new'] == ['boredom']
    old, new = shipped.state_dict(), model.state_dict()
    rows = [f'{layer}.weight' for layer in class_layers(model)]
    for name in (*rows, 'balancing.anchors.anchors'):
        assert torch.equal(new[name][[0, 2]], old[name][[1, 0]]), name
        assert new[name][1].any() and not any(torch.equal(new[name][1], row) for row in old[name])
    rest = {k for k in old if new[k].shape == old[k].shape}
    assert all(torch.equal(new[k], old[k]) for k in rest) and len(rest) > 100


def test_training_starts_without_the_old_temperature(tmp_path):
    path = save_model(create_model('nano', temperature=2.5), tmp_path/'w.safetensors', grey=True,
                      temperature=1.7, accuracy=.9)
    model = transfer(path, num_classes=7)
    assert model.temperature == 1 and model.classes == EXPRESSIONS[:7]
    assert set(model.metadata) == {'grey', 'adapted'}
    assert load_model(path, img_size=64).temperature == 2.5


@pytest.mark.parametrize('size', [52, 64, 96, 112])
def test_another_input_size_is_fitted(size):
    model = load_model('nano', img_size=size)
    assert model.config['img_size'] == size and model.metadata['adapted']['resized']
    answer = model(create_dummy_data(2, size)[0])
    assert answer['final_probs'].shape == (2, 8)
    assert read_weights(weights_file('nano'))[1]['img_size'] == 48


def test_where_landmarks_are_read_off_another_map_they_are_learned_anew():
    model = transfer('nano', img_size=32)
    assert model.metadata['adapted']['new'] == ['landmarks']
    assert model(create_dummy_data(2, 32)[0])['landmarks'].shape == (2, 68, 2)
    with pytest.raises(GrefelError, match='has not learned landmarks'):
        load_model('nano', img_size=32)


def test_a_table_over_a_grid_is_drawn_over_another():
    x = torch.linspace(0, 1, 8)
    plane = (x[:, None] + 2*x).reshape(1, 64, 1)
    assert torch.equal(resize_table(plane, 64), plane)
    bigger = resize_table(plane, 256).view(16, 16)
    assert (bigger.diff(dim=0) >= -1e-3).all() and (bigger.diff(dim=1) >= -1e-3).all()
    torch.testing.assert_close(bigger.mean(), plane.mean(), atol=1e-2, rtol=0)
    flat = resize_table(torch.full((3, 9, 4), .7), 25)
    torch.testing.assert_close(flat, torch.full((3, 25, 4), .7))


def test_a_landmark_head_says_the_same_on_a_map_of_another_size():
    # the same value in every cell: the sum over cells must not grow with their number
    state, model = load_model('nano').state_dict(), create_model('nano', img_size=64)
    fitting, told = adapt_weights(state, EXPRESSIONS, model)
    name = 'extractor.landmark_head.shift.weight'
    assert name in told['resized'] and fitting[name].shape == (136, 12*64)
    sums = [w.view(136, 12, -1).sum(-1) for w in (state[name], fitting[name])]
    torch.testing.assert_close(*sums, atol=.02, rtol=.05)


@pytest.mark.parametrize('change', [dict(embed_dim=64), dict(num_anchors_per_class=5),
                                    dict(widths=[48, 80, 112, 96]), dict(sources=['anchor'])])
def test_weights_of_another_architecture_stay_refused(change):
    with pytest.raises(GrefelError, match='safetensors: '): transfer('nano', **change)


@pytest.mark.parametrize('name', ['plain', 'vgg13', 'resnet18', 'mad'])
def test_baselines_are_adapted_too(tmp_path, name):
    model = create_model(name)
    path = save_model(model, tmp_path/'w.safetensors')
    start = transfer(path, classes=('happiness', 'boredom'))
    assert type(start) is type(model) and start.training
    assert start.metadata['adapted']['new'] == ['boredom']
    assert transfer(path).metadata['adapted']['new'] == []
    images = create_dummy_data(2, model.config['img_size'])[0]
    new = load_model(path, classes=EXPRESSIONS[::-1])
    torch.testing.assert_close(new(images)['logits'].flip(1), model.eval()(images)['logits'])


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


# --- timm ---

@pytest.fixture(scope='module', autouse=True)
def registered(): register_with_timm()


def test_timm_makes_what_create_model_makes(images):
    def made(make, name):
        torch.manual_seed(3)
        return make(name, num_classes=5, drop_rate=.4, merge='primary').eval()
    theirs, ours = made(timm.create_model, 'grefel_nano'), made(create_model, 'nano')
    assert theirs.config == ours.config
    assert torch.equal(theirs(images)['final_probs'], ours(images)['final_probs'])


@pytest.mark.parametrize('size', ['nano', 'small'])
def test_timms_pretrained_weights_are_the_shipped_ones(images, size):
    theirs = timm.create_model(f'grefel_{size}', pretrained=True).eval()
    assert torch.equal(theirs(images)['final_probs'], load_model(size)(images)['final_probs'])


def test_timms_arguments_arrive_beside_pretrained_weights(images, shipped):
    model = timm.create_model('grefel_nano', pretrained=True, num_classes=3, drop_rate=.5).eval()
    assert model.classes == EXPRESSIONS[:3] and model.head[2].p == .5
    torch.testing.assert_close(model(images)['logits'], shipped(images)['logits'][:, :3])


def test_timm_lists_every_size_and_which_have_weights():
    register_with_timm()   # twice does no harm
    ours = set(timm.list_models(module='files'))
    assert set(SIZES) <= ours
    trained = {m for m in timm.list_models(pretrained=True) if m in ours}
    assert trained == {'grefel_nano', 'grefel_small'}


@pytest.mark.parametrize('kw', [{}, dict(pretrained=True), dict(img_size=64), dict(
    mean=(.5,)*3, std=(.2,)*3)])
def test_timm_knows_what_images_must_look_like(kw):
    model = timm.create_model('grefel_nano', **kw)
    found, side = timm.data.resolve_model_data_config(model), kw.get('img_size', 48)
    assert found['input_size'] == (3, side, side) and found['crop_pct'] == 1
    assert found['mean'] == tuple(model.config['mean'])
    assert found['std'] == tuple(model.config['std'])
    assert timm.get_pretrained_cfg('grefel_nano').input_size == (3, 48, 48)


@pytest.mark.parametrize('kw', [dict(features_only=True), dict(in_chans=1), dict(num_classes=0)])
def test_what_timm_has_and_we_have_not_is_said_in_one_line(kw):
    (name, _), = kw.items()
    with pytest.raises(GrefelError, match=f'grefel_nano: .*{name}'):
        timm.create_model('grefel_nano', **kw)


@pytest.mark.parametrize('name', ['grefel_nano', 'poster_v2'])
def test_timms_optimisers_spare_what_should_not_decay(name):
    model = timm.create_model(name)
    groups = timm.optim.param_groups_weight_decay(
        model, .05, no_weight_decay_list=model.no_weight_decay())
    decays = {id(p): g['weight_decay'] for g in groups for p in g['params']}
    for n, p in model.named_parameters():
        if p.requires_grad: assert (decays[id(p)] == 0) == (n in model.no_weight_decay()), n


@pytest.mark.parametrize('name,layers', [('grefel_nano', 4), ('poster_v2', 5), ('grefel_base', 9)])
def test_timms_rates_fall_from_the_head_to_the_stem(name, layers):
    model = timm.create_model(name)
    groups = timm.optim.param_groups_layer_decay(model, .05, model.no_weight_decay(),
                                                 layer_decay=.5)
    rate = {id(p): g['lr_scale'] for g in groups for p in g['params']}
    places = dict(stem=r'extractor\.(pyramid|net\.image)', cross=r'extractor\.(net\.)?cross',
                  blocks=r'extractor\.(fusion|net)\.blocks', head='head')
    where = {part: [rate[id(p)] for n, p in model.named_parameters()
                    if p.requires_grad and re.match(place, n)] for part, place in places.items()}
    assert max(where['stem']) < min(where['cross'])
    assert max(where['cross']) <= min(where['blocks']) < 1
    assert max(where['blocks']) <= min(where['head']) == 1
    assert len({*rate.values()}) == layers


# --- Hugging Face's mixin ---

def test_a_folder_of_the_hubs_layout_comes_back(model, images, tmp_path, monkeypatch):
    def online(*args, **kw): raise AssertionError('nothing is fetched or sent unasked')
    monkeypatch.setattr('socket.getaddrinfo', online)
    model.save_pretrained(tmp_path/'mine')
    assert sorted(p.name for p in (tmp_path/'mine').iterdir()) == [
        'README.md', 'config.json', 'model.safetensors']   # and no pickle
    assert json.loads((tmp_path/'mine'/'config.json').read_text()) == model.config
    again = GReFELModel.from_pretrained(tmp_path/'mine')
    assert again.config == model.config and not again.training
    assert torch.equal(again(images)['final_probs'], model(images)['final_probs'])


def test_a_folder_of_the_hub_is_adapted_as_any_weights(model, tmp_path):
    model.save_pretrained(tmp_path/'mine')
    again = GReFELModel.from_pretrained(tmp_path/'mine', classes=EXPRESSIONS[:3], num_classes=3)
    assert again.classes == EXPRESSIONS[:3]


def test_a_pickle_in_such_a_folder_is_not_read(tmp_path):
    torch.save({}, tmp_path/'pytorch_model.bin')
    with pytest.raises(GrefelError, match='model.safetensors: no such weights file'):
        GReFELModel.from_pretrained(tmp_path)
