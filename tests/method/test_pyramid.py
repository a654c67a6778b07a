"Image pyramids: all keep one promise, and each is made by name."
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from grefel.method.pyramid import ConvPyramid, image_pyramid, ResBlock, TimmPyramid


@pytest.mark.parametrize('name,size,grids', [
    ('conv', 48, [12, 6, 3]), ('conv', 50, [13, 7, 4]), ('conv', 64, [16, 8, 4]),
    ('patch', 224, [8, 16, 32]), ('ir50', 112, [28, 14, 7]),
    ('timm:mobilenetv3_small_050', 96, [12, 6, 3])])
def test_the_maps_are_those_that_were_promised(name, size, grids):
    pyramid = image_pyramid(name, size).eval()
    with torch.no_grad(): maps = pyramid(torch.randn(2, 3, size, size))
    shapes = [(2, c, g, g) for c, g in zip(pyramid.channels, pyramid.grids)]
    assert [tuple(m.shape) for m in maps] == shapes and pyramid.grids == grids


def test_a_block_with_its_last_normalisation_at_zero_is_its_shortcut():
    block, x = ResBlock(8, 8).eval(), torch.randn(2, 8, 6, 6).relu()
    assert not torch.allclose(block(x), x, atol=.1)
    nn.init.zeros_(block.conv2[1].weight)
    assert torch.equal(block(x), x)


def test_a_block_drops_its_convolutions_and_not_its_shortcut():
    block, x = ResBlock(8, 8).train(), torch.randn(40, 8, 6, 6).relu()
    block.drop_path.rate = .5
    gone = (block(x) == x).flatten(1).all(1).sum()
    assert 8 < gone < 32


def test_depths_are_blocks_a_stage():
    stages = ConvPyramid(48, (8, 12, 16, 16), (1, 3, 2, 0)).stages
    assert [sum(isinstance(m, ResBlock) for m in s.modules()) for s in stages] == [1, 3, 2, 0]


def test_widths_depths_and_patches_reach_the_pyramid_that_has_them():
    conv = image_pyramid('conv', 48, [8, 12, 16, 20], [1, 1, 1, 1])
    assert conv.channels == [12, 16, 20]
    assert sum(isinstance(m, ResBlock) for m in conv.modules()) == 4
    assert image_pyramid('patch', 56, [9, 6, 3], patch_sizes=(14, 7, 4)).grids == [4, 8, 14]


@pytest.mark.parametrize('asked', [True, False])
def test_pretrained_weights_are_asked_of_timm(monkeypatch, asked):
    seen, create = {}, timm.create_model   # nothing is fetched here
    monkeypatch.setattr(timm, 'create_model', lambda name, **kw: seen.update(kw) or create(
        name, **(kw | dict(pretrained=False))))
    image_pyramid('timm:mobilenetv3_small_050', 64, pretrained=asked)
    assert seen['pretrained'] is asked


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'swin_tiny_patch4_window7_224'])
def test_networks_with_tables_for_one_size_are_told_it(monkeypatch, name):
    seen = {}
    class Found(Exception): pass
    def create(name, **kw):
        seen.update(kw)
        raise Found
    monkeypatch.setattr(timm, 'create_model', create)
    with pytest.raises(Found): TimmPyramid(name, 96)
    assert seen['img_size'] == 96


def test_channels_come_first_whatever_timm_gives():
    class Net(nn.Module):
        output_fmt = 'NHWC'
        def forward(self, x): return [torch.zeros(2, 12, 12, 5)]*3
    pyramid = TimmPyramid.__new__(TimmPyramid)
    nn.Module.__init__(pyramid)
    pyramid.net = Net()
    assert pyramid(None)[0].shape == (2, 5, 12, 12)


@pytest.mark.parametrize('call,says', [
    (lambda: image_pyramid('convolution'), 'there are'),
    (lambda: image_pyramid('conv', pretrained=True), 'no published weights'),
    (lambda: image_pyramid('patch', pretrained=True), 'no published weights'),
    (lambda: ConvPyramid(48, (1, 2, 3)), 'four numbers')])
def test_a_slip_is_named(call, says):
    with pytest.raises(ValueError, match=says): call()


def test_nothing_above_is_imported_before_it_is_asked_for():
    # timm takes seconds; the published networks are an appendix
    code = ("import sys; import grefel.method.model; "
            "print([m for m in ('timm', 'fastai', 'pandas', 'matplotlib', 'grefel.method.poster', "
            "'grefel.method.baselines') if m in sys.modules])")
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == '[]'
