"""EmuEditObjective: what is minimised, what is dropped, and what weighs more."""

import pytest
import torch

from latentia import DDPMScheduler, EmuEditModel, LDMBertModel
from latentia.errors import InputError
from latentia.methods.emu_edit.objective import MOST, EmuEditObjective
from tiny_editor import UNET

LENGTH, WIDTH = 6, UNET["cross_attention_dim"]


def encoder():
    torch.manual_seed(0)
    return LDMBertModel(
        vocab_size=20,
        max_position_embeddings=LENGTH,
        encoder_layers=1,
        encoder_ffn_dim=8,
        encoder_attention_heads=2,
        head_dim=4,
        d_model=WIDTH,
        dropout=0.0,
        pad_token_id=None,
    )


def objective(gate=True, scheduler=None, model=None, **options):
    torch.manual_seed(1)
    model = model or EmuEditModel(unet=UNET, sample_size=16, in_channels=3, patch_size=2, copy_gate=gate)
    kind = "sample" if gate else "v_prediction"
    scheduler = scheduler or DDPMScheduler(prediction_type=kind, rescale_betas_zero_snr=True)
    return EmuEditObjective(model, scheduler, encoder(), torch.zeros(LENGTH, dtype=torch.int64), **options)


def batch(count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, source = (torch.rand(count, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(2))
    mask = torch.zeros(count, 1, 16, 16, dtype=torch.bool)
    mask[:, :, :4, :8] = True
    ids = torch.randint(1, 20, (count, LENGTH), generator=generator)
    return {"x": x, "source": source, "mask": mask, "input_ids": ids, "task": torch.arange(count)}


def test_single_draw_drops_text_both_and_picture_equally():
    found = objective(dropout=0.05)
    count = 20_000
    torch.manual_seed(0)
    source, ids = found.dropped(torch.ones(count, 3, 1, 1), torch.ones(count, LENGTH, dtype=torch.int64))
    no_text, no_picture = ids[:, 0] == 0, source[:, 0, 0, 0] == 0
    for share in (no_text & ~no_picture, no_text & no_picture, no_picture & ~no_text):
        assert share.float().mean() == pytest.approx(0.05, abs=0.006)
    assert (ids.float().mean(1) % 1 == 0).all()  # a text goes whole


def test_nothing_is_dropped_without_dropout():
    found = objective(dropout=0.0)
    given = batch()
    source, ids = found.dropped(given["source"], given["input_ids"])
    assert source is given["source"]
    assert ids is given["input_ids"]


def test_error_of_the_first_step_is_that_of_half_the_source():
    found = objective(dropout=0.0)
    given = batch()
    loss = found(given)
    assert float(loss.total.detach()) == pytest.approx(
        float((given["source"] / 2 - given["x"]).square().mean()), rel=1e-5
    )
    assert set(loss.parts) == {"error"}


def test_v_prediction_without_gate_learns_v_at_pure_noise():
    found = objective(gate=False, dropout=0.0, terminal_share=1.0)
    given = batch()
    with torch.no_grad():
        found.denoiser.unet.conv_out.weight.zero_()
        found.denoiser.unet.conv_out.bias.zero_()
    # At zero terminal SNR v = −x₀; the network says 0.
    assert float(found(given).total.detach()) == pytest.approx(float(given["x"].square().mean()), rel=1e-5)


def test_change_weight_is_a_share_of_the_loss_about_the_edit():
    given = batch()
    half = (given["source"] / 2 - given["x"]).square()
    inside = given["mask"].expand_as(half)
    there = given["x"].square()[inside].mean()  # y = 0
    assert float(objective(dropout=0.0, change_weight=0.25)(given).total.detach()) == pytest.approx(
        float(0.75 * half.mean() + 0.25 * there), rel=1e-4
    )
    plain = objective(gate=False, dropout=0.0, change_weight=1.0)
    weights = plain.pixel_weights(given["mask"])
    assert weights.mean() == pytest.approx(1.0)
    assert set(weights.unique().tolist()) == {0.0, 8.0}
    tiny = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    assert plain.pixel_weights(tiny).max() == 0
    tiny[..., 0, 0] = True
    assert plain.pixel_weights(tiny).max() == MOST


def test_gate_is_taught_where_the_edit_is():
    found = objective(dropout=0.0, gate_weight=2.0)
    given = batch()
    loss = found(given)
    assert float(loss.parts["gate"]) == pytest.approx(0.6931, abs=1e-4)
    assert float(loss.total.detach()) == pytest.approx(float(loss.parts["error"]) + 2 * 0.6931, abs=1e-3)


def test_parsing_teaches_the_network_and_is_weighed():
    found = objective(dropout=0.0, parse_weight=0.5)
    given = {**batch(), "things": torch.randint(0, 4, (4, 12, 16, 16), dtype=torch.int8)}
    loss = found(given)
    assert float(loss.total.detach()) == pytest.approx(
        float(loss.parts["error"]) + 0.5 * float(loss.parts["parsed"]), rel=1e-5
    )
    assert set(found.modules_by_name) == {"denoiser", "parser", "text_encoder"}
    loss.total.backward()
    heads = [head.weight.grad.abs().sum() for head in found.parser.heads]
    assert all(float(each) > 0 for each in heads)
    assert found.denoiser.unet.conv_in.weight.grad.abs().sum() > 0  # by way of the maps alone: conv_out starts at zero
    with pytest.raises(InputError, match="things"):
        found(batch())


def test_terminal_share_of_times():
    found = objective(terminal_share=0.5)
    torch.manual_seed(0)
    t = found.draw_times(4000, torch.device("cpu"))
    assert (t == 999).float().mean() == pytest.approx(0.5, abs=0.03)
    assert t.min() >= 0
    assert t.dtype == torch.int64


def test_task_is_told_or_kept_back():
    told, silent = objective(dropout=0.0), objective(dropout=0.0, tell_task=False)
    given = batch()
    for found in (told, silent):
        with torch.no_grad():
            found.denoiser.unet.conv_out.weight.normal_()
        found(given).total.backward()
    assert told.denoiser.to_time.weight.grad.abs().sum() > 0
    assert silent.denoiser.to_time.weight.grad.abs().sum() == 0


def test_text_encoder_trains_along_or_is_frozen():
    along, frozen = objective(), objective(train_text_encoder=False)
    assert set(along.modules_by_name) == {"denoiser", "text_encoder"}
    assert set(frozen.modules_by_name) == {"denoiser"}
    assert not frozen.train().text_encoder.training
    assert along.settings()["dropout"] == 0.05


def test_bad_settings_are_explained():
    for name, value in (("dropout", 0.4), ("change_weight", 1.1), ("terminal_share", -0.1)):
        with pytest.raises(InputError, match=name):
            objective(**{name: value})
    with pytest.raises(InputError, match="gate_weight"):
        objective(gate=False, gate_weight=0.1)
    with pytest.raises(InputError, match="prediction_type='sample'"):
        objective(scheduler=DDPMScheduler(prediction_type="v_prediction"))
    with pytest.raises(InputError, match="zero terminal SNR"):
        objective(
            model=EmuEditModel(unet=UNET, in_channels=3, sample_size=16),
            scheduler=DDPMScheduler(prediction_type="epsilon", rescale_betas_zero_snr=True),
        )
    with pytest.raises(InputError, match="input_ids must be"):
        objective()({**batch(), "input_ids": torch.zeros(4, 3, dtype=torch.int64)})
