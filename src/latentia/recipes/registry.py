"""Recipes by name. A recipe's module is imported when it is asked for; names cost nothing."""

import importlib
import inspect
from collections.abc import Callable

from latentia.errors import unknown_choice
from latentia.recipes.recipe import Recipe

_HOME = {
    "ddpm-cifar10": "ddpm_cifar10:ddpm_cifar10",
    "digits-ddpm": "digits_ddpm:digits_ddpm",
    "digits-demo": "demo:digits_demo",
    "digits-ldm": "digits_ldm:digits_ldm",
    "digits-text": "digits_text:digits_text",
    "edit-inversion": "edit_inversion:edit_inversion",
    "edit-scenes": "edit_scenes:edit_scenes",
    "edit-study": "edit_study:edit_study",
    "flowmo-digits": "flowmo_digits:flowmo_digits",
    "flowmo-hi": "flowmo_paper:flowmo_hi",
    "flowmo-lo": "flowmo_paper:flowmo_lo",
    "flowmo-photos": "flowmo_photos:flowmo_photos",
    "flowmo-small": "flowmo_paper:flowmo_small",
    "gpt-digits": "token_prior_digits:gpt_digits",
    "ldm-celebahq": "ldm_celebahq:ldm_celebahq",
    "ldm-kl-f8": "ldm_first_stages:ldm_kl_f8",
    "ldm-vq-f4": "ldm_first_stages:ldm_vq_f4",
    "ldm4-imagenet": "ldm_imagenet:ldm4_imagenet",
    "ldm8-imagenet": "ldm_imagenet:ldm8_imagenet",
    "maskgit-digits": "token_prior_digits:maskgit_digits",
    "maskgit-imagenet": "token_prior_paper:maskgit_imagenet",
    "pdiff": "pdiff_own:pdiff",
    "pdiff-classifiers-digits": "pdiff_paper_networks:pdiff_classifiers_digits",
    "pdiff-convnext-base": "pdiff_paper_networks:pdiff_convnext_base",
    "pdiff-convnext-tiny": "pdiff_paper_networks:pdiff_convnext_tiny",
    "pdiff-digits": "pdiff_digits:pdiff_digits",
    "pdiff-resnet18": "pdiff_paper_networks:pdiff_resnet18",
    "pdiff-resnet18-cifar100": "pdiff_paper_networks:pdiff_resnet18_cifar100",
    "pdiff-resnet50": "pdiff_paper_networks:pdiff_resnet50",
    "pdiff-seeds": "pdiff_seeds:pdiff_seeds",
    "pdiff-study": "pdiff_study:pdiff_study",
    "pdiff-tasks": "pdiff_tasks:pdiff_tasks",
    "pdiff-vit-base": "pdiff_paper_networks:pdiff_vit_base",
    "pdiff-vit-tiny": "pdiff_paper_networks:pdiff_vit_tiny",
    "sd-controlnet": "sd_controlnet:sd_controlnet",
    "sd-dreambooth": "sd_dreambooth:sd_dreambooth",
    "sd-finetune": "sd_finetune:sd_finetune",
    "sd-inpaint": "sd_inpaint:sd_inpaint",
    "sd-lora": "sd_lora:sd_lora",
    "tokenizers-study": "tokenizers_study:tokenizers_study",
    "vqgan-digits": "vqgan:vqgan_digits",
    "vqgan-imagenet": "vqgan:vqgan_imagenet",
    "vqgan-photos": "vqgan:vqgan_photos",
    "vqgan-transformer-imagenet": "token_prior_paper:vqgan_transformer_imagenet",
    "vqvae-digits": "vqvae:vqvae_digits",
    "vqvae-photos": "vqvae:vqvae_photos",
}


def names() -> tuple[str, ...]:
    """Every recipe's name, sorted."""
    return tuple(_HOME)


def builder(name: str) -> Callable[[], Recipe]:
    """The function that builds the recipe `name`; its docstring states command, cost and expected number.

    Raises `UnknownChoiceError` with the nearest name.
    """
    if name not in _HOME:
        raise unknown_choice("recipe", name, _HOME)
    module, _, function = _HOME[name].partition(":")
    build: Callable[[], Recipe] = getattr(importlib.import_module(f"latentia.recipes.{module}"), function)
    return build


def recipe(name: str) -> Recipe:
    """The recipe `name` as published, before overrides."""
    return builder(name)()


def summaries() -> dict[str, str]:
    """First docstring line of every recipe."""
    return {name: (inspect.getdoc(builder(name)) or "").partition("\n")[0] for name in _HOME}


def stated(build: Callable[[], Recipe]) -> dict[str, str]:
    """What a recipe's docstring states under `Command:`, `Cost:` and `Expect:`, each on one line."""
    facts: dict[str, str] = {}
    label = ""
    for line in (inspect.getdoc(build) or "").splitlines():
        head, colon, rest = line.partition(":")
        if colon and head in ("Command", "Cost", "Expect"):
            label = head
            facts[label] = rest.strip()
        elif label and line.startswith(" "):
            facts[label] += f" {line.strip()}"
        else:
            label = ""
    return facts


def prose(build: Callable[[], Recipe]) -> list[str]:
    """The docstring's paragraphs without what `stated` returns, each on one line."""
    paragraphs = (inspect.getdoc(build) or "").split("\n\n")
    return [" ".join(text.split()) for text in paragraphs if not text.startswith("Command:")]
