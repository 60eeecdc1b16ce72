import hashlib
import math

import diffusers
import pytest
import torch

from latentia import VQModel
from latentia.core.protocols import Codec, TokenCodec
from latentia.errors import ConfigError, InputError, UnknownChoiceError

TINY = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "norm_num_groups": 4,
    "latent_channels": 2,
    "sample_size": 16,
    "num_vq_embeddings": 13,
}
GRID = {
    "plain": {},
    "codes of another width": {"vq_embed_dim": 5},
    "grey, two layers": {"in_channels": 1, "out_channels": 1, "layers_per_block": 2, "num_vq_embeddings": 40},
    "attention": {
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    },
    "no middle attention": {"mid_block_add_attention": False},
    "relu": {"act_fn": "relu"},
    "three stages, one code": {
        "block_out_channels": (4, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "num_vq_embeddings": 1,
    },
    "lookup": {"lookup_from_codebook": True, "vq_embed_dim": 3},
}
F4 = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (128, 256, 512),
    "layers_per_block": 2,
    "num_vq_embeddings": 8192,
}


def pictures(channels: int = 3, count: int = 2, height: int = 8, width: int = 16) -> torch.Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(3))


def spread_codes(model: VQModel) -> None:
    """Codes about as far apart as the latents, so that many are used."""
    x = pictures(model.config.in_channels, 8)
    with torch.no_grad():
        z = model.encode(x.to(model.dtype)).latents.movedim(1, -1).flatten(0, -2)
        codes = model.quantize.embedding.weight
        codes.copy_(z[torch.randperm(len(z), generator=torch.Generator().manual_seed(0))[: len(codes)]])


@pytest.fixture
def model() -> VQModel:
    torch.manual_seed(0)
    found = VQModel(**TINY).eval()
    spread_codes(found)
    return found


def pair(config: dict, **ours: object) -> tuple[VQModel, diffusers.VQModel]:
    torch.manual_seed(0)
    mine = VQModel(**config, **ours).double()
    spread_codes(mine)
    theirs = diffusers.VQModel(**config).double()
    assert list(mine.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(mine.state_dict())
    return mine, theirs


@pytest.mark.parametrize("name", GRID)
def test_equals_the_peer_on_the_same_weights(name):
    ours, theirs = pair({**TINY, **GRID[name]}, legacy_beta=True)
    x = pictures(ours.config.in_channels).double()
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            h, peer_h = ours.encode(x).latents, theirs.encode(x).latents
            torch.testing.assert_close(h, peer_h, atol=1e-10, rtol=1e-10)
            for a, b in ((ours.decode(h), theirs.decode(h)), (ours(x), theirs(x))):
                torch.testing.assert_close(a.sample, b.sample, atol=1e-10, rtol=1e-10)
                torch.testing.assert_close(a.commit_loss, b.commit_loss, atol=1e-12, rtol=1e-12)
    assert len(ours.to_tokens(x).unique()) > min(5, ours.config.num_vq_embeddings - 1)


@pytest.mark.parametrize("name", ["plain", "attention", "codes of another width"])
def test_gradients_equal_the_peers_with_legacy_beta(name):
    gradients = []
    for model in pair({**TINY, **GRID[name]}, legacy_beta=True):
        x = pictures().double().requires_grad_()
        out = model(x)
        ((out.sample - x.detach()).square().mean() + out.commit_loss).backward()
        gradients.append({"x": x.grad, **{key: p.grad for key, p in model.named_parameters()}})
    assert gradients[0]["quantize.embedding.weight"].abs().max() > 0
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key], atol=1e-10, rtol=1e-8, msg=key)


def test_beta_stands_on_the_commitment_by_default():
    """Same weights and loss up to the weights: (1 + β)·‖z − e‖² both times, but other gradients."""
    (right, _), (legacy, _) = pair(TINY), pair(TINY, legacy_beta=True)
    x = pictures().double()
    losses = [model(x).commit_loss for model in (right, legacy)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    codes = [model.quantize.embedding.weight.grad for model in (right, legacy)]
    torch.testing.assert_close(codes[0] * 0.25, codes[1])
    torch.testing.assert_close(right.quant_conv.weight.grad, legacy.quant_conv.weight.grad * 0.25)
    strong, _ = pair(TINY, beta=2.0)
    torch.testing.assert_close(strong(x).commit_loss, losses[0] / 1.25 * 3)


@pytest.mark.parametrize("given", [{}, {"shape": (2, 4, 8, 3)}])
def test_lookup_takes_tokens(given):
    ours, theirs = pair({**TINY, **GRID["lookup"]})
    x = pictures().double()
    tokens = ours.to_tokens(x)
    want = theirs.decode(tokens.flatten(), force_not_quantize=True, shape=(2, 4, 8, 3))
    got = ours.decode(tokens.flatten() if given else tokens, force_not_quantize=True, **given)
    torch.testing.assert_close(got.sample, want.sample, atol=1e-10, rtol=1e-10)
    assert got.commit_loss.tolist() == [0.0, 0.0]  # one for each sample; the peer has an integer for each token
    assert torch.equal(got.sample, ours(x).sample)


def test_without_quantisation_the_latents_are_decoded_as_they_are():
    ours, theirs = pair(TINY)
    z = ours.encode(pictures().double()).latents
    sample, loss = ours.decode(z, True, False)
    peer_sample, peer_loss = theirs.decode(z, True, False)
    torch.testing.assert_close(sample, peer_sample, atol=1e-10, rtol=1e-10)
    assert torch.equal(loss, peer_loss)
    assert not torch.allclose(sample, ours.decode(z).sample)


def test_keys_and_shapes_of_latent_diffusion():
    with torch.device("meta"):
        model = VQModel(**F4)
    lines = sorted(f"{key} {'x'.join(map(str, value.shape))}" for key, value in model.state_dict().items())
    assert len(lines) == 205
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == "baa7709b41f74cfb"
    assert model.num_parameters() == 55_322_782
    assert model.latent_shape((3, 256, 256)) == (3, 64, 64)
    assert model.bits_per_element() == pytest.approx(13 / 3)


def test_default_arguments_are_the_peers():
    ours, theirs = VQModel(), diffusers.VQModel()
    saved = {k: v for k, v in ours.config_to_save().items() if not k.startswith("_")}
    assert saved == {
        k: tuple(v) if isinstance(v, list) else v for k, v in theirs.config.items() if not k.startswith("_")
    }


def test_own_arguments_reach_the_file_only_when_changed(tmp_path):
    VQModel(**TINY, legacy_beta=True, beta=0.5).save_pretrained(tmp_path)
    again = VQModel.from_pretrained(tmp_path)
    assert (again.config.beta, again.config.legacy_beta) == (0.5, True)
    assert (again.quantize.beta, again.quantize.legacy_beta) == (0.5, True)
    assert "beta" not in VQModel(**TINY).config_to_save()


def test_latents_are_continuous_and_decoding_quantises(model):
    assert isinstance(model, Codec)
    x = pictures()
    model.set_scale(0.0, 2.0)
    z = model.to_latents(x, torch.Generator())
    assert torch.equal(z, model.encode(x).latents * 2)
    assert z.shape[1:] == model.latent_shape((3, 8, 16))
    assert torch.equal(model.from_latents(z), model(x).sample)
    # Every point of a code's cell decodes alike.
    codes = model.quantize.embed(model.to_tokens(x))
    assert torch.equal(model.from_latents(2 * codes.lerp(z / 2, 0.5)), model(x).sample)


def test_tokens_are_the_picture(model):
    x = pictures()
    tokens = model.to_tokens(x)
    assert tokens.shape == (2, 4, 8)
    assert tokens.dtype == torch.int64
    assert torch.equal(model.from_tokens(tokens), model(x).sample)
    assert torch.equal(model.from_tokens(tokens.to(torch.int16).int()), model(x).sample)
    bits = model.bits_per_element() * math.prod(model.latent_shape((3, 8, 16)))
    assert bits == pytest.approx(tokens[0].numel() * math.log2(13))


def test_bits_do_not_depend_on_the_width_of_a_code():
    for dim in (1, 2, 8):
        model = VQModel(**{**TINY, "vq_embed_dim": dim, "num_vq_embeddings": 16})
        assert model.latent_shape((3, 8, 8)) == (dim, 4, 4)
        assert model.bits_per_element() * dim == 4


def test_a_scale_but_no_shift(model, tmp_path):
    model.set_scale(0.0, 3.0)
    assert diffusers.VQModel.from_config(model.config_to_save()).config.scaling_factor == 3.0
    model.save_config(tmp_path)
    assert VQModel.from_config(VQModel.load_config(tmp_path)).config.scaling_factor == 3.0
    with pytest.raises(InputError, match=r"does not shift them, got shift 0\.5"):
        model.set_scale(0.5, 1.0)
    with pytest.raises(InputError, match="scale must be"):
        model.set_scale(0.0, -1.0)


def test_tuples(model):
    x = pictures()
    (latents,) = model.encode(x, return_dict=False)
    sample, loss = model.decode(latents, return_dict=False)
    assert torch.equal(sample, model(x, return_dict=False)[0])
    assert loss == model(x).commit_loss == model(x)["commit_loss"]


@torch.no_grad()
def test_slices_and_tiles(model):
    x = pictures(count=3)
    whole, tokens = model(x), model.to_tokens(x)
    model.enable_slicing()
    sliced = model(x)
    torch.testing.assert_close(sliced.sample, whole.sample, atol=1e-5, rtol=0)
    torch.testing.assert_close(sliced.commit_loss, whole.commit_loss)
    assert torch.equal(model.to_tokens(x), tokens)
    model.enable_tiling(tile_size=8)
    tiled = model.from_tokens(tokens)
    assert tiled.shape == whole.sample.shape
    assert not torch.equal(tiled, whole.sample)
    model.disable_tiling()
    model.disable_slicing()
    assert torch.equal(model(x).sample, whole.sample)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_decodes_the_same_codes(model, dtype):
    tokens = model.to_tokens(pictures())
    full = model.from_tokens(tokens)
    half = model.to(dtype).from_tokens(tokens)
    assert half.dtype == dtype
    assert (half.float() - full).abs().max() < 0.05 * full.abs().max()
    assert model(pictures().to(dtype)).commit_loss.dtype == torch.float32


def test_learns_to_reconstruct_and_its_codes_follow():
    torch.manual_seed(0)
    model = VQModel(**{**TINY, "num_vq_embeddings": 32})
    spread_codes(model)
    x = pictures(count=4, width=8)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        out = model(x)
        loss = (out.sample - x).square().mean() + out.commit_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert model.quantize.usage(model.to_tokens(x)).used > 8


def test_wrong_shapes(model):
    for bad in (torch.zeros(1, 3, 4, 4), torch.zeros(2, 4, 4)):
        for call in (model.decode, model.from_latents, lambda z: model.decode(z, force_not_quantize=True)):
            with pytest.raises(InputError, match=r"expected \(batch, 2, height, width\)"):
                call(bad)
    with pytest.raises(InputError, match="divisible by 2"):
        model.to_tokens(torch.zeros(1, 3, 7, 8))
    with pytest.raises(InputError, match=r"tokens have shape \(8,\)"):
        model.from_tokens(torch.zeros(8, dtype=torch.int64))
    with pytest.raises(InputError, match="run from 13 to 13, but the 13 codes from 0 to 12"):
        model.from_tokens(torch.full((1, 2, 2), 13))
    lookup = VQModel(**TINY, lookup_from_codebook=True)
    for shape in ((1, 2, 2, 3), (1, 2, 3, 2), (1, 2, 2)):
        with pytest.raises(InputError, match=r"does not fit 4 tokens: expected \(batch, height, width, 2\)"):
            lookup.decode(torch.zeros(4, dtype=torch.int64), force_not_quantize=True, shape=shape)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"norm_type": "spatial"}, ConfigError, "norm_type 'spatial'.* is not built"),
        ({"norm_type": "batch"}, UnknownChoiceError, "unknown norm_type 'batch'"),
        ({"num_vq_embeddings": 0}, ConfigError, "num_vq_embeddings must be"),
        ({"vq_embed_dim": 0}, ConfigError, "vq_embed_dim must be"),
        ({"beta": -0.1}, InputError, "beta must be"),
        ({"scaling_factor": 0.0}, InputError, "scaling_factor must be"),
        ({"down_block_types": ("DownEncoderBlock2D",)}, ConfigError, "equally long"),
    ],
)
def test_wrong_arguments(given, error, says):
    with pytest.raises(error, match=says):
        VQModel(**{**TINY, **given})


# -- other quantizers -------------------------------------------------------------------------------------------

QUANTIZED = {
    "vq": {},
    "vq_ema": {"quantizer": "vq_ema", "quantizer_options": {"decay": 0.9}},
    "residual": {"quantizer": "residual", "quantizer_options": {"levels": 3}},
    "lfq": {"quantizer": "lfq", "num_vq_embeddings": 8, "vq_embed_dim": 3},
    "lfq of two tokens": {
        "quantizer": "lfq",
        "num_vq_embeddings": 8,
        "vq_embed_dim": 6,
        "quantizer_options": {"group_bits": 3},
    },
    "fsq": {"quantizer": "fsq", "num_vq_embeddings": 15, "quantizer_options": {"levels": [5, 3]}},
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_is_a_token_codec_with_any_quantizer(name, tmp_path):
    torch.manual_seed(0)
    model = VQModel(**{**TINY, **QUANTIZED[name]}).train()
    assert isinstance(model, TokenCodec)
    x = pictures()
    (model(x).sample.square().mean() + model(x).commit_loss).backward()
    model.eval()
    tokens = model.to_tokens(x)
    assert tokens.shape == (2, *model.token_shape((3, 8, 16)))
    assert tokens.max() < model.num_codes == model.config.num_vq_embeddings
    assert torch.equal(model.from_tokens(tokens, torch.Generator()), model(x).sample)
    bits = model.bits((3, 8, 16))
    assert bits == pytest.approx(tokens[0].numel() * math.log2(model.num_codes))
    assert bits == pytest.approx(model.bits_per_element() * math.prod(model.latent_shape((3, 8, 16))))
    model.save_pretrained(tmp_path)
    again = VQModel.from_pretrained(tmp_path)
    assert torch.equal(again.to_tokens(x), tokens)
    assert torch.equal(again.from_tokens(tokens), model.from_tokens(tokens))
    half = VQModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.from_tokens(tokens).dtype == torch.bfloat16
    with pytest.raises(InputError, match="tokens have shape"):
        model.from_tokens(tokens[0])
    for switch in (model.enable_slicing, model.enable_tiling):
        switch()
        assert model.to_tokens(pictures(height=24, width=32)).shape == (2, *model.token_shape((3, 24, 32)))


def test_other_quantizers_are_no_business_of_the_peer():
    assert "quantizer" not in VQModel(**TINY).config_to_save()
    saved = VQModel(**{**TINY, **QUANTIZED["residual"]}).config_to_save()
    assert (saved["quantizer"], saved["quantizer_options"]) == ("residual", {"levels": 3})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"quantizer": "lfq", "vq_embed_dim": 4}, "num_vq_embeddings is 13, but tokens of 'lfq' .* have 16 values"),
        (
            {"quantizer": "fsq", "vq_embed_dim": 2, "quantizer_options": {"levels": (3, 3)}},
            "set num_vq_embeddings=9",
        ),
        ({"quantizer": "fsq"}, "quantizer 'fsq' needs levels"),
        ({"quantizer": "vq_ema", "legacy_beta": True}, "'vq_ema' has no legacy_beta, got True"),
        ({"quantizer": "lfq", "beta": 0.5}, "'lfq' has no beta, got 0.5"),
    ],
)
def test_quantizers_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        VQModel(**{**TINY, **given})


def test_unknown_quantizers_and_options_are_refused():
    with pytest.raises(UnknownChoiceError, match="unknown quantizer 'vqema': did you mean 'vq_ema'"):
        VQModel(**TINY, quantizer="vqema")
    with pytest.raises(UnknownChoiceError, match="option of quantizer 'vq_ema' 'revival': did you mean 'revive'"):
        VQModel(**TINY, quantizer="vq_ema", quantizer_options={"revival": 0.1})


def test_patches_are_channels_of_one_position(tmp_path):
    torch.manual_seed(0)
    model = VQModel(**TINY, patch_size=2).eval()
    plain = VQModel(**{**TINY, "in_channels": 12, "out_channels": 12}).eval()
    plain.load_state_dict(model.state_dict())
    x = pictures(height=16)
    assert model.latent_shape((3, 16, 16)) == (2, 4, 4)
    assert model.token_shape((3, 16, 16)) == (4, 4)
    unshuffled = torch.nn.functional.pixel_unshuffle(x, 2)
    assert torch.equal(model.encode(x).latents, plain.encode(unshuffled).latents)
    assert torch.equal(model(x).sample, torch.nn.functional.pixel_shuffle(plain(unshuffled).sample, 2))
    model.save_pretrained(tmp_path)
    assert torch.equal(VQModel.from_pretrained(tmp_path)(x).sample, model(x).sample)
    large = pictures(height=32, width=48)
    model.enable_tiling()
    assert model.tile_sample_min_size == 16
    assert model(large).sample.shape == large.shape
    assert "patch_size" not in VQModel(**TINY).config_to_save()
    with pytest.raises(InputError, match="divisible by 4"):
        model.encode(pictures(height=10))
    with pytest.raises(InputError, match="divisible by 4"):
        model.latent_shape((3, 16, 18))
    with pytest.raises(ConfigError, match="patch_size"):
        VQModel(**TINY, patch_size=0)
