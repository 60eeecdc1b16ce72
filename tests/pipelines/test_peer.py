"""Diffusers on the same weights: same folders in both directions, same pictures from the same noise."""

import diffusers
import diffusers.callbacks
import numpy as np
import pytest
import torch

import latentia
from latentia import DDIMScheduler, DDPMScheduler, DiffusionPipeline, ModelMixin, SchedulerMixin
from latentia.errors import InputError
from latentia.pipelines.folder import LIBRARIES
from latentia.pipelines.latent import LDMPipeline

STEPS = 10


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, **given):
    generator = torch.Generator().manual_seed(3)
    return pipe(batch_size=2, generator=generator, num_inference_steps=STEPS, output_type="np", **given).images


def theirs_of(ours, folder):
    return quiet(diffusers.DiffusionPipeline.from_pretrained(ours.save_pretrained(folder)))


@pytest.mark.parametrize(
    ("name", "scheduler", "given"),
    [
        ("DDPMPipeline", DDPMScheduler, {}),
        ("DDIMPipeline", DDIMScheduler, {"eta": 0.0}),
        ("DDIMPipeline", DDIMScheduler, {"eta": 0.7}),
        ("DDIMPipeline", DDIMScheduler, {"eta": 0.3, "use_clipped_model_output": True}),
    ],
)
def test_pixel_pipelines_both_ways(make_unet, tmp_path, name, scheduler, given):
    ours = quiet(getattr(latentia, name)(make_unet(), scheduler()))
    theirs = theirs_of(ours, tmp_path / "ours")
    assert type(theirs).__name__ == name
    want = draw(theirs, **given)
    assert np.abs(draw(ours, **given) - want).max() < 1e-4
    theirs.save_pretrained(tmp_path / "theirs")
    back = quiet(DiffusionPipeline.from_pretrained(tmp_path / "theirs"))
    assert type(back).__name__ == name
    assert np.abs(draw(back, **given) - want).max() < 1e-4


def test_a_list_of_generators_draws_as_theirs(make_unet, tmp_path):
    ours = quiet(latentia.DDIMPipeline(make_unet(), DDIMScheduler()))
    theirs = theirs_of(ours, tmp_path)

    def images(pipe):
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        return pipe(batch_size=2, generator=generators, eta=0.5, num_inference_steps=5, output_type="np").images

    assert np.abs(images(ours) - images(theirs)).max() < 1e-4


def test_ldm_both_ways(make_unet, make_vae, tmp_path):
    """Diffusers' LDMPipeline with an AutoencoderKL as its codec; it takes any."""
    ours = quiet(LDMPipeline(make_vae(scaling_factor=0.6), make_unet(2), DDIMScheduler()))
    theirs = theirs_of(ours, tmp_path / "ours")
    assert type(theirs).__name__ == "LDMPipeline"
    want = draw(theirs)
    assert np.abs(draw(ours) - want).max() < 1e-4
    theirs.save_pretrained(tmp_path / "theirs")
    back = quiet(DiffusionPipeline.from_pretrained(tmp_path / "theirs"))
    assert type(back) is LDMPipeline
    assert np.abs(draw(back) - want).max() < 1e-4


@pytest.mark.parametrize(
    "given",
    [{"scaling_factor": 1.0}, {"scaling_factor": 0.4}, {"latent_channels": 3, "vq_embed_dim": 2, "legacy_beta": True}],
)
def test_ldm_with_a_vector_quantised_codec_both_ways(make_unet, tmp_path, given):
    """Continuous latents are sampled, and quantised when decoded."""
    torch.manual_seed(1)
    vqvae = latentia.VQModel(
        **{
            "block_out_channels": (4, 8),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "norm_num_groups": 4,
            "latent_channels": 2,
            "num_vq_embeddings": 64,
            **given,
        }
    ).eval()
    spread = 50 / vqvae.config.scaling_factor  # that of the latents which the random network samples
    torch.nn.init.normal_(vqvae.quantize.embedding.weight, std=spread)
    ours = quiet(LDMPipeline(vqvae, make_unet(2), DDIMScheduler(clip_sample=False)))
    theirs = theirs_of(ours, tmp_path / "ours")
    assert type(theirs).__name__ == "LDMPipeline"
    assert type(theirs.vqvae) is diffusers.VQModel
    want = draw(theirs)
    assert np.abs(draw(ours) - want).max() < 1e-4
    z = ours(2, torch.Generator().manual_seed(3), num_inference_steps=STEPS, output_type="latent").images
    assert len(vqvae.quantize.assign(z / vqvae.config.scaling_factor).unique()) > 10
    theirs.save_pretrained(tmp_path / "theirs")
    back = quiet(DiffusionPipeline.from_pretrained(tmp_path / "theirs"))
    assert (type(back), type(back.codec)) == (LDMPipeline, latentia.VQModel)
    assert np.abs(draw(back) - want).max() < 1e-4


def test_a_codec_with_codes_of_another_width_is_refused(make_unet):
    vqvae = latentia.VQModel(latent_channels=2, vq_embed_dim=4, norm_num_groups=4, block_out_channels=(4,))
    with pytest.raises(InputError, match="vqvae makes latents of 4 channels but unet takes 2"):
        LDMPipeline(vqvae, make_unet(2), DDIMScheduler())


def test_our_own_arguments_do_not_stop_diffusers(make_unet, tmp_path):
    ours = latentia.DDPMPipeline(make_unet(), DDPMScheduler(compat=True))
    theirs = theirs_of(ours, tmp_path)
    assert type(theirs.scheduler) is diffusers.DDPMScheduler


def test_class_names_do_not_stop_diffusers(make_unet, tmp_path):
    ours = latentia.DDPMPipeline(make_unet(num_class_embeds=3), DDPMScheduler(), id2label={0: "a", 1: "b"})
    theirs = theirs_of(ours, tmp_path)
    assert theirs.unet.config.num_class_embeds == 3


def test_a_ddpm_scheduler_becomes_ddim_in_a_ddim_pipeline(make_unet):
    pipe = latentia.DDIMPipeline(make_unet(), DDPMScheduler(beta_end=0.03))
    peer = diffusers.DDIMPipeline(
        diffusers.UNet2DModel(**dict(make_unet().config_to_save())), diffusers.DDPMScheduler()
    )
    assert type(pipe.scheduler).__name__ == type(peer.scheduler).__name__ == "DDIMScheduler"
    assert pipe.scheduler.config.beta_end == 0.03


def test_their_callbacks_run_on_our_pipelines(latent):
    class Cutoff(diffusers.callbacks.PipelineCallback):
        tensor_inputs = ["class_labels"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            if step_index == int(pipeline.num_timesteps * self.config.cutoff_step_ratio):
                pipeline._guidance_scale = 0.0
            return callback_kwargs

    call = {"class_labels": 1, "guidance_scale": 3.0, "num_inference_steps": 4, "seed": 0, "output_type": "latent"}
    never = latent(**call, callback_on_step_end=Cutoff(1.0)).images
    early = latent(**call, callback_on_step_end=Cutoff(0.25)).images
    assert torch.equal(never, latent(**call).images)
    assert (never - early).abs().max() > 1e-4


def test_libraries_in_the_index_are_true():
    """A public class stands under `diffusers` exactly if Diffusers has it."""
    kinds = (ModelMixin, SchedulerMixin, DiffusionPipeline)
    public = {name: getattr(latentia, name) for name in latentia.__all__ if not name.endswith("Mixin")}
    ours = {name for name, found in public.items() if isinstance(found, type) and issubclass(found, kinds)}
    assert {name for name in ours if not hasattr(diffusers, name)} == set(LIBRARIES) & ours
    assert not [name for name in LIBRARIES if hasattr(diffusers, name)]
