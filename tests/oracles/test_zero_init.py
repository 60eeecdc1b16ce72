"""With the output initialised at zero the first loss is the target's variance (T27)."""

import pytest
import torch

from latentia import UNet2DModel

CONFIG = {
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def test_first_loss_is_one():
    torch.manual_seed(0)
    model = UNet2DModel(**CONFIG, zero_init=True)
    eps = torch.randn(64, 2, 16, 16)
    prediction = model(torch.randn_like(eps), torch.randint(0, 1000, (64,))).sample
    assert torch.equal(prediction, torch.zeros_like(eps))
    assert (prediction - eps).square().mean().item() == pytest.approx(1.0, abs=0.02)


def test_every_residual_branch_starts_closed():
    torch.manual_seed(0)
    model = UNet2DModel(**CONFIG, zero_init=True)
    x = torch.randn(1, 16, 4, 4)
    emb = torch.randn(1, 32)
    assert torch.equal(model.mid_block(x, emb), x)


def test_training_opens_it():
    torch.manual_seed(0)
    model = UNet2DModel(**CONFIG, zero_init=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    eps = torch.randn(4, 2, 8, 8)
    losses = []
    for _ in range(12):
        loss = (model(eps, 10).sample - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1.0, abs=0.1)
    assert losses[-1] < 0.5


def test_the_argument_is_ours_and_hidden_at_its_default():
    assert "zero_init" not in UNet2DModel(**CONFIG).config_to_save()
    assert UNet2DModel(**CONFIG, zero_init=True).config_to_save()["zero_init"] is True
