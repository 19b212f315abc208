"""Plugins: what cannot be right refuses the start and says whose fault it is."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vellumd import plugins
from vellumd.daemon import Daemon
from vellumd.errors import ConfigError
from vellumd.models import Job, JobEvent, JobStatus, moment
from vellumd.settings import Settings

HEAD = "from vellumd import EngineSpec, TransportSpec, hookimpl\nfrom pydantic import BaseModel\n"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install a plugin: its entry-point name, its code, optionally its distribution."""
    monkeypatch.syspath_prepend(tmp_path)
    modules: list[str] = []

    def make(name: str, code: str, distribution: str = "") -> None:
        distribution = distribution or f"stranger-{name}"
        module = f"{distribution.replace('-', '_')}_{tmp_path.name}".replace("-", "_")
        info = tmp_path / f"{distribution.replace('-', '_')}-2.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 2.0\n"
        )
        (info / "entry_points.txt").write_text(f"[vellumd]\n{name} = {module}\n")
        (tmp_path / f"{module}.py").write_text(HEAD + code)
        importlib.invalidate_caches()
        modules.append(module)

    yield make
    for module in modules:
        sys.modules.pop(module, None)


def bring(spec: str, hook: str = "transports") -> str:
    return f"@hookimpl\ndef vellumd_{hook}():\n    return [{spec}]\n"


def transport(name: str) -> str:
    return bring(f"TransportSpec({name!r}, BaseModel, lambda context: None)")


def test_a_strangers_transport_is_found(install: Callable[..., None]) -> None:
    """An installed and enabled plugin brings its transport; its version is known."""
    install("fax", transport("fax"))
    loaded = plugins.load(["fax"])
    assert list(loaded.transports) == ["fax"]
    (fax,) = (plugin for plugin in loaded.plugins if plugin.name == "fax")
    assert (fax.distribution, fax.version, fax.enabled) == ("stranger-fax", "2.0", True)


def test_disabled_means_never_imported(install: Callable[..., None]) -> None:
    """A plugin without a section is listed, but its code does not run."""
    install("fax", "raise SystemExit('imported')")
    loaded = plugins.load([])
    assert "fax" in [plugin.name for plugin in loaded.plugins] and not loaded.transports


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import not_there", "stranger-fax 2.0 cannot be imported"),
        ("@hookimpl\ndef vellumd_transprots():\n    return []", "'vellumd_transports'"),
        ("def vellumd_transprots():\n    return []", "vellumd_transprots"),
        ("@hookimpl\ndef vellumd_transports(contxt):\n    return []", "contxt"),
        ("@hookimpl\ndef vellumd_transports():\n    raise OSError", "failed in vellumd_transports"),
        ("@hookimpl\ndef vellumd_transports():\n    return ['fax']", "what is no TransportSpec"),
        ("@hookimpl\ndef vellumd_engines():\n    return [EngineSpec('qwen-image-edit', 'a:b')]",
         "vellumd itself"),
        ("raise SystemExit(3)", "stranger-fax 2.0 cannot be imported (SystemExit)"),
        ("class Panic(BaseException): pass\nraise Panic", "cannot be imported (Panic)"),
        ("@hookimpl\ndef vellumd_engines():\n    raise GeneratorExit", "(GeneratorExit)"),
        ("@hookimpl\nasync def vellumd_job_event(job):\n    pass", "an async hook"),
        (bring("TransportSpec('fax', dict, print)"), "settings_model is no pydantic model"),
        (bring("TransportSpec('Fax', BaseModel, print)"), "name is not one of small letters"),
        (bring("TransportSpec('fax', BaseModel, 'print')"), "factory cannot be called"),
        (bring("EngineSpec('fax', 'a:b')"), "what is no TransportSpec"),
        (bring("EngineSpec('fax', 'a.b')", "engines"), "factory is not package.module:name"),
    ],
)  # fmt: skip
def test_a_broken_plugin_refuses_the_start(
    install: Callable[..., None], code: str, says: str
) -> None:
    """The error names the plugin and what is wrong with it."""
    install("fax", code)
    with pytest.raises(ConfigError) as caught:
        plugins.load(["fax"])
    assert says in str(caught.value) and "fax" in str(caught.value)


def test_a_wrong_section_names_the_distribution(install: Callable[..., None]) -> None:
    """Besides the key and the remedy it is told whose section it is."""
    install("fax", "class Fax(BaseModel, extra='forbid'):\n    line: int = 1\n"
            + bring("TransportSpec('fax', Fax, print)"))  # fmt: skip
    settings = Settings.model_validate({"plugins": {"fax": {"lime": "1"}}})
    with pytest.raises(ConfigError) as caught:
        Daemon(settings)
    key, owner = caught.value.message.splitlines()
    assert key.startswith("plugins.fax.lime: there is no such key. The nearest is plugins.fax.line")
    assert owner == "[plugins.fax] belongs to stranger-fax 2.0."


def test_wrong_sections_of_several_plugins_are_told_together(install: Callable[..., None]) -> None:
    """One start finds them all."""
    for name in ("fax", "fox"):
        install(name, "class Wire(BaseModel, extra='forbid'):\n    line: int = 1\n"
                + bring(f"TransportSpec('{name}', Wire, print)"))  # fmt: skip
    settings = Settings.model_validate({"plugins": {"fax": {"lime": 1}, "fox": {"line": "x"}}})
    with pytest.raises(ConfigError) as caught:
        Daemon(settings)
    assert "plugins.fax.lime" in caught.value.message and "plugins.fox.line" in caught.value.message


def test_one_module_twice(install: Callable[..., None], tmp_path: Path) -> None:
    """Two names for one module are told, since pluggy takes a module once."""
    install("fax", transport("fax"))
    (file,) = tmp_path.glob("*.dist-info/entry_points.txt")
    file.write_text(file.read_text() + file.read_text().splitlines()[1].replace("fax =", "fox ="))
    with pytest.raises(ConfigError, match=r"'fox' of stranger-fax 2\.0 is the module of another"):
        plugins.load(["fax", "fox"])


def test_two_plugins_of_one_name(install: Callable[..., None]) -> None:
    """Both distributions are named; which one was meant is not guessed."""
    install("fax", transport("fax"), "stranger-one")
    install("fax", transport("fax"), "stranger-two")
    with pytest.raises(ConfigError, match=r"stranger-one 2\.0 and stranger-two 2\.0"):
        plugins.load(["fax"])


def test_two_transports_of_one_name(install: Callable[..., None]) -> None:
    """Two plugins bringing one transport are both named."""
    install("fax", transport("fax"))
    install("telefax", transport("fax"))
    with pytest.raises(ConfigError, match=r"brings 'fax', which stranger-fax 2.0 brings too"):
        plugins.load(["fax", "telefax"])


def test_a_section_without_a_plugin(install: Callable[..., None]) -> None:
    """A misspelt section names the nearest plugin that is there."""
    install("telefax", transport("telefax"))
    with pytest.raises(ConfigError, match="Did you mean 'telefax'"):
        plugins.load(["telefx"])


def test_an_observer_that_raises_harms_nobody(
    install: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """The next observer is called all the same, and the log names the culprit."""
    install("bad", "@hookimpl\ndef vellumd_job_event(event):\n    raise ValueError\n")
    install("good", "seen = []\n@hookimpl\ndef vellumd_job_event(job, event):\n"
            "    seen.append((job.id, event.type))\n")  # fmt: skip
    loaded = plugins.load(["bad", "good"])
    job = Job(id="j", status=JobStatus.DONE, model="m", source="s", created=moment(0))
    loaded.tell(job, JobEvent(job_id="j", type="done", at=moment(0)))
    (module,) = (m for n, m in sys.modules.items() if n.startswith("stranger_good"))
    assert module.seen == [("j", "done")]
    assert "plugin bad failed" in caplog.text
