"""What was written for those who come from the predecessor: its page, and containers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vellumd import daemon, plugins, sources

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["compose.yaml", "Dockerfile"])
def test_what_was_not_run_says_so(name: str) -> None:
    """The container files are marked."""
    assert "UNTESTED" in (ROOT / "config/docker" / name).read_text("ascii")


def test_the_containers_settings_are_settings(tmp_path: Path) -> None:
    """Also those that are commented out; broker and names are those of the other services."""
    text = (ROOT / "config/docker/compose.yaml").read_text("ascii")
    given = dict(re.findall(r"^ +(?:# )?(VELLUMD_\w+): (\S+)$", text, re.MULTILINE))
    settings = sources.load(cwd=tmp_path, environ=given).settings
    found = plugins.load(settings.enabled_plugins())
    assert {"http", "mqtt", "queue"} <= daemon.validate_sections(settings, found).keys()
    services = re.findall(r"^  ([\w-]+):$", text, re.MULTILINE)
    assert settings.plugins["mqtt"]["host"] in services
    assert settings.plugins["http"]["allowed_hosts"] in services


def test_both_languages_tell_the_same() -> None:
    """The Korean page has the English one's sections, commands, keys and links."""
    english = (ROOT / "docs/migration.md").read_text("utf-8")
    korean = (ROOT / "docs/migration.ko.md").read_text("utf-8")

    def code(page: str) -> list[str]:
        return sorted(set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page, flags=re.S))))

    assert [line.count("#") for line in re.findall(r"^#+ ", english, re.MULTILINE)] == [
        line.count("#") for line in re.findall(r"^#+ ", korean, re.MULTILINE)
    ]
    assert code(english) == code(korean)
    assert re.findall(r"```\w*\n(.*?)```", english, re.S) == re.findall(
        r"```\w*\n(.*?)```", korean, re.S
    )
    links = [
        sorted(set(re.findall(r"\]\((?!migration)([^)]+)\)", page))) for page in (english, korean)
    ]
    assert links[0] == links[1]
