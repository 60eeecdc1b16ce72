"""Both libraries on the same folder: what every differential test begins with."""

import functools
import importlib.util
import warnings

import numpy as np
import pytest
import torch

from tiny_sd import tiny_sd

if importlib.util.find_spec("diffusers") is None:
    collect_ignore_glob = ["test_*.py"]

DPM = {"algorithm_type": "dpmsolver++", "solver_order": 2}
SCHEDULERS = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "dpm++ 2m": ("DPMSolverMultistepScheduler", DPM),
    "dpm++ 2m karras": ("DPMSolverMultistepScheduler", {**DPM, "use_karras_sigmas": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
}
"""Name → class and what it says beside the folder's own config."""


@functools.cache
def loaded(library, kind):
    """A pipeline of `latentia` or `diffusers`, read once; no test changes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = library.DiffusionPipeline.from_pretrained(tiny_sd(kind))
    if library.__name__ == "diffusers" and kind != "ldm":
        # Its `clip_skip` looks for the wrapper that transformers 5 took away, and raises AttributeError without.
        vars(pipe.text_encoder)["text_model"] = pipe.text_encoder
    return pipe


def assembled(library, kind, name, scheduler, more):
    """A new pipeline around the loaded parts, with another scheduler or class where asked."""
    source = loaded(library, kind)
    cls = type(source) if name is None else getattr(library, name)
    parts = {key: part for key, part in source.components.items() if part is not None}
    if name is not None and "ControlNet" not in name:
        parts.pop("controlnet", None)
    scheduler, options = (type(source.scheduler).__name__, {}) if scheduler is None else SCHEDULERS[scheduler]
    parts["scheduler"] = getattr(library, scheduler).from_config(source.scheduler.config, **options)
    if kind != "ldm":
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = cls(**parts | more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pair():
    """`pair(kind, name=None, scheduler=None)`: (ours, theirs) with the weights of one tiny folder."""

    import diffusers

    import latentia

    def make(kind="sd1", name=None, scheduler=None, **more):
        return tuple(assembled(library, kind, name, scheduler, more) for library in (latentia, diffusers))

    return make


def as_array(images):
    if isinstance(images, torch.Tensor):
        return images.numpy()
    return images if isinstance(images, np.ndarray) else np.stack([np.asarray(image) for image in images])


@pytest.fixture
def same():
    """`same(pipes, make_arguments)`: both give the same pictures; returns ours.

    The arguments are made anew for each, because a generator is used up. Differences are measured against the larger
    of 1 and the spread of the pictures.
    """

    def check(pipes, arguments, tolerance=5e-5):
        ours, theirs = pipes
        found = as_array(ours(**arguments()).images)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = as_array(theirs(**arguments()).images)
        assert found.shape == wanted.shape
        assert found.dtype == wanted.dtype
        assert np.isfinite(wanted).all()
        if wanted.dtype == np.uint8:
            assert np.abs(found.astype(int) - wanted).max() <= 1
            assert (found != wanted).mean() < 5e-3  # a rounding here and there
        else:
            assert wanted.std() > 1e-2
            assert np.abs(found - wanted).max() / max(1.0, wanted.std()) <= tolerance
        return found

    return check
