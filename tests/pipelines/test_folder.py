"""The pipeline folder: round trips, overrides, and folders that lie or attack."""

import json
import sys

import pytest
import torch

from latentia import Autoencoder, DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline
from latentia.errors import ArtifactError, InputError, UnknownChoiceError
from latentia.pipelines.latent import LatentDiffusionPipeline, LDMPipeline


def read(folder):
    return json.loads((folder / "model_index.json").read_text())


def rewrite(folder, **changes):
    index = {**read(folder), **changes}
    (folder / "model_index.json").write_text(json.dumps({k: v for k, v in index.items() if v is not ...}))


def sample(pipe, **given):
    pipe.set_progress_bar_config(disable=True)
    return pipe(seed=1, num_inference_steps=2, output_type="pt", **given).images


@pytest.fixture
def saved(ddim, tmp_path):
    return ddim.save_pretrained(tmp_path / "pipe")


def test_round_trip_of_a_latent_pipeline(latent, tmp_path):
    folder = latent.save_pretrained(tmp_path / "new" / "pipe")
    again = DiffusionPipeline.from_pretrained(folder)
    assert type(again) is LatentDiffusionPipeline
    assert not again.unet.training
    assert again.labels == latent.labels
    assert again.config == latent.config
    assert torch.equal(sample(latent, class_labels="owl"), sample(again, class_labels="owl"))
    assert read(folder) == {
        "_class_name": "LatentDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "id2label": {"0": "cat, kitty", "1": "dog", "2": "owl"},
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def test_classes_that_only_we_have_say_so(make_unet, tmp_path):
    torch.manual_seed(0)
    vae = Autoencoder(block_out_channels=(4,), norm_num_groups=4, latent_channels=2)
    pipe = LDMPipeline(vae, make_unet(2), DDIMScheduler())
    folder = pipe.save_pretrained(tmp_path)
    assert read(folder)["vqvae"] == ["latentia", "Autoencoder"]
    assert type(LDMPipeline.from_pretrained(folder).vqvae) is Autoencoder


def test_a_subclass_loads_itself_and_the_base_loads_what_was_saved(saved):
    assert type(DiffusionPipeline.from_pretrained(saved)) is DDIMPipeline
    pipe = DDPMPipeline.from_pretrained(str(saved))
    assert type(pipe) is DDPMPipeline
    assert type(pipe.scheduler) is DDIMScheduler


def test_overrides_win_and_are_not_read_from_disk(saved, make_unet):
    for file in (saved / "unet").iterdir():
        file.unlink()
    unet = make_unet(num_class_embeds=2)
    pipe = DiffusionPipeline.from_pretrained(saved, unet=unet, id2label={0: "a", 1: "b"})
    assert pipe.unet is unet
    assert pipe.labels == {"a": 0, "b": 1}
    with pytest.raises(UnknownChoiceError, match="did you mean 'unet'"):
        DiffusionPipeline.from_pretrained(saved, unnet=unet)


def test_dtype_and_variant(ddim, tmp_path):
    ddim.to(torch.float16)
    folder = ddim.save_pretrained(tmp_path, variant="fp16")
    assert (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    pipe = DiffusionPipeline.from_pretrained(folder, variant="fp16", torch_dtype=torch.bfloat16)
    assert pipe.dtype == torch.bfloat16
    with pytest.raises(ArtifactError):
        DiffusionPipeline.from_pretrained(folder)


def test_name_or_path_is_ignored(saved):
    rewrite(saved, _name_or_path="/somewhere/else", _something_new=3)
    assert type(DiffusionPipeline.from_pretrained(saved)) is DDIMPipeline


def test_unknown_plain_values_are_ignored_with_a_warning(saved):
    rewrite(saved, requires_safety_checker=True)
    with pytest.warns(UserWarning, match="ignores requires_safety_checker"):
        DiffusionPipeline.from_pretrained(saved)


def test_the_index_is_written_last(ddim, tmp_path, monkeypatch):
    from latentia.core.model import ModelMixin

    folder = ddim.save_pretrained(tmp_path)
    monkeypatch.setattr(ModelMixin, "save_pretrained", lambda *a, **k: (_ for _ in ()).throw(ArtifactError("full")))
    with pytest.raises(ArtifactError, match="full"):
        ddim.save_pretrained(folder)
    # The folder may now mix old and new parts, so it does not pass for a pipeline.
    with pytest.raises(ArtifactError, match=r"no model_index\.json"):
        DiffusionPipeline.from_pretrained(folder)


def test_folders_that_are_no_pipelines(tmp_path):
    with pytest.raises(ArtifactError, match=r"no model_index\.json"):
        DiffusionPipeline.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPM')
    with pytest.raises(ArtifactError, match="not valid JSON"):
        DiffusionPipeline.from_pretrained(tmp_path)
    with pytest.raises(ArtifactError):
        DiffusionPipeline.from_pretrained(tmp_path / "missing", local_files_only=True)


ATTACKS = [
    ({"_class_name": ["pipeline.py", "Evil"]}, "names code of its own"),
    ({"_class_name": ...}, "names no pipeline class"),
    ({"_class_name": "os"}, "unknown pipeline class 'os'"),
    ({"_class_name": "UNet2DModel"}, "unknown pipeline class 'UNet2DModel'"),
    ({"_class_name": "DDIMPipelin"}, "did you mean 'DDIMPipeline'"),
    ({"_class_name": "DiffusionPipeline"}, "unknown pipeline class 'DiffusionPipeline'"),
    ({"unet": ["evil_module", "UNet2DModel"]}, "Code in a model folder is never run"),
    ({"unet": ["unet.evil", "Evil"]}, "never run"),
    ({"unet": ["os", "system"]}, "asks for 'system' of 'os'"),
    ({"unet": ["transformers", "GPT2LMHeadModel"]}, "which Latentia does not load"),
    ({"unet": ["diffusers", "UNet2DModle"]}, "did you mean 'UNet2DModel'"),
    ({"unet": ["diffusers", "DDIMPipeline"]}, "unknown component class 'DDIMPipeline'"),
    ({"unet": ["diffusers", "__getattr__"]}, "unknown component class"),
    ({"unet": ["diffusers", "SchedulerMixin"]}, "unknown component class 'SchedulerMixin'"),
    ({"unet": ["diffusers", None]}, r"expected \[library, class\]"),
    ({"../unet": ["diffusers", "UNet2DModel"]}, "no plain name"),
    ({"/etc": ["diffusers", "UNet2DModel"]}, "no plain name"),
    ({"a.b": ["diffusers", "UNet2DModel"]}, "no plain name"),
    ({"": ["diffusers", "UNet2DModel"]}, "no plain name"),
    ({"vae": ["diffusers", "AutoencoderKL"]}, "does not fit DDIMPipeline: it has .*vae"),
    ({"unet": ...}, "does not fit DDIMPipeline"),
    ({"unet": 3}, "does not fit DDIMPipeline"),
]


def test_saving_over_a_file(ddim, tmp_path):
    (tmp_path / "pipe").write_text("mine")
    with pytest.raises(ArtifactError, match="could not write"):
        ddim.save_pretrained(tmp_path / "pipe")
    assert (tmp_path / "pipe").read_text() == "mine"


@pytest.mark.parametrize(("change", "words"), ATTACKS)
def test_hostile_and_broken_indices(saved, change, words, monkeypatch):
    (saved / "evil_module.py").write_text("raise SystemExit('ran')")
    (saved / "pipeline.py").write_text("raise SystemExit('ran')")
    monkeypatch.chdir(saved)
    monkeypatch.syspath_prepend(str(saved))
    rewrite(saved, **change)
    with pytest.raises(ArtifactError, match=words):
        DiffusionPipeline.from_pretrained(saved)
    assert not {"evil_module", "pipeline"} & set(sys.modules)


def test_absent_component(saved):
    rewrite(saved, unet=[None, None])
    with pytest.raises(InputError, match=r"component 'unet' must be a network with a config, .* got None"):
        DiffusionPipeline.from_pretrained(saved)


def test_missing_or_swapped_component_folders(saved):
    (saved / "unet" / "config.json").rename(saved / "config.json")
    with pytest.raises(ArtifactError, match=r"no config.json in .*unet"):
        DiffusionPipeline.from_pretrained(saved)
    (saved / "config.json").rename(saved / "unet" / "config.json")
    (saved / "scheduler").rename(saved / "gone")
    with pytest.raises(ArtifactError, match="names 'scheduler', but"):
        DiffusionPipeline.from_pretrained(saved)


def test_a_truncated_weight_file(saved):
    weights = saved / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ArtifactError):
        DiffusionPipeline.from_pretrained(saved)


@pytest.mark.parametrize(
    ("unet", "scheduler", "words"),
    [
        (None, "ok", "component 'unet' must be a network with a config, such as UNet2DModel; got None"),
        ("ok", None, "component 'scheduler' .* got None"),
        ("ok", "unet", "component 'scheduler' must be a scheduler .* got UNet2DModel"),
        ("scheduler", "ok", "component 'unet' must be a network .* got DDPMScheduler"),
        ("ok", DDPMScheduler, "got class DDPMScheduler"),
        ("ok", "ddim", "got str"),
    ],
)
def test_wrong_components_are_refused_at_construction(make_unet, unet, scheduler, words):
    good = {"unet": make_unet(), "scheduler": DDPMScheduler(), "ok": None}
    unet = good["unet"] if unet == "ok" else good.get(unet, unet) if isinstance(unet, str) else unet
    scheduler = good["scheduler"] if scheduler == "ok" else (
        good.get(scheduler, scheduler) if isinstance(scheduler, str) else scheduler
    )  # fmt: skip
    with pytest.raises(InputError, match=words):
        DDPMPipeline(unet, scheduler)


def test_wrong_components_are_refused_at_assignment(ddim):
    with pytest.raises(InputError, match="component 'scheduler'"):
        ddim.scheduler = None
    ddim.scheduler = DDPMScheduler()
    assert list(ddim.components) == ["unet", "scheduler"]


def test_hub_id_downloads_only_what_is_named(saved, tmp_path, monkeypatch):
    """The index first, then the parts it names; no other file of the repository."""
    from latentia.pipelines import folder as layout

    asked = []

    def resolve(name, *, allow_patterns, complete, **rest):
        asked.append(allow_patterns)
        assert complete(saved)
        return saved

    monkeypatch.setattr(layout, "resolve_folder", resolve)
    pipe = DiffusionPipeline.from_pretrained("someone/some-pipeline")
    assert type(pipe) is DDIMPipeline
    assert asked[0] == ["model_index.json"]
    assert "unet/diffusion_pytorch_model.safetensors" in asked[1]
    assert not [p for p in asked[1] if p.endswith((".bin", ".py")) or p.startswith("*")]
    (saved / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    index = layout.read_index(saved)
    assert not layout._has_part(saved, index, "unet", None)
    assert layout._has_part(saved, index, "scheduler", None)


def test_options_of_the_peers_loader(saved, tmp_path):
    pipe = DiffusionPipeline.from_pretrained(saved, use_safetensors=True, low_cpu_mem_usage=True, dtype=torch.float16)
    assert pipe.dtype == torch.float16
    with pytest.raises(InputError, match="two names of one option"):
        DiffusionPipeline.from_pretrained(saved, dtype=torch.float16, torch_dtype=torch.float32)
    with pytest.raises(InputError, match="pickles are not read"):
        DiffusionPipeline.from_pretrained(saved, use_safetensors=False)
    with pytest.raises(InputError, match="no option 'device_map'"):
        DiffusionPipeline.from_pretrained(saved, device_map="auto")
    with pytest.raises(InputError, match="nothing is pickled"):
        pipe.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    assert not (tmp_path / "pickled").exists()
    assert (pipe.save_pretrained(tmp_path / "safe", safe_serialization=True) / "model_index.json").is_file()


def test_only_classes_of_the_kind_are_suggested(saved):
    rewrite(saved, unet=["diffusers", "EMAModle"])
    with pytest.raises(ArtifactError, match="unknown component class 'EMAModle'") as refused:
        DiffusionPipeline.from_pretrained(saved)
    assert "EMAModel'" not in str(refused.value)
