"""Where a name may lead, for doors that ask other servers."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from vellumd import addresses


@pytest.mark.parametrize(
    ("text", "anywhere", "here"),
    [
        ("93.184.216.34", True, False), ("192.168.1.5", True, False), ("10.0.0.1", True, False),
        ("2001:db8::1", True, False), ("fd12::1", True, False),
        ("127.0.0.1", True, True), ("::1", True, True), ("::ffff:127.0.0.1", True, True),
        ("169.254.169.254", False, False), ("fe80::1", False, False), ("fe80::1%2", False, False),
        ("0.0.0.0", False, False), ("::", False, False), ("::ffff:0.0.0.0", False, False),
        ("224.0.0.1", False, False), ("ff02::1", False, False),
    ],
)  # fmt: skip
def test_where_a_name_may_lead(text: str, anywhere: bool, here: bool) -> None:
    """Into the house and out of it, not to what is link-local or for everybody."""
    assert addresses.is_allowed(text) is anywhere
    assert addresses.is_allowed(text, only_here=True) is here


@pytest.mark.parametrize(
    "text",
    [
        "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:100::100:200", "fd00:42::42",
        "fd00:a9fe:a9fe::1", "fd00:c1::a9fe:a9fe", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254",
    ],
)  # fmt: skip
def test_no_name_leads_to_a_clouds_secrets(text: str) -> None:
    """Alibaba, Azure, Oracle, Scaleway, Linode, Amazon, Google."""
    assert not addresses.is_allowed(text)


SECRETS = "a9fe:a9fe"
"""169.254.169.254."""


@pytest.mark.parametrize(
    ("secret", "harmless"),
    [
        (f"::ffff:{SECRETS}", "::ffff:192.168.1.5"),  # mapped
        (f"::{SECRETS}", "::192.168.1.5"),  # compatible
        ("::a83f:8110", "::a83f:8111"),  # Azure's, and the one after it
        (f"::ffff:0:{SECRETS}", "::ffff:0:c0a8:105"),  # translated
        (f"2002:{SECRETS}::1", "2002:c0a8:105::1"),  # 6to4
        ("2001:0:4136:e378:8000:63bf:5601:5601", "2001:0:4136:e378:8000:63bf:3f57:fefa"),  # Teredo
        (f"2001:0:{SECRETS}:8000:63bf:3f57:fefa", "2001:0:4136:e378::"),  # its server
        (f"64:ff9b::{SECRETS}", "64:ff9b::c0a8:105"),  # NAT64
        (f"64:ff9b:1::{SECRETS}", "64:ff9b:1::c0a8:105"),  # a network's own, /96
        (f"64:ff9b:1:abcd::{SECRETS}", "64:ff9b:1:abcd::c0a8:105"),
        ("64:ff9b:1:a9fe:a9:fe00::", "64:ff9b:1:c0a8:1:500::"),  # /48
        ("64:ff9b:1:aba9:fe:a9fe::", "64:ff9b:1:abc0:a8:105::"),  # /56
        ("64:ff9b:1:abcd:a9:fea9:fe00:0", "64:ff9b:1:abcd:c0:a801:500:0"),  # /64
        (f"2001:db8::5efe:{SECRETS}", "2001:db8::5efe:c0a8:105"),  # ISATAP
        (f"2001:db8::200:5efe:{SECRETS}", "2001:db8::200:5efe:808:808"),
    ],
)
def test_no_wrapping_hides_where_a_name_leads(secret: str, harmless: str) -> None:
    """An IPv6 address that a gateway turns into an IPv4 one counts as that, too."""
    assert not addresses.is_allowed(secret)
    assert addresses.is_allowed(harmless)


@pytest.mark.parametrize("text", ["64:ff9b:1:a:c0:a801:e600::", "64:ff9b:1:a0a:e0:102::"])
def test_a_networks_own_division_refuses_nothing_harmless(text: str) -> None:
    """192.168.1.230 in /64 and 10.224.1.2 in /56 only look multicast if divided otherwise."""
    assert addresses.is_allowed(text)


@pytest.mark.parametrize("text", ["::7f00:1", "2002:7f00:1::1", "64:ff9b::7f00:1"])
def test_what_a_gateway_makes_loopback_is_not_here(text: str) -> None:
    """It is on the way out of this machine; the mapped form alone is not."""
    assert not addresses.is_allowed(text, only_here=True)


async def test_what_is_forbidden_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several addresses the others are tried; a name with none of those is refused."""
    real, answers = socket.getaddrinfo, ["169.254.169.254", "127.0.0.1"]

    def look_up(host: Any, *args: Any, **options: Any) -> Any:
        return [found for text in answers for found in real(text, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    (found,) = await addresses.Resolver().resolve("name.example", 80)
    assert (found["hostname"], found["host"], found["port"]) == ("name.example", "127.0.0.1", 80)
    del answers[1]
    with pytest.raises(addresses.ForbiddenAddressError):
        await addresses.Resolver().resolve("name.example", 80)
