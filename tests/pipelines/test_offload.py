"""Parts take turns on the device. Moves are watched on the `meta` device: there is no accelerator here."""

import threading
import time

import pytest
import torch
from torch import nn

from latentia.errors import InputError, NonFiniteError, UnknownChoiceError
from latentia.pipelines import offload as module
from latentia.pipelines.offload import Offload


class Part(nn.Module):
    """Notes where it is sent; comes back from `meta` as zeros."""

    def __init__(self, name, log, fails=False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.name, self.log, self.fails = name, log, fails

    def to(self, device):
        device = torch.device(device)
        if device != self.weight.device:
            self.log.append((self.name, device.type))
        self.weight = nn.Parameter(torch.empty(2, device=device))
        if self.fails and device.type == "meta":
            raise torch.OutOfMemoryError("full")
        return self


@pytest.fixture
def log():
    return []


@pytest.fixture
def offload(log):
    return Offload({name: Part(name, log) for name in ("text_encoder", "unet", "vae")}, "meta")


def test_a_part_comes_when_it_is_used_and_goes_when_another_is(offload, log):
    assert offload.device == torch.device("meta")
    assert log == []
    with offload.using("text_encoder"):
        assert offload.present == ("text_encoder",)
    for _ in range(3):  # a loop moves nothing
        with offload.using("unet"):
            assert offload.present == ("unet",)
    with offload.using("vae"):
        pass
    assert log == [
        ("text_encoder", "meta"),
        ("text_encoder", "cpu"),
        ("unet", "meta"),
        ("unet", "cpu"),
        ("vae", "meta"),
    ]
    offload.release()
    assert log[-1] == ("vae", "cpu")
    assert offload.present == ()
    offload.release()
    assert len(log) == 6


def test_parts_used_together_and_blocks_within_blocks_stay(offload, log):
    with offload.using("unet", "text_encoder"):
        assert offload.present == ("unet", "text_encoder")
        with offload.using("vae"):  # a callback that decodes a preview
            assert offload.present == ("unet", "text_encoder", "vae")
            with pytest.raises(InputError, match="unet, text_encoder, vae cannot be let go while in use"):
                offload.remove()
            offload.release()  # of a call within the call, say
            assert offload.present == ("unet", "text_encoder", "vae")
        with offload.using("unet"):
            assert offload.present == ("unet", "text_encoder")
    assert log.count(("unet", "meta")) == 1
    assert ("unet", "cpu") not in log


def test_everything_starts_at_home(log):
    part = Part("unet", log)
    part.to("meta")
    Offload({"unet": part}, "meta")
    assert log == [("unet", "meta"), ("unet", "cpu")]


def test_threads_take_turns(offload):
    wrong = []

    def work(name):
        for _ in range(10):
            with offload.using(name):
                for _ in range(3):
                    time.sleep(1e-4)
                    if offload.present != (name,):
                        wrong.append(offload.present)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("text_encoder", "unet", "vae", "unet")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_move_that_fails_half_way_is_undone(log):
    offload = Offload({"unet": Part("unet", log, fails=True), "vae": Part("vae", log)}, "meta")
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError), offload.using("unet"):
            pass
        assert offload.present == ()
    with offload.using("vae"):
        assert offload.present == ("vae",)
    assert log == [("unet", "meta"), ("unet", "cpu")] * 2 + [("vae", "meta")]


def test_an_error_in_the_block_frees_the_turn(offload):
    with pytest.raises(ZeroDivisionError), offload.using("unet"):
        _ = 1 / 0
    offload.release()
    assert offload.present == ()


def test_removing_brings_all_home_and_ends_it(offload, log):
    with offload.using("unet"):
        pass
    offload.remove()
    assert log[-1] == ("unet", "cpu")
    with pytest.raises(InputError, match="switched off"), offload.using("unet"):
        pass
    offload.remove()


def test_real_networks_on_the_cpu_compute_what_they_did():
    torch.manual_seed(0)
    parts = {"a": nn.Linear(3, 3), "empty": nn.Identity()}
    x = torch.ones(1, 3)
    before, keys = parts["a"](x), list(parts["a"].state_dict())
    offload = Offload(parts, "cpu")
    for name in parts:
        with offload.using(name):
            assert torch.equal(parts["a"](x), before)
    offload.remove()
    assert torch.equal(parts["a"](x), before)
    assert list(parts["a"].state_dict()) == keys
    assert "forward" not in vars(parts["a"])  # nothing was wrapped


def test_a_part_that_goes_home_takes_its_float32_copy_along(monkeypatch, log):
    forgotten = []
    monkeypatch.setattr(module, "forget_float32", lambda part: forgotten.append(part.name))
    offload = Offload({"unet": Part("unet", log), "vae": Part("vae", log)}, "meta")
    forgotten.clear()
    for name in ("vae", "unet"):
        with offload.using(name):
            pass
    assert forgotten == ["vae"]


def test_bad_names_and_machines_without_an_accelerator(offload, monkeypatch):
    with pytest.raises(UnknownChoiceError, match="unknown part 'unett': did you mean 'unet'"), offload.using("unett"):
        pass
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    with pytest.raises(InputError, match="no accelerator"):
        Offload({})
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)
    assert Offload({}).device == torch.device("cuda", 1)
    assert Offload({}, "cuda").device == torch.device("cuda", 1)
    assert Offload({}, "cuda:0").device == torch.device("cuda", 0)


def test_a_pipeline_makes_the_same_pictures_and_says_what_it_does_not_do(latent):
    call = {"class_labels": [0, 2], "seed": 3, "num_inference_steps": 2, "output_type": "pt"}
    before = latent(**call).images
    latent.enable_model_cpu_offload(device="cpu")
    assert torch.equal(latent(**call).images, before)
    assert latent._offload.present == ()  # nothing stays behind
    with pytest.raises(InputError, match="disable_model_cpu_offload"):
        latent.to("cpu")
    latent.disable_model_cpu_offload()
    assert torch.equal(latent(**call).images, before)


def test_a_pipelines_error_names_the_module(latent):
    call = {"class_labels": [0], "seed": 3, "num_inference_steps": 3}
    bias = latent.unet.mid_block.resnets[0].conv1.bias
    bias.data[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"step 1 of 3: first in unet\.mid_block\.resnets\.0\.conv1; "):
        latent(**call)
    bias.data[0] = 0.0
    latent.vae.decoder.conv_norm_out.weight.data[0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"from vae in float32, first in vae\.decoder\.conv_norm_out: "):
        latent(**call)
