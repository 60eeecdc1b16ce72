"""The paper's image classifiers: ResNet-18/50, ViT-Tiny/Base and ConvNeXt-Tiny/Base, by transformers.

Published sizes or reduced ones, random or pretrained (safetensors only; no code of a model folder is run). A network
maps x (B, C, S, S) in [-1, 1] to logits (B, classes), and its state dict has transformers' own names, so that what is
generated loads into transformers' plain class as well.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn

from latentia.core.arguments import check_count, check_number
from latentia.errors import ArtifactError, InputError, check_choice

Family = Literal["resnet", "vit", "convnext"]
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5,), (0.5,)
"""Mean and deviation that leave pixels in [-1, 1] as they are."""

CLASSES = {
    "resnet": "ResNetForImageClassification",
    "vit": "ViTForImageClassification",
    "convnext": "ConvNextForImageClassification",
}
MUST_AGREE = {
    "resnet": ("layer_type", "depths", "hidden_sizes", "embedding_size", "num_channels"),
    "vit": (
        *("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"),
        *("image_size", "patch_size", "num_channels"),
    ),
    "convnext": ("depths", "hidden_sizes", "patch_size", "num_channels"),
}
"""Fields of a pretrained network's config that decide shapes, by family."""


@dataclass(frozen=True)
class Architecture:
    """One published classifier.

    Attributes:
        family: which class of transformers it is.
        shape: arguments of that class's config that make its published size.
        pretrained: Hub id of ImageNet-1k weights for it.
        layers: patterns of the parameters that the paper generates.
        size: D, how many these are at the published width (third edition, table 6).
        parameters: of the whole network with 1,000 classes.
        pixels: mean and deviation of pixels in [0, 1] that the pretrained weights expect.
    """

    family: Family
    shape: Mapping[str, Any]
    pretrained: str
    layers: tuple[str, ...]
    size: int
    parameters: int
    pixels: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "resnet18": Architecture(
            "resnet",
            {
                "layer_type": "basic",
                "depths": (2, 2, 2, 2),
                "hidden_sizes": (64, 128, 256, 512),
                "embedding_size": 64,
            },
            "microsoft/resnet-18",
            ("*.stages.3.layers.1.layer.[01].normalization.*",),
            2048,
            11_689_512,
        ),
        "resnet50": Architecture(
            "resnet",
            {
                "layer_type": "bottleneck",
                "depths": (3, 4, 6, 3),
                "hidden_sizes": (256, 512, 1024, 2048),
                "embedding_size": 64,
            },
            "microsoft/resnet-50",
            ("*.stages.3.layers.2.layer.[12].normalization.*",),
            5120,
            25_557_032,
        ),
        "vit-tiny": Architecture(
            "vit",
            {"num_hidden_layers": 12, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
            "WinKawaks/vit-tiny-patch16-224",
            ("*.11.layernorm_after.*", "vit.layernorm.*"),
            768,
            5_717_416,
            HALF,
        ),
        "vit-base": Architecture(
            "vit",
            {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
            "google/vit-base-patch16-224",
            ("*.11.layernorm_after.*", "vit.layernorm.*"),
            3072,
            86_567_656,
            HALF,
        ),
        "convnext-tiny": Architecture(
            "convnext",
            {"depths": (3, 3, 9, 3), "hidden_sizes": (96, 192, 384, 768)},
            "facebook/convnext-tiny-224",
            ("*.stages.3.layers.2.layernorm.*", "convnext.layernorm.*"),
            3072,
            28_589_128,
        ),
        "convnext-base": Architecture(
            "convnext",
            {"depths": (3, 3, 27, 3), "hidden_sizes": (128, 256, 512, 1024)},
            "facebook/convnext-base-224",
            ("*.stages.3.layers.2.layernorm.*", "convnext.layernorm.*"),
            4096,
            88_591_464,
        ),
    }
)
"""Name → network. The layers are the last two BatchNorms of the ResNets' last block, and for ViT and ConvNeXt the last
block's norm (ViT: the second one) with the final norm."""


def architecture(name: str) -> Architecture:
    """The published network `name`; `UnknownChoiceError` for another name."""
    check_choice("architecture", name, ARCHITECTURES)
    return ARCHITECTURES[name]


def paper_layers(name: str) -> tuple[str, ...]:
    """Patterns for `ParameterLayout.select` of the layers that the paper generates in the network `name`."""
    return architecture(name).layers


def build(
    name: str,
    num_labels: int = 1000,
    *,
    image_size: int = 224,
    channels: int = 3,
    width: float = 1.0,
    patch_size: int | None = None,
    pretrained: str | os.PathLike[str] | None = None,
    pixels: tuple[Sequence[float], Sequence[float]] | None = None,
) -> nn.Module:
    """The network `name`, initialised from torch's global generator or with pretrained weights.

    Args:
        name: one of `ARCHITECTURES`.
        num_labels: classes. Pretrained weights for as many classes keep their last layer, others get a random one.
        image_size: pixels a side.
        channels: of the images.
        width: factor on every width, for small machines; 1 is as published.
        patch_size: pixels a side that one position holds after the stem. None: as published (16 for ViT, else 4) for
            images of 112 pixels or more; below that image_size/8 (at least 2) for ViT, and 1 for the others. A ResNet
            knows 4 (7×7 convolution and pooling, each halving) and 1 (the 3×3 stem of the CIFAR ResNets).
        pretrained: folder or Hub id of a network in transformers' format, of this very shape.
        pixels: mean and deviation of pixels in [0, 1] by channel, which the network subtracts and divides by. None:
            what the published weights expect for RGB, else 0.5 and 0.5.

    Raises `UnknownChoiceError` for another name, `InputError` for sizes that do not fit together or weights of another
    shape, `ArtifactError` for weights that cannot be read.
    """
    known = architecture(name)
    shape = config_of(name, image_size=image_size, channels=channels, width=width, patch_size=patch_size)
    shape["num_labels"] = check_count("num_labels", num_labels)
    mean, std = pixels or (known.pixels if channels == 3 else HALF)
    kind = logits_class(known.family)
    with _silent():
        network = kind(kind.config_class(**shape)) if pretrained is None else _load(kind, name, shape, pretrained)
    if known.family == "resnet" and shape["patch_size"] == 1:
        _small_stem(network, channels, shape["embedding_size"])
    network.register_buffer("pixel_mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
    network.register_buffer("pixel_std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
    return network


def config_of(
    name: str, *, image_size: int = 224, channels: int = 3, width: float = 1.0, patch_size: int | None = None
) -> dict[str, Any]:
    """Arguments of transformers' config for these sizes; raises as `build` does."""
    known = architecture(name)
    check_count("image_size", image_size)
    check_count("channels", channels)
    check_number("width", width, 0, open_low=True)
    if patch_size is None:
        patch_size = _patch(known.family, image_size)
    check_count("patch_size", patch_size)
    shape = {key: _narrow(known, key, value, width) for key, value in known.shape.items()}
    shape |= {"num_channels": channels, "patch_size": patch_size}
    if known.family == "vit":
        shape["image_size"] = image_size
        if image_size % patch_size:
            raise InputError(f"patch_size {patch_size} does not divide image_size {image_size}: give one that does")
    elif known.family == "resnet" and patch_size not in (1, 4):
        raise InputError(f"a ResNet's stem has patch_size 4 (ImageNet's) or 1 (CIFAR's), got {patch_size}")
    elif known.family == "convnext" and image_size < 8 * patch_size:
        raise InputError(
            f"ConvNeXt halves the image three times after its patches: {image_size} pixels are too few for "
            f"patch_size {patch_size}"
        )
    return shape


@functools.cache
def logits_class(family: Family) -> Any:
    """transformers' classifier of this family with a forward from x (B, C, S, S) in [-1, 1] to logits.

    It keeps its name and the names of its tensors.
    """
    import transformers

    kind: Any = getattr(transformers, CLASSES[family])

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        normalised = (x * 0.5 + 0.5 - self.pixel_mean) / self.pixel_std
        logits: torch.Tensor = kind.forward(self, pixel_values=normalised).logits
        return logits

    return type(kind.__name__, (kind,), {"forward": forward, "__doc__": "Images (B, C, S, S) → logits (B, classes)."})


def _patch(family: Family, image_size: int) -> int:
    if image_size >= 112:
        return 16 if family == "vit" else 4
    return max(2, image_size // 8) if family == "vit" else 1


def _narrow(known: Architecture, key: str, value: Any, width: float) -> Any:
    """A width times the factor, as a multiple of what it must divide by (heads, a bottleneck's quarter)."""
    if key in ("depths", "layer_type", "num_hidden_layers", "num_attention_heads"):
        return list(value) if isinstance(value, tuple) else value
    heads = known.shape.get("num_attention_heads", 1)
    multiple = {"hidden_size": 2 * heads, "intermediate_size": 1}.get(key, 4)
    narrowed = [max(multiple, round(each * width / multiple) * multiple) for each in _listed(value)]
    return narrowed if isinstance(value, tuple) else narrowed[0]


def _listed(value: Any) -> list[int]:
    return list(value) if isinstance(value, tuple) else [value]


def _small_stem(network: Any, channels: int, planes: int) -> None:
    """3×3 convolution of stride 1 and no pooling in front, for small images."""
    stem = network.resnet.embedder
    stem.embedder.convolution = nn.Conv2d(channels, planes, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.embedder.convolution.weight, mode="fan_out", nonlinearity="relu")
    stem.pooler = nn.Identity()


def _load(kind: Any, name: str, shape: Mapping[str, Any], source: str | os.PathLike[str]) -> Any:
    """Weights from a folder or the Hub, checked against the shape that was asked for."""
    source, family = os.fspath(source), architecture(name).family
    if family == "resnet" and shape["patch_size"] == 1:
        raise InputError("pretrained ResNets have ImageNet's stem: give patch_size=4, or no pretrained weights")
    if os.path.isdir(source) and not os.path.isfile(os.path.join(source, "config.json")):
        raise ArtifactError(
            f"cannot load {name}: {source} has no config.json, which transformers would take for defaults"
        )
    try:
        config = kind.config_class.from_pretrained(source)
        found = config.to_dict()
        written = kind.config_class.get_config_dict(source)[0].get("model_type")  # `from_pretrained` takes any
        if written != kind.config_class.model_type:
            raise InputError(f"{source} holds a {written}, not a {kind.config_class.model_type}")
        for key in MUST_AGREE[family]:
            if _plain(found.get(key)) != _plain(shape[key]):
                raise InputError(f"{source} is no {name} of these sizes: {key} is {found.get(key)}, not {shape[key]}")
        config.num_labels = shape["num_labels"]
        network, info = kind.from_pretrained(
            source, config=config, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise ArtifactError(f"cannot load {name} from {source!r} as safetensors: {error}") from error
    lost = sorted(key if isinstance(key, str) else key[0] for key in (*info["missing_keys"], *info["mismatched_keys"]))
    lost = [key for key in lost if not key.startswith("classifier.")]
    if lost:
        raise ArtifactError(f"{source} lacks {len(lost)} tensors of {name}, first {lost[0]!r}: give other weights")
    return network.float().train()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without transformers' progress bar and its report on a last layer of another size, which is expected."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
