import pytest

from latentia.recipes import registry
from latentia.recipes.overrides import override
from latentia.recipes.run import run_recipe

TINY_UNET = ("steps=2", "batch_size=8", "unet.channels=8,16", "unet.groups=4", "unet.head_dim=8", "device=cpu")
TINY_VAE = ("vae.steps=2", "vae.batch_size=8", "vae.channels=8,8,8", "vae.groups=4")


@pytest.fixture(scope="session", autouse=True)
def few_formats():
    """Reports of codecs compare image formats on a handful of pictures."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("latentia.recipes.codec_report.FORMAT_PIXELS", 2**11)
        yield


@pytest.fixture(scope="session")
def tiny_ldm():
    """`digits-ldm` with two steps of tiny networks."""
    return override(registry.recipe("digits-ldm"), [*TINY_UNET, *TINY_VAE, "preview_every=2"])


@pytest.fixture(scope="session")
def tiny_ddpm():
    """`digits-ddpm` with two steps of a tiny network."""
    return override(registry.recipe("digits-ddpm"), TINY_UNET)


@pytest.fixture(scope="session")
def ldm_run(tiny_ldm, tmp_path_factory):
    """The folder of a finished run of `tiny_ldm`; read it only."""
    out = tmp_path_factory.mktemp("runs") / "ldm"
    run_recipe(tiny_ldm, out, progress=False)
    return out


@pytest.fixture(scope="session")
def ddpm_run(tiny_ddpm, tmp_path_factory):
    """The folder of a finished run of `tiny_ddpm`; read it only."""
    out = tmp_path_factory.mktemp("runs") / "ddpm"
    run_recipe(tiny_ddpm, out, progress=False)
    return out
