"""Every setting with unit, reason and default, as TOML, Markdown or command line.

`python -m vellumd.cli.reference` rewrites config/vellumd.toml and the generated tables
in docs/; a test compares them with the code.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vellumd import errors, plugins
from vellumd.fields import keys
from vellumd.settings import DEFAULT_PLUGINS, Settings

HEAD = """\
# vellumd's configuration. Every key stands here with its default, commented out: to
# change one, remove the # in front of it. Keys written as "# key = ..." are unset.
# A plugin whose [section] is commented out, too, runs once that # is removed.
# Relative paths start from this file's folder. Write paths in 'single quotes' or with
# forward slashes. The same keys work as VELLUMD_SECTION__KEY in .env and environment,
# and as --section.key on the command line, each over the one before.
"""

PRESETS = """\
# Named edit options, e.g.
#   [presets.sketch]
#   prompt = 'turn it into a pencil sketch'
#   steps = 8
# A section [presets.balanced] changes the shipped preset of that name.
"""

UNSET = "..."


def sections(
    wanted: Iterable[str] = DEFAULT_PLUGINS,
) -> Iterator[tuple[str, str, list[tuple[str, FieldInfo]]]]:
    """Name, description and keys of each section: the core's, then those of `wanted` plugins."""
    for name, field in Settings.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, BaseModel):
            yield name, _sentence(group), list(keys(group))
    for name, spec in sorted(plugins.load(wanted).transports.items()):
        yield f"plugins.{name}", _sentence(spec.settings_model), list(keys(spec.settings_model))


def bundled() -> list[str]:
    """Plugins of vellumd's own distribution; most run only where their section exists."""
    points = plugins.entry_points()
    return [point.name for point in points if point.dist and point.dist.name == "vellumd"]


def toml() -> str:
    """The text of config/vellumd.toml."""
    parts = [HEAD]
    for name, description, fields in sections(bundled()):
        off = name.startswith("plugins.") and name.removeprefix("plugins.") not in DEFAULT_PLUGINS
        parts.append(f"\n{'#' if off else ''}[{name}]  # {description}\n")
        for key, field in fields:
            parts.append(_comment(str(field.description)))
            default = _default(field)
            parts.append(f"# {key} = ...\n" if default == UNSET else f"#{key} = {default}\n")
        if name == "engine":
            parts.append(f"\n{PRESETS}")
    return "".join(parts)


def settings_tables() -> str:
    """The settings as Markdown, one table a section."""
    parts = []
    for name, description, fields in sections(bundled()):
        rows = (f"| `{key}` | `{_default(f)}` | {_cell(f.description)} |" for key, f in fields)
        parts.append(
            f"### `[{name}]`\n\n{description}\n\n| Key | Default | Meaning |\n|---|---|---|"
        )
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def error_tables() -> str:
    """Errors and warnings as Markdown."""
    rows = [
        f"| `{e.code}` | {e.status} | {'yes' if e.retryable else 'no'} "
        f"| {_cell(_sentence(e))} | {_cell(e.remedy)} |"
        for e in errors.ALL
    ]
    warnings = [f"| `{code}` | {_cell(text)} |" for code, text in errors.WARNINGS.items()]
    return "\n".join(
        [
            "| Code | HTTP | Retry helps | What it means | What to do |\n|---|---|---|---|---|",
            *rows,
            "\n## Warnings\n\n| Code | Meaning |\n|---|---|",
            *warnings,
        ]
    )


def context_tables() -> str:
    """What a transport can call, as Markdown: one table for each object that it gets."""
    from vellumd.context import Control, TransportContext, TransportJobs, TransportPresets
    from vellumd.models import Delivery

    faces = {
        "context": TransportContext,
        "context.jobs": TransportJobs,
        "context.presets": TransportPresets,
        "context.control": Control,
        "delivery": Delivery,
    }
    parts = []
    for name, face in faces.items():
        calls = (item for item in vars(face).items() if not item[0].startswith("_"))
        rows = (f"| `{_call(*item)}` | {_cell(_sentence(item[1]))} |" for item in calls)
        parts.append("\n".join([f"| `{name}.` | Meaning |\n|---|---|", *rows]))
    return "\n\n".join(parts)


def _call(name: str, method: Callable[..., Any]) -> str:
    """A method as its caller writes it."""
    signature = inspect.signature(method)
    wanted = [p for p in signature.parameters.values() if p.name != "self"]
    words = ("async " if inspect.iscoroutinefunction(method) else "") + name
    bare = re.sub(r"(: |-> )'([^']+)'", r"\1\2", str(signature.replace(parameters=wanted)))
    return _cell(words + bare)


def command_line() -> str:
    """The settings as options of the command line."""
    lines = []
    for name, _, fields in sections():
        for key, field in fields:
            lines.append(f"  --{name}.{key} {_default(field)}")
            lines.append(textwrap.indent(textwrap.fill(str(field.description), 84), " " * 8))
    return "\n".join(lines)


def replace_block(text: str, name: str, block: str) -> str:
    """`text` with the generated block `name` in it renewed."""
    begin, end = f"<!-- generated: {name} -->\n", f"<!-- end: {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{block.strip()}\n\n{end}", text)


def generated(root: Path) -> dict[Path, str]:
    """Every generated file below the repository `root`, and what it must hold."""
    blocks = {
        "docs/configuration.md": ("settings", settings_tables()),
        "docs/errors.md": ("errors", error_tables()),
        "docs/plugins.md": ("context", context_tables()),
    }
    files = {root / "config/vellumd.toml": toml()}
    for file, (name, block) in blocks.items():
        files[root / file] = replace_block((root / file).read_text("utf-8"), name, block)
    return files


def _default(field: FieldInfo) -> str:
    """The default as TOML; `...` where there is none, or where the machine decides."""
    if field.default_factory is not None and field.default_factory is not dict:
        return UNSET
    value = field.get_default(call_default_factory=True, validated_data={})
    return UNSET if value is None else _toml(value)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False)


def _sentence(thing: object) -> str:
    """The first line of the docstring."""
    return (thing.__doc__ or "").strip().partition("\n")[0]


def _comment(text: str) -> str:
    return textwrap.fill(text, 88, initial_indent="# ", subsequent_indent="# ") + "\n"


def _cell(text: str | None) -> str:
    return " ".join((text or "").replace("|", "\\|").split())


def main() -> None:
    """Rewrite the generated files of the repository in the working directory."""
    for file, text in generated(Path.cwd()).items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8", newline="\n")


if __name__ == "__main__":
    main()
