import inspect
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from latentia import CancelToken, DDIMScheduler, DDPMScheduler, DiffusionPipeline, Trajectory
from latentia.denoisers.unet_1d import UNet1D
from latentia.errors import ArtifactError, Cancelled, ConfigError, InputError, NonFiniteError, UnknownChoiceError
from latentia.methods.pdiff.autoencoder import ParameterAutoencoder
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.methods.pdiff.normalise import Standardiser, Whitener
from latentia.methods.pdiff.pipeline import ClampLatents, ParameterDiffusionPipeline
from latentia.methods.pdiff.presets import preset
from latentia.methods.pdiff.template import ParameterTemplate

PATTERNS = ["0.*", "3.weight"]
CALL = {"seed": 2, "num_inference_steps": 3}


def network():
    """A float, an integer and a half-precision tensor that are not generated; D = 24."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    net[3].bias = nn.Parameter(net[3].bias.detach().half())
    return net.eval()


def checkpoints(count=30):
    generator = torch.Generator().manual_seed(1)
    layout = ParameterLayout.select(network(), PATTERNS)
    base = layout.flatten(network())
    return base + 0.1 * torch.randn(count, 2, generator=generator) @ torch.randn(2, layout.size, generator=generator)


def template(v=None, standardise="center", whiten="full", autoencoder=None):
    net = network()
    layout = ParameterLayout.select(net, PATTERNS)
    v = checkpoints() if v is None else v
    standardiser = Standardiser.fit(v, standardise, layout.slices)
    codec = codec_of() if autoencoder is None else autoencoder
    whitener = Whitener.fit(codec.encode_all(standardiser(v)), whiten)
    return ParameterTemplate.of(layout, net.state_dict(), standardiser, whitener)


def codec_of(size=24):
    torch.manual_seed(1)
    channels = {"encoder_channels": (4,), "decoder_channels": (4,), "strides": (2,)}
    return ParameterAutoencoder(size, **channels, latent_dim=8, latent_channels=2)


def unet_of(**changes):
    torch.manual_seed(2)
    given = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "zero_init": False}
    return UNet1D(**{"sample_size": 4, "in_channels": 2, "out_channels": 2, **given, **changes}).eval()


def build(scheduler=None, **changes):
    scheduler = scheduler or DDIMScheduler(clip_sample=False)
    codec = codec_of()
    parts = {"autoencoder": codec, "unet": unet_of(), "scheduler": scheduler, "template": template(autoencoder=codec)}
    pipe = ParameterDiffusionPipeline(**{**parts, **changes})
    pipe.set_progress_bar_config(disable=True)
    return pipe


# What comes out ------------------------------------------------------------------------------------------


def test_state_dicts_load_into_the_plain_network():
    out, net, layout = build()(num_samples=3, **CALL), network(), ParameterLayout.select(network(), PATTERNS)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert len(out.state_dicts) == len(out.vectors) == len(out.latents) == 3
    for state, vector in zip(out.state_dicts, out.vectors, strict=True):
        assert list(state) == list(before)
        assert {k: v.dtype for k, v in state.items()} == {k: v.dtype for k, v in before.items()}
        net.load_state_dict(state, strict=True)
        assert torch.equal(layout.flatten(net), vector)
        for name in set(before) - set(layout.names):
            assert torch.equal(state[name], before[name]), name
    assert (out.vectors[0] - out.vectors[1]).abs().max() > 1e-3


def test_state_dicts_are_a_sequence_of_own_tensors():
    states = build()(num_samples=3, **CALL).state_dicts
    states[0]["0.weight"].zero_()
    states[0]["1.running_mean"].fill_(9)
    assert states[0]["0.weight"].any()
    assert not states[1]["1.running_mean"].any()
    assert torch.equal(states[-1]["0.bias"], states[2]["0.bias"])
    assert [len(part) for part in (states[1:], states[::2])] == [2, 2]
    with pytest.raises(IndexError):
        states[3]


def test_a_zero_prediction_has_a_closed_form():
    """With ε̂ = 0 DDIM only rescales: x₀ = x_T/√ᾱ_T, then whitening, decoder and statistics are undone."""
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", prediction_type="epsilon")
    pipe = build(scheduler, unet=unet_of(zero_init=True))
    noise = 0.01 * torch.randn(4, 2, 4)
    out = pipe(latents=noise, num_inference_steps=4)
    level = scheduler.alphas_cumprod[999]
    torch.testing.assert_close(out.latents, (noise / level.sqrt()).float(), atol=1e-5, rtol=1e-4)
    held = pipe.template
    x = pipe.autoencoder.from_latents(held.whitener.inverse(out.latents))
    torch.testing.assert_close(out.vectors, held.standardiser.mean + x.detach() * held.standardiser.scale)


def test_encoded_checkpoints_are_white():
    white = build().encode(checkpoints(30)).flatten(1)
    spread = white.std(0, correction=0)
    assert ((spread - 1).abs() < 1e-2).sum() >= 2  # as many as the checkpoints have dimensions
    assert spread.max() < 1.01
    assert white.mean(0).abs().max() < 1e-3


def test_a_single_checkpoint_comes_back():
    """K = 1: there is nothing to vary."""
    v = checkpoints(1)
    out = build(template=template(v))(num_samples=4, **CALL)
    assert torch.equal(out.vectors, v.expand(4, -1))


def test_tied_weights_stay_tied():
    net = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
    net["b"].weight = net["a"].weight
    layout = ParameterLayout.select(net, "*")
    codec = codec_of(layout.size)
    held = ParameterTemplate.of(layout, net.state_dict(), Standardiser(16, "none"), Whitener((2, 4), "none"))
    state = build(autoencoder=codec, template=held)(**CALL).state_dicts[0]
    assert torch.equal(state["a.weight"], state["b.weight"])
    net.load_state_dict(state)


# The call ------------------------------------------------------------------------------------------------


def test_a_batch_is_its_networks():
    pipe = build(DDPMScheduler(clip_sample=False))
    together = pipe(num_samples=5, **CALL).vectors
    chunks = pipe(num_samples=5, max_batch=2, **CALL).vectors
    alone = torch.cat([pipe(sample_indices=[i], **CALL).vectors for i in range(5)])
    torch.testing.assert_close(chunks, together, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)
    listed = [torch.Generator().manual_seed(i) for i in range(2)]
    again = [torch.Generator().manual_seed(i) for i in range(2)]
    assert torch.equal(pipe(generator=listed, num_inference_steps=2).vectors, pipe(2, again, 2).vectors)


def test_same_generator_same_networks_and_threads():
    pipe = build(DDPMScheduler(clip_sample=False))
    calls = [{"num_samples": 2, "seed": i, "num_inference_steps": 3 + i} for i in range(4)]
    alone = [pipe(**call).vectors for call in calls]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda call: pipe(**call).vectors, calls))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_callbacks_and_trajectories():
    pipe, strip = build(), Trajectory()
    out = pipe(num_samples=2, callback_on_step_end=strip, **CALL)
    assert len(strip.frames) == 3
    assert torch.equal(pipe.decode(strip.frames[-1]), out.vectors)
    assert out.vectors.requires_grad is False

    def silence(view, i, t, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])}

    zeroed = pipe(num_samples=2, callback_on_step_end=silence, **CALL)
    assert not zeroed.latents.any()
    assert pipe(seed=0, num_inference_steps=2, callback_on_step_end=ClampLatents(0.1)).latents.abs().max() <= 0.1


def test_cancelled_calls_never_decode(monkeypatch):
    pipe, token = build(), CancelToken()
    monkeypatch.setattr(ParameterDiffusionPipeline, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(Cancelled):
        pipe(cancel=token, callback_on_step_end=lambda *_: token.cancel(), **CALL)


def test_training_parts_are_evaluated_and_left_in_training():
    pipe = build(unet=unet_of(dropout=0.5).train())
    assert torch.equal(pipe(**CALL).vectors, pipe(**CALL).vectors)
    assert pipe.unet.training


def test_conditions():
    codes = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 3}
    pipe = build(unet=unet_of(**codes))
    each = pipe(class_labels=torch.eye(3), seed=0, num_inference_steps=2)
    assert len(each.vectors) == 3
    same = pipe(num_samples=3, class_labels=torch.eye(3)[0], seed=0, num_inference_steps=2)
    torch.testing.assert_close(same.vectors[0], each.vectors[0], atol=1e-5, rtol=0)
    assert (same.vectors[1] - each.vectors[1]).abs().max() > 1e-4
    with pytest.raises(InputError, match="conditional: pass class_labels"):
        pipe(**CALL)
    with pytest.raises(InputError, match=r"\(N, width\)"):
        pipe(class_labels=1, **CALL)
    with pytest.raises(InputError, match="unconditional"):
        build()(class_labels=1, **CALL)
    numbered = build(unet=unet_of(num_class_embeds=3))
    assert len(numbered(class_labels=[0, 2], **CALL).vectors) == 2


def test_tuple_output_and_options():
    states, vectors, latents, made = build()(return_dict=False, **CALL)
    assert len(states) == len(vectors) == len(latents) == len(made) == 1
    with pytest.raises(UnknownChoiceError, match="did you mean 'max_batch'"):
        build()(max_batches=2)
    with pytest.raises(InputError, match="num_inference_steps"):
        build()(num_inference_steps=0)
    with pytest.raises(InputError, match=r"expected \(1, 2, 4\)"):
        build()(latents=torch.zeros(1, 2, 5))
    with pytest.raises(InputError, match="batch_size must be an integer"):
        build()(num_samples=0)


def test_a_broken_decoder_is_named():
    pipe = build()
    pipe.autoencoder.decoder.straight.weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"autoencoder\.decoder\.straight"):
        pipe(**CALL)


def test_a_hundred_networks_of_the_digits_preset_in_time():
    """Measured on 50 of the 1000 steps: 100 networks of D = 2048 are to take at most 10 s."""
    chosen = preset("digits")
    codec = chosen.build_autoencoder(2048)
    net = nn.Linear(2047, 1)
    layout = ParameterLayout.select(net, "*")
    held = ParameterTemplate.of(layout, net.state_dict(), Standardiser(2048), Whitener(codec.latents))
    pipe = build(chosen.build_scheduler(), autoencoder=codec, unet=chosen.build_unet(codec.latents), template=held)
    started = time.process_time()
    out = pipe(num_samples=100, seed=0, num_inference_steps=50)
    assert out.vectors.shape == (100, 2048)
    assert (time.process_time() - started) * 20 < 30  # three times the promise: other work shares these cores


# The folder ----------------------------------------------------------------------------------------------


def test_round_trip(tmp_path):
    pipe = build()
    folder = pipe.save_pretrained(tmp_path / "pipe")
    again = DiffusionPipeline.from_pretrained(folder)
    assert type(again) is ParameterDiffusionPipeline
    again.set_progress_bar_config(disable=True)
    assert again.config == pipe.config
    assert again.config.unet == ("latentia", "UNet1D")
    first, second = pipe(2, **CALL), again(2, **CALL)
    assert torch.equal(first.vectors, second.vectors)
    for a, b in zip(first.state_dicts, second.state_dicts, strict=True):
        assert list(a) == list(b)
        assert all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)
    assert not list(folder.rglob("*.bin"))


def test_casting_leaves_the_template_alone(tmp_path):
    pipe = build()
    full = pipe(2, **CALL).vectors
    pipe.save_pretrained(tmp_path)
    loaded = ParameterDiffusionPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    loaded.set_progress_bar_config(disable=True)
    for half in (loaded, pipe.to(torch.bfloat16)):
        assert half.unet.dtype == half.autoencoder.dtype == torch.bfloat16
        assert half.template.base_state()["3.bias"].dtype == torch.float16
        assert half.template.standardiser.mean.dtype == torch.float32
        out = half(2, **CALL)
        assert out.state_dicts[0]["0.weight"].dtype == torch.float32
        assert (out.vectors - full).abs().max() < 0.1 * full.abs().max()


def test_offloading_gives_the_same_networks():
    pipe = build()
    expected = pipe(2, **CALL).vectors
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(pipe(2, max_batch=1, **CALL).vectors, pipe(2, max_batch=1, **CALL).vectors)
    torch.testing.assert_close(pipe(2, **CALL).vectors, expected)


def test_any_scheduler_of_the_family(tmp_path):
    pipe = build()
    pipe.scheduler = DDPMScheduler(clip_sample=False)
    assert torch.isfinite(pipe(**CALL).vectors).all()
    with pytest.raises(InputError, match="takes no"):
        pipe(eta=0.5, **CALL)
    assert build()(eta=0.5, **CALL).vectors.shape == (1, 24)


def test_every_component_is_checked():
    parts = build().components
    for name in parts:
        for wrong in (None, "unet", object()):
            with pytest.raises(InputError, match=f"component {name!r}"):
                ParameterDiffusionPipeline(**{**parts, name: wrong})
    assert list(parts) == list(inspect.signature(ParameterDiffusionPipeline).parameters)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda: {"autoencoder": codec_of(25)}, "vectors of 25 but template's layout holds 24"),
        (lambda: {"unet": unet_of(in_channels=3, out_channels=3)}, r"takes latents \(3, 4\)"),
        (lambda: {"unet": unet_of(sample_size=5)}, r"takes latents \(2, 5\)"),
        (
            lambda: {"autoencoder": ParameterAutoencoder(24, latent_dim=16, latent_channels=2)},
            r"makes latents \(2, 8\) but template whitens \(2, 4\)",
        ),
    ],
)
def test_parts_that_were_not_made_for_each_other(part, message):
    with pytest.raises(InputError, match=message):
        build(**part())


# The template --------------------------------------------------------------------------------------------


def test_template_of_another_network():
    net, other = network(), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    layout = ParameterLayout.select(net, PATTERNS)
    with pytest.raises(InputError, match="differs first at"):
        ParameterTemplate.of(layout, other.state_dict(), Standardiser(24), Whitener((2, 4)))
    with pytest.raises(InputError, match="for 20 parameters, the layout 24"):
        ParameterTemplate.of(layout, net.state_dict(), Standardiser(20), Whitener((2, 4)))
    with pytest.raises(ConfigError, match="no dtype 'float33'"):
        ParameterTemplate(layout.to_json(), [("0.weight", "float33", (4, 3))], (2, 4))
    with pytest.raises(ConfigError, match="differs first at"):
        ParameterTemplate(layout.to_json(), [("0.weight", "float32", (4, 4))], (2, 4))
    with pytest.raises(ArtifactError, match="not a parameter layout"):
        ParameterTemplate("{}", [], (2, 4))


def test_template_keeps_copies():
    net = network()
    held = template()
    net[0].weight.data.zero_()
    assert held.base_state()["0.weight"].any()
    states = held.checkpoints(checkpoints(3))
    assert len(states) == 3
    assert torch.equal(states.state_dict(1)["1.num_batches_tracked"], net.state_dict()["1.num_batches_tracked"])
