"""Calls as users make them: seeds, batches, classes, threads, and what bad input gets."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from latentia import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, EulerAncestralDiscreteScheduler
from latentia.core.evaluating import evaluating
from latentia.core.rng import sample_generators
from latentia.errors import InputError, NonFiniteError
from latentia.pipelines.latent import LatentDiffusionPipeline, LDMPipeline

# Output ------------------------------------------------------------------------------------------------------


def test_output_types_show_one_picture(ddim):
    call = {"batch_size": 2, "seed": 0, "num_inference_steps": 2}
    pt = ddim(**call, output_type="pt").images
    assert pt.shape == (2, 3, 8, 8)
    assert 0 <= pt.min() < pt.max() <= 1
    assert np.array_equal(ddim(**call, output_type="np").images, pt.permute(0, 2, 3, 1).numpy())
    pictures = ddim(**call).images
    assert all(isinstance(p, Image.Image) and p.size == (8, 8) for p in pictures)
    assert np.abs(np.asarray(pictures[1]) / 255 - pt[1].permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6
    raw = ddim(**call, output_type="latent").images
    assert torch.allclose((raw / 2 + 0.5).clamp(0, 1), pt)
    (images,) = ddim(**call, return_dict=False, output_type="pt")
    assert torch.equal(images, pt)


def test_latents_decode_to_the_pictures(latent):
    call = {"class_labels": [0, 2], "seed": 5, "num_inference_steps": 3}
    z = latent(**call, output_type="latent").images
    assert z.shape == (2, 2, 8, 8)
    x = latent.decode(z)
    assert x.shape == (2, 3, 16, 16)
    assert torch.allclose((x / 2 + 0.5).clamp(0, 1), latent(**call, output_type="pt").images, atol=1e-6)


def test_the_codecs_scale_is_applied(make_unet, make_vae):
    torch.manual_seed(0)
    z = torch.randn(1, 2, 8, 8)
    vae = make_vae(scaling_factor=0.5)
    for pipe in (
        LatentDiffusionPipeline(vae, make_unet(2), DDIMScheduler()),
        LDMPipeline(vae, make_unet(2), DDIMScheduler()),
    ):
        with torch.no_grad():
            assert torch.allclose(pipe.decode(z), vae.decode(z / 0.5).sample)


# Randomness --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler, EulerAncestralDiscreteScheduler])
def test_sixteen_together_are_sixteen_alone(make_unet, scheduler):
    # v: an untrained ε network magnifies the rounding of its convolutions, 1/α ≈ 100 times at the noisy end
    pipe = DDPMPipeline(make_unet(), scheduler(prediction_type="v_prediction"))
    pipe.set_progress_bar_config(disable=True)
    call = {"seed": 9, "num_inference_steps": 5, "output_type": "pt"}
    together = pipe(batch_size=16, **call).images
    alone = [pipe(sample_indices=[i], **call).images for i in range(16)]
    assert (together - torch.cat(alone)).abs().max() < 1e-5
    assert (together[0] - together[1]).abs().max() > 0.1


def test_noise_of_a_sample_is_bit_equal_in_any_batch(ddpm):
    noises = []

    class Echo(torch.nn.Module):
        config = ddpm.unet.config
        device, dtype = torch.device("cpu"), torch.float32

        def forward(self, z, t):
            noises.append(z.clone())
            return type("Out", (), {"sample": z})

    ddpm.unet = Echo()
    ddpm(batch_size=16, seed=1, num_inference_steps=3)
    together = list(noises)
    for i in range(16):
        noises.clear()
        ddpm(sample_indices=[i], seed=1, num_inference_steps=3)
        assert all(torch.equal(t[i], n[0]) for t, n in zip(together, noises, strict=True))


def test_chunks_change_nothing(latent):
    call = {"class_labels": [0, 1, 2, 0, 1], "num_inference_steps": 3, "eta": 1.0, "guidance_scale": 2.0}
    whole = latent(**call, seed=4, output_type="np").images
    parts = latent(**call, seed=4, output_type="np", max_batch=2).images
    listed = latent(**call, generator=sample_generators(4, range(5)), output_type="np", max_batch=3).images
    assert whole.shape == (5, 16, 16, 3)
    assert np.abs(whole - parts).max() < 1e-5
    assert np.abs(whole - listed).max() < 1e-5
    assert len(latent(**call, seed=4, max_batch=2).images) == 5


def test_given_latents_are_the_start(ddim):
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    a = ddim(latents=noise, num_inference_steps=3, output_type="pt").images
    b = ddim(latents=noise[1:], num_inference_steps=3, output_type="pt").images
    assert torch.allclose(a[1:], b, atol=1e-6)
    assert torch.equal(noise, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))  # untouched


def test_every_stochastic_step_draws_from_the_generator(ddim):
    call = {"batch_size": 2, "num_inference_steps": 4, "output_type": "pt", "eta": 1.0}
    torch.manual_seed(0)
    a = ddim(**call, seed=3).images
    torch.manual_seed(1)
    assert torch.equal(a, ddim(**call, seed=3).images)
    assert (a - ddim(**{**call, "eta": 0.0}, seed=3).images).abs().max() > 1e-3


def test_four_threads_get_what_each_would_get_alone(latent):
    calls = [
        {"class_labels": i % 3, "seed": i, "num_inference_steps": 3 + i, "guidance_scale": 1.0 + i} for i in range(4)
    ]
    alone = [latent(**c, output_type="pt").images for c in calls]
    for _ in range(3):
        results, gate = [None] * 4, threading.Barrier(4)

        def work(i, results=results, gate=gate):
            gate.wait()
            results[i] = latent(**calls[i], output_type="pt").images

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(a, b) for a, b in zip(alone, results, strict=True))


def test_a_call_leaves_the_pipelines_scheduler_alone(ddim):
    before = dict(vars(ddim.scheduler))
    ddim(num_inference_steps=3)
    assert all(vars(ddim.scheduler)[k] is v for k, v in before.items())


# Training mode -----------------------------------------------------------------------------------------------


def test_sampling_switches_dropout_off_and_back(make_unet):
    unet = make_unet(dropout=0.5)
    pipe = DDIMPipeline(unet, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    call = {"seed": 0, "num_inference_steps": 2, "output_type": "pt"}
    quiet = pipe(**call).images
    unet.train()
    unet.conv_in.eval()
    assert torch.equal(quiet, pipe(**call).images)
    assert unet.training
    assert unet.mid_block.training
    assert not unet.conv_in.training


def test_the_last_of_several_calls_restores(make_unet):
    unet = make_unet().train()
    with evaluating([unet]):
        with evaluating([unet]):
            assert not unet.training
        assert not unet.training
    assert unet.training


# Classes and guidance ----------------------------------------------------------------------------------------


def test_names_and_numbers_mean_the_same(latent):
    call = {"seed": 0, "num_inference_steps": 2, "output_type": "latent"}
    assert (latent.num_classes, latent.null_class) == (3, 3)
    assert latent.labels == {"cat": 0, "kitty": 0, "dog": 1, "owl": 2}
    a = latent(class_labels=["kitty", "dog"], **call).images
    for same in ([0, 1], torch.tensor([0, 1]), ("cat", 1), np.array([0, 1])):
        assert torch.equal(a, latent(class_labels=same, **call).images)
    assert torch.allclose(a[:1], latent(class_labels="cat", **call).images, atol=1e-5)
    three = latent(class_labels="dog", batch_size=3, **call).images
    assert torch.allclose(three[1], a[1], atol=1e-5)


def test_guidance_is_the_formula_on_the_networks_predictions(latent):
    """One DDIM step by hand."""
    noise = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    call = {"latents": noise, "class_labels": 1, "num_inference_steps": 1, "output_type": "latent"}
    scheduler = latent.scheduler.fresh()
    scheduler.set_timesteps(1)
    t = scheduler.timesteps[0]
    with torch.no_grad():
        eps_c, eps_0 = (latent.unet(noise, t, class_labels=torch.tensor([y])).sample for y in (1, 3))
    want = scheduler.step(eps_0 + 3.0 * (eps_c - eps_0), t, noise).prev_sample
    assert torch.allclose(latent(**call, guidance_scale=3.0).images, want, atol=1e-5)
    # outside its interval guidance does nothing
    plain = latent(**call).images
    assert torch.equal(latent(**call, guidance_scale=3.0, guidance_interval=(0.0, 0.5)).images, plain)
    assert not torch.equal(latent(**call, guidance_scale=3.0, guidance_rescale=0.7).images, plain)


def test_null_class_is_the_unconditional_network(latent):
    call = {"seed": 0, "num_inference_steps": 2, "output_type": "latent"}
    null = latent(class_labels=latent.null_class, **call).images
    assert torch.allclose(null, latent(class_labels=3, guidance_scale=5.0, **call).images, atol=1e-5)


# Bad input ---------------------------------------------------------------------------------------------------


class Forbidden(torch.nn.Module):
    """A network that must never be reached."""

    def __init__(self, like):
        super().__init__()
        self.config, self.device, self.dtype = like.config, like.device, like.dtype

    def forward(self, *arguments, **named):
        raise AssertionError("work was done before the arguments were checked")


BAD = [
    ({"num_inference_steps": 0}, "num_inference_steps must be an integer of at least 1, got 0"),
    ({"num_inference_steps": -1}, "got -1"),
    ({"num_inference_steps": 2.5}, "got 2.5"),
    ({"num_inference_steps": True}, "got True"),
    ({"num_inference_steps": "10"}, "got '10'"),
    ({"num_inference_steps": 1001}, "1001"),
    ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
    ({"batch_size": 1.5}, "got 1.5"),
    ({"max_batch": 0}, "max_batch"),
    ({"output_type": "jpeg"}, "unknown output_type 'jpeg'"),
    ({"return_dict": 1}, "return_dict must be True or False"),
    ({"generator": 3}, "For a number pass seed"),
    ({"generator": [torch.Generator()] * 2, "batch_size": 3}, "generator is for 2 pictures but batch_size is for 3"),
    ({"generator": []}, "generator is for 0 pictures"),
    ({"seed": -1}, "seed must be an integer of at least 0"),
    ({"seed": 1.0}, "seed must be an integer"),
    ({"seed": 1, "generator": torch.Generator()}, "either seed or generator"),
    ({"sample_indices": [3]}, "pass seed"),
    ({"seed": 0, "sample_indices": [3], "batch_size": 2}, "batch_size is for 2"),
    ({"seed": 0, "sample_indices": [-3]}, "sample index"),
    ({"seed": 0, "sample_indices": 3}, "sample_indices must be a list with one entry per picture, got 3"),
    ({"seed": 0, "sample_indices": []}, "sample_indices is for 0 pictures"),
    ({"latents": torch.zeros(1, 2, 16, 16)}, r"\(1, 2, 16, 16\), expected \(1, 2, 8, 8\)"),
    ({"latents": torch.zeros(3, 2, 8, 8), "batch_size": 2}, "latents is for 3 pictures but batch_size is for 2"),
    ({"latents": torch.zeros(1, 2, 8, 8).long()}, "floating tensor"),
    ({"latents": torch.full((1, 2, 8, 8), float("nan"))}, "NaN"),
    ({"latents": "noise"}, "got a str"),
    ({"eta": 1.5}, "eta must be between 0"),
    ({"eta": None}, "eta must be between 0"),
    ({"guidance_scale": "7"}, "guidance_scale must be a number"),
    ({"guidance_rescale": 2}, "guidance_rescale"),
    ({"guidance_interval": (1, 0)}, "starts after it stops"),
    ({"class_labels": 4}, r"class 4 is out of range: known are 0 to 2 \(3 is the null class\)"),
    ({"class_labels": -1}, "got -1"),
    ({"class_labels": 1.5}, "got 1.5"),
    ({"class_labels": "dgo"}, "unknown class 'dgo': did you mean 'dog'"),
    ({"class_labels": []}, "empty"),
    ({"class_labels": None}, r"class-conditional: pass class_labels, names \(cat, kitty, dog, owl\), or 3"),
    ({"class_labels": [0, 1], "batch_size": 3}, "class_labels is for 2"),
    ({"callback_on_step_end": lambda: None}, "four positional arguments"),
    ({"callback_on_step_end": 5}, "must be a function"),
    (
        {"callback_on_step_end": lambda *_: None, "callback_on_step_end_tensor_inputs": None},
        "must be a list of names, got None",
    ),
]


@pytest.mark.parametrize(("given", "words"), BAD)
def test_bad_arguments_are_refused_before_any_work(latent, given, words):
    latent.unet = Forbidden(latent.unet)
    with pytest.raises(InputError, match=words):
        latent(**{"class_labels": 0, **given})


def test_unknown_argument(ddim):
    with pytest.raises(InputError, match="unknown argument 'guidance': did you mean 'guidance_scale'"):
        ddim(guidance=3)


def test_classes_for_a_network_without(ddim):
    with pytest.raises(InputError, match="has no classes"):
        ddim(class_labels=1)
    with pytest.raises(InputError, match="has no classes: use 1"):
        ddim(guidance_scale=2.0)


def test_names_without_id2label(make_unet):
    pipe = DDIMPipeline(make_unet(num_class_embeds=4), DDIMScheduler())
    with pytest.raises(InputError, match="no id2label"):
        pipe(class_labels="cat")
    with pytest.raises(InputError, match="0 to 2, or 3 for no class"):
        pipe()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({0: "a"}, "names 1 classes but unet has 4"),
        ({0: "a", 1: "b", 5: "c"}, r"keys \['5'\]: expected the class indices 0 to 2"),
    ],
)
def test_names_that_do_not_fit_the_network(make_unet, names, words):
    with pytest.raises(InputError, match=words):
        DDIMPipeline(make_unet(num_class_embeds=4), DDIMScheduler(), id2label=names)
    with pytest.raises(InputError, match="no classes"):
        DDIMPipeline(make_unet(), DDIMScheduler(), id2label=names)


def test_names_must_be_a_mapping(make_unet):
    with pytest.raises(InputError, match="id2label must map class indices to names"):
        DDIMPipeline(make_unet(num_class_embeds=4), DDIMScheduler(), id2label=["a", "b", "c"])


def test_eta_for_a_scheduler_that_has_none(ddim):
    ddim.scheduler = DDPMScheduler()
    with pytest.raises(InputError, match="DDPMScheduler takes no 'eta'"):
        ddim(eta=0.5)
    ddim(num_inference_steps=1)  # the default is no request


def test_codec_and_network_must_fit(make_unet, make_vae):
    with pytest.raises(InputError, match="latents of 2 channels but unet takes 3"):
        LatentDiffusionPipeline(make_vae(), make_unet(3), DDIMScheduler())


def test_nan_in_the_network_names_the_step(ddim):
    with torch.no_grad():
        ddim.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="after step 1 of 3"):
        ddim(num_inference_steps=3)


def test_nan_in_the_decoder_is_not_a_black_picture(latent):
    with torch.no_grad():
        latent.vae.decoder.conv_out.bias.fill_(float("inf"))
    for kind in ("pil", "np", "pt"):
        with pytest.raises(NonFiniteError, match=r"from vae.*first in vae\.decoder\.conv_out"):
            latent(class_labels=0, num_inference_steps=1, output_type=kind)


def test_cancelled_before_decoding(latent, monkeypatch):
    from latentia.errors import Cancelled

    monkeypatch.setattr(type(latent), "decode", lambda *_: pytest.fail("decoded"))

    def stop(pipe, i, t, tensors):
        pipe._interrupt = True

    with pytest.raises(Cancelled, match="after step 1 of 2"):
        latent(class_labels=0, num_inference_steps=2, callback_on_step_end=stop)


def test_per_call_state_cannot_be_set_on_the_pipeline(ddim):
    for name in ("guidance_scale", "_guidance_scale", "_interrupt", "interrupt"):
        with pytest.raises(InputError, match="belongs to one call"):
            setattr(ddim, name, 1)


# Devices and memory ------------------------------------------------------------------------------------------


def test_half_precision_network_is_sampled_in_float32(make_unet, make_vae):
    pipe = LatentDiffusionPipeline(make_vae(), make_unet(2), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    call = {"seed": 0, "num_inference_steps": 3}
    full = pipe(**call, output_type="latent").images
    assert pipe.to(torch.bfloat16) is pipe
    assert pipe.dtype == pipe.vae.dtype == torch.bfloat16
    half = pipe(**call, output_type="latent").images
    assert half.dtype == torch.float32
    assert (full - half).abs().max() < 0.2
    assert pipe(**call, output_type="pt").images.dtype == torch.float32


def test_double_precision_stays_double(ddim):
    ddim.to(torch.float64)
    assert ddim(num_inference_steps=2, output_type="latent").images.dtype == torch.float64


def test_slicing_and_tiling_reach_the_codec(latent):
    call = {"class_labels": [0, 1], "seed": 0, "num_inference_steps": 1, "output_type": "pt"}
    plain = latent(**call).images
    latent.enable_vae_slicing()
    assert latent.vae.use_slicing
    assert torch.allclose(plain, latent(**call).images, atol=1e-6)
    latent.disable_vae_slicing()
    latent.enable_vae_tiling()
    assert (latent.vae.use_slicing, latent.vae.use_tiling) == (False, True)
    latent.disable_vae_tiling()
    assert not latent.vae.use_tiling


def test_progress_counts_every_turn_of_every_chunk(ddim, monkeypatch, capsys):
    totals = []
    original = type(ddim).progress_bar
    monkeypatch.setattr(type(ddim), "progress_bar", lambda self, total: totals.append(total) or original(self, total))
    ddim.set_progress_bar_config(desc="digits")
    ddim(batch_size=5, num_inference_steps=3, max_batch=2)
    assert totals == [9]
    assert "digits: 100%" in capsys.readouterr().err
