"""Text encoders of transformers inside our pipelines: saved by our rules, and run."""

from pathlib import Path

import torch

from latentia import StableDiffusionPipeline
from latentia.conditioners.prompts import encode_prompts
from latentia.pipelines.folder import save_component
from tiny_sd import tiny_sd


def theirs(kind: str):
    import transformers

    transformers.logging.disable_progress_bar()
    return getattr(transformers, kind).from_pretrained(tiny_sd() / "text_encoder").eval()


def test_saving_one_variant_leaves_the_shards_of_another(tmp_path: Path):
    import transformers

    encoder = theirs("CLIPTextModel")
    save_component(encoder, tmp_path, "fp16", "20KB")
    before = {file.name: file.read_bytes() for file in tmp_path.glob("model*")}
    assert len(before) > 2
    save_component(encoder, tmp_path, None, "20KB")
    save_component(encoder, tmp_path, None, "10GB")
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert {file.name for file in tmp_path.glob("model*")} - set(before) == {"model.safetensors"}
    for variant in (None, "fp16"):
        again = transformers.CLIPTextModel.from_pretrained(tmp_path, variant=variant)
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), encoder.parameters(), strict=True))
    assert again.config.architectures == ["CLIPTextModel"]


def test_an_encoder_with_a_projection_gives_its_tokens():
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd())
    encoder = theirs("CLIPTextModelWithProjection")
    with torch.no_grad():
        assert encode_prompts(pipe.tokenizer, encoder, "a cat").shape == (1, 77, 32)
