"""The ruler of `fid`: Inception features, with weights from a file that you give.

The standard file is `pt_inception-2015-12-05-6726825d.pth`: the PyTorch conversion, published by pytorch-fid, of
the TensorFlow network that Heusel et al. 2017 measured FID on. It is recognised by the SHA-256 in its name.
"""

import hashlib
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from latentia.core.files import write_atomic
from latentia.errors import ArtifactError, InputError, check_choice
from latentia.metrics.inception import InceptionV3

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
SHA256_PREFIX = "6726825d"


class InceptionFeatures(nn.Module):
    """The ruler of `fid`: Inception features (2048) from a weights file.

    Protocol: values rounded to 8 bits (as if read from image files), grey images repeated to three
    channels, bilinear resize to 299×299 without antialiasing (half-pixel centres), float32.

    `verified` is True for the standard file, or for a `.safetensors` copy that `save` made of it; only then is
    the distance called `fid`, otherwise `frechet_inception-<first 8 digits of the file's SHA-256>`.
    """

    def __init__(self, weights: str | os.PathLike[str] | None) -> None:
        super().__init__()
        if weights is None:
            raise InputError(f"`fid` needs the weights of its Inception network: give the path of {WEIGHTS}")
        state, digest = read_weights(Path(weights))
        self.origin = digest
        self.verified = digest.startswith(SHA256_PREFIX)
        self.name = "inception" if self.verified else f"inception-{digest[:8]}"
        with torch.device("meta"):
            self.network = InceptionV3()
        load_state(self.network, state, Path(weights))
        self.eval().requires_grad_(False)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, 1 or 3, H, W) in [-1, 1] → (B, 2048)."""
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise InputError(f"Inception measures x of (B, 1 or 3, H, W), got {tuple(x.shape)}")
        quantised = (x.float().clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1
        resized = F.interpolate(quantised.expand(-1, 3, -1, -1), size=(299, 299), mode="bilinear")
        return self.network(resized)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the weights as safetensors with the SHA-256 of the file they came from; returns the path."""
        target = Path(path)
        state = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        write_atomic(target, lambda beside: save_file(state, beside, metadata={"origin_sha256": self.origin}))
        return target


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """State dict and SHA-256 (of the original file) of `.safetensors`, `.pth` or `.pt`; nothing is unpickled."""
    if not path.is_file():
        raise ArtifactError(f"no Inception weights at {path}: `fid` needs the file {WEIGHTS} (or a safetensors copy)")
    check_choice("weights file type", path.suffix, (".safetensors", ".pth", ".pt"))
    try:
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        if path.suffix != ".safetensors":
            state = torch.load(path, map_location="cpu", weights_only=True)
            return state, digest
        with safe_open(path, framework="pt") as opened:
            origin = (opened.metadata() or {}).get("origin_sha256", digest)
            return {name: opened.get_tensor(name) for name in opened.keys()}, origin  # noqa: SIM118
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise ArtifactError(f"cannot read Inception weights from {path}: {error}") from error
    except Exception as error:  # torch raises pickle.UnpicklingError for anything but plain tensors
        raise ArtifactError(f"{path} holds more than tensors and was not loaded: {error}") from error


def load_state(network: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Fill `network` from `state`; `ArtifactError` lists what is missing, foreign or of another shape.

    Counters of seen batches (`num_batches_tracked`, absent from old files) and an auxiliary head do not matter.
    """
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ArtifactError(f"{path} holds no flat dictionary of tensors; expected {WEIGHTS}")
    wanted = network.state_dict()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = sorted(set(wanted) - set(state) - counters)
    foreign = sorted(name for name in set(state) - set(wanted) if not name.startswith("AuxLogits."))
    shapes = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    if missing or foreign or shapes:
        raise ArtifactError(
            f"{path} is not FID's Inception: {len(missing)} missing {missing[:3]}, "
            f"{len(foreign)} unknown {foreign[:3]}, {len(shapes)} of another shape {shapes[:3]}; expected {WEIGHTS}"
        )
    filled = {name: state.get(name, torch.zeros((), dtype=torch.long)) for name in wanted}
    network.load_state_dict(filled, assign=True)
