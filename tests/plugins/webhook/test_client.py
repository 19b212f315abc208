"""One post, against servers that speak raw HTTP."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from tests.plugins.webhook.receiver import SECRET
from vellumd_webhook.client import FailedError, open_client
from vellumd_webhook.plugin import TargetSettings
from vellumd_webhook.wire import Message


@pytest.mark.parametrize("taken", [True, False])
async def test_the_status_alone_decides(taken: bool) -> None:
    """A body that never comes, after 200, is no reason to tell it again."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        status = b"200 OK" if taken else b"500 Sorry"
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 10\r\n\r\n")
        with suppress(ConnectionError):
            await reader.read()  # until the client gives up
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        ended.set()

    ended = asyncio.Event()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    target = TargetSettings.model_validate({"url": url, "secret": SECRET})
    async with server:
        async with open_client(target, timeout_s=0.5) as client:
            if taken:
                await client.post(Message("1", b"{}"))
            else:
                with pytest.raises(FailedError):
                    await client.post(Message("1", b"{}"))
        await ended.wait()
