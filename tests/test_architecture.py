"""Who may import whom (docs/architecture.md), checked on the syntax of every module."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vellumd

ROOT = Path(__file__).parents[1]
CORE = ROOT / "vellumd"
PLUGINS = sorted(path for path in (ROOT / "plugins").iterdir() if (path / "plugin.py").exists())

LAYERS = (
    {"errors", "fields", "models", "mistakes"},
    {
        "settings", "sources", "presets", "preset_file", "images", "platform", "protocol",
        "catalogue", "weights", "model_card", "artefact", "memory_plan", "logs", "keys",
        "announcement", "sending", "addresses",
    },
    {"store"},
    {"events", "metrics", "deliveries", "staging", "jobs", "context"},
    {"circuit", "child", "supervisor", "executor"},
    {"hookspecs", "plugins", "transports", "lag", "containment"},
    {"watchdog", "daemon", "foreground", "local", "testing"},
    {"cli"},
)  # fmt: skip
"""Modules of vellumd from the bottom up; each imports its own layer and those before it."""

WORDS = {"queue"}
"""Plugins' names that the core needs as words of its own: `info()["queue"]`."""

APART = {"engine", "demo"}
"""Started or read as data, never imported by the rest."""

ENTRIES = {"__init__", "__main__"}
"""The lazy face and the command: they may name everything."""

TORCH = {
    "accelerate", "diffusers", "peft", "safetensors", "torch", "torchvision", "transformers",
}  # fmt: skip
TREE = {"plugins", "config", "tests", "docs"}
"""Folders of the repository that are no packages of the wheel."""


def modules(folder: Path) -> list[Path]:
    """All modules below a folder."""
    return sorted(folder.rglob("*.py"))


def imports(file: Path, *, typing_only: bool = True) -> Iterator[str]:
    """Dotted names that a module imports anywhere; `from a import b` gives `a.b`.

    Without `typing_only`, what stands under `if TYPE_CHECKING` is left out.
    """
    for node in _walk(ast.parse(file.read_text("utf-8")), typing_only):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _walk(node: ast.AST, typing_only: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        guard = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not guard or typing_only:
            yield child
            yield from _walk(child, typing_only)


def part(file: Path) -> str:
    """The module or package directly below vellumd that a file belongs to."""
    return file.relative_to(CORE).parts[0].removesuffix(".py")


def imported_parts(file: Path, *, typing_only: bool = False) -> set[str]:
    """The parts of vellumd that a module imports."""
    names = (name.split(".") for name in imports(file, typing_only=typing_only))
    return {name[1] for name in names if name[0] == "vellumd" and len(name) > 1}


def name_of(file: Path) -> str:
    """A file's path for test ids."""
    return file.relative_to(ROOT).as_posix()


CORE_FILES = [file for file in modules(CORE) if part(file) not in ENTRIES]
PLUGIN_FILES = [file for folder in PLUGINS for file in modules(folder)]


def test_every_module_has_a_layer() -> None:
    """A new module of the core has to be given its place in `LAYERS`."""
    known = set().union(*LAYERS, APART, ENTRIES)
    assert {part(file) for file in modules(CORE)} <= known


@pytest.mark.parametrize("file", CORE_FILES, ids=name_of)
def test_layers(file: Path) -> None:
    """A module imports its own layer and lower ones; the engine only the first two."""
    home = next((n for n, layer in enumerate(LAYERS) if part(file) in layer), 1)
    allowed = set().union(*LAYERS[: home + 1])
    if part(file) in APART:
        allowed |= APART
    known = set().union(*LAYERS, APART)
    assert imported_parts(file) & known <= allowed


@pytest.mark.parametrize("file", CORE_FILES, ids=name_of)
def test_torch_is_in_the_engine_only(file: Path) -> None:
    """torch and its company are imported below engine/ and by the demo's training alone."""
    training = part(file) == "demo" and file.parent.name == "train"
    if part(file) != "engine" and not training:
        assert not {name.partition(".")[0] for name in imports(file)} & TORCH


@pytest.mark.parametrize("file", CORE_FILES + PLUGIN_FILES, ids=name_of)
def test_folders_of_the_repository_are_no_packages(file: Path) -> None:
    """`import plugins.x` works in the repository and fails from the wheel."""
    assert not {name.partition(".")[0] for name in imports(file)} & TREE


@pytest.mark.parametrize("file", modules(CORE), ids=name_of)
def test_the_core_knows_no_plugin(file: Path) -> None:
    """Plugins are found by entry point; the core imports none, and one line names one."""
    packages = {folder.name for folder in PLUGINS}
    assert not {name.partition(".")[0] for name in imports(file)} & packages
    names = {package.removeprefix("vellumd_") for package in packages} - WORDS | packages
    constants = [
        node.value
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert constants == (["http"] if name_of(file) == "vellumd/settings.py" else [])


@pytest.mark.parametrize("file", PLUGIN_FILES, ids=name_of)
def test_plugins_see_the_face_alone(file: Path) -> None:
    """A plugin imports what `vellumd` exports and no other plugin."""
    own = file.relative_to(ROOT / "plugins").parts[0]
    for name in imports(file):
        package, _, rest = name.partition(".")
        if package == "vellumd":
            assert rest in vellumd.__all__, f"{name} is not exported"
        assert package == own or package not in {folder.name for folder in PLUGINS}


def test_every_export_exists() -> None:
    """The face keeps its promises, and `from vellumd import x` works for each name."""
    for name in vellumd.__all__:
        assert getattr(vellumd, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        vellumd.nonsense  # noqa: B018


def loaded_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has after running `code`."""
    listing = f"{code}\nimport sys\nprint('|', *{{n.partition('.')[0] for n in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", listing], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.rpartition("|")[2].split())


HELP = """
from vellumd.cli import main
try: main.main(["--help"])
except SystemExit: pass
"""
MANAGER = """
from vellumd import plugins
from vellumd.settings import Settings
assert plugins.load(Settings().enabled_plugins()).transports
"""


@pytest.mark.parametrize(
    ("code", "also"),
    [
        ("import vellumd", {"pydantic", "aiohttp", "PIL"}),
        (HELP, {"pydantic", "aiohttp", "PIL"}),
        (MANAGER, {"aiohttp"}),
        ("import vellumd.daemon", set()),
    ],
    ids=["import vellumd", "vellumd --help", "plugin manager", "daemon"],
)
def test_what_stays_unloaded(code: str, also: set[str]) -> None:
    """Neither help nor plugin manager nor daemon load torch; the first two even less."""
    assert not loaded_by(code) & (TORCH | also)
