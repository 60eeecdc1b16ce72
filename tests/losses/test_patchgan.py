import pytest
import torch
from safetensors.torch import save_file

from latentia.errors import ArtifactError, ConfigError, InputError, UnknownChoiceError
from latentia.losses.patchgan import PatchDiscriminator, discriminator_tensors

BLOCK = ("bias", "num_batches_tracked", "running_mean", "running_var", "weight")
TAMING = {
    *(f"main.{i}.{end}" for i in (0, 11) for end in ("bias", "weight")),
    *(f"main.{i}.weight" for i in (2, 5, 8)),
    *(f"main.{i}.{end}" for i in (3, 6, 9) for end in BLOCK),
}


def test_keys_shapes_and_size_of_the_published_one():
    with torch.device("meta"):
        published = PatchDiscriminator()
    state = published.state_dict()
    assert set(state) == TAMING
    assert published.num_parameters() == 2_765_633
    assert [tuple(state[f"main.{i}.weight"].shape) for i in (0, 2, 5, 8, 11)] == [
        (64, 3, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4), (1, 512, 4, 4),
    ]  # fmt: skip
    assert published(torch.empty(2, 3, 256, 256, device="meta")).shape == (2, 1, 30, 30)


@pytest.mark.parametrize(("layers", "side"), [(1, 16), (2, 34), (3, 70)])
def test_receptive_field(layers, side):
    judge = PatchDiscriminator(1, 16, layers, "none").eval()
    assert judge.receptive_field == side
    x = torch.zeros(1, 1, 96, 96, requires_grad=True)
    logits = judge(x)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    seen = x.grad[0, 0].abs().sum(0).nonzero()
    assert int(seen.max() - seen.min()) + 1 == side


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_smallest_picture(norm):
    judge = PatchDiscriminator(3, 16, 2, norm).eval()
    small = torch.zeros(1, 3, judge.smallest, judge.smallest)
    assert judge(small).shape == (1, 1, 1, 1)
    with pytest.raises(InputError, match="fewer layers, or larger pictures"):
        judge(small[..., 1:])
    with pytest.raises(InputError, match=r"got \(1, 1, 32, 32\)"):
        judge(torch.zeros(1, 1, 32, 32))


def test_start():
    torch.manual_seed(0)
    judge = PatchDiscriminator(3, 64, 2)
    kernels = torch.cat([m.weight.detach().flatten() for m in judge.modules() if isinstance(m, torch.nn.Conv2d)])
    assert float(kernels.std()) == pytest.approx(0.02, rel=0.01)
    norm = judge.get_submodule("main.3").requires_grad_(False)
    assert float(norm.weight.mean()) == pytest.approx(1, abs=0.01)
    assert float(norm.bias.abs().max()) == 0
    assert judge.get_submodule("main.2").bias is None
    assert PatchDiscriminator(3, 16, 2, "none").get_submodule("main.2").bias is not None


def test_folder(tmp_path):
    judge = PatchDiscriminator(1, 16, 1, "group").eval()
    judge.save_pretrained(tmp_path)
    again = PatchDiscriminator.from_pretrained(tmp_path)
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(judge(x), again(x))


@pytest.mark.parametrize("prefix", ["loss.discriminator.", "first_stage_model.loss.discriminator.", ""])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_from_a_checkpoint(tmp_path, prefix, norm):
    judge = PatchDiscriminator(3, 16, 2, norm).eval()
    state = {f"{prefix}{k}": v.contiguous() for k, v in judge.state_dict().items()}
    save_file({**state, "decoder.conv_out.weight": torch.zeros(1)}, tmp_path / "vqgan.safetensors")
    again = PatchDiscriminator.from_checkpoint(tmp_path / "vqgan.safetensors")
    assert again.config == judge.config
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(judge(x), again(x))


def test_from_a_lightning_checkpoint(tmp_path):
    judge = PatchDiscriminator(3, 16, 2).eval()
    inner = {f"loss.discriminator.{k}": v for k, v in judge.state_dict().items()}
    torch.save({"state_dict": inner, "global_step": 3}, tmp_path / "last.ckpt")
    assert PatchDiscriminator.from_checkpoint(tmp_path / "last.ckpt").config.layers == 2


def test_checkpoints_without_or_of_another_kind(tmp_path):
    with pytest.raises(ArtifactError, match=r"has no discriminator .* many published files leave it out"):
        discriminator_tensors({"decoder.conv_out.weight": torch.zeros(1)}, "vqgan.ckpt")
    state = {k: v.contiguous() for k, v in PatchDiscriminator(3, 16, 2).state_dict().items()}
    save_file({**state, "main.3.loc": torch.zeros(1)}, tmp_path / "act.safetensors")
    with pytest.raises(ArtifactError, match="ActNorm"):
        PatchDiscriminator.from_checkpoint(tmp_path / "act.safetensors")
    save_file({k: v for k, v in state.items() if k != "main.2.weight"}, tmp_path / "less.safetensors")
    with pytest.raises(ArtifactError, match="no PatchDiscriminator"):
        PatchDiscriminator.from_checkpoint(tmp_path / "less.safetensors")
    save_file({"main.0.weight": state["main.0.weight"]}, tmp_path / "one.safetensors")
    with pytest.raises(ArtifactError, match="has 1 convolutions"):
        PatchDiscriminator.from_checkpoint(tmp_path / "one.safetensors")


def test_bad_arguments():
    with pytest.raises(UnknownChoiceError, match="did you mean 'batch'"):
        PatchDiscriminator(norm="batchnorm")
    with pytest.raises(ConfigError, match="layers"):
        PatchDiscriminator(layers=0)
    with pytest.raises(ConfigError, match="divisible by 16"):
        PatchDiscriminator(width=24, norm="group")
