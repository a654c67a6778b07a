"IR-50 and MobileFaceNet, and reading files that may run code."
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from grefel.base.core import GrefelError
from grefel.method.facenets import (
    Bottleneck, IR50, ir50_name, IRUnit, load_ir50, load_mobilefacenet, MobileFaceNet,
    mobilefacenet_name, published_file, read_checkpoint, read_state, to_112)
from tests.method.published import checkpoint, part


@pytest.fixture(scope='module')
def ir50_weights(): return part(checkpoint(), 'ir_back.')


@pytest.fixture(scope='module')
def mobile_weights(): return part(checkpoint(), 'face_landback.')


def test_every_second_pixel_is_kept():
    x = torch.randn(2, 3, 224, 224)
    assert torch.equal(to_112(x), x[:, :, ::2, ::2])
    small = torch.randn(1, 3, 112, 112)
    assert to_112(small) is small
    assert to_112(torch.randn(1, 3, 100, 130)).shape == (1, 3, 112, 112)


def test_a_unit_with_its_last_normalisation_at_zero_is_its_shortcut():
    unit, x = IRUnit(8, 8, stride=2).eval(), torch.randn(2, 8, 6, 6)
    nn.init.zeros_(unit.residual[4].weight)
    assert torch.equal(unit(x), x[:, :, ::2, ::2])
    assert IRUnit(8, 12, stride=2)(x).shape == (2, 12, 3, 3)


@pytest.mark.parametrize('stride', [1, 2])
def test_a_bottleneck_has_a_shortcut_where_the_map_keeps_its_size(stride):
    block, x = Bottleneck(8, 8, 16, stride).eval(), torch.randn(2, 8, 6, 6)
    nn.init.zeros_(block.project.bn.weight)
    assert torch.equal(block(x), x if stride == 1 else torch.zeros(2, 8, 3, 3))


@pytest.mark.parametrize('kind', [IR50, MobileFaceNet])
def test_the_maps_are_those_that_were_promised(kind):
    net = kind().eval()
    with torch.no_grad(): maps = net(torch.randn(2, 3, 112, 112))
    assert [tuple(m.shape) for m in maps] == [(2, c, g, g) for c, g in zip(net.channels, net.grids)]


def test_the_landmark_network_is_frozen_whatever_train_says():
    net = MobileFaceNet()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    nn.Sequential(net).train()(torch.randn(4, 3, 112, 112))
    assert not any(m.training for m in net.modules())
    assert not any(p.requires_grad for p in net.parameters())
    for k, v in net.state_dict().items(): assert torch.equal(v, before[k]), k


def test_ir50_learns():
    net = IR50()
    sum(m.square().mean() for m in net(torch.randn(2, 3, 112, 112))).backward()
    for name, p in net.named_parameters(): assert p.grad.isfinite().all() and p.grad.any(), name


class Trap:
    "Calls the operating system when it's unpickled."
    def __init__(self, folder): self.folder = folder
    def __reduce__(self): return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize('zipped', [True, False])
def test_weights_are_read_past_foreign_objects(tmp_path, zipped):
    weights = {'module.a.weight': torch.randn(3, 2), 'module.a.bias': torch.randn(3)}
    script = dict(state_dict=weights, epoch=41, best=np.float64(62.5), steps=range(9),
                  recorder=SimpleNamespace(losses=np.ones(3)))
    torch.save(script, tmp_path/'w.pth', _use_new_zipfile_serialization=zipped)
    held = read_checkpoint(tmp_path/'w.pth')
    assert held['epoch'] == 41 and not isinstance(held['recorder'], SimpleNamespace)
    state, called = read_state(tmp_path/'w.pth')
    assert list(state) == ['a.weight', 'a.bias'] and called.endswith('w.pth')
    assert torch.equal(state['a.bias'], weights['module.a.bias'])


@pytest.mark.parametrize('zipped', [True, False])
def test_no_trap_is_sprung(tmp_path, zipped):
    torch.save(dict(a=torch.ones(3), extra=Trap(tmp_path/'sprung')), tmp_path/'trap.pth',
               _use_new_zipfile_serialization=zipped)
    with pytest.raises(GrefelError, match='trap.pth: not a readable checkpoint'):
        read_checkpoint(tmp_path/'trap.pth')
    assert not (tmp_path/'sprung').exists()


@pytest.mark.parametrize('content', [b'', b'not a checkpoint'])
def test_another_file_is_refused_by_name(tmp_path, content):
    (tmp_path/'w.pth').write_bytes(content)
    for read in (read_checkpoint, load_ir50):
        with pytest.raises(GrefelError, match='w.pth: not a readable checkpoint'):
            read(tmp_path/'w.pth')
    with pytest.raises(GrefelError, match='no such file'): read_checkpoint(tmp_path/'other.pth')


def test_a_file_that_was_cut_short_is_refused(tmp_path):
    torch.save(dict(a=torch.randn(10_000)), tmp_path/'w.pth')
    (tmp_path/'w.pth').write_bytes((tmp_path/'w.pth').read_bytes()[:9000])
    with pytest.raises(GrefelError, match='not a readable'): read_checkpoint(tmp_path/'w.pth')


def test_safetensors_are_read_too(tmp_path):
    save_file(dict(a=torch.ones(3)), tmp_path/'w.safetensors')
    assert read_state(tmp_path/'w.safetensors')[0]['a'].tolist() == [1, 1, 1]


@pytest.mark.parametrize('held', [[1, 2], dict(epoch=3), dict(state_dict={})])
def test_a_checkpoint_without_tensors_is_refused(tmp_path, held):
    torch.save(held, tmp_path/'w.pth')
    with pytest.raises(GrefelError, match='holds no tensors by name'): read_state(tmp_path/'w.pth')


def test_published_weights_land_where_they_belong(ir50_weights, mobile_weights):
    for load, name, weights in ((load_ir50, ir50_name, ir50_weights),
                                (load_mobilefacenet, mobilefacenet_name, mobile_weights)):
        state = load(weights).state_dict()
        for ours, value in state.items(): assert torch.equal(value, weights[name(ours)]), ours
        left = set(weights) - {name(n) for n in state}
        assert {n.split('.')[0] for n in left} == {'output_layer'}


def test_units_may_be_counted_in_one_row(ir50_weights):
    first = {1: 0, 2: 3, 3: 7}
    def in_one_row(name):
        if not name.startswith('body'): return name
        stage, unit, rest = name.split('.', 2)
        return f'body.{first[int(stage[4])] + int(unit)}.{rest}'
    row = {in_one_row(k): v for k, v in ir50_weights.items()}
    row['body.23.res_layer.0.weight'] = torch.ones(512)   # of the fourth stage
    one, other = load_ir50(ir50_weights).state_dict(), load_ir50(row).state_dict()
    for name, value in one.items(): assert torch.equal(value, other[name]), name


def test_old_checkpoints_lack_counts(ir50_weights):
    slim = {k: v for k, v in ir50_weights.items() if not k.endswith('num_batches_tracked')}
    assert torch.equal(load_ir50(slim).stage1[0].residual[0].weight,
                       ir50_weights['body1.0.res_layer.0.weight'])


@pytest.mark.parametrize('change,says', [
    ({'body2.0.res_layer.1.weight': torch.zeros(64, 64, 3, 3)},
     r"'body2.0.res_layer.1.weight' is \(64, 64, 3, 3\), expected"),
    ({'body3.14.res_layer.0.weight': torch.zeros(256)}, "holds 'body3.14.res_layer.0.weight'")])
def test_a_wrong_file_is_refused_in_its_own_words(ir50_weights, change, says):
    with pytest.raises(GrefelError, match=says): load_ir50(ir50_weights | change)


def test_another_networks_file_is_refused(ir50_weights, mobile_weights):
    with pytest.raises(GrefelError, match='it holds no IR50'): load_ir50(mobile_weights)
    with pytest.raises(GrefelError, match='it holds no MobileFaceNet'):
        load_mobilefacenet(ir50_weights)


def test_a_published_file_is_found_in_its_folder_or_by_itself(tmp_path):
    (tmp_path/'ir50.pth').write_bytes(b'')
    assert published_file(tmp_path, 'ir50') == published_file(tmp_path/'ir50.pth', 'ir50')
    with pytest.raises(GrefelError, match='mobilefacenet needs its published weights'):
        published_file(tmp_path, 'mobilefacenet')
    with pytest.raises(GrefelError, match='name the folder that holds ir50.pth'):
        published_file(True, 'ir50')
