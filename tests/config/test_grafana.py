"""config/grafana/vellumd.json: what it asks for is what the daemon tells."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.test_daemon import finish, submit
from vellumd.daemon import Daemon

BOARD = json.loads(
    (Path(__file__).parents[2] / "config" / "grafana" / "vellumd.json").read_text("utf-8")
)
FROM_PROMETHEUS = {"instance", "le"}
"""Labels that the one who scrapes adds, or that belong to a histogram."""
NAME = r"\b(?:vellumd|process)_\w+"


def queries() -> Iterator[tuple[str, str]]:
    """Title and query of each panel and variable."""
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in BOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


async def test_every_figure_and_label_exists(
    run_daemon: Callable[..., AbstractAsyncContextManager[Daemon]], picture: Callable[..., bytes]
) -> None:
    """Names, label names in selectors and groupings, and those that legends show."""
    async with run_daemon(http={}) as daemon:
        await finish(daemon, await submit(daemon, picture(), steps=3))
        daemon.metrics.count("test", "asked", 1)  # as a door does
        text = (await daemon.metrics.text(daemon.info())).decode()
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    assert len(list(queries())) > 30
    for title, query in queries():
        names = re.findall(NAME, query)
        assert names and set(names) <= labels.keys(), (title, query)
        known = set.intersection(*(labels[name] for name in names)) | FROM_PROMETHEUS
        grouped = [one for by in re.findall(r"by \(([^)]*)\)", query) for one in by.split(", ")]
        chosen = re.findall(r"(\w+)=~?\"", query)
        assert set(grouped) | set(chosen) <= known, (title, query)
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            (name, *_) = re.findall(NAME, target["expr"])
            assert shown <= labels[name], panel["title"]


def test_all_that_the_daemon_tells_of_itself_is_shown() -> None:
    """Each figure of docs/operations.md is in some panel, or only says what runs here."""
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")
    ours = set(re.findall(r"^\| `(vellumd_\w+)` \|", page, re.MULTILINE))
    asked = {name for _, query in queries() for name in re.findall(NAME, query)}
    assert ours == {re.sub(r"_(bucket|sum|count)$", "", n) for n in asked if "vellumd_" in n}


def test_it_can_be_imported_anywhere() -> None:
    """The data source is asked for, none is wired in; every panel uses it; ids are its own."""
    assert [(one["type"], one["pluginId"]) for one in BOARD["__inputs"]] == [
        ("datasource", "prometheus")
    ]
    assert BOARD["id"] is None and BOARD["uid"] is None
    chosen = [v for v in BOARD["templating"]["list"] if v["type"] == "datasource"]
    assert [v["current"]["value"] for v in chosen] == [f"${{{BOARD['__inputs'][0]['name']}}}"]

    def sources(part: Any) -> Iterator[Any]:
        if isinstance(part, dict):
            if "datasource" in part:
                yield part["datasource"]
            for inner in part.values():
                yield from sources(inner)
        elif isinstance(part, list):
            for inner in part:
                yield from sources(inner)

    assert {json.dumps(source, sort_keys=True) for source in sources(BOARD)} == {
        '{"type": "prometheus", "uid": "${datasource}"}'
    }
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_panels_do_not_overlap() -> None:
    """Each has its own place on a grid of 24 columns."""
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
