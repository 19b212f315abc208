"""The wheel holds every package, each plugin's entry point and the files they need."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PLUGINS = sorted(
    path.name for path in (ROOT / "plugins").iterdir() if (path / "plugin.py").exists()
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built by the build backend itself: no network, no isolation."""
    folder = tmp_path_factory.mktemp("wheel")
    code = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True, timeout=120)
    (file,) = folder.glob("*.whl")
    return zipfile.ZipFile(file)


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    """The text of a file of the wheel's dist-info folder."""
    (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_every_plugin_folder_is_listed() -> None:
    """A new folder under plugins/ is in the packages and has an entry point."""
    listed = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(listed) == sorted(["vellumd", *(f"plugins/{name}" for name in PLUGINS)])
    points = PROJECT["project"]["entry-points"]["vellumd"]
    assert points == {name.removeprefix("vellumd_"): f"{name}.plugin" for name in PLUGINS}


def test_top_level_names(wheel: zipfile.ZipFile) -> None:
    """Only our packages are installed: no plugins, config, tests or docs."""
    top = {name.partition("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"vellumd", *PLUGINS}


def test_every_file_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    """SQL, cards, static pages and modules: what git keeps is what is installed."""
    sources = {"": ROOT / "vellumd"} | {name: ROOT / "plugins" / name for name in PLUGINS}
    wanted = {
        file.relative_to(folder.parent).as_posix()
        for folder in sources.values()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert wanted <= set(wheel.namelist())
    kinds = {os.path.splitext(name)[1] for name in wanted}
    assert {".py", ".sql", ".json", ".js", ".css"} <= kinds


def test_entry_points_and_scripts(wheel: zipfile.ZipFile) -> None:
    """The wheel announces the plugins and the command."""
    text = metadata(wheel, "entry_points.txt")
    for name, module in PROJECT["project"]["entry-points"]["vellumd"].items():
        assert f"{name} = {module}" in text
    assert "vellumd = vellumd.cli.main:main" in text


def test_the_base_install_has_no_engine(wheel: zipfile.ZipFile) -> None:
    """torch and its company come with the extra `engine` only."""
    headers = HeaderParser().parsestr(metadata(wheel, "METADATA"))
    base = [name for name in headers.get_all("Requires-Dist", []) if "extra ==" not in name]
    names = {name.partition(">")[0].strip() for name in base}
    assert names == {
        "aiohttp",
        "pillow",
        "pluggy",
        "prometheus-client",
        "pydantic",
        "pydantic-settings",
        "watchdog",
    }


def test_doctor_knows_the_least_versions() -> None:
    """What doctor compares with is what pyproject.toml asks for."""
    from vellumd.cli import checks

    def least(requirements: list[str]) -> dict[str, str]:
        return dict(r.split(">=") for r in requirements if ">=" in r)

    assert least(PROJECT["project"]["dependencies"]) == checks.PACKAGES
    extras = PROJECT["project"]["optional-dependencies"]
    assert least(extras["engine"]) == checks.ENGINE_PACKAGES


def test_the_wheel_works_without_the_repository(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Unpacked elsewhere, the command writes a configuration with the plugins' sections."""
    wheel.extractall(tmp_path / "site")
    code = "import sys; from vellumd.cli.main import main; sys.exit(main(['init', sys.argv[1]]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    written = (tmp_path / "config/vellumd.toml").read_text("utf-8")
    assert written == (ROOT / "config/vellumd.toml").read_text("utf-8")
    script = (tmp_path / "config/windows/run.bat").read_bytes()
    assert script == (ROOT / "config/windows/run.bat").read_bytes()
