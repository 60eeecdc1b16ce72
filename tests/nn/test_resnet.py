import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D

from latentia.errors import ConfigError, UnknownChoiceError
from latentia.nn.resnet import ResnetBlock, ResnetStyle


@pytest.mark.parametrize("time_scale_shift", ["default", "scale_shift"])
@pytest.mark.parametrize(("out_channels", "resample"), [(8, None), (12, None), (8, "up"), (12, "down")])
@pytest.mark.parametrize("act", ["silu", "gelu", "mish", "relu", "swish"])
def test_equals_the_peer(time_scale_shift, out_channels, resample, act):
    torch.manual_seed(0)
    style = ResnetStyle(16, groups=4, act=act, time_scale_shift=time_scale_shift, output_scale=1.4)
    ours = ResnetBlock(8, out_channels, style, resample).double()
    theirs = ResnetBlock2D(
        in_channels=8,
        out_channels=out_channels,
        temb_channels=16,
        groups=4,
        non_linearity=act,
        time_embedding_norm=time_scale_shift,
        output_scale_factor=1.4,
        up=resample == "up",
        down=resample == "down",
    ).double()
    theirs.load_state_dict(ours.state_dict())
    x, emb = torch.randn(2, 8, 4, 6, dtype=torch.double), torch.randn(2, 16, dtype=torch.double)
    activated = ours.act(emb.clone())
    torch.testing.assert_close(ours(x, activated), theirs(x, emb), atol=1e-12, rtol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, activated), theirs(x, emb), atol=1e-12, rtol=1e-12)


def test_one_embedding_serves_the_whole_batch():
    torch.manual_seed(0)
    block = ResnetBlock(8, 8, ResnetStyle(16, groups=4))
    x, emb = torch.randn(3, 8, 4, 4), torch.randn(1, 16)
    torch.testing.assert_close(block(x, emb), block(x, emb.expand(3, -1)))


def test_without_embedding_and_in_place_arithmetic_leaves_inputs_alone():
    torch.manual_seed(0)
    block = ResnetBlock(8, 8, ResnetStyle(None, groups=4, output_scale=2.0))
    x = torch.randn(1, 8, 4, 4)
    before = x.clone()
    with torch.no_grad():
        first, second = block(x), block(x)
    assert torch.equal(x, before)
    assert torch.equal(first, second)
    assert block.time_emb_proj is None


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    block = ResnetBlock(8, 8, ResnetStyle(None, groups=4, dropout=0.5))
    x = torch.randn(1, 8, 4, 4)
    assert not torch.equal(block.train()(x), block(x))
    assert torch.equal(block.eval()(x), block(x))


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    block = ResnetBlock(2, 4, ResnetStyle(3, groups=2, time_scale_shift="scale_shift"), "up").double()
    inputs = (
        torch.randn(1, 2, 2, 2, dtype=torch.double, requires_grad=True),
        torch.randn(1, 3, dtype=torch.double, requires_grad=True),
    )
    assert torch.autograd.gradcheck(block, inputs)


def test_bad_styles():
    with pytest.raises(UnknownChoiceError, match="did you mean 'scale_shift'"):
        ResnetBlock(8, 8, ResnetStyle(8, groups=4, time_scale_shift="scaleshift"))
    with pytest.raises(UnknownChoiceError, match="did you mean 'silu'"):
        ResnetBlock(8, 8, ResnetStyle(8, groups=4, act="sillu"))
    with pytest.raises(ConfigError, match="norm_num_groups=32"):
        ResnetBlock(8, 8, ResnetStyle(8))
