"""Tiny Stable Diffusion folders with random weights, made by Diffusers and transformers: `from tiny_sd import tiny_sd`.

Each kind has the shape of a published model, a thousandth of its size, and weights drawn from a seed in which nothing
is zero or one, so that no path is silent: what loads and computes these loads and computes the large ones.

    sd1         Stable Diffusion 1: convolutional projections, quick_gelu, PNDM
    sd2         Stable Diffusion 2: linear projections, heads by stage, upcast attention, gelu, v-prediction
    inpaint     Stable Diffusion 1 with a 9-channel UNet
    pix2pix     InstructPix2Pix: an 8-channel UNet, Euler ancestral
    controlnet  Stable Diffusion 1 with a ControlNet
    ldm         LDM's text-to-image: LDMBert, VQModel, a BERT tokenizer

`tiny_sd(kind)` is a folder that lasts as long as the process and that nobody writes to; `save_tiny_sd` writes another.
The codec halves each side once (`ldm`: three times), so that a picture has 16×16 pixels (64×64).
"""

import atexit
import functools
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

KINDS = ("controlnet", "inpaint", "ldm", "pix2pix", "sd1", "sd2")
SENTENCES = (
    "a photograph of an astronaut riding a horse on mars",
    "a painting of a squirrel eating a burger",
    "a watercolor painting of a lighthouse by the sea at night",
    "turn the sky into a starry night, highly detailed, sharp focus",
    "a small red cube on a large blue sphere",
    "two cats and three dogs in a garden, low quality, blurry",
    "the quick brown fox jumps over the lazy dog",
    "it's a portrait of the old king's daughter, oil on canvas",
)
"""What the tokenizers learnt from; other words fall into pieces and bytes."""

WIDTH = 32  # of the text's features
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SD_SCHEDULER = {**BETAS, "steps_offset": 1, "set_alpha_to_one": False}
UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
SD2_UNET = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "upcast_attention": True,
}
CODEC = {"sample_size": 16, "latent_channels": 4, "scaling_factor": 0.18215, "norm_num_groups": 8}


def codec_stages(widths: tuple[int, ...]) -> dict[str, Any]:
    """Arguments of an autoencoder that halves each side between its widths."""
    return {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": 1,
    }


def randomize(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Draw all weights: matrices of unit gain, vectors around one (scales of norms) or zero (biases); to `eval`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2 and "embedding" not in name.split(".")[-2]:
                parameter.copy_(drawn / parameter[0].numel() ** 0.5)
            elif parameter.ndim >= 2:
                parameter.copy_(0.5 * drawn)
            elif name.endswith("weight"):
                parameter.copy_(1 + 0.2 * drawn)
            else:
                parameter.copy_(0.1 * drawn)
    return model.eval()


def clip_tokenizer(pad_token: str = "<|endoftext|>") -> Any:
    """A CLIP tokenizer of 688 tokens, 174 of them merged: lower case, `</w>` ends a word, 77 positions."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=512, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(SENTENCES, trainer)
    with tempfile.TemporaryDirectory() as folder:
        learner.model.save(folder)
        lines = (Path(folder) / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet), *(a + b for a, b in merges)]
    names = list(dict.fromkeys(pieces)) + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {name: i for i, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=77)


def bert_tokenizer() -> Any:
    """A BERT tokenizer of the sentences' words, and of letters for other words."""
    from transformers import BertTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,'"
    words = sorted({word.strip(",") for sentence in SENTENCES for word in sentence.split()} - set(letters))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    names = [*special, *letters, *(f"##{letter}" for letter in letters), *words]
    return BertTokenizer(vocab={name: i for i, name in enumerate(names)}, model_max_length=77)


def clip_text_encoder(tokenizer: Any, kind: str, seed: int) -> Any:
    """CLIP's text encoder: two layers (`sd2`: three) of 32."""
    from transformers import CLIPTextConfig, CLIPTextModel

    second = kind == "sd2"
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=3 if second else 2,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act="gelu" if second else "quick_gelu",
        projection_dim=WIDTH,
        pad_token_id=1,
        bos_token_id=tokenizer.bos_token_id if second else 0,
        eos_token_id=tokenizer.eos_token_id if second else 2,  # 2 is what CLIP-L's published config says
    )
    return randomize(CLIPTextModel(config), seed)


def scheduler_for(kind: str) -> Any:
    """The scheduler that the published model comes with."""
    import diffusers

    # The published files keep entries that their own class has not, for the schedulers that take its place.
    for_all = {**SD_SCHEDULER, "skip_prk_steps": True, "clip_sample": False}
    if kind in ("sd2", "ldm"):
        prediction = "v_prediction" if kind == "sd2" else "epsilon"
        return diffusers.DDIMScheduler(**SD_SCHEDULER, clip_sample=False, prediction_type=prediction)
    if kind == "pix2pix":
        return diffusers.EulerAncestralDiscreteScheduler.from_config(for_all, timestep_spacing="leading")
    return diffusers.PNDMScheduler.from_config(for_all)


def ldm_pipeline() -> Any:
    """Latent diffusion's text-to-image."""
    import diffusers
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    tokenizer = bert_tokenizer()
    bert = LDMBertModel(
        LDMBertConfig(
            vocab_size=len(tokenizer),
            encoder_layers=2,
            encoder_ffn_dim=48,
            encoder_attention_heads=4,
            head_dim=8,
            d_model=WIDTH,
        )
    )
    vqvae = diffusers.VQModel(**CODEC | {"sample_size": 64}, **codec_stages((8, 16, 16, 24)), num_vq_embeddings=64)
    return diffusers.LDMTextToImagePipeline(
        vqvae=randomize(vqvae, 1),
        bert=randomize(bert, 2),
        tokenizer=tokenizer,
        unet=randomize(diffusers.UNet2DConditionModel(**UNET), 3),
        scheduler=scheduler_for("ldm"),
    )


def controlnet_model(seed: int) -> Any:
    """A ControlNet for the tiny UNet; its image has the size of the picture."""
    import diffusers

    shared = {key: value for key, value in UNET.items() if key not in ("sample_size", "out_channels", "up_block_types")}
    return randomize(diffusers.ControlNetModel(**shared, conditioning_embedding_out_channels=(8, 16)), seed)


def tiny_pipeline(kind: str = "sd1") -> Any:
    """A new Diffusers pipeline of this kind, float32, on the CPU."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers
        import transformers

        diffusers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.disable_progress_bar()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        if kind == "ldm":
            pipeline = ldm_pipeline()
        else:
            pipeline = stable_diffusion(kind)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stable_diffusion(kind: str) -> Any:
    """Stable Diffusion of this kind."""
    import diffusers

    tokenizer = clip_tokenizer("!" if kind == "sd2" else "<|endoftext|>")
    channels = {"inpaint": 9, "pix2pix": 8}.get(kind, 4)
    unet = diffusers.UNet2DConditionModel(**UNET | (SD2_UNET if kind == "sd2" else {}) | {"in_channels": channels})
    parts = {
        "vae": randomize(diffusers.AutoencoderKL(**CODEC, **codec_stages((32, 64))), 1),
        "text_encoder": clip_text_encoder(tokenizer, kind, 2),
        "tokenizer": tokenizer,
        "unet": randomize(unet, 3),
        "scheduler": scheduler_for(kind),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    if kind == "controlnet":
        parts["controlnet"] = controlnet_model(4)
    classes = {
        "inpaint": "StableDiffusionInpaintPipeline",
        "pix2pix": "StableDiffusionInstructPix2PixPipeline",
        "controlnet": "StableDiffusionControlNetPipeline",
    }
    pipeline: Any = getattr(diffusers, classes.get(kind, "StableDiffusionPipeline"))(**parts)
    return pipeline


def save_tiny_sd(
    folder: str | os.PathLike[str],
    kind: str = "sd1",
    variant: str | None = None,
    shards: int | str | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a tiny pipeline's folder and return it.

    Args:
        folder: where to.
        kind: one of `KINDS`.
        variant: tag in the weights' file names, such as "fp16".
        shards: most bytes of one weight file, as an integer or such as "100KB"; None keeps each model in one file.
        dtype: type of the weights, where not float32.
    """
    pipeline = tiny_pipeline(kind)
    if dtype is not None:
        pipeline.to(dtype)
    size = {} if shards is None else {"max_shard_size": shards}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.save_pretrained(folder, variant=variant, **size)
    return Path(folder)


def seeds(*numbers: int) -> torch.Generator | list[torch.Generator]:
    """Fresh generators: one, or a list of one per number."""
    made = [torch.Generator().manual_seed(number) for number in numbers]
    return made if len(made) > 1 else made[0]


def picture(seed: int = 0, width: int = 16, height: int = 16) -> Any:
    """A PIL picture of coarse colours, smoothly enlarged."""
    from PIL import Image

    colours = torch.randint(0, 256, (4, 4, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(colours.numpy()).resize((width, height), Image.Resampling.BICUBIC)


@functools.cache
def _root() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="tiny_sd_")
    atexit.register(folder.cleanup)
    return Path(folder.name)


@functools.cache
def tiny_sd(kind: str = "sd1") -> Path:
    """The folder of this kind, made at the first call and removed with the process; do not write into it."""
    return save_tiny_sd(_root() / kind, kind)
