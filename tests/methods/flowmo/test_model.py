import pytest
import torch

from latentia.core.protocols import Codec, TokenCodec
from latentia.core.rng import sample_generators
from latentia.errors import ConfigError, InputError, UnknownChoiceError
from latentia.methods.flowmo.codecs import FlowMo
from latentia.methods.flowmo.sampler import Sampler

SHAPE = (1, 8, 8)
QUICK = Sampler(3, 4.0, 1.0)


def pictures(n=3):
    torch.manual_seed(7)
    return torch.rand(n, *SHAPE) * 2 - 1


def test_sizes_and_bits(tiny):
    model = tiny()
    assert model.num_codes == 8
    assert model.token_shape(SHAPE) == (4, 2)
    assert model.bits(SHAPE) == 24
    assert model.latent_shape(SHAPE) == (6, 4)
    assert model.bits_per_element() == 1
    tokens = model.to_tokens(pictures())
    assert tokens.shape == (3, 4, 2)
    assert tokens.dtype == torch.int64
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < 8
    assert tiny(quantizer_options={"group_bits": 6}).token_shape(SHAPE) == (4,)


def test_patches_are_row_column_channel_and_come_back(tiny):
    model = tiny(in_channels=2)
    x = torch.arange(2 * 8 * 8.0).view(1, 2, 8, 8)
    patches = model.patchify(x)
    assert patches.shape == (1, 4, 32)
    assert patches[0, 1, :4].tolist() == [4, 64 + 4, 5, 64 + 5]  # patch (0, 1), pixels (0, 0) and (0, 1)
    assert torch.equal(model.unpatchify(patches), x)


@torch.no_grad()
def test_tokens_say_all_that_the_decoder_hears(tiny):
    model = tiny().eval()
    x = pictures()
    both = [sample_generators(3, range(3)) for _ in range(2)]
    from_tokens = model.from_tokens(model.to_tokens(x), both[0])
    torch.testing.assert_close(from_tokens, model.from_latents(model.to_latents(x), both[1]))
    assert from_tokens.shape == x.shape
    assert -1 <= float(from_tokens.min()) <= float(from_tokens.max()) <= 1


@torch.no_grad()
def test_a_picture_is_the_same_alone_and_in_a_batch_and_another_with_another_generator(tiny):
    model = tiny().eval()
    tokens = model.to_tokens(pictures())
    batch = model.from_tokens(tokens, sample_generators(3, range(3)))
    torch.testing.assert_close(model.from_tokens(tokens[1:2], sample_generators(3, [1])), batch[1:2])
    other = model.from_tokens(tokens[1:2], sample_generators(4, [1]))
    assert float((other - batch[1:2]).abs().max()) > 0.01


def test_flag_and_dropped_code(tiny):
    model = tiny()
    values = torch.randn(3, 6, 4)
    told = model.flagged(values, torch.tensor([True, False, True]))
    assert told.shape == (3, 4, 7)
    assert bool((told[0, :, 6] == 1).all())
    assert bool((told[1] == 0).all())
    assert torch.equal(told[2, :, :6], values[2].T)


@pytest.mark.parametrize("prediction", ["flow_prediction", "sample", "preconditioned"])
@torch.no_grad()
def test_velocity_and_estimate_lie_on_one_line(tiny, prediction):
    model = tiny(prediction_type=prediction)
    x_t, t = torch.randn(3, *SHAPE), torch.tensor([0.2, 0.5, 1.0])
    code = model.flagged(torch.randn(3, 6, 4))
    v, x0 = model.estimate(x_t, t, code)
    torch.testing.assert_close(x_t - t[:, None, None, None] * v, x0)
    if prediction != "preconditioned":
        said = model.unpatchify(model.decoder(model.patchify(x_t), code, *model.positions(x_t.device), t))
        assert torch.equal(said, v if prediction == "flow_prediction" else x0)


@torch.no_grad()
def test_preconditioned_answers_start_from_the_best_blind_guess_and_have_unit_variance(tiny):
    """Pictures N(0, σ²): with F = 0, x̂₀ is E[x | x_t]; the F that is right has variance 1 at all times."""
    model = tiny(prediction_type="preconditioned", sigma_data=0.7).double()
    model.decoder.out.weight.zero_()
    model.decoder.out.bias.zero_()
    torch.manual_seed(0)
    x, z = 0.7 * torch.randn(4000, *SHAPE, dtype=torch.double), torch.randn(4000, *SHAPE, dtype=torch.double)
    code = model.flagged(torch.zeros(4000, 6, 4, dtype=torch.double))
    for time in (1e-5, 0.05, 0.4, 1.0):
        t = torch.full((4000,), time, dtype=torch.double)
        x_t = (1 - time) * x + time * z
        guess = model.estimate(x_t, t, code)[1].double()
        slope = float((x * x_t).mean() / x_t.square().mean())  # of the regression of x on x_t
        torch.testing.assert_close(guess, slope * x_t, atol=0.02, rtol=0)
        spread = 0.7 * time / ((0.7 * (1 - time)) ** 2 + time**2) ** 0.5
        assert float(((x - guess) / spread).square().mean()) == pytest.approx(1, rel=0.02)
    model.decoder.out.bias.fill_(1.0)
    assert float((model.estimate(x_t, t, code)[1] - guess).mean()) == pytest.approx(0.7, rel=1e-5)


@torch.no_grad()
def test_one_step_is_the_estimate_from_pure_noise(tiny):
    model = tiny(prediction_type="sample").eval()
    latents, noise = model.to_latents(pictures()), torch.randn(3, *SHAPE)
    code = model.flagged(model.quantizer.embed(model.quantizer.assign(latents)))
    x = model.decode(latents, sampler=Sampler(1, 4.0, 1.0), noise=noise).sample
    torch.testing.assert_close(x, model.estimate(noise, torch.ones(3), code)[1].clamp(-1, 1))


@torch.no_grad()
def test_continuous_variant(tiny):
    model = tiny(continuous=True).eval()
    z = model.to_latents(pictures())
    torch.testing.assert_close(z.mean((1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.square().mean((1, 2)), torch.ones(3), atol=1e-3, rtol=0)
    assert model.bits_per_element() == 16
    assert model.from_latents(z).shape == (3, *SHAPE)
    assert isinstance(model, Codec)
    assert not isinstance(model, TokenCodec)
    assert isinstance(tiny(), TokenCodec)
    assert model(pictures()).sample.shape == (3, *SHAPE)


@torch.no_grad()
def test_fsq(tiny):
    model = tiny(quantizer="fsq", code_dim=3, quantizer_options={"levels": [4, 4, 4]}).eval()
    assert model.bits(SHAPE) == pytest.approx(4 * 6)
    tokens = model.to_tokens(pictures())
    assert tokens.shape == (3, 4)
    assert int(tokens.max()) < 64


@torch.no_grad()
def test_save_and_load(tiny, tmp_path):
    model = tiny(prediction_type="sample", code_layout="grid").eval()
    model.save_pretrained(tmp_path)
    again = FlowMo.from_pretrained(tmp_path)
    assert again.config == model.config
    tokens = model.to_tokens(pictures())
    assert torch.equal(again.to_tokens(pictures()), tokens)
    assert torch.equal(
        again.from_tokens(tokens, torch.Generator().manual_seed(1)),
        model.from_tokens(tokens, torch.Generator().manual_seed(1)),
    )


def test_pictures_of_another_size_are_refused(tiny):
    model = tiny()
    for bad in ((2, 1, 12, 12), (2, 3, 8, 8), (1, 8, 8), (2, 1, 8, 12)):
        with pytest.raises(InputError, match=r"\(1, 8, 8\)|batch, 1, 8, 8"):
            model.encode(torch.zeros(bad))
    with pytest.raises(InputError, match="cut them into tiles"):
        model.bits((1, 16, 16))


def test_tokens_of_another_codec_are_refused(tiny):
    model = tiny()
    with pytest.raises(InputError, match="another codec"):
        model.from_tokens(torch.full((2, 4, 2), 8))
    with pytest.raises(InputError, match=r"writes \(batch, 4, 2\)"):
        model.from_tokens(torch.zeros(2, 8, dtype=torch.int64))
    with pytest.raises(InputError, match=r"expected \(batch, 6, 4\)"):
        model.decode(torch.zeros(2, 4, 6))


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"quantizer": "lqf"}, UnknownChoiceError, "did you mean 'lfq'"),
        ({"prediction_type": "epsilon"}, UnknownChoiceError, "prediction_type"),
        ({"code_layout": "spiral"}, UnknownChoiceError, "code_positions"),
        ({"patch_size": 3}, ConfigError, "not a multiple of patch_size 3"),
        ({"code_length": 0}, ConfigError, "code_length"),
        ({"encoder_heads": 3}, ConfigError, "3 heads"),
        ({"rho": 0.0}, InputError, "rho"),
        ({"guidance_interval": (1.0, 0.5)}, InputError, "starts above its end"),
    ],
)
def test_bad_configs(tiny, changes, error, said):
    with pytest.raises(error, match=said):
        tiny(**changes)


def test_anchored_codes_need_the_grid_and_say_so(tiny):
    model = tiny(anchored=True, code_layout="grid")
    assert model.to_tokens(pictures()).shape == (3, 4, 2)
    with pytest.raises(ConfigError, match="code_layout must be grid, not 'diagonal'"):
        tiny(anchored=True)
