"Patches: a convolution that equals the flattened product, and the pyramid of three."
import pytest
import torch

from grefel.method.patch import PatchEmbed, PatchPyramid


def test_the_convolution_is_the_product_of_flattened_patches():
    images, embed = torch.randn(2, 3, 8, 8), PatchEmbed(8, 4, embed_dim=5)
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3)
    product = patches @ embed.proj.weight.flatten(1).T + embed.proj.bias   # (B, h, w, C)
    torch.testing.assert_close(embed(images).permute(0, 2, 3, 1), product)


def test_a_patch_that_does_not_divide_the_image_is_refused():
    with pytest.raises(ValueError, match='does not divide'): PatchEmbed(50, 7)


def test_the_pyramid_gives_the_maps_it_promises():
    pyramid = PatchPyramid(56, (28, 14, 7), (24, 16, 8))
    assert (pyramid.channels, pyramid.grids) == ([24, 16, 8], [2, 4, 8])
    maps = pyramid(torch.randn(2, 3, 56, 56))
    assert [tuple(m.shape) for m in maps] == [(2, 24, 2, 2), (2, 16, 4, 4), (2, 8, 8, 8)]


def test_patches_and_widths_must_match():
    with pytest.raises(ValueError, match='differ in length'):
        PatchPyramid(56, (28, 14), (24, 16, 8))
