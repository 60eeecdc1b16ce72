"""ModelMixin: a network that remembers its arguments and lives in a folder.

`save_pretrained(folder)` writes `config.json` and `diffusion_pytorch_model.safetensors`;
`from_pretrained` reads it back from a folder or a Hub id.
"""

import torch
from torch import nn

from latentia.core.config import ConfigMixin


class ModelMixin(nn.Module, ConfigMixin):
    """Base of every codec and denoiser: recorded config, folder of safetensors, dtype and device."""

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the first floating parameter."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Device of the first parameter."""
        return next(self.parameters()).device

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Number of scalar parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)
