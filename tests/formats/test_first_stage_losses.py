"""Checkpoints of taming-transformers and latent diffusion hold their losses' networks too: left out, or read apart."""

import torch

from latentia.codecs.autoencoder_kl import AutoencoderKL
from latentia.codecs.vq_model import VQModel
from latentia.formats.single_file import read_single_file, to_single_file
from latentia.losses.lpips import LPIPS
from latentia.losses.patchgan import PatchDiscriminator

SIZES = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
}
SLICES = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}


def losses():
    """The `loss.` entries of such a checkpoint: discriminator, LPIPS with its trunk, and scalars."""
    torch.manual_seed(0)
    judge = PatchDiscriminator(3, 16, 2)
    found = {f"discriminator.{k}": v for k, v in judge.state_dict().items()} | {"logvar": torch.zeros(())}
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    for place, (after, before, side) in shapes.items():
        stem = f"perceptual_loss.net.slice{SLICES[place]}.{place}"
        found[f"{stem}.weight"] = torch.randn(after, before, side, side) * 0.02
        found[f"{stem}.bias"] = torch.zeros(after)
    for i, width in enumerate((64, 192, 384, 256, 256)):
        found[f"perceptual_loss.lin{i}.model.1.weight"] = torch.rand(1, width, 1, 1)
    return {f"loss.{k}": v for k, v in found.items()}, judge.eval()


def check(model, kind, tmp_path):
    loss, judge = losses()
    torch.save({"state_dict": to_single_file({"vae": model.state_dict()}) | loss}, tmp_path / "last.ckpt")
    (part,) = read_single_file(tmp_path / "last.ckpt").parts.values()
    assert part.class_name == kind
    ours = model.state_dict()
    assert {name: tensor.shape for name, tensor in part.tensors.items()} == {k: v.shape for k, v in ours.items()}
    assert all(torch.equal(part.tensors[name], tensor) for name, tensor in ours.items())
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(PatchDiscriminator.from_checkpoint(tmp_path / "last.ckpt")(x), judge(x))
    distance = LPIPS("alex", tmp_path / "last.ckpt")
    assert float(distance(x, -x)) > 0


def test_taming_vqgan(tmp_path):
    check(VQModel(**SIZES, num_vq_embeddings=12, vq_embed_dim=3), "VQModel", tmp_path)


def test_latent_diffusion_kl(tmp_path):
    check(AutoencoderKL(**SIZES), "AutoencoderKL", tmp_path)
