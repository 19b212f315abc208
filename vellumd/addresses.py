"""Where a name may lead: checked where it is looked up, and connected to what was checked.

Threat: a name that its owner, or who can forge answers of a name server, points at a
service that trusts this machine, such as a cloud's metadata. Accepted: the operator who
writes such an address itself into the configuration means it.

For doors that ask other servers; the daemon itself loads no aiohttp.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from aiohttp import ThreadedResolver
from aiohttp.abc import ResolveResult

METADATA = (
    ip_network("100.100.100.200"), ip_network("fd00:100::100:200"),  # Alibaba
    ip_network("168.63.129.16"),                                     # Azure
    ip_network("192.0.0.192"), ip_network("fd00:c1::a9fe:a9fe"),     # Oracle
    ip_network("fd00:42::42"),                                       # Scaleway
    ip_network("fd00:a9fe:a9fe::1"),                                 # Linode
    ip_network("fd00:ec2::/32"),                                     # Amazon
    ip_network("fd20:ce::254"),                                      # Google
)  # fmt: skip
"""Where clouds tell machines their secrets, besides link-local addresses."""
END_IN_IPV4 = (
    IPv6Network("::/96"),             # compatible, RFC 4291 §2.5.5.1
    IPv6Network("::ffff:0:0:0/96"),   # translated, RFC 2765 §2.1
    IPv6Network("64:ff9b::/96"),      # NAT64, RFC 6052 §2.1
)  # fmt: skip
ISATAP = (b"\x00\x00\x5e\xfe", b"\x02\x00\x5e\xfe")
"""What stands between any network's prefix and an IPv4 address, RFC 5214 §6.1."""
LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")
"""RFC 8215: each network divides it as it likes."""
NAT64_OCTETS = ((6, 7, 9, 10), (7, 9, 10, 11), (9, 10, 11, 12), (12, 13, 14, 15))
"""Where an IPv4 address is behind a prefix of 48, 56, 64 and 96 bits, RFC 6052 §2.2."""


class ForbiddenAddressError(OSError):
    """The name leads only to where no server can be."""


class Resolver(ThreadedResolver):
    """Our rules in the place where aiohttp asks for addresses, to which it then connects.

    `only_here` keeps the addresses of this machine.
    """

    def __init__(self, *, only_here: bool = False) -> None:
        super().__init__()
        self._only_here = only_here

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of a name; one that is an address itself does not come here.

        Raises `ForbiddenAddressError` where none is left, `OSError` for a name that there
        is not.
        """
        found = await super().resolve(host, port, family)
        allowed = [one for one in found if is_allowed(one["host"], only_here=self._only_here)]
        if not allowed:
            raise ForbiddenAddressError(host)
        return allowed

    async def first(self, host: str, port: int) -> str:
        """The address that a connection would go to: `host` itself if it is one."""
        with suppress(ValueError):
            return str(ip_address(host))
        return (await self.resolve(host, port))[0]["host"]


def is_allowed(text: str, *, only_here: bool = False) -> bool:
    """Whether the address that a name leads to may be connected to."""
    address = ip_address(text.partition("%")[0])
    meant = getattr(address, "ipv4_mapped", None) or address  # the system connects by IPv4 then
    if only_here:
        return bool(meant.is_loopback)
    if meant.is_unspecified or meant.is_multicast:
        return False
    hidden = _hidden(meant) if isinstance(meant, IPv6Address) else ()
    return not any(map(_tells_secrets, (meant, *hidden)))


def _tells_secrets(address: IPv4Address | IPv6Address) -> bool:
    return address.is_link_local or any(address in network for network in METADATA)


def _hidden(address: IPv6Address) -> Iterator[IPv4Address]:
    """The IPv4 addresses that a gateway may make of it, in every way that it could be read."""
    if address.sixtofour:
        yield address.sixtofour
    if address.teredo:  # its server and its client
        yield from address.teredo
    if any(address in network for network in END_IN_IPV4):
        yield IPv4Address(address.packed[12:])
    if address.packed[8:12] in ISATAP:
        yield IPv4Address(address.packed[12:])
    if address in LOCAL_NAT64:
        for octets in NAT64_OCTETS:
            yield IPv4Address(bytes(address.packed[at] for at in octets))
