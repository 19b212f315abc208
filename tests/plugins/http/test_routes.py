"""What holds for every route that the router has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import ClientResponse, web

from vellumd import Keyring, TransportContext
from vellumd.context import ResultLinks
from vellumd_http.openapi import OPERATIONS
from vellumd_http.plugin import HttpSettings
from vellumd_http.transport import HttpTransport

from .conftest import Door, OpenDoor

WITHOUT_KEY = {"/", "/static/{file}", "/healthz", "/readyz", "/r/{job}/{n}"}
"""Probes, the page's own files and its field for a key, links with a token."""
NOWHERE = "/nothing/here"


@dataclass(frozen=True)
class Route:
    """Method and path of a route."""

    method: str
    path: str

    def url(self) -> str:
        """A path that it answers."""
        return self.path.format(job="0", n=1, file="page.css", page="http")


@pytest.fixture
def routes(door: Door, tmp_path: Path) -> list[Route]:
    """Every route of the application, one nobody has, and methods that no route takes."""
    context = TransportContext(
        "http", HttpSettings(), tmp_path, door.daemon.jobs, door.daemon.info,
        door.daemon.executor, Keyring(tmp_path / "keys.json"),
        lambda: door.daemon.metrics.text({}), ResultLinks(), lambda name, event, times: None,
        lambda name, ok, text: None, lambda name, url: None,
    )  # fmt: skip
    found: list[Route] = []
    for route in HttpTransport(context).app().router.routes():
        assert isinstance(route.resource, web.Resource)
        found.append(Route(route.method, route.resource.canonical))
    assert len(found) >= len(OPERATIONS)
    return found


def with_strangers(routes: list[Route]) -> list[Route]:
    """The routes, and what no route answers."""
    paths = {route.path for route in routes}
    wrong = [Route(method, path) for path in paths for method in ("OPTIONS", "PUT", "TRACE")]
    return [*routes, *wrong, Route("GET", NOWHERE), Route("POST", NOWHERE)]


@asynccontextmanager
async def ask(door: Door, route: Route, **headers: str) -> AsyncIterator[ClientResponse]:
    async with door.ask(route.method, route.url(), headers=headers) as got:
        yield got


async def code(got: ClientResponse) -> str:
    """The code of an error's answer; to HEAD, its status."""
    return str(got.status) if got.method == "HEAD" else str((await got.json())["code"])


async def test_every_route_is_described_and_nothing_else(door: Door, routes: list[Route]) -> None:
    """The table of operations is the router's."""
    described = {(one.method, one.path) for one in OPERATIONS}
    assert {(r.method.lower(), r.path) for r in routes if r.method != "HEAD"} == described
    document = await door.json("GET", "/openapi.json")
    assert {(m, p) for p, methods in document["paths"].items() for m in methods} == described


async def test_no_route_answers_for_a_strangers_name(door: Door, routes: list[Route]) -> None:
    """Whatever the method, a wrong Host is 403 before anything else."""
    for route in with_strangers(routes):
        for headers in ({}, {"Origin": "null"}, {"Origin": "http://evil.example"}):
            async with ask(door, route, Host="evil.example", **headers) as got:
                assert (got.status, await code(got)) in ((403, "forbidden_host"), (403, "403"))


async def test_nobody_is_told_to_go_on_before_the_guard_has_looked(
    door: Door, routes: list[Route]
) -> None:
    """Whatever a request expects of us, a wrong Host is 403; a right one is told to go on."""
    for route in routes:
        for expected in ("100-continue", "anything"):
            lines = (
                f"{route.method} {route.url()} HTTP/1.1", "Connection: close", "Content-Length: 2",
                f"Expect: {expected}",
            )  # fmt: skip
            assert await status(door, *lines, "Host: evil.example") == 403
    going_on = ("POST /v1/jobs HTTP/1.1", "Content-Length: 2", "Expect: 100-continue")
    assert await status(door, *going_on, "Host: localhost") == 100


async def status(door: Door, *lines: str) -> int:
    """The first status that answers a request's head."""
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write("\r\n".join((*lines, "", "")).encode())
    answered = await reader.readline()
    writer.close()
    return int(answered.split()[1])


async def test_no_change_comes_from_another_site(door: Door, routes: list[Route]) -> None:
    """Every changing route refuses a foreign and a null Origin, and what browsers mark so."""
    changing = [
        one for one in with_strangers(routes) if one.method not in ("GET", "HEAD", "OPTIONS")
    ]
    assert len(changing) >= 10
    for route in changing:
        for headers in (
            {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site", "Origin": door.url},
        ):  # fmt: skip
            async with ask(door, route, **headers) as got:
                assert (got.status, await code(got)) == (403, "forbidden_origin")


async def test_with_a_key_only_the_listed_routes_are_open(
    open_door: OpenDoor, routes: list[Route], tmp_path: Path
) -> None:
    """401 and how to authenticate, for everything but those; what is nowhere is no exception."""
    (tmp_path / "key").write_text("right\n", encoding="ascii")
    core = {"store": {"dir": tmp_path / "other"}}
    async with open_door(core, api_key_file=str(tmp_path / "key")) as door:
        for route in with_strangers(routes):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "vellumd=right"}):
                async with ask(door, route, **headers) as got:
                    assert (got.status == 401) is (route.path not in WITHOUT_KEY)
                    if got.status == 401:
                        assert got.headers["WWW-Authenticate"] == "Bearer"
                        assert await code(got) in ("unauthorized", "401")
        job = await door.done(Authorization="Bearer right")
        assert job["status"] == "done"


async def test_no_answer_can_run_in_a_browser(door: Door, routes: list[Route]) -> None:
    """nosniff everywhere, no CORS header anywhere, pages with a policy, the rest sandboxed."""
    for route in with_strangers(routes):
        for headers in (
            {},
            {"Origin": door.url},
            {
                "Origin": "http://evil.example", "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type",
            },
        ):  # fmt: skip
            async with ask(door, route, **headers) as got:
                assert not [name for name in got.headers if name.startswith("Access-Control")]
                assert got.headers["X-Content-Type-Options"] == "nosniff"
                assert got.headers["Server"] == "vellumd"
                policy = got.headers["Content-Security-Policy"]
                assert policy.startswith("default-src 'none'")
                assert "frame-ancestors 'none'" in policy
                assert "sandbox" in policy or got.content_type == "text/html"
