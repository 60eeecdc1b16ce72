"""The pages tell the truth: their Python runs, their commands parse, their links lead somewhere."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer

from latentia.cli.main import app
from latentia.errors import InputError
from latentia.recipes import registry
from latentia.recipes.overrides import override
from latentia.recipes.samplers import SAMPLERS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted(DOCS.glob("*.md"))]
TAUGHT = (
    "quickstart",
    "schedulers",
    "stable_diffusion",
    "training",
    "files",
    "metrics",
    "parameters",
    "tokens",
    "editing",
)
LESSONS = [DOCS / f"{name}.md" for name in TAUGHT]


def blocks(page: Path, language: str) -> list[str]:
    """Code of every fenced block of a language, behind so many empty lines that tracebacks name the page's own."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.S | re.M)
    return ["\n" * text[: match.start(1)].count("\n") + match[1] for match in found]


def commands(page: Path) -> list[list[str]]:
    """The words of every `latentia` command of a page's console blocks, from `latentia` on."""
    lines = [line.partition("#")[0] for block in blocks(page, "console") for line in block.splitlines()]
    split = [shlex.split(line) for line in lines]
    return [words[words.index("latentia") :] for words in split if "latentia" in words]


def run(page: Path, code: list[str]) -> dict[str, object]:
    """Run blocks in one namespace, as a reader would, from the top; returns it."""
    namespace: dict[str, object] = {"__name__": "page"}
    with torch.random.fork_rng([]):
        for block in code:
            exec(compile(block, str(page), "exec"), namespace)
    return namespace


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def check_command(words: list[str]) -> None:
    """The command exists, with these options, this recipe, these keys and this scheduler."""
    known, two = typer.main.get_command(app).commands, " ".join(words[1:3])
    name, rest = (two, words[3:]) if two in known else (words[1], words[2:])
    known[name].make_context(name, rest)
    if words[1] == "train":
        override(registry.recipe(words[2]), [word for word in words[3:] if "=" in word])
    if "--scheduler" in words:
        assert words[words.index("--scheduler") + 1] in SAMPLERS


COMMANDS = [words for page in PAGES for words in commands(page)]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_are_true(words):
    for name in words:
        if name.endswith((".pth", ".png")):  # options and arguments that want a file which is there
            Path(name).touch()
        elif name.endswith("/"):
            Path(name).mkdir()
    check_command(words)


def test_a_false_command_is_found():
    with pytest.raises(InputError, match="did you mean 'steps'"):
        check_command(["latentia", "train", "digits-ldm", "stpes=3"])
    with pytest.raises(Exception, match="No such option"):
        check_command(["latentia", "info", "runs", "--jsno"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_and_links_exist(page):
    for link in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
        assert link.startswith("http") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", [page for page in LESSONS if page.stem != "schedulers"], ids=lambda page: page.name)
def test_python_runs(page):
    code = blocks(page, "python")
    assert len(code) >= 3
    run(page, code)


def test_schedulers_page_shows_what_it_measures():
    page = DOCS / "schedulers.md"
    measured = run(page, blocks(page, "python"))["measured"]
    text = page.read_text(encoding="utf-8")
    for name, numbers in measured.items():
        assert row(name, numbers) in text, f"write this row:\n{row(name, numbers)}"
    assert [name for name in SAMPLERS if f"`{name}`" not in text] == []


def row(name: str, numbers: list[float]) -> str:
    """A solver's line in the table: three errors and the order."""
    return f"| {name} | " + " | ".join(f"{value:.4f}" for value in numbers[:-1]) + f" | {numbers[-1]:.1f} |"


def test_readme_python_runs():
    """On the folder that the quickstart's first block writes."""
    run(DOCS / "quickstart.md", blocks(DOCS / "quickstart.md", "python")[:1])
    assert len(run(ROOT / "README.md", blocks(ROOT / "README.md", "python"))["images"]) == 16


def test_reference_is_fresh():
    """One line for each public name, from its docstring."""
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert written == script.reference(), "run python docs/make_reference.py"
