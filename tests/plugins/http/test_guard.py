"""Host, Origin and key, on requests made by hand."""

from __future__ import annotations

from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from vellumd import errors
from vellumd_http.access import Access
from vellumd_http.guard import Guard
from vellumd_http.plugin import HttpSettings


def ask(method: str = "GET", path: str = "/v1/jobs", **headers: str) -> web.Request:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return make_mocked_request(method, path, headers={"Host": "localhost:8200", **given})


class Key:
    """Access by one key, or by none at all."""

    def __init__(self, key: str | None) -> None:
        self.key = key
        self.needed = key is not None

    def opens(self, request: web.Request) -> bool:
        """Whether the header holds exactly the key."""
        return request.headers.get("Authorization") == f"Bearer {self.key}"


def verdict(request: web.Request, key: str | None = None, **settings: Any) -> str:
    """The code a request is refused with, or `pass`."""
    try:
        Guard(HttpSettings(**settings), cast("Access", Key(key))).check(request)
    except errors.VellumError as error:
        return error.code
    return "pass"


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST:8200", "localhost.", "127.0.0.1:8200", "[::1]:8200", "[::1]",
        "192.168.1.20", "203.0.113.9:80", "host.docker.internal:8200", "proxy.example",
    ],
)  # fmt: skip
def test_own_names_and_addresses_pass(host: str) -> None:
    """Addresses cannot be rebound; own and listed names are meant."""
    assert verdict(ask(Host=host), allowed_hosts=("Proxy.Example",)) == "pass"


@pytest.mark.parametrize("suffix", ["", ".local", ".lan", ".home.arpa"])
def test_this_machines_names_pass(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host name, as home networks spell it."""
    monkeypatch.setattr("socket.gethostname", lambda: "GPU-Box.corp.example")
    assert verdict(ask(Host=f"gpu-box{suffix}:8200")) == "pass"
    assert verdict(ask(Host="gpu-box.corp.example")) == "pass"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "localhost.evil.example", "evil.example:8200", "127.0.0.1.evil.example", "",
        "127.1", "0x7f.1", "2130706433", "localhost:port", "localhost@evil.example", "[::1",
        "localhost/evil", "evil.lan", "a b",
    ],
)  # fmt: skip
def test_other_names_are_refused(host: str) -> None:
    """A name that anybody can point here is no name of ours."""
    assert verdict(ask(Host=host)) == "forbidden_host"


@pytest.mark.parametrize(
    ("origin", "outcome"),
    [
        ("http://localhost:8200", "pass"),
        ("https://localhost:8200", "pass"),
        ("https://studio.example", "pass"),
        ("null", "forbidden_origin"),
        ("http://localhost", "forbidden_origin"),
        ("http://localhost:8201", "forbidden_origin"),
        ("http://evil.example", "forbidden_origin"),
        ("http://localhost:8200.evil.example", "forbidden_origin"),
        ("file://localhost:8200", "forbidden_origin"),
        ("", "forbidden_origin"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE", "PUT"])
def test_changes_need_our_own_page(method: str, origin: str, outcome: str) -> None:
    """An Origin must be this host or a listed one; `null` never is."""
    request = ask(method, Origin=origin)
    assert verdict(request, allowed_origins=("https://studio.example",)) == outcome


@pytest.mark.parametrize(
    ("site", "origin", "outcome"),
    [
        ("same-origin", "http://localhost:8200", "pass"),
        ("none", "http://localhost:8200", "pass"),
        ("cross-site", "http://localhost:8200", "forbidden_origin"),
        ("same-site", "http://localhost:8200", "forbidden_origin"),
        ("same-origin", "http://evil.example", "forbidden_origin"),
        ("cross-site", "https://studio.example", "pass"),
    ],
)
def test_fetch_metadata_only_tightens(site: str, origin: str, outcome: str) -> None:
    """Sec-Fetch-Site can refuse, it cannot allow what Origin does not."""
    request = ask("POST", Origin=origin, Sec_Fetch_Site=site)
    assert verdict(request, allowed_origins=("https://studio.example",)) == outcome


def test_default_ports_count_as_none() -> None:
    """Browsers leave the default port out of Origin and Host."""
    assert verdict(ask("POST", Host="localhost:80", Origin="http://localhost")) == "pass"
    assert verdict(ask("POST", Host="localhost", Origin="https://localhost:443")) == "pass"


def test_programs_and_reading_need_no_origin() -> None:
    """Programs send no Origin; reading is safe without CORS headers."""
    assert verdict(ask("POST")) == "pass"
    assert verdict(ask("GET", Origin="http://evil.example")) == "pass"


def test_the_key_opens() -> None:
    """The one that `Access` knows, and no other."""
    assert verdict(ask(Authorization="Bearer right"), key="right") == "pass"
    assert verdict(ask(Authorization="Bearer wrong"), key="right") == "unauthorized"
    assert verdict(ask(), key="right") == "unauthorized"


def test_where_no_key_is_needed_none_is_looked_at() -> None:
    """Clients that always send one work everywhere."""
    assert verdict(ask(Authorization="Bearer whatever")) == "pass"


def test_open_paths_still_need_the_right_host() -> None:
    """Probes and links need no key, but no stranger's name either."""
    for path in ("/healthz", "/readyz", "/r/1/1", "/", "/static/page.css"):
        assert verdict(ask(path=path), key="right") == "pass"
        assert verdict(ask(path=path, Host="evil.example"), key="right") == "forbidden_host"
    assert verdict(ask(path="/healthz/../v1/jobs"), key="right") == "unauthorized"


@pytest.mark.parametrize(
    ("remote", "outcome"),
    [("192.168.1.7", "pass"), ("::ffff:192.168.1.7", "pass"), ("192.168.2.7", "unauthorized"),
     ("fd00::1%eth0", "pass"), ("", "unauthorized")],
)  # fmt: skip
def test_trusted_networks_need_no_key(remote: str, outcome: str) -> None:
    """Mapped addresses count as what they are."""
    request = ask().clone(remote=remote)
    networks = ("192.168.1.0/24", "fd00::/8")
    assert verdict(request, key="right", trusted_networks=networks) == outcome
