"""The documentation says what the code does: tables, hooks, flags, links, examples."""

from __future__ import annotations

import argparse
import inspect
import re
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest

from vellumd import errors, fields, hookspecs, sources
from vellumd.cli import main, reference
from vellumd.context import TransportContext
from vellumd.daemon import Daemon
from vellumd.settings import Preset, Settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def read(page: str) -> str:
    """The text of a page below the repository."""
    return (ROOT / page).read_text("utf-8")


@pytest.mark.parametrize(
    "file",
    ["config/vellumd.toml", "docs/configuration.md", "docs/errors.md", "docs/plugins.md"],
)
def test_generated_files_are_current(file: str) -> None:
    """What is generated equals the code; `python -m vellumd.cli.reference` renews it."""
    assert read(file) == reference.generated(ROOT)[ROOT / file]


def test_the_tables_hold_every_code_and_key() -> None:
    """The generator forgets nothing: each error, warning and setting has a row."""
    rows = read("docs/errors.md") + read("docs/configuration.md")
    for code in [*errors.BY_CODE, *errors.WARNINGS]:
        assert f"| `{code}` |" in rows
    for key, _ in fields.keys(Settings):
        if key not in ("presets", "plugins"):
            assert f"| `{key.partition('.')[2]}` |" in rows


NEEDED: dict[str, dict[str, Any]] = {
    "queue": {"url": "http://queue.lan"},
    "webhook": {
        "targets": {"a": {"url": "https://a.example", "secret": f"whsec_{'A' * 32}"}},
    },
}
"""What plugins cannot do without, so that it has no default."""


def uncommented(text: str) -> str:
    """The configuration with the # in front of sections and of keys removed."""
    return re.sub(r"^#(?=\[|[\w.]+ = )", "", text, flags=re.MULTILINE)


def test_the_configuration_is_the_defaults(tmp_path: Path) -> None:
    """With every # removed, config/vellumd.toml loads to exactly the defaults."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config/vellumd.toml").write_text(uncommented(reference.toml()), "utf-8")
    settings = sources.load(cwd=tmp_path, environ={}).settings
    assert settings.model_copy(update={"plugins": {}}) == Settings()
    from vellumd import plugins

    transports = plugins.load(settings.enabled_plugins()).transports
    assert transports.keys() == settings.plugins.keys()
    for name, spec in transports.items():
        needed = NEEDED.get(name, {})
        section = {**settings.plugins[name], **needed}
        found = sources.validate_section(spec.settings_model, section, f"plugins.{name}")
        assert found == spec.settings_model(**needed)


def test_the_configuration_names_every_key() -> None:
    """Each section of a bundled plugin has each of its keys, and no other; http alone runs."""
    from vellumd import plugins

    text = reference.toml()
    assert tomllib.loads(text)["plugins"].keys() == {"http"}
    transports = plugins.load(reference.bundled()).transports
    assert transports.keys() >= {"http", "mqtt", "hotfolder", "queue", "webhook"}
    for name, spec in transports.items():
        part = re.split(r"^#?\[", text.partition(f"[plugins.{name}]")[2], flags=re.MULTILINE)[0]
        named = re.findall(r"^#(?:([\w.]+) = .*| ([\w.]+) = \.\.\.)$", part, re.MULTILINE)
        keys = [key for key, _ in fields.keys(spec.settings_model)]
        assert ["".join(pair) for pair in named] == keys


@pytest.mark.parametrize("name", [n for n in vars(hookspecs) if n.startswith("vellumd_")])
def test_hooks_are_documented(name: str) -> None:
    """docs/plugins.md shows each hook with its signature."""
    hook = getattr(hookspecs, name)
    signature = str(inspect.signature(hook)).replace("'", "")
    assert f"### `{name}{signature}`" in read("docs/plugins.md")


def test_only_what_there_is_is_documented() -> None:
    """No page describes a hook or a command that does not exist."""
    hooks = re.findall(r"^### `(vellumd_\w+)", read("docs/plugins.md"), re.MULTILINE)
    assert sorted(hooks) == sorted(n for n in vars(hookspecs) if n.startswith("vellumd_"))
    commands = re.findall(r"^## vellumd (\w+)$", read("docs/cli.md"), re.MULTILINE)
    assert sorted(commands) == sorted(main.COMMANDS)


def test_what_a_door_gets_is_documented() -> None:
    """docs/plugins.md names each attribute of a TransportContext; its calls are generated."""
    page = read("docs/plugins.md").partition("## What a door gets")[2].partition("\n## ")[0]
    made = inspect.getsource(TransportContext.__init__)
    attributes = re.findall(r"self\.([a-z]\w*)(?:: \w+)? = ", made)
    assert {"settings", "log", "dir", "jobs"} <= set(attributes)
    for name in attributes:
        assert f"`{name}`" in page


def test_what_info_says_is_documented() -> None:
    """The docstring of `TransportContext.info` names each key that the daemon puts in."""
    said = set(re.findall(r"`(\w+)`", TransportContext.info.__doc__ or ""))
    source = inspect.getsource(Daemon.info) + inspect.getsource(Daemon._facts.func)
    assert set(re.findall(r'^            "(\w+)":', source, re.MULTILINE)) <= said


@pytest.mark.parametrize("command", list(main.COMMANDS))
def test_flags_are_documented(command: str) -> None:
    """Each flag of a command stands in its part of docs/cli.md, and no other does."""
    page = read("docs/cli.md").partition(f"## vellumd {command}\n")[2].partition("\n## ")[0]
    parser = main.command_parser(command, main.load_command(command))
    flags = {
        flag
        for action in parser._actions
        for flag in action.option_strings
        if not isinstance(action, argparse._HelpAction) and flag not in ("-h", "--help", "--config")
    }
    assert flags == set(re.findall(r"`(--?[a-z][a-z-]*)`", page))


def test_exit_codes_are_documented() -> None:
    """docs/cli.md lists the exit codes of the code."""
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", read("docs/cli.md"), re.MULTILINE))
    assert rows == {str(code): text for code, text in main.EXIT_CODES.items()}


def test_presets_are_documented() -> None:
    """The shipped presets and the fields of one are those of the code."""
    from vellumd import presets

    page = read("docs/configuration.md")
    for name, preset in presets.SHIPPED.items():
        lora = preset.loras[0].name if preset.loras else "none"
        assert f"| `{name}` | {lora} | {preset.steps} | {preset.true_cfg_scale} |" in page
    for field in Preset.model_fields:
        assert f"`{field}`" in page


def test_the_predecessors_keys_are_documented() -> None:
    """docs/migration.md names each key of the old .env."""
    page = read("docs/migration.md").partition("## Keys of `.env`")[2]
    for key in sources.REPLACED:
        assert f"`{key}`" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links of the documentation name files that exist."""
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_named_tests_exist() -> None:
    """Each row of docs/security.md has its test, and each test it names is there."""
    rows = read("docs/security.md").partition("| What others had")[2].partition("\n\n")[0]
    for row in rows.splitlines()[2:]:
        named = re.findall(r"\[(test_\w+)\]\(\.\./(tests/[\w/]+\.py)\)", row)
        assert named, row
        for name, file in named:
            assert re.search(rf"^(async )?def {name}\(", read(file), re.MULTILINE), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_are_whole(page: Path) -> None:
    """Python examples compile, TOML examples load."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    for language, text in blocks:
        if language == "python":
            compile(textwrap.dedent(text), page.name, "exec")
        elif language == "toml":
            tomllib.loads(text)


LINES = ROOT / "tests" / "distributions" / "lines"


def test_the_lines_door_is_explained_in_full() -> None:
    """The pieces of docs/plugins.md are, in order, all of the door that the tests install."""
    page = read("docs/plugins.md")
    door = page.partition("## A door of its own")[2].partition("\n## ")[0]
    pieces = re.findall(r"^```python\n(.*?)^```", door, re.MULTILINE | re.DOTALL)
    code = (LINES / "vellumd_lines.py").read_text("utf-8")
    assert without_blanks("\n".join(pieces)) == without_blanks(code)
    (project,) = re.findall(r"^```toml\n(.*?)^```", door, re.MULTILINE | re.DOTALL)
    assert project == (LINES / "pyproject.toml").read_text("utf-8")
    test = (LINES / "tests" / "test_contract.py").read_text("utf-8")
    assert f"```python\n{test}```" in page.partition("## Testing a door")[2]


def test_the_lines_door_is_small() -> None:
    """A whole door fits in 80 lines, every line of the module counted."""
    assert len((LINES / "vellumd_lines.py").read_text("utf-8").splitlines()) <= 80


def without_blanks(code: str) -> list[str]:
    """The lines that are not empty."""
    return [line for line in code.splitlines() if line.strip()]


def test_troubleshooting_knows_the_operators_codes() -> None:
    """docs/operations.md says where to look for each error that is not the sender's own."""
    page = read("docs/operations.md").partition("## When something is wrong")[2]
    told = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    senders = {"unauthorized", "forbidden_host", "forbidden_origin", "queue_full"}
    own = {error.code for error in errors.ALL if error.status >= 500}
    assert told == own | senders


def test_logged_lines_are_quoted_rightly() -> None:
    """The lines of the log that docs/operations.md names are those of the code."""
    page = read("docs/operations.md").partition("## Logs")[2].partition("\n## ")[0]
    source = "".join(file.read_text("utf-8") for file in (ROOT / "vellumd").rglob("*.py"))
    lines = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(lines) == 8
    for line in lines:
        words = re.sub(r"^(engine|executor:) (ready|failed|stuck)", "", line).strip(" .:;")
        assert words in source, line
