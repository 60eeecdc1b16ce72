"""Pipeline folders travel both ways: variants, shards, half precision, absent components, names that mean nothing."""

import json
import shutil
import warnings

import diffusers
import pytest
import torch

import latentia
from latentia.errors import ArtifactError
from tiny_sd import save_tiny_sd, tiny_sd

KINDS = ("controlnet", "inpaint", "ldm", "pix2pix", "sd1", "sd2")


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def peer(folder, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quiet(diffusers.DiffusionPipeline.from_pretrained(folder, **options))


def ours(folder, **options):
    return quiet(latentia.DiffusionPipeline.from_pretrained(folder, **options))


def networks(pipe):
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def weights(model):
    """State dict without the prefix that transformers 5 gave up."""
    return {key.removeprefix("text_model."): tensor for key, tensor in model.state_dict().items()}


def assert_same_weights(found, wanted):
    assert set(networks(found)) == set(networks(wanted))
    for name, part in networks(wanted).items():
        mine, peers = weights(networks(found)[name]), weights(part)
        assert set(mine) == set(peers)
        assert all(torch.equal(mine[key], tensor) for key, tensor in peers.items()), name


def draw(pipe):
    generator = torch.Generator().manual_seed(3)
    return pipe("a dog", num_inference_steps=3, generator=generator, output_type="pt").images


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(tmp_path, kind):
    """Theirs read by us, saved by us, read by them: the same class, weights, values and schedule."""
    first, read = peer(tiny_sd(kind)), ours(tiny_sd(kind))
    assert type(read).__name__ == type(first).__name__
    assert_same_weights(read, first)
    read.save_pretrained(tmp_path)
    back = peer(tmp_path)
    assert type(back) is type(first)
    assert_same_weights(back, first)
    assert type(back.scheduler) is type(first.scheduler)
    for key, value in first.scheduler.config.items():
        assert key.startswith("_") or back.scheduler.config[key] == value
    words = "A red cube, it's 1 of 2! zebras"
    assert back.tokenizer(words).input_ids == first.tokenizer(words).input_ids == read.tokenizer(words).input_ids
    index = json.loads((tmp_path / "model_index.json").read_text())
    wanted = json.loads((tiny_sd(kind) / "model_index.json").read_text())
    drop = ("_diffusers_version", "_latentia_version", "_name_or_path")
    assert {k: v for k, v in index.items() if k not in drop} == {k: v for k, v in wanted.items() if k not in drop}


def test_the_same_pictures_from_what_we_saved(tmp_path):
    read = ours(tiny_sd("sd1"))
    read.save_pretrained(tmp_path)
    wanted = draw(peer(tiny_sd("sd1")))
    torch.testing.assert_close(draw(peer(tmp_path)), wanted, atol=0, rtol=0)
    for pipe in (read, ours(tmp_path)):
        torch.testing.assert_close(draw(pipe), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shards", [None, "60KB"])
def test_their_variants_and_shards(tmp_path, shards):
    folder = save_tiny_sd(tmp_path, variant="fp16", shards=shards, dtype=torch.float16)
    names = sorted(path.name for path in (folder / "unet").iterdir())
    assert ("diffusion_pytorch_model.safetensors.index.fp16.json" in names) == bool(shards)
    assert (len(names) > 3) == bool(shards)
    found, wanted = (load(folder, variant="fp16", torch_dtype=torch.float16) for load in (ours, peer))
    assert_same_weights(found, wanted)
    assert found.unet.dtype == found.text_encoder.dtype == torch.float16
    with pytest.raises(ArtifactError, match="fp16"):
        ours(folder)


@pytest.mark.parametrize("shards", [None, "60KB"])
def test_our_variants_and_shards(tmp_path, shards):
    mine = ours(tiny_sd("sd2"), torch_dtype=torch.float16)
    size = {} if shards is None else {"max_shard_size": shards}
    mine.save_pretrained(tmp_path, variant="fp16", **size)
    with pytest.raises(OSError):
        peer(tmp_path)
    assert_same_weights(peer(tmp_path, variant="fp16", torch_dtype=torch.float16), mine)
    mine.to(torch.float32).save_pretrained(tmp_path)
    assert_same_weights(peer(tmp_path, variant="fp16", torch_dtype=torch.float16), mine.to(torch.float16))


def test_defect_n_saving_beside_shards_of_another_variant(tmp_path):
    """Diffusers deletes the shards of fp16 when it saves fp32 into the same folder, and leaves a stale index."""
    half = ours(tiny_sd("sd1"), torch_dtype=torch.float16)
    half.save_pretrained(tmp_path, variant="fp16", max_shard_size="60KB")
    whole = ours(tiny_sd("sd1"))
    whole.save_pretrained(tmp_path)
    for load in (ours, peer):
        assert_same_weights(load(tmp_path, variant="fp16", torch_dtype=torch.float16), half)
        assert_same_weights(load(tmp_path), whole)
    whole.save_pretrained(tmp_path, max_shard_size="60KB")
    assert_same_weights(peer(tmp_path), whole)
    whole.save_pretrained(tmp_path)
    assert not list((tmp_path / "unet").glob("*index.json"))
    for load in (ours, peer):
        assert_same_weights(load(tmp_path), whole)
        assert_same_weights(load(tmp_path, variant="fp16", torch_dtype=torch.float16), half)


def test_absent_components_and_names_that_mean_nothing(tmp_path):
    shutil.copytree(tiny_sd("sd1"), tmp_path, dirs_exist_ok=True)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["safety_checker"] == index["feature_extractor"] == [None, None]
    index |= {"_name_or_path": "/nowhere/to/be/found", "image_encoder": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    config = json.loads((tmp_path / "unet" / "config.json").read_text()) | {"_name_or_path": "/nowhere"}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    read = ours(tmp_path)
    assert read.safety_checker is None
    torch.testing.assert_close(draw(read), draw(peer(tmp_path)), atol=1e-5, rtol=0)


def test_a_folder_with_a_safety_checker_is_read_without_it(tmp_path):
    """Published folders carry one; Latentia runs none, and says how to be rid of it or reads past it."""
    shutil.copytree(tiny_sd("sd1"), tmp_path, dirs_exist_ok=True)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPFeatureExtractor"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    read = ours(tmp_path, safety_checker=None, feature_extractor=None)
    assert read.safety_checker is None


def test_both_key_layouts_of_the_text_encoder(tmp_path):
    """With `text_model.` as before transformers 5.6, and without."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_sd("sd1"), tmp_path, dirs_exist_ok=True)
    path = tmp_path / "text_encoder" / "model.safetensors"
    tensors = {key.removeprefix("text_model."): tensor for key, tensor in load_file(path).items()}
    pictures = []
    for prefix in ("", "text_model."):
        held = {prefix + key: tensor for key, tensor in tensors.items()}
        held[prefix + "embeddings.position_ids"] = torch.arange(77)[None]  # in every file of 2022
        save_file(held, path, {"format": "pt"})
        pictures.append(draw(ours(tmp_path)))
    assert torch.equal(*pictures)
    torch.testing.assert_close(pictures[0], draw(peer(tiny_sd("sd1"))), atol=1e-5, rtol=0)


def test_schedulers_of_2022(tmp_path):
    """Folders from before `clip_sample` and `steps_offset` were written: Diffusers mends them when it constructs."""
    shutil.copytree(tiny_sd("sd1"), tmp_path, dirs_exist_ok=True)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    old = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    path.write_text(json.dumps(old))
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    torch.testing.assert_close(draw(ours(tmp_path)), draw(peer(tmp_path)), atol=1e-5, rtol=0)
