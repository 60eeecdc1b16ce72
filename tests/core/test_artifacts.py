import builtins
import errno
import io
import json
import os
import pickle
import struct
import sys
import types
from pathlib import Path

import numpy
import pytest
import safetensors.torch
import torch

from latentia.core.artifacts import load_state_dict, parse_size, save_state_dict, split, untie
from latentia.core.config import ConfigMixin
from latentia.core.weight_files import index_name, locate, own_files, read_header, shard_name, single_name, variants
from latentia.errors import ArtifactError, InputError

SINGLE = "diffusion_pytorch_model.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32,
]  # fmt: skip


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {f"layer.{i}": torch.randn(4, i + 1, generator=g) for i in range(5)}


def assert_same(a, b):
    assert set(a) == set(b)
    assert all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def on_disk(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


@pytest.mark.parametrize(
    ("variant", "single", "shard", "index"),
    [
        (None, SINGLE, "diffusion_pytorch_model-00002-of-00003.safetensors", INDEX),
        (
            "fp16",
            "diffusion_pytorch_model.fp16.safetensors",
            "diffusion_pytorch_model.fp16-00002-of-00003.safetensors",
            "diffusion_pytorch_model.safetensors.index.fp16.json",
        ),
    ],
)
def test_names_are_diffusers(variant, single, shard, index):
    assert (single_name(variant), shard_name(2, 3, variant), index_name(variant)) == (single, shard, index)
    near = [
        "config.json",
        "diffusion_pytorch_model.bin",
        f"x{single}",
        f"{single}.tmp",
        "diffusion_pytorch_model_2.safetensors",
    ]
    assert variants([single, shard, index, *near]) == {variant: sorted([single, shard, index])}
    assert variants(["model.safetensors"], stem="model") == {None: ["model.safetensors"]}


def test_bytes_are_those_of_the_reference_writer(tmp_path):
    g = torch.Generator().manual_seed(0)
    state = {str(d): torch.randint(0, 2, (3, 2), generator=g).to(d) for d in DTYPES}
    state |= {"empty": torch.empty(0, 3), "scalar": torch.tensor(2.5), "ä": torch.ones(1)}
    save_state_dict(state, tmp_path)
    safetensors.torch.save_file(state, tmp_path / "reference.safetensors", metadata={"format": "pt"})
    assert (tmp_path / SINGLE).read_bytes() == (tmp_path / "reference.safetensors").read_bytes()
    again = load_state_dict(tmp_path)
    mapped = load_state_dict(tmp_path, mapped=True)
    for name, tensor in state.items():
        assert torch.equal(mapped[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_strided_tensors_and_views_are_written_as_they_read(tmp_path):
    base = torch.arange(24.0).reshape(2, 3, 2, 2)
    state = {
        "last": base.to(memory_format=torch.channels_last), "t": base.flatten(1).T, "slice": base[1:], "whole": base,
        "expanded": torch.ones(1).expand(3), "conj": torch.tensor([1 + 2j]).conj(),
        "neg": torch.tensor([1 + 2j]).conj().imag, "grad": torch.ones(2, requires_grad=True),
    }  # fmt: skip
    save_state_dict(state, tmp_path)
    again = load_state_dict(tmp_path)
    assert_same(again, {k: v.detach().contiguous() for k, v in state.items()})
    assert all(v.is_contiguous() for v in again.values())


def test_tied_tensors_are_written_once_and_come_back_under_both_names(tmp_path):
    weight = torch.randn(50, 4)
    state = {"in.weight": weight, "other": torch.ones(2), "out.weight": weight, "view": weight[:2]}
    save_state_dict(state, tmp_path)
    header = read_header(tmp_path / SINGLE)
    assert set(header.tensors) == {"in.weight", "other", "view"}
    assert header.metadata == {"format": "pt", "out.weight": "in.weight"}
    assert_same(load_state_dict(tmp_path), state)
    save_state_dict(state, tmp_path, max_shard_size=8)
    assert_same(load_state_dict(tmp_path), state)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_and_index(tmp_path, variant):
    state = tensors()
    files = save_state_dict(state, tmp_path, variant=variant, max_shard_size=80)
    # 4·(1 … 5) floats: 16 + 32, 48, 64, 80 bytes
    assert [f.name for f in files] == [shard_name(i, 4, variant) for i in range(1, 5)]
    index = json.loads((tmp_path / index_name(variant)).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in state.values()) == 240
    assert index["weight_map"] == {f"layer.{i}": shard_name(max(i, 1), 4, variant) for i in range(5)}
    assert all(read_header(f).metadata == {"format": "pt"} for f in files)
    assert_same(load_state_dict(tmp_path, variant=variant), state)


@pytest.mark.parametrize(
    ("size", "number"),
    [
        (7, 7),
        ("7", 7),
        ("10GB", 10**10),
        ("10 gb", 10**10),
        ("1.5KB", 1500),
        ("2MiB", 2**21),
        ("3TB", 3 * 10**12),
        ("5B", 5),
    ],
)
def test_sizes(size, number):
    assert parse_size(size) == number


@pytest.mark.parametrize("size", [0, -1, "0GB", "10XB", "GB", "-1GB", 1.5, None, True, "", "1e9"])
def test_bad_sizes(size):
    with pytest.raises(InputError, match="max_shard_size must be a positive number of bytes or a text such as '10GB'"):
        parse_size(size)


def test_split_gives_a_large_tensor_its_own_group():
    state = {"a": torch.ones(1), "big": torch.ones(100), "b": torch.ones(1), "c": torch.ones(1)}
    assert [list(g) for g in split(state, 8)] == [["a"], ["big"], ["b", "c"]]
    assert split({}, 8) == [{}]


# One folder, several saves: defect n of Diffusers 0.42.1


def test_saving_one_variant_never_touches_another(tmp_path):
    default, half = tensors(1), {k: v.half() for k, v in tensors(2).items()}
    save_state_dict(half, tmp_path, variant="fp16", max_shard_size=40)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for size in ("10GB", 80, "10GB"):
        save_state_dict(default, tmp_path, max_shard_size=size)
        assert_same(load_state_dict(tmp_path), default)
    assert {n: (tmp_path / n).read_bytes() for n in before} == before
    assert_same(load_state_dict(tmp_path, variant="fp16"), half)
    save_state_dict(half, tmp_path, variant="fp16")
    assert on_disk(tmp_path) == {SINGLE, single_name("fp16")}


def test_saving_again_removes_only_its_own_stale_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    save_state_dict(tensors(1), tmp_path, max_shard_size=48)
    assert len(on_disk(tmp_path)) == 2 + 4 + 1
    save_state_dict(tensors(2), tmp_path, max_shard_size=160)
    assert on_disk(tmp_path) - {"notes.txt", "diffusion_pytorch_model.bin"} == {
        INDEX,
        shard_name(1, 2),
        shard_name(2, 2),
    }
    assert_same(load_state_dict(tmp_path), tensors(2))
    save_state_dict(tensors(3), tmp_path)
    assert on_disk(tmp_path) == {"notes.txt", "diffusion_pytorch_model.bin", SINGLE}
    assert_same(load_state_dict(tmp_path), tensors(3))


def test_shards_that_another_variant_s_index_lists_stay(tmp_path):
    """Older releases gave shards of a variant other names; the index is what tells whose they are."""
    save_state_dict(tensors(1), tmp_path, max_shard_size=160)
    old = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / INDEX).rename(tmp_path / index_name("fp16"))
    assert own_files(tmp_path, None) == set()
    save_state_dict(tensors(2), tmp_path)
    assert_same(load_state_dict(tmp_path, variant="fp16"), tensors(1))
    assert own_files(tmp_path, "fp16") == {index_name("fp16"), *old["weight_map"].values()}
    save_state_dict(tensors(3), tmp_path, variant="fp16")
    assert on_disk(tmp_path) == {SINGLE, single_name("fp16")}


def test_single_file_beside_a_stale_index_is_read(tmp_path):
    """Diffusers leaves this behind when it saves one file over shards; it cannot load it itself."""
    save_state_dict(tensors(1), tmp_path, max_shard_size=80)
    for shard in tmp_path.glob("*-of-*"):
        shard.unlink()
    safetensors.torch.save_file(tensors(2), tmp_path / SINGLE, metadata={"format": "pt"})
    assert_same(load_state_dict(tmp_path), tensors(2))


# Crashes and full disks

SAVES = {"single → single": (None, None), "shards → single": (80, None), "single → shards": (None, 80),
         "shards → fewer shards": (48, 160), "shards → as many": (80, 80)}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), SAVES.values(), ids=SAVES)
def test_kill_in_the_middle_of_a_save_leaves_old_or_new(tmp_path, crash, before, after):
    def write(folder, seed, size):
        save_state_dict(
            tensors(seed), folder, max_shard_size=size or "10GB", texts={"config.json": f'{{"seed": {seed}}}'}
        )

    seen = []
    for step in range(0, 200, 3):  # every single moment is gone through in test_transaction.py
        folder = tmp_path / str(step)
        write(folder, 1, before)
        if not crash(step, lambda folder=folder: write(folder, 2, after)):
            break
        seed = ConfigMixin.load_config(folder)["seed"]
        assert_same(load_state_dict(folder), tensors(seed))
        seen.append(seed)
        if step % 2 == 0:
            write(folder, 3, None)
            assert {n for n in on_disk(folder) if not n.endswith(".tmp")} == {"config.json", SINGLE}
            assert_same(load_state_dict(folder), tensors(3))
    else:
        pytest.fail("the save never finished")
    assert seen == sorted(seen)
    assert set(seen) == {1, 2}


class FullDisk(io.FileIO):
    """A file on a disk with `room` bytes left."""

    room = 0

    def write(self, data):
        size = memoryview(data).nbytes
        if size > FullDisk.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        FullDisk.room -= size
        return super().write(data)


@pytest.mark.parametrize("part", [0, 0.1, 0.5, 0.999])
def test_full_disk_keeps_the_old_save(tmp_path, monkeypatch, part):
    save_state_dict(tensors(1), tmp_path, max_shard_size=80, texts={"config.json": "{}"})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    real = builtins.open

    def limited(path, mode="r", *args, **kwargs):
        return FullDisk(path, mode) if mode == "wb" else real(path, mode, *args, **kwargs)

    FullDisk.room = int(part * sum(len(raw) for name, raw in before.items() if "-of-" in name))
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", limited)
        with pytest.raises(ArtifactError, match=r"No space left on device\. Nothing was changed there"):
            save_state_dict(tensors(2), tmp_path, max_shard_size=80, texts={"config.json": '{"a": 1}'})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_unchanged_text_is_left_alone(tmp_path, monkeypatch):
    save_state_dict(tensors(1), tmp_path, texts={"config.json": "{}"})
    stamp = (tmp_path / "config.json").stat().st_ino
    replaced = []
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (replaced.append(Path(b).name), real(a, b)))
    save_state_dict(tensors(2), tmp_path, texts={"config.json": "{}"})
    assert replaced == [SINGLE]
    assert (tmp_path / "config.json").stat().st_ino == stamp


# What cannot be written


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": torch.ones(2, device="meta")}, "'a' lies on the meta device"),
        ({"a": torch.ones(2, 2).to_sparse()}, "'a' .*sparse.* cannot be written"),
        ({"a": torch.ones(2, dtype=torch.complex128)}, "'a' .*complex128.* cannot be written"),
        ({"a": 3}, r"'a' \(int\) cannot be written"),
        ({"__metadata__": torch.ones(1)}, "cannot be named '__metadata__'"),
    ],
)
def test_unwritable_tensors_are_named_before_anything_is_written(tmp_path, state, message):
    with pytest.raises(InputError, match=message):
        save_state_dict(state, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("variant", ["", "a/b", "../x", "a.b", "f p", 16])
def test_bad_variants(tmp_path, variant):
    with pytest.raises(InputError, match="variant must be a tag"):
        save_state_dict(tensors(), tmp_path / "new", variant=variant)


def test_untie_keeps_equal_but_separate_tensors_apart():
    kept, ties = untie({"a": torch.ones(3), "b": torch.ones(3), "e": torch.empty(0), "f": torch.empty(0)})
    assert (list(kept), ties) == (["a", "b", "e", "f"], {})


# What cannot be read


def broken(tmp_path, make) -> Path:
    save_state_dict(tensors(), tmp_path)
    path = tmp_path / SINGLE
    path.write_bytes(make(path.read_bytes()))
    return path


def with_header(raw: bytes, change) -> bytes:
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    new = json.dumps(header).encode()
    return struct.pack("<Q", len(new)) + new + raw[8 + length :]


BROKEN = {
    "empty": (lambda raw: b"", "is empty: copy or download it again"),
    "three bytes": (lambda raw: raw[:3], "not a safetensors file, or was cut off inside its header"),
    "cut in header": (lambda raw: raw[:50], "not a safetensors file, or was cut off inside its header"),
    "cut in tensors": (lambda raw: raw[:-10], "is truncated: 230 of 240 bytes of tensors"),
    "longer": (lambda raw: raw + b"abc", "has 3 bytes after its last tensor"),
    "text": (lambda raw: b"<!DOCTYPE html><html>not found</html>", "not a safetensors file"),
    "zip pickle": (lambda raw: b"PK\x03\x04" + bytes(100), "is a pickle under a wrong name"),
    "old pickle": (lambda raw: pickle.dumps({"a": 1}) + bytes(100), "is a pickle under a wrong name"),
    "lfs": (lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "header not json": (lambda raw: struct.pack("<Q", 4) + b"{{{{" + bytes(9), "not a safetensors file"),
    "header a list": (lambda raw: struct.pack("<Q", 2) + b"[]", "not a safetensors file"),
    "huge header": (lambda raw: struct.pack("<Q", 2**62) + raw[8:], "not a safetensors file"),
    "no shape": (lambda raw: with_header(raw, lambda h: h["layer.0"].pop("shape")), "not a safetensors file"),
    "overlap": (lambda raw: with_header(raw, lambda h: h["layer.1"].update(data_offsets=[0, 32])), "misplaced"),
    "wrong length": (lambda raw: with_header(raw, lambda h: h["layer.0"].update(shape=[4, 2])), "misplaced"),
    "negative": (lambda raw: with_header(raw, lambda h: h["layer.0"].update(data_offsets=[-16, 0])), "misplaced"),
    "new dtype": (lambda raw: with_header(raw, lambda h: h["layer.0"].update(dtype="F3")), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_files_say_what_is_wrong(tmp_path, make, message):
    path = broken(tmp_path, make)
    for target in (path, tmp_path):
        for mapped in (False, True):
            with pytest.raises(ArtifactError, match=message):
                load_state_dict(target, mapped=mapped)


def test_every_truncation_is_noticed(tmp_path):
    save_state_dict({"a": torch.arange(4.0)}, tmp_path)
    raw = (tmp_path / SINGLE).read_bytes()
    for size in range(len(raw)):
        (tmp_path / SINGLE).write_bytes(raw[:size])
        with pytest.raises(ArtifactError):
            load_state_dict(tmp_path)


def sharded(tmp_path, change=None):
    save_state_dict(tensors(), tmp_path, max_shard_size=80)
    index = json.loads((tmp_path / INDEX).read_text())
    if change:
        change(index)
        (tmp_path / INDEX).write_text(json.dumps(index))
    return tmp_path


def test_missing_shard_is_named(tmp_path):
    (sharded(tmp_path) / shard_name(2, 4)).unlink()
    with pytest.raises(
        ArtifactError, match=r"lacks diffusion_pytorch_model-00002-of-00004\.safetensors, which .*index"
    ):
        load_state_dict(tmp_path)


def test_truncated_shard_is_named(tmp_path):
    path = sharded(tmp_path) / shard_name(3, 4)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"00003-of-00004\.safetensors is truncated"):
        load_state_dict(tmp_path)


def test_tensors_that_the_index_promises_and_no_shard_holds_are_all_named(tmp_path):
    sharded(tmp_path, lambda i: i["weight_map"].update({"gone.1": shard_name(1, 4), "gone.2": shard_name(1, 4)}))
    with pytest.raises(ArtifactError, match=r"lack gone\.1, gone\.2"):
        load_state_dict(tmp_path)


@pytest.mark.parametrize(
    "file",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "",
        "C:\\x.safetensors",
        "x.bin",
        "a\\b.safetensors",
    ],
)
def test_index_that_leaves_its_folder_is_refused(tmp_path, file):
    save_state_dict(tensors(), tmp_path)
    (tmp_path / "secret.safetensors").write_bytes((tmp_path / SINGLE).read_bytes())
    folder = sharded(tmp_path / "model", lambda i: i["weight_map"].update({"layer.0": file}))
    with pytest.raises(ArtifactError, match="safetensors files of its own folder only"):
        load_state_dict(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}'])
def test_broken_index(tmp_path, text):
    (sharded(tmp_path) / INDEX).write_text(text)
    with pytest.raises(ArtifactError, match=r"not valid JSON|expected a JSON object|has no weight_map"):
        load_state_dict(tmp_path)
    save_state_dict(tensors(5), tmp_path)  # and a new save heals the folder
    assert_same(load_state_dict(tmp_path), tensors(5))
    assert not (tmp_path / INDEX).exists()


def test_missing_variant_lists_those_present(tmp_path):
    save_state_dict(tensors(), tmp_path, variant="fp16")
    save_state_dict(tensors(), tmp_path, variant="ema")
    with pytest.raises(ArtifactError, match="no default weights; variants there: 'ema', 'fp16'"):
        locate(tmp_path)
    save_state_dict(tensors(), tmp_path)
    with pytest.raises(ArtifactError, match=r"no variant 'bf16'; variants there: 'ema', 'fp16', the default"):
        locate(tmp_path, "bf16")


def test_folder_of_pickles_says_how_to_convert(tmp_path):
    torch.save(tensors(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(
        ArtifactError, match=r"only pickles \(diffusion_pytorch_model\.bin\).*Convert once: state = latentia"
    ):
        load_state_dict(tmp_path)
    with pytest.raises(ArtifactError, match=r"has no diffusion_pytorch_model\.safetensors: is this"):
        locate(tmp_path / "..", None)
    with pytest.raises(ArtifactError, match="is not a folder"):
        locate(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="no file"):
        load_state_dict(tmp_path / "nowhere.safetensors")


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_pickles_give_tensors_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(tensors(), "a.bin")
    assert_same(load_state_dict("a.bin"), tensors())
    torch.save({"state_dict": tensors(1), "epoch": 3}, "b.ckpt")
    assert_same(load_state_dict("b.ckpt"), tensors(1))
    torch.save({"a": torch.ones(1), "bomb": Bomb()}, "bomb.pt")
    with pytest.raises(ArtifactError, match=r"asks for more than tensors, which is refused.*safetensors"):
        load_state_dict("bomb.pt")
    Path("raw.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ArtifactError, match="refused"):
        load_state_dict("raw.pkl")
    assert not Path("exploded").exists()
    Path("cut.pt").write_bytes(Path("a.bin").read_bytes()[:300])
    Path("empty.pt").touch()
    for name in ("cut.pt", "empty.pt"):
        with pytest.raises(ArtifactError, match="is broken"):
            load_state_dict(name)
    torch.save([1, 2], "list.pt")
    torch.save({"epoch": 3}, "none.pt")
    for name in ("list.pt", "none.pt"):
        with pytest.raises(ArtifactError, match="holds no state dict"):
            load_state_dict(name)
    with pytest.raises(ArtifactError, match="no file"):
        load_state_dict("nowhere.ckpt")


def test_leftovers_of_a_training_run_are_dropped_unseen(tmp_path, monkeypatch):
    name = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": name})
    with monkeypatch.context() as patch:
        for depth in range(1, 4):
            module = ".".join(name.split(".")[:depth])
            patch.setitem(sys.modules, module, types.ModuleType(module))
        patch.setattr(sys.modules[name], "ModelCheckpoint", callback, raising=False)
        saved = {"callbacks": {callback: {"best": numpy.float64(1.5)}}, "state_dict": {"a": torch.ones(2)}}
        torch.save(saved, tmp_path / "sd-v1-4.ckpt")
    before = set(torch.serialization.get_safe_globals())
    assert list(load_state_dict(tmp_path / "sd-v1-4.ckpt")) == ["a"]
    assert set(torch.serialization.get_safe_globals()) == before


def test_the_refusal_names_what_a_pickle_asks_for_and_repeats_no_advice_to_run_it(tmp_path):
    torch.save({"a": torch.ones(1), "b": Path}, tmp_path / "x.ckpt")
    with pytest.raises(ArtifactError, match=r"it asks for pathlib\.Path\)") as caught:
        load_state_dict(tmp_path / "x.ckpt")
    assert "weights_only" not in str(caught.value)
