"""One target over HTTP: signed posts, bounded answers, no redirects, one kind of failure."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from vellumd import __version__, addresses, sending
from vellumd_webhook import wire

if TYPE_CHECKING:
    from vellumd_webhook.plugin import TargetSettings

TIMEOUT_S = 15.0
"""Seconds from the look-up of the name to the end of the answer."""
ANSWER_MAX = 4096
"""Bytes of an answer that are read: nothing in it matters, but a read one can be followed by
another message on the same connection."""


class FailedError(Exception):
    """The target did not take it; the text continues "the target ..."."""

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.retry_after = retry_after


class GoneError(FailedError):
    """The target answered 410: it wants nothing any more."""


class Client:
    """Posts to one target; made by `open_client`."""

    def __init__(
        self, session: aiohttp.ClientSession, target: TargetSettings, timeout_s: float
    ) -> None:
        self._session = session
        self._target = target
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def post(self, message: wire.Message) -> None:
        """Send; returns when the target has taken it, raises `FailedError` otherwise."""
        secret = self._target.secret.get_secret_value()
        try:
            async with self._session.post(
                URL(self._target.url, encoded=True),
                data=message.body,
                headers=wire.headers(message, secret, int(time.time())),
                allow_redirects=False,
                timeout=self._timeout,
            ) as answer:
                check(answer)
                with suppress(TimeoutError, aiohttp.ClientError, OSError):
                    await answer.content.read(ANSWER_MAX)  # the connection is used again then
        except aiohttp.ClientConnectorDNSError as error:
            forbidden = isinstance(error.os_error, addresses.ForbiddenAddressError)
            what = "has a name that leads where no target may be" if forbidden else "is not known"
            raise FailedError(what) from None
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError):
            raise FailedError("has no certificate that is trusted here; see ca") from None
        except aiohttp.ClientConnectorError:
            raise FailedError("cannot be reached") from None
        except TimeoutError:
            raise FailedError("is silent") from None
        except (aiohttp.ClientError, OSError, ValueError):
            raise FailedError("breaks off its answer") from None


@asynccontextmanager
async def open_client(
    target: TargetSettings, posts: int = 1, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[Client]:
    """A client that makes at most `posts` posts at the same time."""
    connector = aiohttp.TCPConnector(
        limit=posts,
        resolver=resolver(target),
        use_dns_cache=False,
        ssl=await trust(target) or True,
    )
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={"User-Agent": f"vellumd/{__version__}", "Accept": "*/*"},
    ) as session:
        yield Client(session, target, timeout_s)


def resolver(target: TargetSettings) -> addresses.Resolver:
    """Where the target's name may lead: without TLS, to this machine."""
    return addresses.Resolver(only_here=target.scheme == "http" and not target.allow_plaintext)


async def trust(target: TargetSettings) -> ssl.SSLContext | None:
    """Whose certificates count; None for http."""
    if target.scheme == "http":
        return None
    return await asyncio.to_thread(ssl.create_default_context, cafile=target.ca)


def check(answer: aiohttp.ClientResponse) -> None:
    """Raise `FailedError` unless the answer is a good one."""
    if 200 <= answer.status < 300:
        return
    if answer.status == 410:
        raise GoneError("answers 410: it is gone")
    if answer.status < 400:
        raise FailedError("redirects, which is not followed; set url to where it leads")
    raise FailedError(
        f"answers {answer.status}", sending.retry_after(answer.headers.get("Retry-After", ""))
    )
