import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import save_file
from torch import nn

from latentia import UNet2DConditionModel
from latentia.errors import ArtifactError, InputError, NonFiniteError, UnknownChoiceError
from latentia.nn import lora
from latentia.pipelines.lora import WEIGHT_NAME, LoraMixin

SEE = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
READ = "encoder.layers.0.self_attn.q_proj"


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out_proj(torch.tanh(self.q_proj(x)))


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = Attention(width)


class TextEncoder(nn.Module):
    """Paths as those of a CLIP text encoder."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(Layer(width) for _ in range(2))})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.encoder["layers"]:
            x = x + layer.self_attn(x)
        return x


class Pipe(LoraMixin):
    """The least that has adapters."""

    def __init__(self, with_text: bool = True) -> None:
        torch.manual_seed(0)
        self.unet = UNet2DConditionModel(
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=12,
            attention_head_dim=2,
        ).eval()
        self.text_encoder = TextEncoder().eval() if with_text else None

    @torch.no_grad()
    def __call__(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        x, text = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 3, 12, generator=generator)
        return self.unet(x, 5, self.text_encoder(text) if self.text_encoder is not None else text).sample


def trained(seed: int = 0, text: bool = True, std: float = 0.3) -> Pipe:
    """A pipeline with one adapter `mine` of different ranks and scales."""
    pipe = Pipe()
    trees = [lora.add_adapter(pipe.unet, "mine", 3, alpha=1.5)]
    if text:
        trees.append(lora.add_adapter(pipe.text_encoder, "mine", 2, targets=["q_proj", "out_proj"]))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for tree in trees for p in tree.parameters()):
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return pipe


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# Files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
@pytest.mark.parametrize("give", ["folder", "file", "state", "name"])
def test_saved_and_loaded_it_does_the_same(tmp_path: Path, layout: str, give: str):
    pipe, other = trained(), Pipe()
    alone = other()
    name = "other.safetensors" if give == "name" else WEIGHT_NAME
    path = pipe.save_lora_weights(tmp_path, format=layout, weight_name=name)
    assert path == tmp_path / name
    if give == "name":
        save_file({"x": torch.ones(1)}, tmp_path / "third.safetensors")
        other.load_lora_weights(tmp_path, name, "style")
    elif give == "state" and layout == "kohya":  # the other layout keeps α beside its tensors
        other.load_lora_weights(safetensors.torch.load_file(path), adapter_name="style")
    else:
        other.load_lora_weights(str(path) if give == "file" else tmp_path, adapter_name="style")
    assert other.get_list_adapters() == {"unet": ["style"], "text_encoder": ["style"]}
    assert torch.equal(other(), pipe())
    assert (other() - alone).abs().max() > 0.01
    for part in ("unet", "text_encoder"):
        ours, theirs = (
            lora.adapter_state(getattr(pipe, part), "mine"),
            lora.adapter_state(getattr(other, part), "style"),
        )
        assert ours.keys() == theirs.keys()
        assert all(v[2] == theirs[k][2] and torch.equal(v[0], theirs[k][0]) for k, v in ours.items())


def test_the_file_is_the_one_that_the_peer_expects(tmp_path: Path):
    path = trained().save_lora_weights(tmp_path)
    with safetensors.safe_open(path, "pt") as file:
        metadata, keys = file.metadata(), set(file.keys())
    assert f"unet.{SEE}.lora_A.weight" in keys
    assert f"text_encoder.text_model.{READ}.lora_B.weight" in keys
    assert len(keys) == 2 * (32 + 4)
    assert metadata["format"] == "pt"
    config = json.loads(metadata["lora_adapter_metadata"])
    assert [config[f"unet.{name}"] for name in ("r", "lora_alpha", "alpha_pattern")] == [3, 1.5, {}]


def test_the_only_file_of_a_folder_needs_no_name(tmp_path: Path):
    trained().save_lora_weights(tmp_path, weight_name="style.safetensors")
    pipe = Pipe()
    pipe.load_lora_weights(tmp_path)
    assert pipe.get_active_adapters() == ["default_0"]
    pipe.load_lora_weights(tmp_path.parent, subfolder=tmp_path.name)
    assert pipe.get_active_adapters() == ["default_1"]
    assert pipe.get_list_adapters()["unet"] == ["default_0", "default_1"]


def test_tensors_of_a_pickle_are_read(tmp_path: Path):
    path = trained().save_lora_weights(tmp_path, format="kohya")
    torch.save(safetensors.torch.load_file(path), tmp_path / "lora.pt")
    pipe = Pipe()
    pipe.load_lora_weights(tmp_path, weight_name="lora.pt")
    assert torch.equal(pipe(), trained()())
    torch.save({"x": Pipe}, tmp_path / "evil.bin")
    with pytest.raises(ArtifactError, match="asks for more than tensors"):
        Pipe().load_lora_weights(tmp_path / "evil.bin")


def test_saving_on_the_class(tmp_path: Path):
    pipe = Pipe()
    tree = lora.add_adapter(pipe.unet, "mine", 2, alpha=8.0)
    text = lora.add_adapter(pipe.text_encoder, "mine", 2, targets=["q_proj"]).state_dict()
    Pipe.save_lora_weights(
        save_directory=tmp_path / "a",
        unet_lora_layers=tree,
        text_encoder_lora_layers=text,
        text_encoder_lora_adapter_metadata={"lora_alpha": 6},
    )
    Pipe.save_lora_weights(tmp_path / "b", tree.state_dict(), is_main_process=True)
    assert Pipe.save_lora_weights(tmp_path / "c", tree, is_main_process=False) is None
    assert not (tmp_path / "c").exists()
    other = Pipe()
    other.load_lora_weights(tmp_path / "a", adapter_name="a")
    other.load_lora_weights(tmp_path / "b", adapter_name="b")
    assert lora.adapter_state(other.unet, "a")[SEE][2] == 8
    assert lora.adapter_state(other.unet, "b")[SEE][2] == 2
    assert lora.adapter_state(other.text_encoder, "a")[READ][2] == 6
    assert other.get_list_adapters() == {"unet": ["a", "b"], "text_encoder": ["a"]}
    assert "Write one adapter" in LoraMixin.__dict__["save_lora_weights"].__doc__


def test_a_pipeline_without_text_encoder(tmp_path: Path):
    trained(text=False).save_lora_weights(tmp_path)
    pipe = Pipe(with_text=False)
    pipe.load_lora_weights(tmp_path)
    assert pipe.get_list_adapters() == {"unet": ["default_0"]}
    trained().save_lora_weights(tmp_path)
    with pytest.raises(
        ArtifactError, match=r"it is for \(unet\). Layers 4 not in this network: text_encoder text_model"
    ):
        pipe.load_lora_weights(tmp_path)


def test_half_precision_networks_get_half_precision_adapters(tmp_path: Path):
    trained().save_lora_weights(tmp_path)
    pipe = Pipe()
    pipe.unet.half()
    pipe.load_lora_weights(tmp_path)
    assert lora.adapter_state(pipe.unet, "default_0")[SEE][0].dtype == torch.float16
    assert lora.adapter_state(pipe.text_encoder, "default_0")[READ][0].dtype == torch.float32
    pipe.unet.float()
    torch.testing.assert_close(pipe(), trained()(), rtol=0.01, atol=0.01)


# Several ------------------------------------------------------------------------------------------------------


def two(tmp_path: Path) -> Pipe:
    pipe = Pipe()
    for seed, (name, text) in enumerate((("a", True), ("b", False))):
        trained(seed, text, 0.2).save_lora_weights(tmp_path / name)
        pipe.load_lora_weights(tmp_path / name, adapter_name=name)
    return pipe


def test_the_last_one_loaded_is_active(tmp_path: Path):
    pipe = two(tmp_path)
    assert pipe.get_active_adapters() == ["b"]
    assert torch.equal(pipe(), trained(1, False, 0.2)())


def test_weights(tmp_path: Path):
    pipe = two(tmp_path)
    alone = Pipe()()
    pipe.set_adapters(["a", "b"], [0.5, 2])
    assert pipe.get_active_adapters() == ["a", "b"]
    assert lora.active_adapters(pipe.unet) == {"a": 0.5, "b": 2}
    assert lora.active_adapters(pipe.text_encoder) == {"a": 0.5}
    pipe.set_adapters(["a", "b"], 0.25)
    assert lora.active_adapters(pipe.unet) == {"a": 0.25, "b": 0.25}
    pipe.set_adapters("a", {"text_encoder": 0})
    assert lora.active_adapters(pipe.unet) == {"a": 1}
    assert lora.active_adapters(pipe.text_encoder) == {"a": 0}
    pipe.set_adapters(["b", "a"], [{"unet": 0}, 0])
    assert torch.equal(pipe(), alone)
    pipe.set_adapters("b")
    pipe.disable_lora()
    assert torch.equal(pipe(), alone)
    pipe.enable_lora()
    assert torch.equal(pipe(), trained(1, False, 0.2)())


def test_deleting_and_unloading(tmp_path: Path):
    pipe = two(tmp_path)
    pipe.set_adapters(["a", "b"])
    pipe.delete_adapters("a")
    assert pipe.get_list_adapters() == {"unet": ["b"]}
    assert torch.equal(pipe(), trained(1, False, 0.2)())
    assert type(pipe.text_encoder.encoder["layers"][0].self_attn.q_proj) is nn.Linear
    pipe.unload_lora_weights()
    assert torch.equal(pipe(), Pipe()())
    assert pipe.get_active_adapters() == []


# Fusing -------------------------------------------------------------------------------------------------------


def test_fusing(tmp_path: Path):
    pipe = two(tmp_path)
    before = pipe.unet.state_dict()
    before = {key: value.clone() for key, value in before.items()}
    pipe.set_adapters(["a", "b"], [0.5, 0.8])
    beside = pipe()
    pipe.fuse_lora()
    close(pipe(), beside)
    assert not torch.equal(pipe.unet.state_dict()[f"{SEE}.weight"], before[f"{SEE}.weight"])
    pipe.unfuse_lora()
    assert torch.equal(pipe(), beside)
    assert all(torch.equal(value, before[key]) for key, value in pipe.unet.state_dict().items())
    pipe.fuse_lora(lora_scale=0.5)
    half = pipe()
    pipe.unfuse_lora()
    pipe.set_adapters(["a", "b"], [0.25, 0.4])
    close(half, pipe())
    pipe.fuse_lora(adapter_names=["a"], components=["unet"])
    assert [lora.fused_adapters(part) for part in (pipe.unet, pipe.text_encoder)] == [["a"], []]
    close(pipe(), half)


def test_fused_for_good(tmp_path: Path):
    pipe = two(tmp_path)
    beside = pipe()
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.unet.save_pretrained(tmp_path / "unet")
    other = Pipe()
    other.unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    close(other(), beside)


def test_an_overflow_in_one_network_leaves_both_as_they_were():
    pipe = trained()
    pipe.text_encoder.half()
    with torch.no_grad():
        for part in lora.adapter_state(pipe.text_encoder, "mine")[READ][:2]:
            part.fill_(300)
    before = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    with pytest.raises(NonFiniteError, match=r"text_encoder\.encoder\.layers\.0\.self_attn\.q_proj\.weight"):
        pipe.fuse_lora()
    assert all(torch.equal(value, before[key]) for key, value in pipe.unet.state_dict().items())
    assert lora.fused_adapters(pipe.unet) == []


# Bad input ----------------------------------------------------------------------------------------------------


def test_nothing_is_changed_by_a_file_that_does_not_fit():
    pipe = Pipe()
    state = {
        f"text_encoder.{READ}.lora_A.weight": torch.ones(2, 12),
        f"text_encoder.{READ}.lora_B.weight": torch.ones(12, 2),
        f"unet.{SEE}.lora_A.weight": torch.ones(2, 1024),
        f"unet.{SEE}.lora_B.weight": torch.ones(8, 2),
    }
    wrong = rf"1 of the wrong shape: unet\.{SEE} \(A \(2, 1024\), B \(8, 2\), layer \(8, 12\)\)"
    with pytest.raises(ArtifactError, match=wrong):
        pipe.load_lora_weights(state)
    assert pipe.get_list_adapters() == {}
    assert type(pipe.text_encoder.encoder["layers"][0].self_attn.q_proj) is nn.Linear


def test_bad_files(tmp_path: Path):
    pipe = Pipe()
    with pytest.raises(ArtifactError, match=r"has no LoRA files.*There are: no safetensors files"):
        pipe.load_lora_weights(tmp_path)
    with pytest.raises(ArtifactError, match=r"no file .*lora\.safetensors"):
        pipe.load_lora_weights(tmp_path / "lora.safetensors")
    for name in ("one.safetensors", "two.safetensors"):
        save_file({"unet.conv_in.weight": torch.ones(1)}, tmp_path / name)
    with pytest.raises(ArtifactError, match=r"has 2 LoRA files.*There are: one\.safetensors, two\.safetensors"):
        pipe.load_lora_weights(tmp_path)
    with pytest.raises(ArtifactError, match=r"has no three\.safetensors"):
        pipe.load_lora_weights(tmp_path, weight_name="three.safetensors")
    with pytest.raises(ArtifactError, match="found tensors of no known layout"):
        pipe.load_lora_weights(tmp_path, weight_name="one.safetensors")
    for name in ("../one.safetensors", str(tmp_path / "one.safetensors")):
        with pytest.raises(InputError, match="weight_name must be a file inside the folder"):
            pipe.load_lora_weights(tmp_path, weight_name=name)
    (tmp_path / "one.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match="is empty"):
        pipe.load_lora_weights(tmp_path / "one.safetensors")


def test_bad_names_and_weights(tmp_path: Path):
    pipe = two(tmp_path)
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: pipe.load_lora_weights(tmp_path / "a", adapter_name="a"), InputError, "adapter 'a' already"),
        (lambda: pipe.load_lora_weights(tmp_path / "a", adapter_name="a.b"), InputError, "without '.'"),
        (lambda: pipe.set_adapters("c"), UnknownChoiceError, "unknown adapter 'c': known: a, b"),
        (lambda: pipe.set_adapters(["a", "b"], [1.0]), InputError, "1 weights for 2 adapters"),
        (lambda: pipe.set_adapters("a", "1"), InputError, "must be a finite number"),
        (lambda: pipe.set_adapters(["b", "a"], [1, {"text_encoder": "1"}]), InputError, "must be a finite number"),
        (lambda: pipe.set_adapters("a", {"vae": 1}), UnknownChoiceError, "known: text_encoder, unet"),
        (lambda: pipe.delete_adapters(["a", "c"]), UnknownChoiceError, "unknown adapter 'c'"),
        (lambda: pipe.fuse_lora(adapter_names=["c"]), UnknownChoiceError, "unknown adapter 'c'"),
        (lambda: pipe.fuse_lora(0.7), InputError, "a scale goes to lora_scale="),
        (lambda: pipe.fuse_lora(["vae"]), UnknownChoiceError, "component with adapters 'vae'"),
        (lambda: Pipe().fuse_lora(), InputError, "no adapter to fuse"),
        (lambda: Pipe().set_adapters("a"), UnknownChoiceError, "load one first"),
    ]
    for change, error, message in cases:
        with pytest.raises(error, match=message):
            change()
        assert pipe.get_list_adapters() == {"unet": ["a", "b"], "text_encoder": ["a"]}
        assert lora.active_adapters(pipe.unet) == {"b": 1}
    pipe.fuse_lora()
    with pytest.raises(InputError, match="call unfuse_lora first"):
        pipe.delete_adapters(["a", "b"])
    with pytest.raises(InputError, match="fused already"):
        pipe.fuse_lora()


def test_bad_saving(tmp_path: Path):
    pipe = two(tmp_path)
    (tmp_path / "file").touch()
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: pipe.save_lora_weights(tmp_path), InputError, "there are: a, b"),
        (lambda: Pipe().save_lora_weights(tmp_path), InputError, "there are: none"),
        (lambda: Pipe.save_lora_weights(tmp_path), InputError, "give unet_lora_layers"),
        (lambda: pipe.save_lora_weights(tmp_path, adapter_name="c"), UnknownChoiceError, "unknown adapter 'c'"),
        (lambda: pipe.save_lora_weights(tmp_path, adapter_name="a", format="x"), UnknownChoiceError, "LoRA layout 'x'"),
        (lambda: pipe.save_lora_weights(tmp_path, weight_name="a.bin"), InputError, r"ending in \.safetensors"),
        (lambda: pipe.save_lora_weights(tmp_path, weight_name="../a.safetensors"), InputError, "must be a file name"),
        (lambda: pipe.save_lora_weights(tmp_path, safe_serialization=False), InputError, "nothing is pickled"),
        (lambda: pipe.save_lora_weights(tmp_path / "file", adapter_name="a"), ArtifactError, "is a file"),
    ]
    for change, error, message in cases:
        with pytest.raises(error, match=message):
            change()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "file"]


def test_the_same_adapter_is_the_same_file(tmp_path: Path):
    pipe = two(tmp_path)
    files = [pipe.save_lora_weights(tmp_path / str(i), adapter_name="a").read_bytes() for i in range(8)]
    assert len(set(files)) == 1


@pytest.mark.parametrize("weights", [torch.tensor(0.5), {1.0}, "1"], ids=["tensor", "set", "text"])
def test_weights_of_no_known_form_are_refused(weights: Any, tmp_path: Path):
    with pytest.raises(InputError, match="must be a finite number"):
        two(tmp_path).set_adapters("a", weights)


def test_an_adapter_is_named_once(tmp_path: Path):
    with pytest.raises(InputError, match="each adapter once"):
        two(tmp_path).set_adapters(["a", "a"], [1.0, 2.0])
