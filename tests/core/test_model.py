import json
import threading
from typing import ClassVar

import diffusers
import pytest
import torch
from torch import nn

import latentia
from latentia.core.artifacts import load_state_dict, save_state_dict
from latentia.core.config import register_to_config
from latentia.core.model import ModelMixin
from latentia.core.model_loading import SkipInit
from latentia.errors import ArtifactError, ConfigError, InputError

SINGLE = "diffusion_pytorch_model.safetensors"


class Tiny(ModelMixin):
    """Every kind of tensor that a model may hold."""

    extensions = frozenset({"tied"})
    counts: ClassVar[list[int]] = []

    @register_to_config
    def __init__(self, width=4, widths=(2, 3), tied=False, bias=True):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, bias=bias)
        self.norm = nn.BatchNorm2d(width)
        self.embed = nn.Embedding(7, width)
        self.head = nn.Linear(width, 7, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.randn(2), requires_grad=False)
        self.register_buffer("steps", torch.arange(5))
        self.register_buffer("scale", torch.full((3,), 0.1, dtype=torch.float64))
        self.register_buffer("waves", torch.linspace(0, 1, 6), persistent=False)

    @classmethod
    def convert_legacy_keys(cls, state_dict):
        return {name.replace("old_conv.", "conv."): tensor for name, tensor in state_dict.items()}


class Stranger(ModelMixin):
    @register_to_config
    def __init__(self, width=4):
        super().__init__()


def tiny(seed: int = 0, **arguments) -> Tiny:
    torch.manual_seed(seed)
    return Tiny(**arguments)


def assert_same(a: nn.Module, b: nn.Module):
    x, y = ({**dict(m.named_buffers()), **m.state_dict()} for m in (a, b))
    assert x.keys() == y.keys()
    for name in x:
        assert x[name].dtype == y[name].dtype, name
        assert torch.equal(x[name], y[name]), name


# Saving and loading


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("size", ["10GB", 200])
def test_round_trip(tmp_path, variant, size):
    model = tiny(width=5, widths=[1])
    model.steps += 3
    model.scale *= 2
    assert model.save_pretrained(str(tmp_path / "m"), variant=variant, max_shard_size=size) == tmp_path / "m"
    again = Tiny.from_pretrained(str(tmp_path / "m"), variant=variant)
    assert_same(again, model)
    assert again.config == model.config
    assert not again.training
    assert not again.norm.training
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]
    assert json.loads((tmp_path / "m" / "config.json").read_text())["_class_name"] == "Tiny"


def test_subfolder(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path / "pipe" / "unet")
    assert_same(Tiny.from_pretrained(tmp_path / "pipe", subfolder="unet"), model)
    with pytest.raises(ArtifactError, match="no subfolder 'vae'; subfolders there: unet"):
        Tiny.from_pretrained(tmp_path / "pipe", subfolder="vae")
    for bad in ("../x", "/etc", ""):
        with pytest.raises(InputError, match="relative path inside"):
            Tiny.from_pretrained(tmp_path / "pipe", subfolder=bad)


def test_tied_weights_stay_tied_and_are_stored_once(tmp_path):
    model = tiny(tied=True)
    model.save_pretrained(tmp_path)
    again = Tiny.from_pretrained(tmp_path, dtype=torch.float16)
    assert again.head.weight is again.embed.weight
    assert torch.equal(again.head.weight, model.head.weight.half())
    # a file of another program that holds one name only, or both
    state = dict(model.state_dict())
    del state["embed.weight"]
    save_state_dict(state, tmp_path)
    assert_same(Tiny.from_pretrained(tmp_path), model)
    save_state_dict({k: v.clone() for k, v in model.state_dict().items()}, tmp_path)
    again = Tiny.from_pretrained(tmp_path)
    assert again.head.weight is again.embed.weight


def test_channels_last_and_frozen_models_come_back_with_the_same_values(tmp_path):
    model = tiny().to(memory_format=torch.channels_last)
    model.save_pretrained(tmp_path)
    again = Tiny.from_pretrained(tmp_path)
    assert_same(again, model)
    assert again.conv.weight.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_dtype_casts_floats_and_leaves_integers(tmp_path, dtype, name):
    model = tiny()
    model.save_pretrained(tmp_path)
    again = Tiny.from_pretrained(tmp_path, **{name: dtype})
    assert_same(again, tiny().to(dtype))
    assert again.dtype == dtype
    assert again.steps.dtype == again.norm.num_batches_tracked.dtype == torch.int64
    assert again.config == model.config


def test_half_file_loads_as_the_class_is_built_unless_asked(tmp_path):
    model = tiny().half()
    model.save_pretrained(tmp_path, variant="fp16")
    again = Tiny.from_pretrained(tmp_path, variant="fp16")
    assert again.dtype == torch.float32
    assert again.scale.dtype == torch.float64
    assert torch.equal(again.conv.weight, model.conv.weight.float())


def test_bad_dtypes(tmp_path):
    tiny().save_pretrained(tmp_path)
    for bad in (torch.int32, "float16", 16):
        with pytest.raises(InputError, match=r"floating torch\.dtype"):
            Tiny.from_pretrained(tmp_path, dtype=bad)
    with pytest.raises(InputError, match="two names of one option"):
        Tiny.from_pretrained(tmp_path, dtype=torch.float16, torch_dtype=torch.float32)


def test_given_state_dict_is_written_instead(tmp_path):
    model = tiny()
    averaged = {k: v * 2 for k, v in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=averaged)
    assert torch.equal(Tiny.from_pretrained(tmp_path).conv.weight, model.conv.weight * 2)
    with pytest.raises(InputError, match=r"not one of this Tiny: conv\.weight, nonsense differ"):
        model.save_pretrained(
            tmp_path, state_dict={"nonsense" if k == "conv.weight" else k: v for k, v in averaged.items()}
        )
    with pytest.raises(InputError, match=r"frozen differ"):
        model.save_pretrained(tmp_path, state_dict=averaged | {"frozen": torch.ones(3)})


def test_pickle_is_refused(tmp_path):
    with pytest.raises(InputError, match="nothing is pickled"):
        tiny().save_pretrained(tmp_path / "m", safe_serialization=False)
    assert not (tmp_path / "m").exists()


def test_saving_over_a_file(tmp_path):
    (tmp_path / "m").write_text("mine")
    with pytest.raises(ArtifactError, match="is a file: give a folder"):
        tiny().save_pretrained(tmp_path / "m")
    with pytest.raises(ArtifactError, match="is a file"):
        Tiny.from_pretrained(tmp_path / "m")


def test_config_that_would_break_another_variant_is_refused(tmp_path):
    tiny().save_pretrained(tmp_path, variant="fp16")
    tiny(1).save_pretrained(tmp_path)  # the same arguments: fine
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(
        ArtifactError, match=r"other variants \(fp16\) of a different model \(Tiny; differs in: width, tied\)"
    ):
        tiny(width=5, tied=True).save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="save into another folder"):
        Stranger().save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    Tiny.from_pretrained(tmp_path, variant="fp16")


def test_new_architecture_replaces_the_old_one_whole_at_every_crash(tmp_path, crash):
    old, new = tiny(), tiny(width=6, widths=(1, 1))
    for step in range(0, 100, 4):
        folder = old.save_pretrained(tmp_path / str(step))
        finished = not crash(step, lambda folder=folder: new.save_pretrained(folder, max_shard_size=300))
        again = Tiny.from_pretrained(folder)
        assert_same(again, new if again.config.width == 6 else old)
        if finished:
            break
    assert again.config.width == 6
    assert step > 15


# What does not fit


def test_all_keys_that_do_not_fit_are_named_in_one_error(tmp_path):
    model = tiny()
    state = dict(model.state_dict())
    del state["conv.bias"], state["frozen"]
    state |= {
        "extra.a": torch.ones(1),
        "extra.b": torch.ones(1),
        "head.weight": torch.ones(2, 2),
        "steps": torch.ones(5),
    }
    model.save_pretrained(tmp_path)
    save_state_dict(state, tmp_path)
    with pytest.raises(ArtifactError) as caught:
        Tiny.from_pretrained(tmp_path)
    assert str(caught.value) == (
        f"the weights in {tmp_path} do not fit Tiny. 2 missing: frozen, conv.bias; 2 unexpected: extra.a, extra.b; "
        "2 of the wrong shape: steps (file (5,) float, model (5,) integer), "
        "head.weight (file (2, 2) float, model (7, 4) float). "
        "Check that config.json and weights come from the same save"
    )
    with pytest.raises(ArtifactError, match=r"do not fit Tiny\. 2 of the wrong shape"):
        Tiny.from_pretrained(tmp_path, strict=False)


def test_without_strict_missing_tensors_keep_a_proper_start(tmp_path):
    model = tiny()
    state = dict(model.state_dict()) | {"extra": torch.ones(1)}
    del state["head.weight"], state["norm.weight"]
    model.save_pretrained(tmp_path)
    save_state_dict(state, tmp_path)
    torch.manual_seed(0)
    again = Tiny.from_pretrained(tmp_path, strict=False)
    assert_same(again, model)


def test_old_key_names_are_converted(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    save_state_dict({k.replace("conv.", "old_conv."): v for k, v in model.state_dict().items()}, tmp_path)
    assert "old_conv.weight" in load_state_dict(tmp_path)
    assert_same(Tiny.from_pretrained(tmp_path), model)


def test_config_overrides(tmp_path):
    tiny().save_pretrained(tmp_path)
    assert Tiny.from_pretrained(tmp_path, widths=(9,)).config.widths == (9,)
    with pytest.raises(ArtifactError, match="do not fit"):
        Tiny.from_pretrained(tmp_path, width=8)
    with pytest.raises(ConfigError, match=r"'widht' \(did you mean 'width'"):
        Tiny.from_pretrained(tmp_path, widht=8)


def test_diffusers_loader_options(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    assert_same(Tiny.from_pretrained(tmp_path, low_cpu_mem_usage=False, use_safetensors=True), model)
    with pytest.raises(InputError, match="'device_map': pass device="):
        Tiny.from_pretrained(tmp_path, device_map="auto")
    with pytest.raises(InputError, match="use_safetensors=False is refused"):
        Tiny.from_pretrained(tmp_path, use_safetensors=False)


# Which class


def test_foreign_class_is_named(tmp_path):
    tiny().save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match=r"holds a Tiny, not a Stranger: load it with Tiny\.from_pretrained"):
        Stranger.from_pretrained(tmp_path)


def test_subclass_reads_its_parent_s_folder(tmp_path):
    class Mine(Tiny):
        pass

    model = tiny()
    model.save_pretrained(tmp_path)
    again = Mine.from_pretrained(tmp_path)
    assert type(again) is Mine
    assert_same(again, model)


def test_base_class_finds_the_public_class_and_no_other(tmp_path, monkeypatch):
    model = tiny()
    model.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="'Tiny', which is no model of Latentia"):
        ModelMixin.from_pretrained(tmp_path)
    monkeypatch.setattr(latentia, "__all__", [*latentia.__all__, "Tiny"])
    monkeypatch.setattr(latentia, "Tiny", Tiny, raising=False)
    again = ModelMixin.from_pretrained(tmp_path)
    assert type(again) is Tiny
    assert_same(again, model)
    config = json.loads((tmp_path / "config.json").read_text())
    for foreign in ("os.system", "DDIMSchedulr", None, ["evil.py", "Evil"], "ModelMixinn"):
        (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": foreign}))
        with pytest.raises(ArtifactError, match="no model of Latentia"):
            ModelMixin.from_pretrained(tmp_path)


def test_broken_config(tmp_path):
    tiny().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"width": 4,')
    with pytest.raises(ArtifactError, match=r"config\.json is not valid JSON.*truncated"):
        Tiny.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ArtifactError, match=r"no config\.json in"):
        Tiny.from_pretrained(tmp_path)


def test_averaged_model_s_folder_is_an_ordinary_one(tmp_path, recwarn):
    model = tiny()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    scalars = dict.fromkeys(
        ("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"), 0
    )
    (tmp_path / "config.json").write_text(json.dumps(config | scalars))
    assert Tiny.from_pretrained(tmp_path).config == model.config
    assert not recwarn.list


# Building without starting weights


def test_loading_draws_no_random_numbers(tmp_path):
    class Quiet(ModelMixin):
        @register_to_config
        def __init__(self, width=4):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, width, 3), nn.Linear(width, 2)
            self.attention = nn.MultiheadAttention(4, 2)
            self.embed, self.own = nn.Embedding(3, width), nn.Parameter(torch.empty(4))
            for init in (nn.init.normal_, nn.init.uniform_):
                init(self.own)
            nn.init.xavier_uniform_(self.linear.weight)
            nn.init.kaiming_normal_(self.linear.weight)

    model = Quiet()
    model.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    assert_same(Quiet.from_pretrained(tmp_path), model)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_threads_initialise_as_always():
    inside, done = threading.Event(), threading.Event()
    weights = []

    def build():
        inside.wait(10)
        weights.append(nn.Linear(64, 64).weight)
        done.set()

    thread = threading.Thread(target=build)
    thread.start()
    with SkipInit():
        inside.set()
        assert done.wait(10)
    thread.join()
    assert abs(weights[0].std().item() - (1 / 3) ** 0.5 / 8) < 0.01  # U(−1/8, 1/8)


def test_constants_and_buffers_are_computed():
    with SkipInit():
        net = nn.Sequential(nn.LayerNorm(3), nn.BatchNorm1d(3))
        noise = torch.empty(1000).normal_()
    assert torch.equal(net[0].weight, torch.ones(3))
    assert torch.equal(net[1].running_var, torch.ones(3))
    assert abs(noise.std().item() - 1) < 0.15


def test_references_to_parameters_survive_loading(tmp_path):
    class Keeps(ModelMixin):
        @register_to_config
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.kept = [self.linear.weight]

    model = Keeps()
    model.save_pretrained(tmp_path)
    again = Keeps.from_pretrained(tmp_path, dtype=torch.float16)
    assert again.kept[0] is again.linear.weight
    assert torch.equal(again.kept[0], model.linear.weight.half())


def test_loaded_weights_are_copies_of_the_file(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    again = Tiny.from_pretrained(tmp_path)
    with open(tmp_path / SINGLE, "r+b") as file:  # in place, as rsync does
        file.seek(-400, 2)
        file.write(bytes(400))
    assert_same(again, model)
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in again.parameters())


# Conveniences


def test_conveniences():
    model = tiny()
    assert model.num_parameters() == sum(p.numel() for p in model.parameters()) == 4 * 27 + 4 + 8 + 28 + 28 + 2
    assert model.num_parameters(only_trainable=True) == model.num_parameters() - 2
    assert model.to(torch.float16).dtype == torch.float16
    assert model.to("meta").device == torch.device("meta")
    with pytest.raises(InputError, match="meta device"):
        model.save_pretrained("unused")

    class Bare(ModelMixin):
        @register_to_config
        def __init__(self):
            super().__init__()

    assert (Bare().dtype, Bare().device, Bare().num_parameters()) == (torch.float32, torch.device("cpu"), 0)


def test_empty_model_round_trip(tmp_path):
    class Bare(ModelMixin):
        @register_to_config
        def __init__(self, a=1):
            super().__init__()

    Bare(2).save_pretrained(tmp_path)
    assert Bare.from_pretrained(tmp_path).config.a == 2


# Diffusers


def test_diffusers_reads_what_we_write_and_the_other_way_round(tmp_path):
    """A class with Diffusers' name and keys, in every layout."""

    class VQEncoder(diffusers.ModelMixin, diffusers.ConfigMixin):
        @diffusers.configuration_utils.register_to_config
        def __init__(self, width=4, widths=(2, 3)):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)

    theirs = VQEncoder

    class VQEncoder(ModelMixin):
        @register_to_config
        def __init__(self, width=4, widths=(2, 3)):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)

    for variant in (None, "fp16"):
        for size in ("10GB", 200):
            ours = VQEncoder(5, widths=[7])
            folder = ours.save_pretrained(tmp_path / f"ours-{variant}-{size}", variant=variant, max_shard_size=size)
            there = theirs.from_pretrained(folder, variant=variant)
            assert_same(there, ours)
            assert list(there.config["widths"]) == [7]
            back = tmp_path / f"theirs-{variant}-{size}"
            there.save_pretrained(back, variant=variant, max_shard_size=size)
            assert_same(VQEncoder.from_pretrained(back, variant=variant), ours)
            for name in (p.name for p in folder.iterdir() if p.suffix == ".safetensors"):
                assert (folder / name).read_bytes() == (back / name).read_bytes()


def test_large_files_are_mapped_and_never_written_to(tmp_path, monkeypatch):
    """Nothing is read before it is used; training, and saving over the folder, leave file and model alone."""
    monkeypatch.setattr("latentia.core.artifacts.MAP_FROM", 0)
    model = tiny()
    model.save_pretrained(tmp_path)
    before = (tmp_path / SINGLE).read_bytes()
    first, second = Tiny.from_pretrained(tmp_path), Tiny.from_pretrained(tmp_path)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert_same(second, model)
    assert (tmp_path / SINGLE).read_bytes() == before
    first.save_pretrained(tmp_path)
    assert_same(second, model)
    assert all(not p.any() for p in Tiny.from_pretrained(tmp_path).parameters())
