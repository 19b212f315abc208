"""Where a target's name may lead: looked up once, and connected to what was found.

Threat: a name that its owner, or who can forge answers of a name server, points at a
service that trusts this machine, such as a cloud's metadata. Accepted: the operator who
writes such an address itself into the configuration means it.
"""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address

METADATA = frozenset(map(ip_address, ("100.100.100.200", "192.0.0.192", "fd00:ec2::254")))
"""Where clouds tell machines their secrets, besides link-local addresses."""
NAT64 = IPv6Network("64:ff9b::/96")


class ForbiddenAddressError(OSError):
    """The name leads only to where no target can be."""


async def lookup(host: str, port: int, *, only_here: bool) -> list[str]:
    """The addresses behind `host` that may be connected to, in the system's order.

    `only_here` keeps those of this machine. Raises `ForbiddenAddressError` where none is
    left, `OSError` for a name that there is not.
    """
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found = list(dict.fromkeys(str(info[4][0]).partition("%")[0] for info in infos))
    allowed = [text for text in found if is_allowed(ip_address(text), only_here=only_here)]
    if not allowed:
        raise ForbiddenAddressError(host)
    return allowed


def is_allowed(address: Address, *, only_here: bool) -> bool:
    """Whether what a name leads to may be connected to."""
    meant = _inside(address)
    if only_here:
        return meant.is_loopback
    return not (
        meant.is_link_local or meant.is_multicast or meant.is_unspecified or meant in METADATA
    )


def _inside(address: Address) -> Address:
    """The IPv4 address that an IPv6 one wraps, if it does."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
