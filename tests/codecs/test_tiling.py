import weakref
from fractions import Fraction
from itertools import pairwise

import diffusers
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from latentia import Autoencoder, AutoencoderKL
from latentia.codecs.tiling import map_tiles, ramp, tile_starts
from latentia.errors import InputError


@pytest.mark.parametrize(("size", "tile", "stride"), [(7, 8, 6), (8, 8, 6), (9, 8, 6), (64, 16, 12), (65, 16, 12)])
def test_starts_cover_everything_with_equal_tiles(size, tile, stride):
    starts = tile_starts(size, tile, stride)
    covered = {i for s in starts for i in range(s, min(s + tile, size))}
    assert covered == set(range(size))
    assert all(b - a <= stride for a, b in pairwise(starts))
    assert starts[-1] == max(0, size - tile)


def test_ramps_of_neighbours_add_up_to_one():
    falling = ramp(8, 4, torch.device("cpu"), at_start=False, at_end=True)
    rising = ramp(8, 4, torch.device("cpu"), at_start=True, at_end=False)
    assert falling[:4].tolist() == [1.0] * 4
    torch.testing.assert_close(falling[-4:] + rising[:4], torch.ones(4))
    assert falling.min() > 0


@pytest.mark.parametrize("size", [(8, 8), (20, 33), (5, 40)])
@pytest.mark.parametrize("overlap", [0, 3, 7])
def test_a_pointwise_map_is_exact(size, overlap):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(map_tiles(torch.tanh, x, 8, overlap, Fraction(1)), x.tanh())


def test_scales_of_encoders_and_decoders():
    x = torch.randn(1, 2, 24, 40)
    down = map_tiles(lambda t: F.avg_pool2d(t, 4), x, 16, 4, Fraction(1, 4), grain=4)
    torch.testing.assert_close(down, F.avg_pool2d(x, 4))
    up = map_tiles(lambda t: F.interpolate(t, scale_factor=2.0), x, 16, 4, Fraction(2))
    torch.testing.assert_close(up, F.interpolate(x, scale_factor=2.0))


@pytest.mark.parametrize(("tile", "overlap", "grain"), [(8, 8, 1), (8, -1, 1), (6, 2, 4), (8, 2, 4)])
def test_sizes_that_do_not_fit(tile, overlap, grain):
    with pytest.raises(InputError, match=f"tiles of {tile} with overlap {overlap}"):
        map_tiles(torch.tanh, torch.zeros(1, 1, 16, 16), tile, overlap, Fraction(1), grain)


def trained() -> AutoencoderKL:
    """A small autoencoder after a few steps on smooth pictures: random weights would amplify any difference."""
    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=32,
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(25):
        x = smooth_pictures(4, 32)
        loss = (model(x).sample - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def smooth_pictures(count: int, size: int) -> torch.Tensor:
    coarse = torch.rand(count, 3, size // 4, size // 4) * 2 - 1
    return F.interpolate(coarse, scale_factor=4.0, mode="bicubic").clamp(-1, 1)


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).square().mean().sqrt() / b.std()).item()


@pytest.fixture(scope="module")
def model() -> AutoencoderKL:
    return trained()


@pytest.mark.parametrize("size", [64, 96, 128])
@torch.no_grad()
def test_error_of_tiled_decoding_and_encoding_is_bounded(model, size):
    """Tiles of 32 px on larger pictures: RMS difference to one pass, in standard deviations of that, as documented."""
    model.disable_tiling()
    peer = diffusers.AutoencoderKL(**model.config).eval()
    peer.load_state_dict(model.state_dict())
    torch.manual_seed(size)
    x = smooth_pictures(2, size)
    z = model.encode(x).latent_dist.mean
    full = model.decode(z).sample
    model.enable_tiling()
    peer.enable_tiling()
    tiled, coded = model.decode(z).sample, model.encode(x).latent_dist.mean
    assert tiled.shape == full.shape
    assert coded.shape == z.shape
    assert 0 < relative_error(tiled, full) < 0.15
    assert 0 < relative_error(coded, z) < 0.1
    assert relative_error(tiled, full) < relative_error(peer.decode(z).sample, full)
    assert relative_error(coded, z) < relative_error(peer.encode(x).latent_dist.mean, z)


@torch.no_grad()
def test_overlap_is_what_hides_the_seams(model):
    """Without it the jump across the cut in the middle is larger."""
    model.disable_tiling()
    torch.manual_seed(0)
    z = model.encode(smooth_pictures(2, 64)).latent_dist.mean
    full = model.decode(z).sample
    jump = []
    for overlap in (0.25, 0.0):
        model.enable_tiling(overlap=overlap)
        y = model.decode(z).sample - full
        jump.append((y[..., 32, :] - y[..., 31, :]).abs().mean())
    model.enable_tiling(overlap=0.25)
    assert jump[0] < jump[1]


@torch.no_grad()
def test_without_statistics_of_the_map_tiles_are_exact_away_from_their_rims():
    """Attention and normalisation are all that makes tiles differ: without them only the convolutions' reach is left.

    The decoder reaches 12 latents: convolutions 1 + 4 in the middle + 4 in the first stage, and (1 + 4 + 1)/2 behind
    the doubling. Tiles 0…60 and 30…90 are wrong within 12 of their inner rims; where both are right, so is the blend.
    """
    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        mid_block_add_attention=False,
    ).double()
    for parent in list(model.decoder.modules()):
        for name, part in parent.named_children():
            if isinstance(part, nn.GroupNorm):
                setattr(parent, name, nn.Identity())
    z = torch.randn(1, 4, 60, 90, dtype=torch.double)
    full = model.decode(z).sample
    model.enable_tiling(tile_size=120, overlap=0.5)
    wrong = (model.decode(z).sample - full).abs().amax(dim=(0, 1, 2))  # of each column of pixels, two a latent
    exact = torch.zeros(180, dtype=torch.bool)
    for first, last in ((0, 30), (42, 48), (60, 90)):
        exact[2 * first : 2 * last] = True
    assert wrong[exact].max() < 1e-7 * full.abs().max()  # the windows are float32
    assert wrong[~exact].max() > 1e-4 * full.abs().max()


class LivePeak(TorchDispatchMode):
    """The most bytes that tensors made inside the block held at once."""

    def __init__(self):
        super().__init__()
        self.live, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.live:
                    self.live[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, storage._cdata)
        self.peak = max(self.peak, sum(self.live.values()))
        return result


@torch.no_grad()
def test_tiles_need_less_memory_than_the_whole(model):
    """16 times the pixels of a tile: what is beyond one tile's work is the result itself, twice, and a window."""
    z = torch.randn(1, 4, 64, 64)
    peaks = {}
    for name, latents in (("tile", z[..., :16, :16]), ("whole", z)):
        model.disable_tiling()
        with LivePeak() as watch:
            model.decode(latents)
        peaks[name] = watch.peak
    model.enable_tiling()
    with LivePeak() as watch:
        picture = model.decode(z).sample
    result = picture.numel() * picture.element_size()
    assert peaks["whole"] > 15 * peaks["tile"]
    assert watch.peak < peaks["tile"] + 2 * result
    assert watch.peak < 0.25 * peaks["whole"]


def test_switches():
    model = Autoencoder(
        block_out_channels=(4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=2,
        sample_size=(64, 32),
    ).eval()
    x = torch.randn(2, 3, 32, 48)
    assert (model.tile_sample_min_size, model.tile_latent_min_size) == (64, 16)
    whole = model(x).sample
    model.enable_tiling()
    assert torch.equal(model(x).sample, whole)  # smaller than one tile
    model.enable_tiling(tile_size=16, overlap=0.5)
    model.enable_slicing()
    assert model.tile_sample_min_size == 16
    assert model(x).sample.shape == whole.shape
    assert not torch.equal(model(x).sample, whole)
    model.disable_tiling()
    model.disable_slicing()
    assert torch.equal(model(x).sample, whole)
    with pytest.raises(InputError, match="multiple of 4"):
        model.enable_tiling(tile_size=18)
    with pytest.raises(InputError, match=r"in \[0, 1\)"):
        model.enable_tiling(overlap=1.0)
