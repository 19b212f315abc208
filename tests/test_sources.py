"""Settings: where they come from, which source wins, and what a mistake is told as."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, SecretStr

from vellumd import sources
from vellumd.errors import ConfigError
from vellumd.settings import Settings


class Door(BaseModel):
    """A plugin's settings with a field of every kind."""

    model_config = ConfigDict(extra="forbid")
    port: int = 1
    names: tuple[str, ...] = ()
    ratio: float = 1.0
    loud: bool = False
    key_file: Path | None = None
    token: SecretStr | None = None


@pytest.fixture(autouse=True)
def no_user_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tester's own configuration stays out of the tests."""
    for variable in ("XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "user"))


def load(
    cwd: Path, *pairs: tuple[str, str], config: Path | str | None = None, **environ: str
) -> sources.Loaded:
    """Load with `pairs` on the command line and `environ` as the environment."""
    file = Path(config) if config else None
    return sources.load(pairs, config=file, cwd=cwd, environ=environ)


def wrong(cwd: Path, *pairs: tuple[str, str], **environ: str) -> str:
    """The complaint that loading ends with."""
    with pytest.raises(ConfigError) as caught:
        load(cwd, *pairs, **environ)
    return caught.value.message


def write(file: Path, text: str, encoding: str = "utf-8") -> Path:
    """Write `text` into `file`, folders included."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding)
    return file


def door(cwd: Path, *pairs: tuple[str, str], **environ: str) -> Door:
    """The plugin section `plugins.door`, validated."""
    raw = load(cwd, *pairs, **environ).settings.plugins["door"]
    return sources.validate_section(Door, raw, "plugins.door")


def test_nothing_gives_the_defaults(tmp_path: Path) -> None:
    """Without any source the settings are the models' defaults, and no source is named."""
    loaded = load(tmp_path)
    assert loaded.settings == Settings()
    assert loaded.sources == []


def test_each_source_wins_over_the_one_before(tmp_path: Path) -> None:
    """TOML < .env < environment < command line, key by key."""
    write(
        tmp_path / "config/vellumd.toml",
        "[limits]\nqueue=1\nmax_side=101\nmin_side=17\nmax_images=2",
    )
    write(
        tmp_path / ".env",
        "VELLUMD_LIMITS__QUEUE=2\nVELLUMD_LIMITS__MAX_SIDE=102\nVELLUMD_LIMITS__MIN_SIDE=18",
    )
    variables = {"VELLUMD_LIMITS__QUEUE": "3", "VELLUMD_LIMITS__MAX_SIDE": "103"}
    loaded = load(tmp_path, ("limits.queue", "4"), **variables)
    limits = loaded.settings.limits
    assert (limits.queue, limits.max_side, limits.min_side, limits.max_images) == (4, 103, 18, 2)
    assert [Path(name).name for name in loaded.sources] == [
        "vellumd.toml",
        ".env",
        "environment",
        "command line",
    ]


def test_toml_is_looked_for_in_order(tmp_path: Path) -> None:
    """--config wins over VELLUMD_CONFIG, that over ./config, that over the user's folder."""
    write(tmp_path / "user/vellumd/vellumd.toml", "[limits]\nqueue=1")
    assert load(tmp_path).settings.limits.queue == 1
    write(tmp_path / "config/vellumd.toml", "[limits]\nqueue=2")
    assert load(tmp_path).settings.limits.queue == 2
    write(tmp_path / "c.toml", "[limits]\nqueue=3")
    assert load(tmp_path, VELLUMD_CONFIG="c.toml").settings.limits.queue == 3
    write(tmp_path / "d.toml", "[limits]\nqueue=4")
    named = load(tmp_path, config=Path("d.toml"), VELLUMD_CONFIG="c.toml")
    assert named.settings.limits.queue == 4


def test_a_folder_that_may_not_be_entered_has_no_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `sudo -u vellumd vellumd keys` in somebody's home: nothing is read there."""
    write(tmp_path / ".env", "VELLUMD_STORE__MAX_GB=7")
    write(tmp_path / "config/vellumd.toml", "[store]\nmax_gb = 8")
    real = os.stat

    def look(path: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(str(tmp_path)):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, **options)

    monkeypatch.setattr(os, "stat", look)
    assert load(tmp_path).settings == Settings()


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    """A missing --config or VELLUMD_CONFIG is told, never passed over."""
    assert "no configuration file 'x.toml'" in wrong(tmp_path, VELLUMD_CONFIG="x.toml")
    with pytest.raises(ConfigError, match=r"y\.toml"):
        load(tmp_path, config=Path("y.toml"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_files_may_begin_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    """TOML and .env are read with and without BOM, as Windows editors write them."""
    write(tmp_path / "config/vellumd.toml", "[presets.x]\nprompt='größer'", encoding)
    write(tmp_path / ".env", "VELLUMD_LIMITS__QUEUE=7\n", encoding)
    settings = load(tmp_path).settings
    assert settings.presets["x"].prompt == "größer"
    assert settings.limits.queue == 7


def test_other_encodings_are_told(tmp_path: Path) -> None:
    """A file in a code page names itself and the remedy."""
    write(tmp_path / ".env", "VELLUMD_LOG__FILE=größe.log\n", "cp1252")
    assert wrong(tmp_path) == ".env is not UTF-8. Save it as UTF-8."


def test_env_file_counts_only_our_lines(tmp_path: Path) -> None:
    """Foreign lines are passed over, the predecessor's are named with what replaces them."""
    predecessor = "".join(f"{key}=x\n" for key in sources.REPLACED)
    write(tmp_path / ".env", f"{predecessor}DATABASE_URL=y\nVELLUMD_LIMITS__QUEUE=8\n")
    loaded = load(tmp_path)
    assert loaded.settings.limits.queue == 8
    assert len(loaded.warnings) == len(sources.REPLACED) == 7
    assert any("MODEL" in w and "VELLUMD_ENGINE__MODEL" in w for w in loaded.warnings)
    assert not any("DATABASE_URL" in w for w in loaded.warnings)


@pytest.mark.parametrize("line", ["MODEL_PATH=C:/m", "export MODEL=m", "model='m'", "MODEL = m"])
def test_lines_like_the_predecessors_are_named(tmp_path: Path, line: str) -> None:
    """However such a line is written, the warning names what replaces it."""
    write(tmp_path / ".env", f"{line}\nMODELLING=1\n", "utf-8-sig")
    (warning,) = load(tmp_path).warnings
    assert "VELLUMD_ENGINE__MODEL" in warning and line.partition("=")[0].split()[-1] in warning


def test_empty_variables_count_as_unset(tmp_path: Path) -> None:
    """A variable that a composer file passes on empty changes nothing."""
    assert load(tmp_path, VELLUMD_ENGINE__MODEL="", VELLUMD_CONFIG="").settings == Settings()


def test_texts_become_the_fields_types(tmp_path: Path) -> None:
    """Numbers, booleans, lists and JSON are read from variables and the command line."""
    found = door(
        tmp_path,
        ("plugins.door.ratio", "0.5"),
        ("plugins.door.loud", "yes"),
        VELLUMD_PLUGINS__DOOR__PORT="8201",
        VELLUMD_PLUGINS__DOOR__NAMES="a, b",
    )
    assert (found.port, found.names, found.ratio, found.loud) == (8201, ("a", "b"), 0.5, True)
    assert door(tmp_path, ("plugins.door.names", '["c,d"]')).names == ("c,d",)
    settings = load(
        tmp_path,
        ("engine.devices", "1"),
        ("presets.x.loras", '[{"name": "fine", "scale": 0.5}]'),
        ("presets.x.output.format", "jpeg"),
        VELLUMD_ENGINE__LORAS='{"lightning-8": "l.safetensors"}',
    ).settings
    assert settings.engine.devices == (1,)
    assert settings.engine.loras == {"lightning-8": str(tmp_path / "l.safetensors")}
    assert settings.presets["x"].loras is not None
    assert settings.presets["x"].loras[0].scale == 0.5
    assert settings.presets["x"].output is not None
    assert settings.presets["x"].output.format == "jpeg"


def test_bad_json_names_the_key(tmp_path: Path) -> None:
    """Broken JSON in a variable is told with the variable's name."""
    text = wrong(tmp_path, VELLUMD_ENGINE__LORAS="{lightning}")
    assert "engine.loras (VELLUMD_ENGINE__LORAS) is not valid JSON" in text


def test_paths_start_from_the_file_that_names_them(tmp_path: Path) -> None:
    """Files resolve against their own folder, variables and options against the cwd."""
    config = write(
        tmp_path / "etc/v.toml", "[store]\ndir='s'\n[engine]\nmodel='m'\n[log]\nfile='l'"
    )
    write(tmp_path / "work/.env", "VELLUMD_ENGINE__MODEL=n\n")
    settings = load(tmp_path / "work", ("log.file", "o"), config=config).settings
    assert settings.store.dir == tmp_path / "etc/s"
    assert settings.engine.model == str(tmp_path / "work/n")
    assert settings.log.file == tmp_path / "work/o"


def test_names_and_home_are_no_relative_paths(tmp_path: Path) -> None:
    """`demo` stays a name, `~` is the home folder, absolute paths stay."""
    assert load(tmp_path, ("engine.model", "demo")).settings.engine.model == "demo"
    assert load(tmp_path, ("store.dir", "~/x")).settings.store.dir == Path.home() / "x"
    assert load(tmp_path, ("store.dir", str(tmp_path))).settings.store.dir == tmp_path


def test_a_plugins_paths_keep_their_folder(tmp_path: Path) -> None:
    """The raw section remembers where each path came from until its model is known."""
    write(tmp_path / "config/vellumd.toml", "[plugins.door]\nkey_file='k'")
    assert door(tmp_path).key_file == tmp_path / "config/k"
    assert door(tmp_path, ("plugins.door.key_file", "j")).key_file == tmp_path / "j"


@pytest.mark.parametrize(
    "line", ['dir = "C:\\new\\table"', 'dir = "C:\\models"', 'dir = "C:\\Users\\me"']
)
def test_backslashes_in_double_quotes_get_the_remedy(tmp_path: Path, line: str) -> None:
    """Windows paths that TOML reads as escapes are told how to be written."""
    write(tmp_path / "config/vellumd.toml", f"[store]\n{line}\n")
    text = wrong(tmp_path)
    assert "'single quotes' or with forward slashes" in text
    assert "vellumd.toml" in text


def test_backslashes_in_json_get_the_remedy(tmp_path: Path) -> None:
    """A Windows path in JSON is a bad escape or a control character: both are told alike."""
    for path in ("C:\\models", "C:\\new"):
        text = wrong(tmp_path, VELLUMD_ENGINE__LORAS=f'{{"a": "{path}"}}')
        assert text.startswith("engine.loras") and "'single quotes'" in text


def test_control_characters_in_variables_get_the_remedy(tmp_path: Path) -> None:
    """The same for a .env in double quotes."""
    write(tmp_path / ".env", 'VELLUMD_STORE__DIR="C:\\new"\n')
    text = wrong(tmp_path)
    assert text.startswith("store.dir (.env: VELLUMD_STORE__DIR) holds a control character")
    assert "'single quotes'" in text


def test_broken_toml_names_file_line_and_remedy(tmp_path: Path) -> None:
    """A syntax error shows where it is."""
    write(tmp_path / "config/vellumd.toml", "[engine]\nmodel = demo\n")
    assert wrong(tmp_path).startswith("vellumd.toml, line 2 is not TOML: model = demo")


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        (("engine.modle", "x"), "engine.model"),
        (("engin.model", "x"), "engine.model"),
        (("plugin.http.port", "1"), "plugins.http.port"),
        (("presets.x.promt", "x"), "presets.x.prompt"),
        (("presets.x.num_stepz", "1"), "presets.x.num_steps"),
        (("presets.x.output.fromat", "png"), "presets.x.output.format"),
    ],
)
def test_unknown_keys_name_the_nearest(
    tmp_path: Path, pair: tuple[str, str], expected: str
) -> None:
    """A misspelt key is an error that holds both spellings."""
    text = wrong(tmp_path, pair)
    assert f"{pair[0]} (--{pair[0]}): there is no such key." in text
    assert f"The nearest is {expected};" in text


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("VELLUMD_ENGINE__MODLE", "engine.model (VELLUMD_ENGINE__MODEL)"),
        ("VELLUMD_STORE_DIR", "store.dir (VELLUMD_STORE__DIR)"),
        ("VELLUMD_PORT", "VELLUMD_PLUGINS__HTTP__PORT"),
    ],
)
def test_unknown_variables_name_the_nearest(tmp_path: Path, variable: str, expected: str) -> None:
    """A misspelt VELLUMD_ variable is an error, in the environment and in .env."""
    assert expected in wrong(tmp_path, **{variable: "x"})
    write(tmp_path / ".env", f"{variable}=x\n")
    assert expected in wrong(tmp_path)


def test_unknown_plugin_keys_wait_for_the_plugins_model(tmp_path: Path) -> None:
    """The core lets a plugin's keys pass; its model then names the nearest."""
    with pytest.raises(ConfigError) as caught:
        door(tmp_path, VELLUMD_PLUGINS__DOOR__PROT="1")
    assert "plugins.door.prot (VELLUMD_PLUGINS__DOOR__PROT)" in caught.value.message
    assert "plugins.door.port (VELLUMD_PLUGINS__DOOR__PORT)" in caught.value.message


def test_every_wrong_key_is_told_at_once(tmp_path: Path) -> None:
    """One start tells all mistakes, each with its key, source and what is expected."""
    text = wrong(tmp_path, ("limits.queue", "many"), VELLUMD_LIMITS__MAX_SIDE="2")
    first, second = sorted(text.splitlines())
    assert first.startswith("limits.max_side (VELLUMD_LIMITS__MAX_SIDE): Input should be greater")
    assert second.startswith("limits.queue (--limits.queue): Input should be a valid integer")


def test_mistakes_of_presets_and_sections_are_told_together(tmp_path: Path) -> None:
    """Each preset's once, beside those of other sections."""
    text = wrong(
        tmp_path,
        ("presets.a.steps", "0"), ("presets.b.size", "huge"), ("presets.c.stepz", "1"),
        ("limits.queue", "many"), ("engine.modle", "x"),
    )  # fmt: skip
    told = [line.partition(" ")[0].rstrip(":") for line in text.splitlines()]
    assert told == ["presets.a.steps", "presets.b", "presets.c.stepz", "engine.modle",
                    "limits.queue"]  # fmt: skip


@pytest.mark.parametrize("url", ["javascript:x", "pics.example", "https://", "https://a b", "?"])
def test_a_public_address_is_one(tmp_path: Path, url: str) -> None:
    """Links are made from it, which browsers of others open."""
    assert "daemon.public_url" in wrong(tmp_path, ("daemon.public_url", url))
    for good in ("https://pics.example", "HTTP://10.0.0.1:8200/vellumd/"):
        assert load(tmp_path, ("daemon.public_url", good)).settings.daemon.public_url == good


def test_presets_are_validated(tmp_path: Path) -> None:
    """A preset's coded error names the preset and what is valid."""
    assert wrong(tmp_path, ("presets.x.size", "huge")).startswith("presets.x: 'huge' is not a size")
    assert wrong(tmp_path, ("presets.x.tier", "ultra")).startswith("presets.x: 'ultra' is not")
    assert load(tmp_path, ("presets.x.cfg", "2")).settings.presets["x"].true_cfg_scale == 2


def test_a_section_and_its_key_clash(tmp_path: Path) -> None:
    """A variable for a whole section beside one for its key is told, not guessed."""
    text = wrong(tmp_path, VELLUMD_ENGINE="x", VELLUMD_ENGINE__MODEL="y")
    assert "VELLUMD_ENGINE__MODEL" in text


@pytest.mark.parametrize(
    "raw", [{"engine": "x"}, {"presets": 5}, {"presets": {"x": 5}}, {"plugins": 1}]
)
def test_a_value_in_place_of_a_section_is_an_error(raw: dict[str, Any]) -> None:
    """A section that is no table names itself."""
    with pytest.raises(ConfigError, match=f"^{next(iter(raw))}"):
        sources.validate(raw)


def test_a_plugin_is_switched_by_enabled(tmp_path: Path) -> None:
    """A section enables a plugin, `enabled = false` in any source takes it out again."""
    write(tmp_path / "config/vellumd.toml", "[plugins.door]\nport=2")
    assert load(tmp_path).settings.enabled_plugins() == ["http", "door"]
    off = load(tmp_path, VELLUMD_PLUGINS__DOOR__ENABLED="false").settings
    assert off.enabled_plugins() == ["http"]
    assert "plugins.door.enabled" in wrong(tmp_path, ("plugins.door.enabled", "perhaps"))


def test_a_secret_can_come_from_a_file(tmp_path: Path) -> None:
    """`token_file` stands for `token`; a missing file is told."""
    write(tmp_path / "config/secret", "s3cret\n")
    write(tmp_path / "config/vellumd.toml", "[plugins.door]\ntoken_file='secret'")
    token = door(tmp_path).token
    assert token is not None
    assert token.get_secret_value() == "s3cret"
    with pytest.raises(ConfigError, match=r"plugins\.door\.token_file: there is no such file"):
        door(tmp_path, ("plugins.door.token_file", "nowhere"))


def test_a_secrets_file_starts_from_what_names_it(tmp_path: Path) -> None:
    """Relative to its source, with BOM or Windows line ends, over a weaker source's secret."""
    write(tmp_path / "config/vellumd.toml", "[plugins.door]\ntoken='weak'")
    (tmp_path / "secret").write_bytes(b"\xef\xbb\xbfs3cret\r\nnote\r\n")
    token = door(tmp_path, VELLUMD_PLUGINS__DOOR__TOKEN_FILE="secret").token
    assert token is not None and token.get_secret_value() == "s3cret"


def test_values_stay_out_of_complaints(tmp_path: Path) -> None:
    """An error names the key, never the value: it could be a secret."""
    assert "hunter2" not in wrong(tmp_path, VELLUMD_LIMITS__QUEUE="hunter2")
