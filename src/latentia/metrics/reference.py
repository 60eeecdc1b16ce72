"""Reference statistics: the real side of a Fréchet distance, saved with the protocol it was measured by."""

import json
import os
import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from latentia.core.files import write_atomic
from latentia.core.protocols import FeatureNetwork
from latentia.errors import ArtifactError, InputError
from latentia.metrics.features import Images, extract
from latentia.metrics.frechet import EPS, Gaussian, frechet_name, frechet_of
from latentia.metrics.measurement import Measurement


@dataclass(frozen=True, slots=True)
class Protocol:
    """What must be equal on both sides for a distance to mean anything.

    Attributes:
        ruler: the metric's name, `fid` or `frechet_<network>`.
        resolution: pixels a side of the images before the network's own resizing.
        preprocessing: crop and resize in words, e.g. `shorter side bicubic antialiased, centre crop`.
        data: data set and split, e.g. `digits/all`.
    """

    ruler: str
    resolution: int
    preprocessing: str
    data: str


@dataclass(frozen=True, slots=True)
class Reference:
    """A Gaussian over real features and the protocol behind it."""

    gaussian: Gaussian
    protocol: Protocol

    @classmethod
    def measure(
        cls, network: FeatureNetwork, real: Images, preprocessing: str, data: str, batch_size: int = 256
    ) -> "Reference":
        """Measure `real` images on `network`; the resolution is read from the first image."""
        features = extract(network, real, batch_size)
        first = real[:1] if isinstance(real, torch.Tensor) else real.batch([0])["x"]
        protocol = Protocol(frechet_name(network), int(first.shape[-1]), preprocessing, data)
        return cls(Gaussian.fit(features), protocol)

    def distance(
        self, network: FeatureNetwork, generated: torch.Tensor, eps: float | None = None, batch_size: int = 256
    ) -> Measurement:
        """Fréchet distance of `generated` images; raises `InputError` for another ruler or resolution."""
        wanted = {"ruler": self.protocol.ruler, "resolution": self.protocol.resolution}
        given = {"ruler": frechet_name(network), "resolution": int(generated.shape[-1])}
        differing = [f"{key} {given[key]!r} against {wanted[key]!r}" for key in wanted if given[key] != wanted[key]]
        if differing:
            raise InputError(f"not comparable with this reference: {', '.join(differing)}; measure a new reference")
        chosen = (0.0 if self.protocol.ruler == "fid" else EPS) if eps is None else eps
        return frechet_of(self.protocol.ruler, self.gaussian, extract(network, generated, batch_size), chosen)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file: `mean`, `covariance`, and the protocol as its metadata."""
        target = Path(path)
        tensors = {"mean": self.gaussian.mean.contiguous(), "covariance": self.gaussian.covariance.contiguous()}
        metadata = {"protocol": json.dumps(asdict(self.protocol), sort_keys=True), "n": str(self.gaussian.n)}
        write_atomic(target, lambda beside: save_file(tensors, beside, metadata=metadata))
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Reference":
        """Read what `save` wrote; raises `ArtifactError` for a missing, truncated or foreign file."""
        source = Path(path)
        if not source.is_file():
            raise ArtifactError(f"no reference statistics at {source}")
        try:
            with safe_open(source, framework="pt") as opened:
                metadata = opened.metadata() or {}
                values = json.loads(metadata["protocol"])
                protocol = Protocol(**{f.name: values[f.name] for f in fields(Protocol)})
                gaussian = Gaussian(opened.get_tensor("mean"), opened.get_tensor("covariance"), int(metadata["n"]))
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ArtifactError(f"{source} holds no reference statistics of ours: {error}") from error
        return cls(gaussian, protocol)


def load_npz_statistics(path: str | os.PathLike[str], n: int) -> Gaussian:
    """Statistics that pytorch-fid wrote (`mu`, `sigma` in an .npz; no pickles); they do not record `n`, so give it."""
    source = Path(path)
    try:
        with np.load(source, allow_pickle=False) as opened:
            mean, covariance = torch.from_numpy(opened["mu"]), torch.from_numpy(opened["sigma"])
    except FileNotFoundError:
        raise ArtifactError(f"no statistics at {source}") from None
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{source} holds no arrays `mu` and `sigma`: {error}") from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ArtifactError(f"{source}: mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)} do not fit")
    return Gaussian(mean.double(), covariance.double(), n)
