"""Objectives of fine-tuning, on a tiny Stable Diffusion with random weights."""

import pytest
import torch
from torch import nn

from latentia.codecs.autoencoder_kl import AutoencoderKL
from latentia.conditioners.clip import CLIPTextModel
from latentia.data.dataset import TensorDataset
from latentia.denoisers.controlnet import ControlNetModel
from latentia.denoisers.unet_2d_condition import UNet2DConditionModel
from latentia.errors import InputError
from latentia.nn.lora import add_adapter
from latentia.schedulers.ddpm import DDPMScheduler
from latentia.training.fine_tuning import FineTuningObjective
from latentia.training.phase import EMA, Optim, Phase
from latentia.training.steering import ControlNetObjective, InpaintingObjective, widened
from latentia.training.text_objective import TextDiffusionObjective
from tiny_sd import tiny_sd

LENGTH = 6
IDS = torch.randint(0, 600, (4, LENGTH), generator=torch.Generator().manual_seed(7))
TEXT_TARGETS = ("q_proj", "v_proj")


def load(kind, name):
    return kind.from_pretrained(tiny_sd() / name)


@pytest.fixture
def parts():
    """What every objective is built from."""
    return {
        "denoiser": load(UNet2DConditionModel, "unet"),
        "scheduler": DDPMScheduler.from_config(DDPMScheduler.load_config(tiny_sd() / "scheduler")),
        "text_encoder": load(CLIPTextModel, "text_encoder"),
        "empty_ids": torch.zeros(LENGTH, dtype=torch.long),
        "caption_dropout": 0.0,
    }


def latents(seed=0, count=4):
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def batch():
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    condition = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    prior = {"prior_x": latents(1), "prior_input_ids": IDS.flip(0)}
    return {"x": latents(), "input_ids": IDS, "pixels": pixels, "condition": condition, **prior}


def loss(objective, batch, seed=0):
    torch.manual_seed(seed)
    return objective(batch)


def value(objective, batch):
    with torch.no_grad():
        return loss(objective, batch).total.item()


def controlnet_for(parts):
    torch.manual_seed(5)
    return ControlNetModel.from_unet(parts["denoiser"], conditioning_embedding_out_channels=(8, 16))


def inpainting(parts, **options):
    wide = widened(parts["denoiser"], 9)
    return InpaintingObjective(**parts | {"denoiser": wide}, vae=load(AutoencoderKL, "vae"), **options)


def adapters_for(parts, text=True, **options):
    torch.manual_seed(6)
    made = {"denoiser": add_adapter(parts["denoiser"], "default", 2, **options)}
    if text:
        made["text_encoder"] = add_adapter(parts["text_encoder"], "default", 2, targets=TEXT_TARGETS)
    return nn.ModuleDict(made)


BUILDERS = {
    "all": lambda parts: FineTuningObjective(**parts),
    "all and text": lambda parts: FineTuningObjective(**parts, train_text_encoder=True),
    "adapters": lambda parts: FineTuningObjective(**parts, adapters=adapters_for(parts, text=False)),
    "adapters and text": lambda parts: FineTuningObjective(
        **parts, adapters=adapters_for(parts), train_text_encoder=True
    ),
    "prior": lambda parts: FineTuningObjective(**parts, prior_weight=0.5),
    "controlnet": lambda parts: ControlNetObjective(**parts, controlnet=controlnet_for(parts)),
    "inpainting": inpainting,
}
TRAINED = {
    "all": {"denoiser"},
    "all and text": {"denoiser", "text_encoder"},
    "adapters": {"adapters"},
    "adapters and text": {"adapters"},
    "prior": {"denoiser"},
    "controlnet": {"controlnet"},
    "inpainting": {"denoiser"},
}


@pytest.mark.parametrize("kind", BUILDERS)
def test_eight_steps_lower_the_loss_and_change_only_what_is_trained(kind, parts, batch, lab, tmp_path):
    objective = BUILDERS[kind](parts)
    assert set(objective.modules_by_name) == TRAINED[kind]
    frozen = {name: child for name, child in objective.named_children() if name not in TRAINED[kind]}
    before = {f"{n}.{k}": v.clone() for n, child in frozen.items() for k, v in child.state_dict().items()}
    start = {n: p.detach().clone() for n, p in objective.named_parameters() if n.split(".")[0] in TRAINED[kind]}
    first = value(objective, batch)

    class Same(type(objective)):
        """Every step draws the same noise, so that what is learnt shows at once."""

        def forward(self, batch, turn="main", step=0):
            torch.manual_seed(0)
            return super().forward(batch)

    objective.__class__ = Same
    optim = Optim(lr=2e-2 if "adapters" in kind else 2e-3, clip=None)
    phase = Phase("tune", objective, TensorDataset(batch), steps=8, batch_size=4, optim=optim, ema=EMA(0.5))
    lab.train([("tune", lambda: phase)], tmp_path, lab.quiet())
    last = value(objective, batch)
    assert last < 0.85 * first, (first, last)
    after = {f"{n}.{k}": v for n, child in frozen.items() for k, v in child.state_dict().items()}
    lab.assert_same(before, after)
    moved = {n: not torch.equal(p, start[n]) for n, p in objective.named_parameters() if n in start}
    still = {n for n, m in moved.items() if not m}
    assert moved
    assert all("position_embedding" in n or "token_embedding" in n for n in still), still


@pytest.mark.parametrize("kind", BUILDERS)
def test_trained_weights_are_float32_and_frozen_ones_ask_for_no_gradient(kind, parts, batch):
    for name in ("denoiser", "text_encoder"):
        if name not in TRAINED[kind]:
            parts[name].to(torch.bfloat16)
    objective = BUILDERS[kind](parts)
    for name in objective.frozen:
        objective.get_submodule(name).requires_grad_(False)
    trained = [p for module in objective.modules_by_name.values() for p in module.parameters()]
    assert {p.dtype for p in trained} == {torch.float32}
    assert all(p.requires_grad for p in trained)
    with torch.autocast("cpu", torch.bfloat16):
        total = loss(objective, batch).total
    total.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained)
    frozen = {id(p) for p in objective.parameters()} - {id(p) for p in trained}
    assert all(p.grad is None for p in objective.parameters() if id(p) in frozen)


def test_new_adapters_and_controlnets_start_from_the_networks_own_loss(parts, batch):
    plain = TextDiffusionObjective(**parts)
    wanted = loss(plain, batch).total
    assert torch.equal(loss(ControlNetObjective(**parts, controlnet=controlnet_for(parts)), batch).total, wanted)
    objective = FineTuningObjective(**parts, adapters=adapters_for(parts), train_text_encoder=True)
    assert torch.equal(loss(objective, batch).total, wanted)


def test_the_steering_picture_is_seen_in_zero_to_one(parts, batch):
    objective = ControlNetObjective(**parts, controlnet=controlnet_for(parts))
    seen = []
    objective.controlnet.controlnet_cond_embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    loss(objective, batch)
    assert torch.equal(seen[0], batch["condition"] / 255)
    with pytest.raises(InputError, match=r"condition must be uint8, 0 to 255, got torch.float32"):
        objective({**batch, "condition": batch["condition"] / 255})
    with pytest.raises(InputError, match="the batch has no 'condition'"):
        objective({"x": batch["x"], "input_ids": IDS})


def test_half_of_the_captions_are_dropped(parts, batch):
    objective = ControlNetObjective(**parts | {"caption_dropout": 0.5}, controlnet=controlnet_for(parts))
    torch.manual_seed(0)
    ids = objective.captions({"input_ids": torch.ones(4000, LENGTH, dtype=torch.long)})
    assert float((ids[:, 0] == 0).float().mean()) == pytest.approx(0.5, abs=0.03)


# DreamBooth ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_the_prior_is_weighed_by_hand(parts, batch, gamma):
    objective = FineTuningObjective(**parts, prior_weight=0.25, min_snr_gamma=gamma)
    found = loss(objective, batch)
    assert set(found.parts) == {"instance", "prior"}
    expected = float(found.parts["instance"]) + 0.25 * float(found.parts["prior"])
    assert found.total.item() == pytest.approx(expected, rel=1e-6)
    both = {"x": torch.cat([batch["x"], batch["prior_x"]]), "input_ids": torch.cat([IDS, IDS.flip(0)])}
    plain = TextDiffusionObjective(**parts, min_snr_gamma=gamma)
    mean = (float(found.parts["instance"]) + float(found.parts["prior"])) / 2
    assert value(plain, both) == pytest.approx(mean, rel=1e-5)


def test_the_prior_may_be_a_posterior(parts, batch):
    objective = FineTuningObjective(**parts, prior_weight=1.0)
    drawn = {"mean": batch["x"], "std": torch.zeros_like(batch["x"]), "input_ids": IDS}
    exact = {**drawn, **{f"prior_{name}": value for name, value in drawn.items()}}
    torch.manual_seed(0)
    assert torch.equal(objective.clean(exact), torch.cat([batch["x"], batch["x"]]))
    assert torch.equal(objective.captions(exact), torch.cat([IDS, IDS]))
    with pytest.raises(InputError, match="the batch has no 'prior_input_ids'"):
        objective(drawn)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prior_weight": -1}, "prior_weight must be at least 0"),
        ({"adapters": nn.ModuleDict({"text_encoder": nn.ModuleDict()})}, "train_text_encoder=False, but the adapters"),
    ],
)
def test_bad_fine_tuning(parts, changes, message):
    with pytest.raises(InputError, match=message):
        FineTuningObjective(**parts, **changes)


# Inpainting ------------------------------------------------------------------------------------------------


def test_a_widened_unet_computes_what_it_computed(parts):
    """T26: new input weights of zero, whatever the new channels hold."""
    unet = parts["denoiser"]
    wide = widened(unet, 9)
    assert wide.config.in_channels == 9
    assert {k for k, v in wide.state_dict().items() if v.shape != unet.state_dict()[k].shape} == {"conv_in.weight"}
    x, text = latents(), torch.randn(4, LENGTH, 32)
    t = torch.tensor([1, 300, 600, 999])
    with torch.no_grad():
        more = torch.randn(4, 5, 8, 8)
        torch.testing.assert_close(
            wide(torch.cat([x, more], 1), t, text).sample, unet(x, t, text).sample, rtol=0, atol=1e-5
        )
    assert widened(wide, 9) is wide
    with pytest.raises(InputError, match="sees 9 channels, more than 4"):
        widened(wide, 4)


def test_the_unet_sees_latents_mask_and_what_the_mask_leaves(parts, batch):
    objective = inpainting(parts, cover=0.0)
    noisy = latents(9)
    torch.manual_seed(1)
    seen = objective.model_input(noisy, batch)
    torch.manual_seed(1)
    assert torch.equal(objective.model_input(noisy, batch), seen)
    torch.manual_seed(2)
    assert not torch.equal(objective.model_input(noisy, batch)[:, 4], seen[:, 4])
    assert seen.shape == (4, 9, 8, 8)
    assert torch.equal(seen[:, :4], noisy)
    mask = seen[:, 4]
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    everything = inpainting(parts, cover=1.0).model_input(noisy, batch)
    assert bool(everything[:, 4].eq(1).all())
    with torch.no_grad():
        grey = objective.vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist
    mean, std = objective.vae.scale_latents(grey.mean), grey.std * objective.vae.config.scaling_factor
    assert float(((everything[:, 5:] - mean) / std).std()) == pytest.approx(1, abs=0.1)


def test_inpainting_takes_cached_latents_or_encodes(parts, batch):
    objective = inpainting(parts)
    assert torch.equal(objective.clean(batch), batch["x"])
    torch.manual_seed(0)
    mine = objective.clean({"pixels": batch["pixels"]})
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(mine, objective.vae.to_latents(batch["pixels"]))
    assert not mine.requires_grad


def test_bad_inpainting(parts):
    vae = load(AutoencoderKL, "vae")
    with pytest.raises(InputError, match=r"sees 9 channels .* this one 4: widen it with widened\(unet, 9\)"):
        InpaintingObjective(**parts, vae=vae)
    with pytest.raises(InputError, match="cover is a probability"):
        inpainting(parts, cover=1.5)


# Noise offset ----------------------------------------------------------------------------------------------


def test_noise_offset_moves_whole_channels(parts):
    objective = FineTuningObjective(**parts, noise_offset=0.5)
    torch.manual_seed(0)
    noise = objective.draw_noise(torch.zeros(4000, 2, 4, 4))
    assert float(noise.mean(dim=(2, 3)).var()) == pytest.approx(0.25 + 1 / 16, rel=0.05)
    assert float(noise.var(dim=(2, 3)).mean()) == pytest.approx(1, rel=0.02)
    assert objective.settings()["noise_offset"] == 0.5
