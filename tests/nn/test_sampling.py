import pytest
import torch
from torch.nn import functional as F

from latentia.nn.sampling import Downsample, Upsample, downsample_mean, upsample_nearest


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 4, 5), (2, 8, 16, 16)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_doubling_is_nearest_interpolation(shape, memory_format):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(memory_format=memory_format)
    assert torch.equal(upsample_nearest(x), F.interpolate(x, scale_factor=2.0, mode="nearest"))


def test_doubling_of_a_large_map_and_of_half_precision():
    x = torch.randn(1, 3, 600, 600)
    assert torch.equal(upsample_nearest(x)[..., ::2, 1::2], x)
    half = x[..., :8, :8].contiguous().to(torch.bfloat16)
    assert upsample_nearest(half).dtype == torch.bfloat16
    assert torch.equal(upsample_nearest(half)[..., 1::2, ::2], half)


def test_doubling_has_first_and_second_derivatives():
    x = torch.randn(2, 2, 3, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(upsample_nearest, x)
    assert torch.autograd.gradgradcheck(lambda y: upsample_nearest(y).square(), x)


def test_doubling_under_vmap():
    x = torch.randn(3, 2, 4, 2, 2)
    assert torch.equal(torch.vmap(upsample_nearest)(x), torch.stack([upsample_nearest(row) for row in x]))


def test_mean_undoes_doubling():
    x = torch.randn(2, 3, 4, 6)
    torch.testing.assert_close(downsample_mean(upsample_nearest(x)), x)


@pytest.mark.parametrize(("padding", "first", "last"), [(1, 4.0, 9.0), (0, 9.0, 4.0)])
def test_padding_convention(padding, first, last):
    """A kernel of ones on a map of ones counts the pixels below it: the corner that sees padding counts 4."""
    layer = Downsample(1, padding)
    with torch.no_grad():
        layer.conv.weight.fill_(1.0)
        layer.conv.bias.zero_()
        out = layer(torch.ones(1, 1, 8, 8))
    assert out.shape == (1, 1, 4, 4)
    assert out[0, 0, 0, 0] == first
    assert out[0, 0, -1, -1] == last


def test_upsample_is_doubling_then_convolution():
    torch.manual_seed(0)
    layer = Upsample(2)
    x = torch.randn(1, 2, 3, 3)
    torch.testing.assert_close(layer(x), layer.conv(F.interpolate(x, scale_factor=2.0)))
