"""What the stages of `tokenizers-study` share: held-out pictures, rulers, saved codecs, and pictures for the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from latentia.core.artifacts import read_safetensors, write_safetensors
from latentia.recipes import tokenizers_study_runs as sub
from latentia.recipes.study import FOLDER
from latentia.recipes.tokenizers_study import DATA

if TYPE_CHECKING:
    from latentia.recipes.recipe import Bench

LABELS = {"vqvae": "VQ-VAE", "fsq": "FSQ", "lfq": "LFQ", "vqgan": "VQGAN", "flowmo": "FlowMo-1A+1B"}
FIRST_STAGE = "FlowMo-1A"
BITS = {"digits": (16, 128), "photos": (32, 576)}
"""Side of a picture, bits of a code."""


def folder_of(bench: Bench) -> Path:
    """OUT/stages."""
    assert bench.out is not None
    return bench.out / FOLDER


def saved(folder: Path, stage: str) -> dict[str, Path]:
    """Folders of a stage's codecs by label: two of FlowMo, one of the others."""
    kind = stage.split("-")[0]
    first = {FIRST_STAGE: folder / sub.FIRST} if kind == "flowmo" else {}
    return {**first, LABELS[kind]: folder / sub.LAST}


def open_saved(folder: Path, bench: Bench) -> Any:
    """A codec, ready to work."""
    from latentia.codecs.vq_model import VQModel
    from latentia.core.files import read_json
    from latentia.methods.flowmo.codecs import FlowMo

    kinds: dict[str, Any] = {"VQModel": VQModel, "FlowMo": FlowMo}
    kind = kinds[read_json(folder / "config.json")["_class_name"]]
    return kind.from_pretrained(folder).to(bench.device).eval().requires_grad_(False)


def flowmos(bench: Bench) -> list[tuple[str, str]]:
    """(stage, data) of the FlowMos that are there."""
    names = [(f"flowmo-{data}", data) for data in DATA]
    return [each for each in names if (folder_of(bench) / f"{each[0]}.json").is_file()]


def ruler(bench: Bench, data: str) -> Any:
    """What measures: the digits' judge or the ruler of photographs; kept in OUT/rulers."""
    if f"ruler {data}" not in bench.parts:
        assert bench.out is not None
        bench.keep(f"ruler {data}", RULERS[data](bench.out / "rulers"))
    return bench.parts[f"ruler {data}"]


def digits_ruler(folder: Path) -> Any:
    """The classifier of 16×16 digits that judges every codec of digits."""
    from latentia.metrics.classifier import ConvClassifier
    from latentia.recipes.judge import digits_judge

    kept = folder / "digits"
    if not (kept / "config.json").is_file():
        digits_judge(BITS["digits"][0]).save_pretrained(kept)
    return ConvClassifier.from_pretrained(kept).eval().requires_grad_(False)


def photos_ruler(folder: Path) -> Any:
    """The ruler of photographs."""
    from latentia.recipes.photo_features import ruler

    return ruler(folder)


RULERS: dict[str, Callable[[Path], Any]] = {"digits": digits_ruler, "photos": photos_ruler}


def judged(bench: Bench, data: str, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """At most so many of the pictures that reports are about, evenly spread, and their labels.

    Digits: the test split. Photographs: tiles side by side of those kept for reports, in full and half size.
    """
    from latentia.data.digits import digits
    from latentia.data.photos import photos

    side = BITS[data][0]
    found: Any = digits("test", side) if data == "digits" else photos("report", side, scales=(1.0, 0.5))
    batch = found.batch(spread(len(found), most).tolist())
    return batch["x"], batch["label"]


def accuracy(bench: Bench, data: str, back: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Share of reconstructed digits that the judge still reads; nothing for photographs."""
    from latentia.metrics.evaluate import class_accuracy

    return {"accuracy": class_accuracy(ruler(bench, data), back, labels).value} if data == "digits" else {}


def spread(length: int, most: int) -> torch.Tensor:
    """At most `most` indices, evenly spread."""
    return torch.linspace(0, length - 1, min(most, length)).round().long()


def slug(name: str) -> str:
    """A name for a file."""
    return "".join(c if c.isalnum() else "-" for c in name.lower())


def keep_pictures(bench: Bench, name: str, pictures: Mapping[str, torch.Tensor]) -> None:
    """Keep pictures (N, C, H, W) in [-1, 1] for the page."""
    whole = {key: ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8) for key, x in pictures.items()}
    folder_of(bench).mkdir(parents=True, exist_ok=True)
    write_safetensors(folder_of(bench) / f"{name}.safetensors", whole, {})


def read_pictures(out: Path, name: str) -> dict[str, torch.Tensor]:
    """What `keep_pictures` kept, in [-1, 1]; empty if nothing."""
    file = out / FOLDER / f"{name}.safetensors"
    return {key: x.float() / 127.5 - 1 for key, x in read_safetensors(file).items()} if file.is_file() else {}
