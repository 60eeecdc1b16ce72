"""`EMAModel` under the name where users of Diffusers look for it; the training loop is `latentia.training`."""

from latentia.training.ema import EMAModel

__all__ = ["EMAModel"]
