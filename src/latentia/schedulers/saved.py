"""SavedScheduler: what schedulers of pictures and of tokens share: a config on disk, and copies for each run."""

import copy
import os
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from latentia.core.config import ConfigMixin


class SavedScheduler(ConfigMixin):
    """Base: a recorded config in `scheduler_config.json`, and the parts of Diffusers' contract that say little.

    Class attributes:
        order: network evaluations per step (Heun 2).
        step_options: keyword arguments that `step` takes beyond `generator` and `return_dict`.
    """

    config_name = "scheduler_config.json"
    order: ClassVar[int] = 1
    step_options: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> Any:
        """Build from `scheduler_config.json` in a folder or Hub repository; `overrides` replace recorded arguments.

        A config written by another scheduler of the family is fine. Raises `ArtifactError` when there is none.
        """
        from latentia.core.hub import resolve_folder

        folder = resolve_folder(
            pretrained_model_name_or_path,
            subfolder=subfolder,
            revision=revision,
            local_files_only=local_files_only,
            allow_patterns=[cls.config_name],
            cache_dir=cache_dir,
        )
        return cls.from_config(cls.load_config(folder), return_unused_kwargs=return_unused_kwargs, **overrides)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> Path:
        """Write `scheduler_config.json` into the folder and return the file's path."""
        return self.save_config(save_directory)

    def fresh(self) -> Self:
        """An independent scheduler with the same config and schedule; costs a shallow copy."""
        return copy.copy(self)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise that a run starts from."""
        return 1.0

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The sample as the network expects it at `timestep`."""
        return sample
