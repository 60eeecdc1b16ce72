import pytest
from typer.testing import CliRunner

from latentia.cli.main import app

TINY = (
    "steps=2", "batch_size=8", "unet.channels=8,16", "unet.groups=4", "unet.head_dim=8", "device=cpu",
    "vae.steps=2", "vae.batch_size=8", "vae.channels=8,8,8", "vae.groups=4",
)  # fmt: skip
"""Settings that make `digits-ldm` two steps of tiny networks."""


@pytest.fixture
def cli():
    """`cli("info", path)` runs the command in this process and returns its result."""

    def call(*arguments):
        return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "120", "NO_COLOR": "1"})

    return call


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A finished tiny run of `digits-ldm`, made by the command; read it only."""
    out = tmp_path_factory.mktemp("cli") / "run"
    result = CliRunner().invoke(app, ["train", "digits-ldm", *TINY, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert f"saved {out / 'pipeline'}; try: latentia sample" in result.output
    return out
