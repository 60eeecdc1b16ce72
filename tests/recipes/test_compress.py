"""Pictures of any size through a codec and back, as functions and as commands."""

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from latentia import AutoencoderKL, FlowMo, VQModel
from latentia.cli.main import app
from latentia.core.token_file import TokenFile
from latentia.errors import InputError
from latentia.recipes.compress import Cut, decode_tokens, encode_picture, plan_cut, reconstruct_picture

SMALL = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (4, 8),
    "latent_channels": 2,
    "norm_num_groups": 2,
    "sample_size": 16,
}


@pytest.fixture
def codec():
    torch.manual_seed(0)
    return VQModel(**SMALL, num_vq_embeddings=64).eval()


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 51, 3), dtype=np.uint8))


@pytest.mark.parametrize(("tile", "overlap", "tiles"), [(0, 0, 1), (16, 0, 12), (16, 4, 12), (64, 8, 1), (37, 0, 2)])
def test_join_undoes_split(tile, overlap, tiles):
    x = torch.randn(3, 37, 51)
    cut = Cut(37, 51, tile, overlap, 8)
    parts = cut.split(x)
    assert len(parts) == tiles
    assert torch.allclose(cut.join(parts), x, atol=1e-6)


@pytest.mark.parametrize(("tile", "overlap"), [(16, 16), (16, -1), (-1, 0), (0, 4)])
def test_tiles_that_make_no_sense(tile, overlap):
    with pytest.raises(InputError, match="0 ≤ overlap < tile"):
        Cut(37, 51, tile, overlap)


@pytest.mark.parametrize("tile", [None, 16])
def test_tokens_come_back_as_the_reconstruction(codec, picture, tile):
    file = encode_picture(codec, picture, tile)
    again = TokenFile.from_bytes(file.to_bytes())
    back = decode_tokens(codec, again)
    assert back.size == picture.size
    direct = reconstruct_picture(codec, picture, tile, overlap=0)
    assert np.array_equal(np.asarray(back), np.asarray(direct))
    cut = plan_cut(codec, 37, 51, tile)
    assert file.bits == len(cut.corners) * codec.bits((3, *cut.shape))


def test_tokens_of_another_codec_are_refused(codec, picture):
    file = encode_picture(codec, picture)
    torch.manual_seed(1)
    other = VQModel(**SMALL, num_vq_embeddings=64).eval()
    with pytest.raises(InputError, match="made by another codec"):
        decode_tokens(other, file)


def test_a_tile_that_the_codec_does_not_take(codec, picture):
    with pytest.raises(InputError, match="divisible by 2"):
        encode_picture(codec, picture, tile=15)


def test_commands(codec, picture, tmp_path):
    codec.save_pretrained(tmp_path / "vq")
    picture.save(tmp_path / "a.png")
    run = CliRunner()

    def latentia(*words):
        found = run.invoke(app, [str(word) for word in words])
        assert found.exit_code == 0, found.output
        return found.output

    told = latentia("encode", tmp_path / "a.png", "--codec", tmp_path / "vq", "--tile", 0)
    size = (tmp_path / "a.tokens").stat().st_size
    assert f"{size:,} bytes, 494 tokens of 6 bits = 2,964 bits" in told
    assert size == 48 + 2 * 4 + (2964 + 7) // 8
    latentia("decode", tmp_path / "a.tokens", "--codec", tmp_path / "vq", "--out", tmp_path / "b.png")
    latentia("reconstruct", tmp_path / "a.png", "--codec", tmp_path / "vq", "--tile", 0, "--out", tmp_path / "c.png")
    with Image.open(tmp_path / "b.png") as first, Image.open(tmp_path / "c.png") as second:
        b, c = np.asarray(first), np.asarray(second)
    assert b.shape == (37, 51, 3)
    assert np.array_equal(b, c)


def test_a_picture_much_larger_than_those_learnt_is_cut_into_tiles_of_their_size(codec):
    assert plan_cut(codec, 32, 32).shape == (32, 32)
    large = plan_cut(codec, 37, 51)
    assert (large.shape, len(large.corners)) == ((16, 16), 12)
    assert plan_cut(codec, 37, 51, tile=0).shape == (38, 52)


def test_continuous_codecs_reconstruct_and_do_not_encode(picture, tmp_path):
    torch.manual_seed(0)
    AutoencoderKL(**SMALL).save_pretrained(tmp_path / "kl")
    picture.save(tmp_path / "a.png")
    run = CliRunner()
    refused = run.invoke(app, ["encode", str(tmp_path / "a.png"), "-c", str(tmp_path / "kl")])
    assert refused.exit_code == 2
    assert "latents are continuous" in refused.output
    done = run.invoke(
        app, ["reconstruct", str(tmp_path / "a.png"), "-c", str(tmp_path / "kl"), "-o", str(tmp_path / "r.png")]
    )
    assert done.exit_code == 0
    with Image.open(tmp_path / "r.png") as back:
        assert back.size == (51, 37)


def test_a_codec_of_one_size_takes_any_picture_in_tiles(picture):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = {"width": 16, "depth": 1, "heads": 2}
        sizes = {f"{half}_{name}": value for half in ("encoder", "decoder") for name, value in tower.items()}
        flowmo = FlowMo(image_size=16, patch_size=8, code_length=2, code_dim=4, num_inference_steps=1, **sizes)
    file = encode_picture(flowmo, picture)
    across, down = (-(-side // 16) for side in picture.size)
    assert file.tokens.shape[0] == across * down
    assert decode_tokens(flowmo, file).size == picture.size
