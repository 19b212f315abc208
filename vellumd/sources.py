"""Where settings come from: TOML < .env < environment < command line.

The sources are merged raw first, which tells the plugins that are wanted; then each
section is validated by its model, the core's here and a plugin's when it is loaded.

Every text remembers which source named it, because relative paths start from there and
errors tell it. pydantic-settings knows no such thing (and ignores unknown variables and
raw sections), so only its .env reader is used.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from vellumd import platform
from vellumd.errors import ConfigError, VellumError
from vellumd.fields import bare, by_name, kind_of, nearest
from vellumd.mistakes import Mistakes
from vellumd.settings import PathText, Preset, Settings

PREFIX = "VELLUMD_"
CONFIG_VARIABLE = "VELLUMD_CONFIG"
CONFIG_FILE = Path("config/vellumd.toml")

REPLACED = {
    "MODEL": "use VELLUMD_ENGINE__MODEL",
    "LORA": "use [engine.loras] in config/vellumd.toml, e.g. lightning-8 = 'FILE'",
    "PORT": "use VELLUMD_PLUGINS__HTTP__PORT",
    "HOST": "use VELLUMD_PLUGINS__HTTP__HOST",
    "QUEUE": "use VELLUMD_PLUGINS__QUEUE__URL",
    "POLL": "remove it: vellumd chooses by itself how often to ask a queue server",
    "API": "the HTTP address is VELLUMD_PLUGINS__HTTP__HOST and VELLUMD_PLUGINS__HTTP__PORT",
}
"""Keys of the predecessor's .env, alone or as MODEL_PATH, and what stands for each now."""

PATH_HINT = "Write paths in 'single quotes' or with forward slashes."

Model = TypeVar("Model", bound=BaseModel)
Raw = dict[str, Any]


class Text(str):
    """A text that knows its source: `origin` for errors, `base` for relative paths."""

    origin: str
    base: Path

    @classmethod
    def of(cls, value: str, origin: str, base: Path) -> Text:
        """`value` as named by `origin`; relative paths in it start from `base`."""
        text = cls(value)
        text.origin, text.base = origin, base
        return text


@dataclass(frozen=True)
class Loaded:
    """Valid settings, warnings to show, and the sources that were read, weakest first."""

    settings: Settings
    warnings: list[str]
    sources: list[str]


def load(
    overrides: Iterable[tuple[str, str]] = (),
    *,
    config: Path | None = None,
    cwd: Path,
    environ: Mapping[str, str],
) -> Loaded:
    """Read, merge and validate every source.

    `overrides` are the command line's pairs such as `("store.dir", "./data")`, `config`
    is the file of `--config`. Raises `ConfigError`, whose text names key and remedy.
    """
    dotenv, warnings = read_dotenv(cwd / ".env")
    file = find_config({**dotenv, **environ}, config, cwd)
    layers = [
        (str(file), read_toml(file) if file else {}),
        (".env", from_variables(dotenv, cwd, ".env: ")),
        ("environment", from_variables(environ, cwd)),
        ("command line", nest(((f"--{k}", k.split("."), v) for k, v in overrides), cwd)),
    ]
    raw: Raw = {}
    for _, layer in layers:
        raw = merge(raw, layer)
    sources = [name for name, layer in layers if layer]
    return Loaded(validate(raw), warnings, sources)


# reading


def find_config(variables: Mapping[str, str], config: Path | None, cwd: Path) -> Path | None:
    """The TOML file to read, or None; raises `ConfigError` if the named one is missing."""
    if config is None and variables.get(CONFIG_VARIABLE):
        config = Path(variables[CONFIG_VARIABLE])
    if config is not None:
        if not (cwd / config).is_file():
            raise ConfigError(
                f"There is no configuration file {str(config)!r}. Correct --config or "
                f"{CONFIG_VARIABLE}, or write one with `vellumd init`."
            )
        return cwd / config
    candidates = (cwd / CONFIG_FILE, platform.config_dir() / CONFIG_FILE.name)
    return next((file for file in candidates if os.path.isfile(file)), None)


def read_utf8(file: Path) -> str:
    """The file's text, with or without byte order mark; raises `ConfigError` if not UTF-8."""
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{file.name} is not UTF-8. Save it as UTF-8.") from None
    except OSError:
        raise ConfigError(f"{file.name} cannot be read. Check its permissions.") from None


def read_toml(file: Path) -> Raw:
    """The file's tables; raises `ConfigError` with line and remedy if it is not TOML."""
    text = read_utf8(file)
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_toml_complaint(file, text, str(error))) from None
    located: Raw = _locate(tables, file.name, file.parent.absolute())
    return located


def _toml_complaint(file: Path, text: str, error: str) -> str:
    found = re.search(r"line (\d+)", error)
    lines = text.splitlines()
    number = int(found[1]) if found else len(lines)
    line = lines[number - 1] if 0 < number <= len(lines) else ""
    remedy = PATH_HINT if "\\" in line else "Correct it; texts need quotes, tables [brackets]."
    return f"{file.name}, line {number} is not TOML: {line.strip()[:80]} - {remedy}"


def read_dotenv(file: Path) -> tuple[dict[str, str], list[str]]:
    """The VELLUMD_ variables of a .env file, and a warning for each predecessor's key."""
    if not os.path.isfile(file):  # also where the folder is somebody else's, as after sudo -u
        return {}, []
    from pydantic_settings import BaseSettings, DotEnvSettingsSource

    read_utf8(file)
    lines = DotEnvSettingsSource(
        BaseSettings, env_file=file, env_file_encoding="utf-8-sig", case_sensitive=True
    ).env_vars
    warnings = [
        f".env: {key} looks like a key of the predecessor and is ignored; {REPLACED[old]}."
        for key in lines
        if (old := key.upper().partition("_")[0]) in REPLACED
    ]
    return {k: v for k, v in lines.items() if k.startswith(PREFIX) and v}, warnings


def from_variables(variables: Mapping[str, str], base: Path, where: str = "") -> Raw:
    """Sections made of variables such as VELLUMD_STORE__DIR; empty ones count as unset."""
    named = (
        (where + name, name.removeprefix(PREFIX).lower().split("__"), value)
        for name, value in sorted(variables.items())
        if name.startswith(PREFIX) and name != CONFIG_VARIABLE and value
    )
    return nest(named, base)


def nest(named: Iterable[tuple[str, list[str], str]], base: Path) -> Raw:
    """Sections made of (origin, path of keys, value); relative paths start from `base`."""
    raw: Raw = {}
    for origin, keys, value in named:
        section = raw
        for key in keys[:-1]:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise ConfigError(f"{origin} is set, and {key} as a whole too. Remove one.")
        section[keys[-1]] = Text.of(value, origin, base)
    return raw


def merge(weak: Raw, strong: Raw) -> Raw:
    """Both sources in one; where both name a key, `strong` wins."""
    merged = dict(weak)
    for key, value in strong.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = merge(below, value)
        merged[key] = value
    return merged


def _locate(value: Any, origin: str, base: Path) -> Any:
    """`value` with every text in it made a `Text`."""
    if isinstance(value, str):
        return Text.of(value, origin, base)
    if isinstance(value, dict):
        return {key: _locate(item, origin, base) for key, item in value.items()}
    if isinstance(value, list):
        return [_locate(item, origin, base) for item in value]
    return value


# validating


class _Switch(BaseModel):
    """What the core reads of a plugin's section."""

    model_config = ConfigDict(extra="allow")
    enabled: bool = True


def validate(raw: Raw) -> Settings:
    """The core's settings; plugin sections stay raw but for `enabled`."""
    with Mistakes() as mistakes:
        for preset, options in _tables(_decoded(raw.get("presets"), "presets")):
            if isinstance(options, dict):  # anything else Settings complains about
                with mistakes.noted():
                    validate_section(Preset, options, f"presets.{preset}")
        if mistakes.found:  # Settings would tell them again, in other words
            raw = {name: section for name, section in raw.items() if name != "presets"}
        with mistakes.noted():
            settings = validate_section(Settings, raw)
            for name, section in settings.plugins.items():
                section["enabled"] = validate_section(_Switch, section, f"plugins.{name}").enabled
    return settings


def validate_section(model: type[Model], raw: Mapping[str, Any], name: str = "") -> Model:
    """`raw` as `model`; texts become the fields' types, paths become absolute.

    `name` is the section's, e.g. `plugins.http`. A plugin's switch `enabled` may stand in
    `raw` without being a field. Raises `ConfigError` that names each wrong key, the
    nearest valid one and what to do.
    """
    wanted = {k: v for k, v in raw.items() if k != "enabled" or k in by_name(model) or not name}
    try:
        return model.model_validate(fit(model, wanted, name))
    except ValidationError as error:
        raise ConfigError("\n".join(_complaints(model, wanted, name, error))) from None
    except ConfigError:
        raise
    except VellumError as error:  # a coded error of an edit option says what is valid
        raise ConfigError(f"{name}: {error.message} {error.remedy}") from None


def fit(kind: Any, value: Any, key: str) -> Any:
    """`value` brought near the type `kind`: JSON and lists decoded, paths absolute.

    Numbers and booleans stay texts, which pydantic reads. What is of another type
    stays as it is, for pydantic to complain about.
    """
    kind, marks = bare(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _fit_model(kind, _decoded(value, key), key)
    if get_origin(kind) in (tuple, list, set, frozenset):
        items = _items(value, key)
        return [fit(get_args(kind)[0], i, key) for i in items] if type(items) is list else items
    if get_origin(kind) is dict:
        item = get_args(kind)[1]
        table = _decoded(value, key)
        return {k: fit(item, v, f"{key}.{k}") for k, v in _tables(table)} or table
    if not isinstance(value, Text) or kind is Any:
        return value
    mark = next((mark for mark in marks if isinstance(mark, PathText)), None)
    if kind is Path or mark:
        return str(value) if mark and value in mark.names else _absolute(value, key)
    return str(value)


def _fit_model(model: type[BaseModel], value: Any, key: str) -> Any:
    if not isinstance(value, dict):
        return value
    fields = by_name(model)
    fitted: Raw = {}
    for name, item in value.items():
        below = f"{key}.{name}".lstrip(".")
        secret = name.removesuffix("_file")
        if name in fields:
            fitted[name] = fit(kind_of(fields[name]), item, below)
        elif secret in fields and bare(kind_of(fields[secret]))[0] is SecretStr:
            fitted[secret] = _secret(item, below)
        else:
            fitted[name] = item
    return fitted


def _secret(value: Any, key: str) -> str:
    """The first line of the file that `KEY_file` names."""
    file = Path(_absolute(value, key) if isinstance(value, Text) else str(value))
    if not file.is_file():
        raise ConfigError(f"{key}: there is no such file. Write the secret into it.")
    return read_utf8(file).partition("\n")[0].strip()


def _absolute(value: Text, key: str) -> str:
    """The path from the folder of its source, `~` being the home folder."""
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
        raise ConfigError(f"{key} ({value.origin}) holds a control character. {PATH_HINT}")
    return str(value.base / Path(str(value)).expanduser())


def _decoded(value: Any, key: str) -> Any:
    """The structure that a JSON text holds; any other value as it is."""
    if not isinstance(value, Text) or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        return _locate(json.loads(value), value.origin, value.base)
    except ValueError:
        remedy = PATH_HINT if "\\" in value else "Correct it."
        raise ConfigError(f"{key} ({value.origin}) is not valid JSON. {remedy}") from None


def _items(value: Any, key: str) -> Any:
    """The list that a text such as `a, b` or `["a", "b"]` stands for."""
    value = _decoded(value, key)
    if not isinstance(value, Text):
        return value
    parts = (part.strip() for part in value.split(","))
    return [Text.of(part, value.origin, value.base) for part in parts if part]


def _tables(value: Any) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, dict) else ()


# complaining


def _complaints(
    model: type[BaseModel], raw: Mapping[str, Any], name: str, error: ValidationError
) -> Iterator[str]:
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        path = [str(part) for part in problem["loc"]]
        key = ".".join([*([name] if name else []), *path])
        leaf, origin = _leaf(raw, path)
        if problem["type"] == "extra_forbidden":
            yield _unknown(model, name, leaf, origin)
        else:
            text = problem["msg"].removeprefix("Value error, ").rstrip(".")
            yield f"{key}{origin}: {text}. Correct it, or remove it for the default."


def _leaf(raw: Mapping[str, Any], path: list[str]) -> tuple[list[str], str]:
    """The first single value at or below `path`, and ` (its origin)` where known."""
    value: Any = raw
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    while isinstance(value, dict) and value:
        part, value = next(iter(value.items()))
        path = [*path, part]
    return path, f" ({value.origin})" if isinstance(value, Text) else ""


def _unknown(model: type[BaseModel], name: str, path: list[str], origin: str) -> str:
    prefix = f"{name}." if name else ""
    text = f"{prefix}{'.'.join(path)}{origin}: there is no such key."
    if not name and path[0].upper() in REPLACED:
        replacement = REPLACED[path[0].upper()]
        return f"{text} {replacement[0].upper()}{replacement[1:]}."
    near = nearest(model, path)
    if not near:
        return f"{text} The section {name} has no keys; remove it."
    variable = PREFIX + (prefix + near).upper().replace(".", "__")
    where = f" ({variable})" if PREFIX in origin else ""
    return f"{text} The nearest is {prefix}{near}{where}; rename or remove it."
