"""AutoPipelineForText2Image, …Image2Image, …Inpainting: the pipeline class for a task, from what a folder names."""

import importlib
import os
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from latentia.core.model import check_options, one_dtype
from latentia.errors import ArtifactError, InputError, check_choice
from latentia.pipelines import folder as layout
from latentia.pipelines.pipeline import DiffusionPipeline

FAMILIES: tuple[Mapping[str, str], ...] = (
    {
        "text2image": "StableDiffusionPipeline",
        "image2image": "StableDiffusionImg2ImgPipeline",
        "inpainting": "StableDiffusionInpaintPipeline",
    },
    {"text2image": "StableDiffusionControlNetPipeline"},
    {"image2image": "StableDiffusionInstructPix2PixPipeline"},
    {"text2image": "LDMTextToImagePipeline"},
)
"""Task → pipeline class, one table for each set of components that serves several tasks."""
WITH_CONTROLNET = {"StableDiffusionPipeline": "StableDiffusionControlNetPipeline"}
"""Class → class for the same task with `controlnet=` given."""


class AutoPipeline:
    """Base of the three; not to be built: use `from_pretrained` or `from_pipe`."""

    task: ClassVar[str]

    def __init__(self) -> None:
        raise InputError(f"call {type(self).__name__}.from_pretrained(folder) or .from_pipe(pipeline)")

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> Any:
        """The pipeline of this task that the components in a folder or Hub repository make; options as of
        `DiffusionPipeline.from_pretrained`. Raises `ArtifactError` for components that cannot do the task."""
        check_options(overrides)
        dtype = one_dtype(dtype, torch_dtype)
        index = layout.fetch_index(name_or_path, variant, revision, local_files_only, cache_dir)
        found = cls._class_for(index.class_name, "controlnet" in overrides)
        return found._build(index, dtype, variant, overrides)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **overrides: Any) -> Any:
        """The pipeline of this task on the components of another one, shared, not copied; `overrides` replace some."""
        found = cls._class_for(type(pipeline).__name__, "controlnet" in overrides)
        known = (*found.roles, *found.value_names)
        for name in overrides:
            check_choice(f"argument of {found.__name__}", name, known)
        have = {**pipeline.plain_values, **pipeline.components, **overrides}
        return found(**{name: part for name, part in have.items() if name in known})

    @classmethod
    def _class_for(cls, name: str, controlled: bool) -> type[DiffusionPipeline]:
        family = next((family for family in FAMILIES if name in family.values()), {})
        if cls.task not in family:
            can = [task for task in family if name] or ["none of these tasks"]
            able = sorted({table[cls.task] for table in FAMILIES if cls.task in table})
            raise ArtifactError(
                f"the components of a {name} can do {', '.join(can)}, not {cls.task}, which takes those of: "
                f"{', '.join(able)}"
            )
        chosen = family[cls.task]
        if controlled:
            if chosen not in WITH_CONTROLNET:
                raise InputError(f"{chosen} takes no controlnet; with one: {', '.join(WITH_CONTROLNET.values())}")
            chosen = WITH_CONTROLNET[chosen]
        found: type[DiffusionPipeline] = getattr(importlib.import_module("latentia"), chosen)
        return found


class AutoPipelineForText2Image(AutoPipeline):
    """Pictures from texts, by whatever the components are."""

    task = "text2image"


class AutoPipelineForImage2Image(AutoPipeline):
    """Pictures from a picture and a text, by whatever the components are."""

    task = "image2image"


class AutoPipelineForInpainting(AutoPipeline):
    """Parts of a picture made anew from a text, by whatever the components are."""

    task = "inpainting"
