"""A codec in half precision decodes what it can, and the rest in float32, without ever being changed."""

import gc
import logging
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from latentia import AutoencoderKL
from latentia.errors import NonFiniteError
from latentia.pipelines import precision
from latentia.pipelines.precision import decode_safely, encode_safely, forget_float32, run_safely

SCALE = 0.5


def tiny_vae(**arguments) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=2,
        sample_size=16,
        **{"force_upcast": False, "scaling_factor": SCALE, **arguments},
    ).eval()


def overflowing(**arguments) -> AutoencoderKL:
    """Its first decoder layer answers latents beyond about 2 with more than 65504, float16's largest number."""
    vae = tiny_vae(**arguments)
    with torch.no_grad():
        vae.decoder.conv_in.weight.zero_()
        vae.decoder.conv_in.weight[:, 0, 1, 1] = 2.0**14
        vae.decoder.conv_in.bias.zero_()
        vae.decoder.conv_in.weight.mul_(torch.linspace(0.5, 1, 8).view(-1, 1, 1, 1))
        vae.post_quant_conv = None
    return vae


def latents(count=3, loud=()) -> torch.Tensor:
    """Scaled latents, quiet ones of about 0.1 and loud ones of up to 4."""
    z = torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(5)).clamp(-1, 1) * 0.1
    z[list(loud)] *= 40
    return z


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def spying(monkeypatch):
    """The dtypes and batch sizes in which codecs decode."""
    seen = []
    real = AutoencoderKL.from_latents

    def spy(self, z, generator=None):
        seen.append((z.dtype, len(z)))
        return real(self, z, generator)

    monkeypatch.setattr(AutoencoderKL, "from_latents", spy)
    return seen


def test_only_the_samples_that_overflow_are_decoded_in_float32(monkeypatch, caplog):
    z = latents(4, loud=(1, 3))
    full = overflowing().from_latents(z)
    vae = overflowing().half()
    alone = vae.from_latents(z.half())
    assert alone[[0, 2]].isfinite().all()
    assert not alone[1].isfinite().all()
    seen = spying(monkeypatch)
    with caplog.at_level(logging.WARNING):
        x = decode_safely(vae, z)
    assert seen == [(torch.float16, 4), (torch.float32, 2)]
    assert caplog.messages == ["vae overflows torch.float16 in 2 of 4 samples: these in float32"]
    assert x.dtype == torch.float32
    assert relative(x[[1, 3]], full[[1, 3]]) < 1e-3
    assert torch.equal(x[[0, 2]], alone[[0, 2]].float())
    assert {p.dtype for p in vae.parameters()} == {torch.float16}
    # Picture 3 is the same alone as beside the others.
    for i in range(4):
        torch.testing.assert_close(decode_safely(vae, z[i : i + 1]), x[i : i + 1], atol=2e-3, rtol=1e-3)


def test_force_upcast_means_float32_at_once_in_float16_alone(monkeypatch):
    z = latents(2)
    seen = spying(monkeypatch)
    full = tiny_vae(force_upcast=True).from_latents(z)
    assert relative(decode_safely(tiny_vae(force_upcast=True).half(), z), full) < 5e-3  # its weights are rounded
    decode_safely(tiny_vae(force_upcast=True).bfloat16(), z)
    assert torch.equal(decode_safely(tiny_vae(force_upcast=True), z), full)
    decode_safely(tiny_vae(force_upcast=True).double(), z)
    assert [dtype for dtype, _ in seen] == [
        torch.float32,
        torch.float32,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    ]


def test_latents_are_not_rounded_on_their_way_to_float32():
    """Weights that half precision holds exactly, latents that it does not."""
    vae = tiny_vae(force_upcast=True).half()
    z = latents(1)
    expected = tiny_vae(force_upcast=True).half().float().from_latents(z)
    assert torch.equal(decode_safely(vae, z), expected)


@pytest.mark.parametrize("kind", ["each", "one"])
def test_encoding_draws_the_same_noise_as_in_float32(kind):
    vae = tiny_vae()
    with torch.no_grad():
        vae.encoder.conv_in.weight.mul_(1e5)
    x = F.interpolate(torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(1)), scale_factor=4.0)
    x[0] = 0

    def generator():
        each = [torch.Generator().manual_seed(i) for i in range(3)]
        return each if kind == "each" else each[0]

    expected = vae.to_latents(x, generator())
    half = tiny_vae()
    half.load_state_dict(vae.state_dict())
    half.half()
    assert not half.to_latents(x.half(), generator()).isfinite().all()
    z = encode_safely(half, x, generator())
    assert z.dtype == torch.float32
    assert relative(z, expected) < 2e-3


def test_tiling_and_slicing_go_with_the_float32_copy():
    z = latents(2, loud=(0, 1))
    vae = overflowing(force_upcast=True).half()
    reference = overflowing(force_upcast=True).half().float()
    assert relative(decode_safely(vae, z), reference.from_latents(z)) == 0
    for model in (vae, reference):
        model.enable_tiling(tile_size=8, overlap=0.5)
        model.enable_slicing()
    tiled = reference.from_latents(z)
    assert torch.equal(decode_safely(vae, z), tiled)
    for model in (vae, reference):
        model.disable_tiling()
    assert not torch.equal(decode_safely(vae, z), tiled)


def test_the_copy_is_made_once_and_again_after_a_change(monkeypatch):
    made = []
    real = precision.copy.deepcopy
    monkeypatch.setattr(precision.copy, "deepcopy", lambda *given: made.append(1) or real(*given))
    vae, z = tiny_vae(force_upcast=True).half(), latents(1)
    first = decode_safely(vae, z)
    assert torch.equal(decode_safely(vae, z), first)
    assert len(made) == 1
    with torch.no_grad():
        vae.decoder.conv_out.bias.add_(1.0)
    torch.testing.assert_close(decode_safely(vae, z), first + 1.0, atol=2e-3, rtol=0)
    assert len(made) == 2
    vae.set_scale(0.0, 0.25)
    assert not torch.equal(decode_safely(vae, z), first + 1.0)
    assert len(made) == 3
    vae.decoder.conv_out.weight.data = torch.zeros_like(vae.decoder.conv_out.weight)
    assert float(decode_safely(vae, z).std(dim=(2, 3)).max()) < 1e-6
    forget_float32(vae)
    decode_safely(vae, z)
    assert len(made) == 5
    forget_float32(nn.Linear(1, 1))


def test_the_copy_lives_no_longer_than_its_codec():
    vae = tiny_vae(force_upcast=True).half()
    decode_safely(vae, latents(1))
    kept = weakref.ref(precision._twins[vae].network)
    assert kept() is not None
    del vae
    gc.collect()
    assert kept() is None


def test_threads_share_one_copy_and_get_the_same_pictures(monkeypatch):
    made = []
    real = precision.copy.deepcopy
    monkeypatch.setattr(precision.copy, "deepcopy", lambda *given: made.append(1) or real(*given))
    vae = overflowing().half()
    rows = [latents(2, loud=(i % 2,)) for i in range(4)]
    expected = [overflowing().half().float().from_latents(z)[i % 2] for i, z in enumerate(rows)]
    results = [None] * 4

    def work(i):
        results[i] = [decode_safely(vae, rows[i]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    for i, pictures in enumerate(results):
        assert all(torch.equal(picture, pictures[0]) for picture in pictures)
        torch.testing.assert_close(pictures[0][i % 2], expected[i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_float32_cannot_hold_either_names_the_module(dtype):
    vae = tiny_vae().to(dtype)
    with torch.no_grad():
        vae.decoder.up_blocks[0].resnets[1].conv2.bias.fill_(float("nan"))
    with pytest.raises(
        NonFiniteError, match=r"from vae in float32, first in vae\.decoder\.up_blocks\.0\.resnets\.1\.conv2:"
    ):
        decode_safely(vae, latents(1))


def test_any_other_way_through_a_codec():
    vae, x = tiny_vae(force_upcast=True).half(), torch.rand(2, 3, 16, 16)
    mode = run_safely(vae, lambda network, part, _: network.encode(part).latent_dist.mode(), x)
    assert torch.equal(mode, tiny_vae().half().float().encode(x).latent_dist.mode())


def test_bad_inputs_and_names_are_told():
    with pytest.raises(NonFiniteError, match="from first_stage in float32, its input was not finite"):
        decode_safely(tiny_vae(), latents(1) * float("nan"), name="first_stage")
    vae = tiny_vae()
    vae.encoder.conv_in.weight.data.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match=r"first in vae\.encoder\.conv_in:"):
        encode_safely(vae, torch.ones(1, 3, 16, 16))
