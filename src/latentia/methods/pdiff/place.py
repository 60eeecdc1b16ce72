"""The folder of a collecting run: what it was started with, what is unfinished, and the finished checkpoints."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentia.core import transaction
from latentia.core.artifacts import load_state_dict, save_state_dict
from latentia.core.files import read_json, write_text_atomic
from latentia.errors import TrainingError
from latentia.methods.pdiff.checkpoints import META, Checkpoints
from latentia.methods.pdiff.layout import ParameterLayout, StateDict

UNFINISHED, RUN = "unfinished", "run.json"


@dataclass
class Place:
    """The folder of a run: what is unfinished below it, what is finished in it. Without a folder nothing is written."""

    path: Path | str | None
    identity: dict[str, Any]
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.identity = json.loads(json.dumps(self.identity))  # tuples as lists, as they are read back
        if self.path is None:
            return
        self.folder = Path(self.path)
        known = self.folder / UNFINISHED / RUN
        if known.exists():
            self._check(read_json(known))
        elif not self.finished():
            write_text_atomic(known, json.dumps(self.identity, indent=2) + "\n")

    def finished(self) -> bool:
        """Whether the folder holds this run's checkpoints."""
        if self.path is None or not transaction.current(self.folder / META).exists():
            return False
        self._check(read_json(transaction.current(self.folder / META)))
        return True

    def read(self, stem: str) -> StateDict | None:
        """Tensors written before, or None."""
        if self.path is None or not (self.folder / UNFINISHED / f"{stem}.safetensors").exists():
            return None
        return load_state_dict(self.folder / UNFINISHED / f"{stem}.safetensors")

    def write(self, stem: str, tensors: StateDict) -> None:
        """Write tensors, whole or not at all."""
        if self.path is not None:
            save_state_dict(tensors, self.folder / UNFINISHED, stem=stem, max_shard_size="1000TB")

    def finish(
        self, layout: ParameterLayout, vectors: torch.Tensor, base: StateDict, own: StateDict | None = None
    ) -> Checkpoints:
        """The checkpoints, saved; what was unfinished goes."""
        checkpoints = Checkpoints(layout, vectors, base, self.identity, own or {})
        if self.path is not None:
            checkpoints.save(self.folder)
            shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)
        return checkpoints

    def _check(self, found: Mapping[str, Any]) -> None:
        for key, value in self.identity.items():
            if found.get(key) != value:
                shown = f"{key} = {found.get(key)!r} there, {value!r} here"
                raise TrainingError(
                    f"{self.folder} holds checkpoints that were collected otherwise ({shown[:300]}): "
                    "choose another folder, or the same values"
                )


def digests(network: nn.Module, layout: ParameterLayout) -> dict[str, str]:
    """What a run was made of: its network and its selection."""
    shapes = [(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()]
    return {
        "network": type(network).__name__ + " " + hashlib.blake2b(repr(shapes).encode(), digest_size=8).hexdigest(),
        "layout": hashlib.blake2b(layout.to_json().encode(), digest_size=8).hexdigest(),
    }
