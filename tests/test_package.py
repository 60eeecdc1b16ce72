"""The package's edges: public names, cheap import, version, and a README whose commands are true."""

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import latentia
from latentia.cli.main import app
from latentia.recipes import registry
from latentia.recipes.overrides import override
from latentia.recipes.samplers import SAMPLERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line.partition("#")[0])
    for block in re.findall(r"```console\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if "latentia" in line
]


def test_public_names_are_sorted_and_listed():
    assert latentia.__all__ == sorted(latentia.__all__)
    assert set(latentia.__all__) <= set(dir(latentia))


@pytest.mark.parametrize("name", latentia.__all__)
def test_every_public_name_is_documented(name):
    found = getattr(latentia, name)
    assert found.__name__ == name
    assert len(inspect.getdoc(found) or "") > 20
    if inspect.isclass(found):
        public = [m for n, m in vars(found).items() if not n.startswith("_") and inspect.isfunction(m)]
        assert not [m.__qualname__ for m in public if not inspect.getdoc(m)]


def test_unknown_name_gives_the_nearest():
    with pytest.raises(AttributeError, match="did you mean 'DDIMScheduler'"):
        _ = latentia.DDIMSheduler


def test_importing_the_package_imports_nothing_heavy():
    heavy = ["torch", "numpy", "PIL", "pydantic", "typer", "rich", "huggingface_hub"]
    code = f"import sys, latentia; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_changelog_tells_of_this_version():
    assert f"## {latentia.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_readme_commands_are_true(words):
    """Every command of the README exists, with these options, this recipe, these keys and this scheduler."""
    words = words[words.index("latentia") + 1 :]
    command = typer.main.get_command(app).commands[words[0]]
    command.make_context(words[0], words[1:])
    if words[0] == "train":
        override(registry.recipe(words[1]), [word for word in words[2:] if "=" in word])
    if "--scheduler" in words:
        assert words[words.index("--scheduler") + 1] in SAMPLERS


def test_readme_pictures_and_links_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
