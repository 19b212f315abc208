"""Pages, probes and links."""

from __future__ import annotations

import asyncio
import re
import socket
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from .conftest import EDIT, Door, OpenDoor


async def test_a_trusted_network_needs_no_key(open_door: OpenDoor, tmp_path: Path) -> None:
    """Where the operator said so."""
    (tmp_path / "key").write_text("right", encoding="ascii")
    networks = ["127.0.0.0/8", "::1/128"]
    async with open_door(api_key_file=str(tmp_path / "key"), trusted_networks=networks) as door:
        assert (await door.done())["status"] == "done"


async def test_an_open_address_makes_a_key(open_door: OpenDoor, tmp_path: Path) -> None:
    """Not on loopback alone, so without it nobody gets in."""
    async with open_door(host="0.0.0.0") as door:
        assert (await door.json("GET", "/v1/jobs", 401))["code"] == "unauthorized"
        key = (tmp_path / "data/plugins/http/api_key").read_text(encoding="ascii").strip()
        headers = {"Authorization": f"Bearer {key}"}
        assert (await door.json("GET", "/v1/jobs", headers=headers))["jobs"] == []


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


async def test_the_default_address_is_both_loopbacks(door: Door) -> None:
    """127.0.0.1, and ::1 on the same port where the machine has IPv6; no other."""
    expected = [f"http://127.0.0.1:{door.port}"]
    if has_ipv6():
        expected.append(f"http://[::1]:{door.port}")
    assert door.daemon.urls == expected
    for url in expected:
        async with door.client.get(f"{url}/healthz") as got:
            assert got.status == 200


async def test_probes(open_door: OpenDoor) -> None:
    """Alive from the start; ready once the engine has loaded; not when it cannot."""
    async with open_door(engine={"load_s": 1.5}) as door:
        assert await door.json("GET", "/healthz") == {"status": "alive"}
        waiting = await door.json("GET", "/readyz", 503)
        assert waiting["status"] == "not ready"
        await door.done()
        assert (await door.json("GET", "/readyz"))["status"] == "ready"


async def test_an_engine_that_warms_up_is_ready(open_door: OpenDoor) -> None:
    """It edits, so it is ready; that its first edit takes longer is told beside it."""
    async with open_door(engine={"warm_up_s": 60}) as door:
        async with asyncio.timeout(30):
            while not (await door.json("GET", "/v1/capabilities"))["engine"]["warming"]:
                await asyncio.sleep(0.02)
        told = await door.json("GET", "/readyz")
        assert (told["status"], told["state"], told["warming"]) == ("ready", "ready", True)
        first, second = await door.done(), await door.done()
        assert [warning["code"] for warning in first["warnings"]] == ["demo_model", "engine_cold"]
        assert [warning["code"] for warning in second["warnings"]] == ["demo_model"]
        figures = await (await door.client.get(f"{door.url}/metrics")).text()
        assert "vellumd_engine_warming 1.0" in figures
        assert "vellumd_engine_warm_up_seconds 0.0" in figures


async def test_an_engine_that_cannot_load_is_told(open_door: OpenDoor) -> None:
    """/readyz gives the reason; /health says it is not loaded; intake stays open."""
    async with open_door(engine={"load_error": "model_missing"}) as door:
        job = await door.json("POST", "/v1/jobs", 202, json=EDIT)
        assert job["status"] == "queued"
        async with asyncio.timeout(30):
            while (told := await door.json("GET", "/readyz", 503))["state"] != "failed":
                await asyncio.sleep(0.02)
        assert told["reason"]
        health = await door.json("GET", "/health")
        assert health["model_loaded"] is False
        assert health["status"] != "ok"


class Loaded(HTMLParser):
    """What a page loads or runs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.inline = 0
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.inline += sum(name.startswith("on") or name == "style" for name in given)
        self._script = tag in ("script", "style")
        if tag in ("script", "link", "img"):
            self.urls.append(given.get("src") or given.get("href") or "")

    def handle_data(self, data: str) -> None:
        self.inline += self._script and bool(data.strip())

    def handle_endtag(self, tag: str) -> None:
        self._script = False


@pytest.mark.parametrize("path", ["/", "/docs", "/docs/http"])
async def test_pages_load_only_from_here(door: Door, path: str) -> None:
    """Every file is ours and there; nothing inline; the policy allows nothing else."""
    async with door.ask("GET", path) as got:
        assert got.content_type == "text/html"
        policy = got.headers["Content-Security-Policy"]
        # Under no-referrer a browser sends our own form with `Origin: null`.
        assert got.headers["Referrer-Policy"] == "same-origin"
        page = Loaded(await got.text())
    assert "default-src 'none'" in policy
    assert "script-src 'unsafe-inline'" not in policy
    assert page.inline == 0
    assert page.urls
    for url in page.urls:
        assert re.match(r"/[^/]", url)
        async with door.ask("GET", url) as got:
            assert got.status == 200
            assert got.content_type in ("text/css", "text/javascript", "image/svg+xml")


async def test_the_page_says_what_runs(door: Door) -> None:
    """The model's name, its note, and the presets in the form."""
    async with door.ask("GET", "/") as got:
        text = await got.text()
    assert f"<strong>{door.daemon.card.name}</strong>" in text
    assert "<option>balanced</option>" in text
    assert 'action="/generate"' in text


@pytest.mark.parametrize("name", ["..%2fplugin.py", "swagger%2fLICENSE", "index.html", "%00"])
async def test_only_the_pages_files_are_served(door: Door, name: str) -> None:
    """There is no folder behind /static."""
    assert (await door.json("GET", f"/static/{name}", 404))["code"] == "not_found"


async def test_links_open_one_result_without_a_key(open_door: OpenDoor, tmp_path: Path) -> None:
    """With public_url every result has one; only the exact token opens it, also after a restart."""
    (tmp_path / "key").write_text("right", encoding="ascii")
    settings: dict[str, Any] = {
        "core": {"daemon": {"public_url": "https://pics.example/"}},
        "api_key_file": str(tmp_path / "key"),
    }
    async with open_door(**settings) as door:
        job = await door.done(Authorization="Bearer right")
        url = job["results"][0]["url"]
        assert url.startswith(f"https://pics.example/r/{job['id']}/1?t=")
        path = url.removeprefix("https://pics.example")
        async with door.ask("GET", path) as got:
            assert (got.status, got.content_type) == (200, "image/png")
            assert got.headers["Content-Disposition"].startswith("inline")
            assert "sandbox" in got.headers["Content-Security-Policy"]
        for wrong in (
            path[:-1],
            path[:-1] + "x",
            path.partition("?")[0],
            path.replace("/1?", "/2?"),
        ):
            assert (await door.json("GET", wrong, 404))["code"] == "not_found"
    async with open_door(**settings) as door, door.ask("GET", path) as got:
        assert got.status == 200
    async with open_door() as door:
        await door.json("GET", path, 404)


async def test_wrong_methods_and_paths_have_a_code(door: Door) -> None:
    """405 names what is allowed; unknown paths are 404; nothing names the software below."""
    async with door.ask("PUT", "/v1/jobs") as got:
        assert (got.status, (await got.json())["code"]) == (405, "bad_request")
        assert got.headers["Server"] == "vellumd"
        assert set(got.headers["Allow"].replace(" ", "").split(",")) >= {"GET", "POST"}
    for path in ("/nothing", "/v1", "/v1/jobs/", "/generate/x"):
        assert (await door.json("GET", path, 404))["code"] == "not_found"
    assert (await door.json("GET", "/generate", 405)).keys() == {"detail", "code"}


async def test_a_taken_port_is_told_and_not_survived(open_door: OpenDoor) -> None:
    """The start is refused with a sentence that names the port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BaseExceptionGroup) as caught:
            async with open_door(port=port):
                pass
    text = repr(caught.value.exceptions)
    assert "ConfigError" in text
    assert str(port) in text


@pytest.mark.parametrize("host", ["999.1.1.1", "192.0.2.1"])
async def test_a_host_of_no_use_is_told_and_not_survived(open_door: OpenDoor, host: str) -> None:
    """What is no address, or another machine's, is not tried again for ever."""
    with pytest.raises(BaseExceptionGroup) as caught:
        async with open_door(host=host):
            pass
    text = repr(caught.value.exceptions)
    assert "ConfigError" in text
    assert f"plugins.http.host: {host}" in text


async def test_metrics_are_read_as_prometheus_reads_them(door: Door) -> None:
    """/metrics has the format's type, and a job that was done over HTTP is counted in it."""
    await door.done()
    async with door.ask("GET", "/metrics") as got:
        assert got.status == 200
        assert got.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        families = {f.name: f for f in text_string_to_metric_families(await got.text())}
    done = [s.value for s in families["vellumd_jobs_ended"].samples if s.labels["status"] == "done"]
    assert done == [1]
    (up,) = families["vellumd_transport_up"].samples
    assert (up.labels, up.value) == ({"transport": "http"}, 1)
