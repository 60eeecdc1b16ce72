import json

import diffusers
import pytest
import torch
from diffusers.training_utils import EMAModel as Peer
from torch import nn

from latentia import UNet2DModel
from latentia.errors import InputError
from latentia.training.ema import EMAModel

TINY = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8,),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "norm_num_groups": 4,
}


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (5,), (2, 1, 3, 3), (1,)]
    made = [nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
    made[1].requires_grad_(False)
    return made


def walk(emas, given, steps=20):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in given:
            p.data.add_(torch.randn(p.shape, generator=generator))
        for ema in emas:
            ema.step(given)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"decay": 0.5},
        {"decay": 0.9, "min_decay": 0.6},
        {"use_ema_warmup": True, "inv_gamma": 2.0, "power": 0.75},
        {"update_after_step": 5},
    ],
)
def test_agrees_with_diffusers(arguments, foreach):
    given = parameters()
    ours, peer = EMAModel(given, foreach=foreach, **arguments), Peer(given, **arguments)
    walk([ours, peer], given)
    for a, b in zip(ours.shadow_params, peer.shadow_params, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert ours.cur_decay_value == peer.cur_decay_value
    assert ours.optimization_step == peer.optimization_step == 20
    assert torch.equal(ours.shadow_params[1], given[1])  # needs no gradient: copied
    assert ours.state_dict().keys() == peer.state_dict().keys()


def test_state_dict_is_read_by_diffusers_and_back():
    given = parameters()
    ours = EMAModel(given, decay=0.8)
    walk([ours], given)
    peer = Peer(given)
    peer.load_state_dict(ours.state_dict())
    back = EMAModel(given)
    back.load_state_dict(peer.state_dict())
    assert back.scalars() == ours.scalars()
    assert all(torch.equal(a, b) for a, b in zip(back.shadow_params, ours.shadow_params))
    assert back.shadow_params[0] is not ours.shadow_params[0]


def test_copy_store_restore():
    given = parameters()
    ema = EMAModel(given, decay=0.5)
    walk([ema], given)
    raw = [p.detach().clone() for p in given]
    ema.store(given)
    ema.copy_to(given)
    assert all(torch.equal(p, s) for p, s in zip(given, ema.shadow_params))
    ema.restore(given)
    assert all(torch.equal(p, r) for p, r in zip(given, raw))
    assert given[0].requires_grad
    with pytest.raises(InputError, match="no stored weights"):
        ema.restore(given)


def test_other_tensors_are_refused_before_anything_changes():
    given = parameters()
    ema = EMAModel(given, decay=0.5)
    walk([ema], given, 3)
    before = [s.clone() for s in ema.shadow_params]
    for call in (ema.step, ema.copy_to, ema.store):
        with pytest.raises(InputError, match="follows 4 tensors, got 3"):
            call(given[:3])
        with pytest.raises(InputError, match=r"tensor 0 has shape \(1,\), the average's has \(3, 4\)"):
            call(given[::-1])
    assert ema.optimization_step == 3
    assert all(torch.equal(s, b) for s, b in zip(ema.shadow_params, before))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"decay": 1.5}, r"decay must lie in \[0, 1\]"),
        ({"decay": "0.9"}, "decay of an average must be of type float/int"),
        ({"optimization_step": 2.0}, "optimization_step of an average must be of type int"),
        ({"use_ema_warmup": 1}, "use_ema_warmup of an average must be of type bool"),
        ({"update_after_step": True}, "update_after_step"),
        ({"inv_gamma": None}, "inv_gamma"),
        ({"shadow_params": "x"}, "list of tensors"),
        ({"shadow_params": [torch.zeros(2)]}, "follows 4 tensors"),
    ],
)
def test_bad_states(state, said):
    ema = EMAModel(parameters(), decay=0.7)
    with pytest.raises(InputError, match=said):
        ema.load_state_dict({"min_decay": 0.1, **state})
    assert ema.min_decay == 0


def test_bad_arguments():
    with pytest.raises(InputError, match=r"pass module\.parameters"):
        EMAModel(nn.Linear(1, 1))
    with pytest.raises(InputError, match="decay must lie"):
        EMAModel([], decay=2)
    with pytest.raises(InputError, match="needs model_cls and model_config"):
        EMAModel([]).save_pretrained("nowhere")


def test_dtypes_may_differ_and_integers_are_carried():
    given = [nn.Parameter(torch.ones(3, dtype=torch.bfloat16)), torch.tensor(3)]
    ema = EMAModel(given, decay=0.5)
    ema.to(dtype=torch.float32)
    assert [s.dtype for s in ema.shadow_params] == [torch.float32, torch.int64]
    for value in (1.0, 2.0):
        given[0].data.fill_(value)
        given[1].fill_(7)
        ema.step(given)
    assert ema.shadow_params[0].tolist() == pytest.approx([2 - 2 / 11] * 3)
    assert int(ema.shadow_params[1]) == 7


def test_folder_is_an_ordinary_model_for_both_libraries(tmp_path):
    torch.manual_seed(0)
    model = UNet2DModel(**TINY)
    ema = EMAModel(model.parameters(), decay=0.9, model_cls=UNet2DModel, model_config=model.config)
    walk([ema], list(model.parameters()), 3)
    ema.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["decay"] == 0.9
    assert config["optimization_step"] == 3
    assert config["_class_name"] == "UNet2DModel"
    again = EMAModel.from_pretrained(tmp_path, UNet2DModel)
    assert again.scalars() == ema.scalars()
    plain = UNet2DModel.from_pretrained(tmp_path)
    peer = Peer.from_pretrained(str(tmp_path), diffusers.UNet2DModel)
    assert peer.optimization_step == 3
    for a, b, c, d in zip(ema.shadow_params, again.shadow_params, plain.parameters(), peer.shadow_params, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert torch.equal(a, d)


def test_reads_a_folder_of_diffusers(tmp_path):
    model = diffusers.UNet2DModel(**TINY)
    peer = Peer(model.parameters(), decay=0.8, model_cls=diffusers.UNet2DModel, model_config=model.config)
    peer.step(model.parameters())
    peer.save_pretrained(tmp_path)
    ours = EMAModel.from_pretrained(tmp_path, UNet2DModel)
    assert ours.decay == 0.8
    assert ours.optimization_step == 1
    assert all(torch.equal(a, b) for a, b in zip(ours.shadow_params, peer.shadow_params, strict=True))
