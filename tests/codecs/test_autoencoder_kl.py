import hashlib

import diffusers
import pytest
import torch

from latentia import AutoencoderKL
from latentia.core.protocols import Codec
from latentia.core.rng import sample_generators
from latentia.errors import ConfigError, InputError, UnknownChoiceError

TINY = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "norm_num_groups": 4,
    "latent_channels": 2,
    "sample_size": 16,
}
GRID = {
    "plain": {},
    "grey, two layers": {"in_channels": 1, "out_channels": 1, "layers_per_block": 2},
    "attention": {
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    },
    "no middle attention": {"mid_block_add_attention": False},
    "no quant conv": {"use_quant_conv": False, "use_post_quant_conv": False},
    "relu": {"act_fn": "relu"},
    "three stages": {
        "block_out_channels": (4, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    },
}


@pytest.fixture
def model() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(**TINY).eval()


@pytest.mark.parametrize("name", GRID)
def test_equals_the_peer_on_the_same_weights(name):
    config = {**TINY, **GRID[name]}
    torch.manual_seed(0)
    ours = AutoencoderKL(**config).eval().double()
    theirs = diffusers.AutoencoderKL(**config).eval().double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, ours.config.in_channels, 8, 16, dtype=torch.double)
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            a, b = ours.encode(x).latent_dist, theirs.encode(x).latent_dist
            torch.testing.assert_close(a.parameters, b.parameters, atol=1e-10, rtol=1e-10)
            torch.testing.assert_close(ours(x).sample, theirs(x).sample, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(a.kl(), b.kl())
    torch.testing.assert_close(a.nll(a.mean + 1), b.nll(b.mean + 1))
    samples = [m(x, sample_posterior=True, generator=torch.Generator().manual_seed(5)).sample for m in (ours, theirs)]
    torch.testing.assert_close(*samples, atol=1e-10, rtol=1e-10)
    ours, theirs = ours.float(), theirs.float()
    torch.testing.assert_close(ours(x.float()).sample, theirs(x.float()).sample, atol=1e-5, rtol=0)


def test_keys_and_shapes_of_stable_diffusion():
    with torch.device("meta"):
        model = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
    lines = sorted(f"{key} {'x'.join(map(str, value.shape))}" for key, value in model.state_dict().items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == "0afb81fba3b73b60"
    assert model.num_parameters() == 83_653_863
    assert model.latent_shape((3, 512, 512)) == (4, 64, 64)


def test_default_arguments_are_the_peers():
    ours, theirs = AutoencoderKL(), diffusers.AutoencoderKL()
    saved = {k: v for k, v in ours.config_to_save().items() if not k.startswith("_")}
    assert saved == {
        k: tuple(v) if isinstance(v, list) else v for k, v in theirs.config.items() if not k.startswith("_")
    }


def test_latents_are_shifted_and_scaled(model):
    assert isinstance(model, Codec)
    x = torch.randn(2, 3, 8, 8)
    raw = model.encode(x).latent_dist.sample(torch.Generator().manual_seed(1))
    model.set_scale(0.25, 2.0)
    z = model.to_latents(x, torch.Generator().manual_seed(1))
    torch.testing.assert_close(z, (raw - 0.25) * 2.0)
    torch.testing.assert_close(model.from_latents(z), model.decode(raw).sample, atol=1e-5, rtol=1e-5)
    assert z.shape[1:] == model.latent_shape((3, 8, 8))
    assert model.bits_per_element() == 16.0


def test_scale_survives_saving_and_loading(model, tmp_path):
    model.set_scale(0.25, 2.0)
    model.save_config(tmp_path)
    again = AutoencoderKL.from_config(AutoencoderKL.load_config(tmp_path))
    assert (again.config.shift_factor, again.config.scaling_factor) == (0.25, 2.0)
    assert AutoencoderKL.from_config(model.config).config.scaling_factor == 2.0
    model.set_scale(0.0, 3.0)
    assert (model.config.shift_factor, model.config.scaling_factor) == (None, 3.0)


@pytest.mark.parametrize(("shift", "scale"), [(0, 0), (0, -1), (0, float("inf")), (float("nan"), 1), (0, float("nan"))])
def test_bad_scales(model, shift, scale):
    with pytest.raises(InputError, match="finite"):
        model.set_scale(shift, scale)


def test_statistics_of_each_channel():
    torch.manual_seed(0)
    model = AutoencoderKL(**TINY, latents_mean=(1.0, -1.0), latents_std=(2.0, 0.5), scaling_factor=1.0).eval()
    raw = torch.randn(1, 2, 4, 4)
    z = model.scale_latents(raw)
    torch.testing.assert_close(z[:, 0], (raw[:, 0] - 1) / 2)
    torch.testing.assert_close(z[:, 1], (raw[:, 1] + 1) / 0.5)
    torch.testing.assert_close(model.from_latents(z), model.decode(raw).sample, atol=1e-5, rtol=1e-5)
    model.set_scale(0.0, 1.0)
    assert model.config.latents_mean is None


def test_one_generator_a_sample_makes_a_batch_of_singles(model):
    x = torch.randn(3, 3, 8, 8)
    together = model.to_latents(x, sample_generators(7, range(3)))
    alone = torch.cat([model.to_latents(x[i : i + 1], sample_generators(7, [i])) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)
    with pytest.raises(InputError, match="2 generators for a batch of 3"):
        model.to_latents(x, sample_generators(7, range(2)))


def test_tuples(model):
    x = torch.randn(1, 3, 8, 8)
    (posterior,) = model.encode(x, return_dict=False)
    (sample,) = model.decode(posterior.mode(), return_dict=False, generator=torch.Generator())
    assert torch.equal(model(x).sample, sample)
    assert torch.equal(model(x, return_dict=False)[0], sample)


def test_slicing_changes_nothing(model):
    x = torch.randn(3, 3, 8, 8)
    whole, mean = model(x).sample, model.encode(x).latent_dist.mean
    model.enable_slicing()
    torch.testing.assert_close(model.encode(x).latent_dist.mean, mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model(x).sample, whole, atol=1e-5, rtol=1e-5)
    assert model.use_slicing
    model.disable_slicing()
    assert torch.equal(model(x).sample, whole)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 8, 8), (1, 3, 7, 8), (1, 3, 8, 9)])
def test_wrong_pictures(model, shape):
    for call in (model.encode, model, model.to_latents):
        with pytest.raises(InputError, match=r"expected \(batch, 3, height, width\).*divisible by 2"):
            call(torch.zeros(shape))
    with pytest.raises(InputError, match=r"expected \(3, height, width\)"):
        model.latent_shape(shape[1:])


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (2, 8, 8)])
def test_wrong_latents(model, shape):
    for call in (model.decode, model.from_latents):
        with pytest.raises(InputError, match=r"expected \(batch, 2, height, width\)"):
            call(torch.zeros(shape))


def test_bad_arguments():
    with pytest.raises(UnknownChoiceError, match="did you mean 'DownEncoderBlock2D'"):
        AutoencoderKL(**{**TINY, "down_block_types": ("DownEncoderBlock", "DownEncoderBlock2D")})
    with pytest.raises(UnknownChoiceError, match="did you mean 'UpDecoderBlock2D'"):
        AutoencoderKL(**{**TINY, "up_block_types": ("UpDecoderBlock2D", "UpBlock2D")})
    with pytest.raises(ConfigError, match="equally long, got 1 and 2"):
        AutoencoderKL(**{**TINY, "down_block_types": ("DownEncoderBlock2D",)})
    with pytest.raises(ConfigError, match="both or neither"):
        AutoencoderKL(**TINY, latents_mean=(0.0, 0.0))
    with pytest.raises(ConfigError, match="latents_std has 1 values for latent_channels=2"):
        AutoencoderKL(**TINY, latents_mean=(0.0, 0.0), latents_std=(1.0,))
    with pytest.raises(ConfigError, match="at least 1"):
        AutoencoderKL(**{**TINY, "latent_channels": 0})
    with pytest.raises(ConfigError, match="sample_size must be an integer of at least 1, got None"):
        AutoencoderKL(**{**TINY, "sample_size": None})
    for name, bad in (("scaling_factor", 0.0), ("scaling_factor", None), ("shift_factor", "0")):
        with pytest.raises(InputError, match=f"{name} must be a number"):
            AutoencoderKL(**TINY, **{name: bad})
    with pytest.raises(InputError, match=r"each of latents_std must be a number finite and above 0, got 0\.0"):
        AutoencoderKL(**TINY, latents_mean=(0.0, 0.0), latents_std=(1.0, 0.0))


@pytest.mark.parametrize("given", [{"tile_size": 8.0}, {"overlap": "a quarter"}, {"overlap": 1.0}], ids=str)
def test_bad_tiles(model, given):
    with pytest.raises(InputError, match=next(iter(given))):
        model.enable_tiling(**given)


def test_legacy_attention_names(model):
    state = model.state_dict()
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    old = {}
    for key, value in state.items():
        for new, was in names.items():
            key = key.replace(new, was)
        old[key] = value
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in old
    converted = AutoencoderKL.convert_legacy_keys(old)
    assert converted.keys() == state.keys()
    assert torch.equal(
        converted["encoder.mid_block.attentions.0.to_q.weight"], state["encoder.mid_block.attentions.0.to_q.weight"]
    )
