"""CodecGAN: the recipe of a first stage that looks right, Esser et al. 2021 and Rombach et al. 2022.

pictures ─▶ features (a small network by a pretext task, unless LPIPS weights are given) ─▶ codec, discriminator
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from latentia.recipes.codec_training import CodecTraining
from latentia.recipes.parts import Average, Optim
from latentia.recipes.recipe import Bench, Value, use_average

if TYPE_CHECKING:
    import torch
    from torch import nn

    from latentia.losses.patchgan import PatchDiscriminator
    from latentia.metrics.photo_features import PhotoFeatures
    from latentia.recipes.plan import Work
    from latentia.training.codec_objective import CodecObjective
    from latentia.training.phase import Phase, PhaseResult


class Perceptual(Value):
    """The perceptual distance of the loss."""

    kind: Literal["photo_features", "lpips-vgg", "lpips-alex", "resnet50-logits", "none"] = Field(
        default="photo_features", description="photo_features is trained here; the others need weights"
    )
    weights: tuple[str, ...] = Field(default=(), description="files or Hub ids: LPIPS' trunk and heads, or ResNet-50's")
    weight: NonNegativeFloat = Field(default=1.0, description="weight of the distance beside the reconstruction error")
    pretext: Literal["damage", "instances"] = Field(default="damage", description="what photo_features learns")
    steps: PositiveInt = Field(default=400, description="steps in which photo_features learns")

    @model_validator(mode="after")
    def _has_weights(self) -> Self:
        if self.weights and self.kind in ("photo_features", "none"):
            raise ValueError(f"perceptual.weights are of no use to perceptual.kind={self.kind}: leave them out")
        return self

    @property
    def trained(self) -> bool:
        """Whether its network is trained here."""
        return self.kind == "photo_features" and self.weight > 0


class Adversary(Value):
    """The patch discriminator, and how it joins; see `CodecObjective`."""

    width: PositiveInt = Field(default=64, description="channels of the first convolution")
    layers: PositiveInt = Field(default=3, description="convolutions that halve the resolution: patches of 16, 34, 70")
    norm: Literal["batch", "group", "none"] = Field(default="batch", description="batch as published")
    loss: Literal["hinge", "vanilla", "non_saturating"] = Field(default="hinge", description="adversarial loss")
    weight: NonNegativeFloat = Field(default=0.8, description="weight beside the adaptive one; 0 for no discriminator")
    adaptive: bool = Field(default=True, description="scale by the ratio of gradients at the decoder's last layer")
    start: NonNegativeInt = Field(default=0, description="step from which the discriminator learns (disc_start)")
    warmup: NonNegativeInt = Field(default=0, description="steps in which it learns before it pulls at the codec")
    ramp: NonNegativeInt = Field(default=0, description="steps over which its pull grows to the full")
    r1: NonNegativeFloat = Field(default=0.0, description="weight of the R1 penalty; needs norm group or none")
    lecam: NonNegativeFloat = Field(default=0.0, description="weight of the LeCam penalty")
    optim: Optim = Field(default=Optim(), description="optimizer of the discriminator")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.r1 and self.norm == "batch":
            raise ValueError("discriminator.r1 needs discriminator.norm=group or none: batch norm mixes pictures")
        return self

    def build(self, channels: int) -> PatchDiscriminator:
        """The network for pictures of so many channels."""
        from latentia.losses.patchgan import PatchDiscriminator

        return PatchDiscriminator(channels, self.width, self.layers, self.norm)


class CodecGAN(CodecTraining):
    """Two phases: `features` (when the perceptual network is trained here), then `codec`."""

    loss: Literal["l1", "l2", "huber"] = Field(default="l1", description="reconstruction error")
    reduction: Literal["sum", "mean"] = Field(default="mean", description="over a picture's elements; LDM sums")
    perceptual: Perceptual = Field(default=Perceptual(), description="perceptual distance")
    discriminator: Adversary = Field(default=Adversary(), description="adversarial loss")
    optim: Optim = Field(default=Optim(), description="optimizer of the codec")
    ema: Average = Field(default=Average(decay=0.0), description="average of the codec's weights, which is saved")

    @abstractmethod
    def build_codec(self) -> nn.Module:
        """The codec for the recipe's pictures."""

    def weights_of_loss(self) -> dict[str, float]:
        """Further weights of `CodecObjective`."""
        return {}

    def phases(self, bench: Bench) -> list[tuple[str, Callable[[], Phase]]]:
        """`features` if it is trained here, then `codec`."""
        main = ("codec", lambda: self.codec_phase(bench))
        return [("features", lambda: self.features_phase(bench)), main] if self.perceptual.trained else [main]

    def feature_network(self) -> PhotoFeatures:
        """The perceptual network that is trained here."""
        from latentia.metrics.photo_features import PhotoFeatures

        return PhotoFeatures(in_channels=self.image_channels)

    def features_phase(self, bench: Bench) -> Phase:
        """Train the perceptual network on the pictures, by its pretext task."""
        from latentia.recipes.photo_features import pretext_phase

        network = bench.keep("features", self.feature_network())
        return pretext_phase(network, self.images(), self.perceptual.pretext, self.perceptual.steps)

    def codec_phase(self, bench: Bench) -> Phase:
        """Train the codec, and the discriminator against it."""
        from latentia.training.phase import Phase

        turns = self.objective(bench)
        own = self.optim.build()
        both = {"generator": own, "discriminator": self.discriminator.optim.build()}
        return Phase(
            name="codec",
            objective=turns,
            data=self.images(),
            steps=self.steps,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            optim=own if turns.discriminator is None else both,
            ema=self.ema.build(),
            preview=partial(self.preview, bench),
        )

    def objective(self, bench: Bench) -> CodecObjective:
        """Codec, discriminator and perceptual distance in one."""
        from latentia.training.codec_objective import CodecObjective

        gan = self.discriminator
        codec = bench.keep("codec", self.build_codec())
        judge = bench.keep("discriminator", gan.build(self.image_channels)) if gan.weight else None
        return CodecObjective(
            codec,
            judge,
            self.distance(bench),
            loss=self.loss,
            reduction=self.reduction,
            perceptual_weight=self.perceptual.weight,
            gan=gan.loss,
            gan_weight=gan.weight,
            adaptive=gan.adaptive,
            start=gan.start,
            warmup=gan.warmup,
            ramp=gan.ramp,
            r1_weight=gan.r1,
            lecam_weight=gan.lecam,
            **self.weights_of_loss(),
        )

    def distance(self, bench: Bench) -> nn.Module | None:
        """The perceptual distance, or None."""
        from latentia.losses.perceptual import perceptual_loss

        chosen = self.perceptual
        if chosen.kind == "none" or not chosen.weight:
            return None
        network = bench.module("features") if chosen.trained else None
        return perceptual_loss(chosen.kind, chosen.weights or None, network)

    def check(self) -> None:
        """Perceptual weights that are needed must be given."""
        from latentia.errors import InputError

        kind = self.perceptual.kind
        if kind not in ("photo_features", "none") and self.perceptual.weight and not self.perceptual.weights:
            raise InputError(
                f"perceptual.kind={kind} needs perceptual.weights=FILE,FILE (torchvision's network and the lpips "
                "package's heads, or a Hub id); perceptual.kind=photo_features trains a network here instead"
            )
        if self.perceptual.weights:
            self.distance(Bench())  # weights of another network are refused here, before anything is written

    def preview(self, bench: Bench) -> torch.Tensor:
        """Eight held-out pictures above their reconstructions."""
        import torch

        codec: Any = bench.module("codec")
        x = self.glance(bench)
        return torch.cat([x, codec.from_latents(codec.to_latents(x))])

    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """Save the codec into `out`/pipeline and what taught it beside, then judge it on held-out pictures."""
        from latentia.recipes.codec_gan_judging import tell
        from latentia.recipes.photo_features import FOLDER

        result = results["codec"]
        use_average(result)
        codec: Any = result.modules["codec"]
        codec.save_pretrained(out / "pipeline")
        for name, folder in (("discriminator", "discriminator"), ("features", f"{FOLDER}/loss")):
            if name in bench.parts:
                bench.parts[name].save_pretrained(out / folder)
        tell(self, codec.to("cpu"), out)

    def work(self) -> list[Work]:
        """The perceptual network's training and use, the codec's training, the discriminator's.

        The discriminator trains on both sides and judges once for the codec; the perceptual network sees both, and
        gradients pass through it.
        """
        import torch

        from latentia.recipes.plan import Work

        def images(batch: int) -> tuple[torch.Tensor, ...]:
            return (torch.zeros(batch, self.image_channels, self.image_size, self.image_size),)

        def colour(batch: int) -> tuple[torch.Tensor, ...]:  # what published networks see, of grey pictures too
            return (torch.zeros(batch, 3, self.image_size, self.image_size),)

        seen, micro = self.steps * self.batch_size, self.batch_size // self.accumulate
        found = []
        if self.perceptual.trained:
            from latentia.recipes.photo_features import BATCH

            views = self.perceptual.steps * BATCH * (2 if self.perceptual.pretext == "instances" else 1)
            found.append(Work("features", "features", self.feature_network, images, views, BATCH, BATCH))
        if self.perceptual.kind != "none" and self.perceptual.weight:
            passes = 3 * seen  # real, made, and back through the made
            shown = images if self.perceptual.kind == "photo_features" else colour
            found.append(Work("codec", "perceptual", self._like_perceptual, shown, passes, micro, micro, trained=False))
        if self.discriminator.weight:
            judge = partial(self.discriminator.build, self.image_channels)
            active = max(0, self.steps - self.discriminator.start) * self.batch_size
            found.append(Work("codec", "discriminator", judge, images, 3 * active, self.batch_size, micro))
        found.append(
            Work("codec", "codec", self.build_codec, images, seen, self.batch_size, micro, averaged=self.ema.decay > 0)
        )
        return found

    def _like_perceptual(self) -> nn.Module:
        """A network of the perceptual one's cost, without weights."""
        if self.perceptual.kind == "photo_features":
            return self.feature_network()
        from latentia.losses.lpips import trunk
        from latentia.losses.resnet50 import ResNet50

        kind = self.perceptual.kind
        return ResNet50() if kind == "resnet50-logits" else trunk(kind.removeprefix("lpips-"))
