"""Every public pipeline of classes, or of nothing, keeps one contract: folder, callbacks, seeds, threads, errors.

Pipelines of tokens draw a row of three, so that three steps are what the autoregressive one takes too.
"""

import inspect
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import latentia
from latentia import (
    AutoencoderKL,
    AutoregressiveScheduler,
    AutoregressiveTransformer,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    MaskedScheduler,
    MaskedTransformer,
    SchedulerMixin,
    UNet2DModel,
    VQModel,
)
from latentia.core.images import OUTPUT_TYPES
from latentia.errors import Cancelled, InputError, UnknownChoiceError
from latentia.pipelines.callbacks import CancelToken, MultiPipelineCallbacks, PipelineCallback, Trajectory
from latentia.pipelines.image_pipeline import ImagePipeline
from latentia.pipelines.tokens import TokenPipeline


def unet(channels, **arguments):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **arguments,
    ).eval()


def vae():
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=2,
    ).eval()


def token_codec():
    torch.manual_seed(1)
    widths = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    codec = VQModel(block_out_channels=(4, 8), **widths, norm_num_groups=4, latent_channels=2, num_vq_embeddings=16)
    torch.nn.init.normal_(codec.quantize.embedding.weight)
    return codec.eval()


def transformer(kind, **arguments):
    torch.manual_seed(0)
    network = kind(num_codes=16, token_shape=(1, 3), width=16, num_layers=1, num_heads=2, **arguments)
    for parameter in (each for each in network.parameters() if each.ndim > 1):
        torch.nn.init.normal_(parameter, std=0.5)  # so that classes and guidance show
    return network.eval()


def masked(cls, **arguments):
    return cls(token_codec(), transformer(MaskedTransformer, **arguments), MaskedScheduler(mask_token_id=16))


def autoregressive(cls, **arguments):
    network = transformer(AutoregressiveTransformer, **arguments)
    return cls(token_codec(), network, AutoregressiveScheduler(mask_token_id=16))


BUILDERS = {
    "AutoregressivePipeline": autoregressive,
    "DDPMPipeline": lambda cls, **u: cls(unet(3, **u), DDPMScheduler(prediction_type="v_prediction")),
    "DDIMPipeline": lambda cls, **u: cls(unet(3, **u), DDIMScheduler(prediction_type="v_prediction")),
    "LDMPipeline": lambda cls, **u: cls(vae(), unet(2, **u), DDIMScheduler(prediction_type="v_prediction")),
    "LatentDiffusionPipeline": lambda cls, **u: cls(vae(), unet(2, **u), DDIMScheduler(prediction_type="v_prediction")),
    "MaskedPipeline": masked,
}
"""Class name → the tiniest pipeline of that class, on a network built with further arguments."""


def public_pipelines():
    found = [getattr(latentia, name) for name in latentia.__all__ if name.endswith("Pipeline")]
    return [cls for cls in found if issubclass(cls, ImagePipeline) and not inspect.isabstract(cls)]


def build(cls, **arguments):
    pipe = BUILDERS[cls.__name__](cls, **arguments)
    pipe.set_progress_bar_config(disable=True)
    return pipe


every = pytest.mark.parametrize("cls", public_pipelines(), ids=lambda cls: cls.__name__)
from_noise = [cls for cls in public_pipelines() if not issubclass(cls, TokenPipeline)]
CALL = {"seed": 2, "num_inference_steps": 3}


def test_every_public_pipeline_is_here():
    assert {cls.__name__ for cls in public_pipelines()} == set(BUILDERS)


@every
def test_round_trip_gives_the_same_pictures(cls, tmp_path):
    pipe = build(cls)
    folder = pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(folder)
    again.set_progress_bar_config(disable=True)
    assert type(again) is cls
    assert again.config == pipe.config
    assert torch.equal(pipe(**CALL, output_type="pt").images, again(**CALL, output_type="pt").images)
    assert (folder / "model_index.json").read_text().endswith("}\n")


@every
def test_components_rebuild_the_pipeline(cls):
    pipe = build(cls)
    again = cls(**pipe.components)
    assert again.components == pipe.components
    assert list(pipe.components) == list(cls.roles)


@every
def test_every_component_is_checked(cls):
    parts = build(cls).components
    for name in parts:
        for wrong in (None, "unet", object()):
            with pytest.raises(InputError, match=f"component {name!r}"):
                cls(**{**parts, name: wrong})


@every
@pytest.mark.parametrize("names", [[], ["latents"], ["pred_original_sample", "latents"], "all"])
def test_callbacks_get_exactly_the_tensors_they_ask_for(cls, names):
    pipe, seen = build(cls, num_class_embeds=3), []
    names = list(cls._callback_tensor_inputs) if names == "all" else names

    def callback(view, i, t, tensors):
        seen.append((i, int(t), list(tensors)))
        assert view.num_timesteps == 3
        return tensors

    inputs = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}
    changed = pipe(**CALL, class_labels=1, output_type="pt", **inputs).images
    assert [i for i, _, _ in seen] == [0, 1, 2]
    assert all(given == names for _, _, given in seen)
    assert sorted((t for _, t, _ in seen), reverse=True) == [t for _, t, _ in seen]
    assert torch.equal(changed, pipe(**CALL, class_labels=1, output_type="pt").images)


@every
def test_zeroed_latents_come_out_as_zeros(cls):
    def callback(view, i, t, tensors):
        if i == view.num_timesteps - 1:
            return {"latents": torch.zeros_like(tensors["latents"])}
        return None

    assert not build(cls)(**CALL, output_type="latent", callback_on_step_end=callback).images.any()


@every
def test_ready_made_callbacks(cls):
    pipe, strip = build(cls), Trajectory(every=2)
    pipe(**CALL, batch_size=2, callback_on_step_end=MultiPipelineCallbacks([strip]))
    assert strip.steps == [0, 2]
    assert pipe.decode(strip.frames[0]).shape[:2] == (2, 3)


@every
def test_unknown_tensor_inputs_and_wrong_callbacks(cls):
    pipe = build(cls)
    with pytest.raises(UnknownChoiceError, match="latents"):
        pipe(**CALL, callback_on_step_end=lambda *_: None, callback_on_step_end_tensor_inputs=["latens"])
    with pytest.raises(InputError, match="four positional"):
        pipe(**CALL, callback_on_step_end=lambda pipe, i: None)
    with pytest.raises(UnknownChoiceError, match="latents"):
        pipe(**CALL, callback_on_step_end=lambda *_: {"latens": None})


@every
def test_cancelled_calls_raise_and_never_decode(cls, monkeypatch):
    pipe, token = build(cls), CancelToken()
    monkeypatch.setattr(cls, "decode", lambda *_: pytest.fail("decoded"))

    def interrupt(view, i, t, tensors):
        view._interrupt = i == 1

    with pytest.raises(Cancelled, match="after step 2 of 3"):
        pipe(**CALL, callback_on_step_end=interrupt)
    with pytest.raises(Cancelled):
        pipe(**CALL, cancel=token, callback_on_step_end=lambda *_: token.cancel())
    monkeypatch.undo()
    pipe(**CALL)  # nothing of it stays behind


@every
def test_a_batch_is_its_pictures(cls):
    pipe = build(cls)
    together = pipe(**CALL, batch_size=3, output_type="pt").images
    alone = torch.cat([pipe(**CALL, sample_indices=[i], output_type="pt").images for i in range(3)])
    assert (together - alone).abs().max() < 1e-5
    assert torch.equal(together[:2], together[:2].clone())


@every
def test_threads_do_not_disturb_each_other(cls):
    pipe = build(cls)
    steps = (3, 3, 3, 3) if cls.__name__ == "AutoregressivePipeline" else (2, 3, 4, 5)
    calls = [{"seed": i, "num_inference_steps": n, "output_type": "pt"} for i, n in enumerate(steps)]
    alone = [pipe(**call).images for call in calls]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda call: pipe(**call).images, calls))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@every
@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "3"])
def test_step_counts_are_checked(cls, steps):
    with pytest.raises(InputError, match="num_inference_steps"):
        build(cls)(num_inference_steps=steps)


@every
@pytest.mark.parametrize("kind", [*OUTPUT_TYPES, "latent"])
def test_output_types(cls, kind):
    pipe = build(cls)
    out = pipe(**CALL, batch_size=2, output_type=kind)
    assert len(out.images) == len(out["images"]) == len(out[0]) == 2
    with pytest.raises(UnknownChoiceError, match="output_type"):
        pipe(**CALL, output_type="pill")


@every
def test_classes_with_guidance(cls):
    pipe = build(cls, num_class_embeds=3)
    plain = pipe(**CALL, class_labels=[0, 1], output_type="latent").images
    guided = pipe(**CALL, class_labels=[0, 1], output_type="latent", guidance_scale=4.0).images
    assert plain.shape == guided.shape
    assert not torch.allclose(plain, guided, atol=1e-4)
    with pytest.raises(InputError, match="class-conditional"):
        pipe(**CALL)
    with pytest.raises(InputError, match="no classes"):
        build(cls)(**CALL, class_labels=0)


@pytest.mark.parametrize("cls", from_noise, ids=lambda cls: cls.__name__)
def test_a_wrong_latent_shape_is_named(cls):
    pipe = build(cls)
    shape = (1, *pipe.sample_shape)
    with pytest.raises(InputError, match=r"expected \(1, \d, 8, 8\)"):
        pipe(**CALL | {"seed": None}, latents=torch.zeros(1, shape[1], 4, 4))
    assert pipe(num_inference_steps=1, latents=torch.zeros(shape), output_type="latent").images.shape == shape


@every
def test_unknown_arguments_get_the_nearest_match(cls):
    with pytest.raises(UnknownChoiceError, match="did you mean 'guidance_scale'"):
        build(cls)(guidance_scal=2.0)


@every
def test_nothing_is_recorded_for_autograd(cls):
    pipe = build(cls)
    out = pipe(**CALL, output_type="latent").images
    assert not out.requires_grad
    assert not out.is_inference()  # and it may be used in training afterwards


def public_schedulers():
    found = [getattr(latentia, name) for name in latentia.__all__ if name.endswith("Scheduler")]
    return [cls for cls in found if issubclass(cls, SchedulerMixin)]


@pytest.mark.parametrize("scheduler", public_schedulers(), ids=lambda cls: cls.__name__)
def test_every_scheduler_of_noise_drives_the_loop(scheduler):
    """Any sampler in any pipeline: per-picture noise, x̂₀ on the way, and a batch that is its pictures."""
    known = scheduler.config_arguments()
    sampler = scheduler(**({"prediction_type": "v_prediction"} if "prediction_type" in known else {}))
    pipe = latentia.LatentDiffusionPipeline(vae(), unet(2), sampler)
    pipe.set_progress_bar_config(disable=True)
    strip, kept = Trajectory(), []

    class Keep(PipelineCallback):
        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            kept.append((callback_kwargs["latents"], callback_kwargs["latents"].clone()))

    call = {"seed": 2, "num_inference_steps": 6, "output_type": "pt"}
    together = pipe(**call, batch_size=3, callback_on_step_end=[strip, Keep()]).images
    assert all(torch.equal(held, copy) for held, copy in kept)  # no later step writes into what was handed out
    alone = torch.cat([pipe(**call, sample_indices=[i]).images for i in range(3)])
    assert (together - alone).abs().max() < 1e-5
    assert len(strip.frames) >= 6
    assert all(torch.isfinite(frame).all() for frame in strip.frames)
