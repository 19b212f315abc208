"""The plugin module: cheap to import, strict about its section."""

from __future__ import annotations

import subprocess
import sys

import aiohttp.http_parser
import pydantic
import pytest

from vellumd_http.plugin import HttpSettings, vellumd_transports


def test_importing_the_plugin_brings_no_server_in() -> None:
    """Listing plugins must not load aiohttp or torch."""
    code = "import sys, vellumd_http.plugin as p; list(p.vellumd_transports()); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"aiohttp", "torch", "PIL"} & set(done.stdout.split())


def test_it_offers_one_transport() -> None:
    """Named http, with its settings."""
    (spec,) = vellumd_transports()
    assert (spec.name, spec.settings_model) == ("http", HttpSettings)


@pytest.mark.parametrize(
    "section",
    [
        {"prot": 1}, {"port": 70000}, {"trusted_networks": ["10.0.0.1/8"]}, {"legacy_size": "big"},
        {"allowed_origins": ["null"]}, {"allowed_origins": ["*"]},
        {"allowed_origins": ["https://a.example/b"]}, {"allowed_hosts": ["*"]},
        {"allowed_hosts": ["http://a.example"]}, {"allowed_hosts": ["a.example:80"]},
    ],
)  # fmt: skip
def test_a_wrong_section_is_refused(section: dict[str, object]) -> None:
    """Unknown keys and values out of range do not pass."""
    with pytest.raises(pydantic.ValidationError):
        HttpSettings.model_validate(section)


@pytest.mark.parametrize("network", ["10.0.0.1/8", "my network", "10.0.0.0/33"])
def test_a_wrong_network_has_one_plain_complaint(network: str) -> None:
    """Not one for each kind of network there is, in the words of a library."""
    with pytest.raises(pydantic.ValidationError) as caught:
        HttpSettings.model_validate({"trusted_networks": ["192.168.0.0/16", network]})
    (problem,) = caught.value.errors()
    assert problem["loc"] == ("trusted_networks",)
    assert f"'{network}' is no network: write it as in 192.168.1.0/24" in problem["msg"]


def test_names_and_origins_as_people_write_them() -> None:
    """With a port where there is one, and addresses too."""
    hosts = ["pics.example", "GPU_box", "192.0.2.1", "::1"]
    origins = ["https://pics.example", "http://localhost:3000/", "http://[::1]:80"]
    given = HttpSettings.model_validate({"allowed_hosts": hosts, "allowed_origins": origins})
    assert (list(given.allowed_hosts), list(given.allowed_origins)) == (hosts, origins)


def test_every_setting_says_what_it_is_for() -> None:
    """The configuration file is generated from these."""
    assert all(field.description for field in HttpSettings.model_fields.values())


def test_aiohttp_parses_in_c() -> None:
    """The Python parser is slower and has had holes of its own."""
    parser = aiohttp.http_parser
    assert parser.HttpRequestParser is not parser.HttpRequestParserPy
