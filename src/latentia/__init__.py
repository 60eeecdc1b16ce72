"""Latentia compresses, then generates: images, edits, tokens and network weights, all from noise.

Every public name is listed once below and imported when first used, so `import latentia` costs nothing.
"""

import importlib
from typing import Any

from latentia._version import __version__ as __version__

_HOME = {
    "AutoPipelineForImage2Image": "pipelines.auto",
    "AutoPipelineForInpainting": "pipelines.auto",
    "AutoPipelineForText2Image": "pipelines.auto",
    "Autoencoder": "codecs.autoencoder",
    "AutoencoderKL": "codecs.autoencoder_kl",
    "AutoregressivePipeline": "pipelines.autoregressive",
    "AutoregressiveScheduler": "schedulers.autoregressive",
    "AutoregressiveTransformer": "denoisers.autoregressive",
    "CLIPTextModel": "conditioners.clip",
    "CancelToken": "pipelines.callbacks",
    "CodecObjective": "training.codec_objective",
    "ContinuousFlowMo": "methods.flowmo.codecs",
    "ControlNetModel": "denoisers.controlnet",
    "ConvClassifier": "metrics.classifier",
    "DDIMPipeline": "pipelines.pixel",
    "DDIMScheduler": "schedulers.ddim",
    "DDPMPipeline": "pipelines.pixel",
    "DDPMScheduler": "schedulers.ddpm",
    "DPMSolverMultistepScheduler": "schedulers.dpm_solver_multistep",
    "DiffusionPipeline": "pipelines.pipeline",
    "EMAModel": "training.ema",
    "EmuEditModel": "methods.emu_edit.model",
    "EmuEditPipeline": "methods.emu_edit.pipeline",
    "EulerAncestralDiscreteScheduler": "schedulers.euler_ancestral",
    "EulerDiscreteScheduler": "schedulers.euler",
    "FlowMatchEulerDiscreteScheduler": "schedulers.flow_match_euler",
    "FlowMo": "methods.flowmo.codecs",
    "HeunDiscreteScheduler": "schedulers.heun",
    "ImagePipelineOutput": "pipelines.outputs",
    "Judge": "metrics.evaluate",
    "LDMBertModel": "conditioners.ldm_bert",
    "LDMPipeline": "pipelines.latent",
    "LDMTextToImagePipeline": "pipelines.ldm_text_to_image",
    "LPIPS": "losses.lpips",
    "LatentDiffusionPipeline": "pipelines.latent",
    "MaskedPipeline": "pipelines.masked",
    "MaskedScheduler": "schedulers.masked",
    "MaskedTransformer": "denoisers.masked",
    "ModelMixin": "core.model",
    "MultiPipelineCallbacks": "pipelines.callbacks",
    "PNDMScheduler": "schedulers.pndm",
    "ParameterAutoencoder": "methods.pdiff.autoencoder",
    "ParameterDiffusionPipeline": "methods.pdiff.pipeline",
    "ParameterTemplate": "methods.pdiff.template",
    "ParameterTokenCodec": "methods.pdiff.token_codec",
    "ParameterTokenTransformer": "methods.pdiff.tokens",
    "PatchDiscriminator": "losses.patchgan",
    "PhotoFeatures": "metrics.photo_features",
    "PipelineCallback": "pipelines.callbacks",
    "SchedulerMixin": "schedulers.scheduler",
    "StableDiffusionControlNetPipeline": "pipelines.controlnet",
    "StableDiffusionImg2ImgPipeline": "pipelines.image_to_image",
    "StableDiffusionInpaintPipeline": "pipelines.inpaint",
    "StableDiffusionInstructPix2PixPipeline": "pipelines.instruct_pix2pix",
    "StableDiffusionPipeline": "pipelines.text_to_image",
    "StableDiffusionPipelineOutput": "pipelines.outputs",
    "T5TaskPredictor": "methods.emu_edit.t5_predictor",
    "TaskEmbedding": "methods.emu_edit.embedding_file",
    "TaskPredictor": "methods.emu_edit.predictor",
    "Trajectory": "pipelines.callbacks",
    "UNet1D": "denoisers.unet_1d",
    "UNet2DConditionModel": "denoisers.unet_2d_condition",
    "UNet2DModel": "denoisers.unet_2d",
    "VQModel": "codecs.vq_model",
    "load_part": "pipelines.single_file",
    "sample_sharded": "pipelines.distributed",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"latentia.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_"):
        from latentia.errors import nearest

        hint = nearest(name, _HOME)
        raise AttributeError(f"latentia has no {name!r}" + (f": did you mean {hint!r}?" if hint else ""))
    raise AttributeError(f"module 'latentia' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
