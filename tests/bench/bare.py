"""The baseline of intake: an aiohttp handler that writes each picture and fsyncs it."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from pathlib import Path

from aiohttp import BodyPartReader, web


def main() -> None:
    """Serve `POST /` on the port and into the folder of the command line."""
    port, folder = int(sys.argv[1]), Path(sys.argv[2])

    def store(data: bytes) -> None:
        with (folder / f"{uuid.uuid4()}.png").open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    async def accept(request: web.Request) -> web.Response:
        async for part in await request.multipart():
            assert isinstance(part, BodyPartReader)
            data = bytes(await part.read())
            if part.name == "images":
                await asyncio.to_thread(store, data)
        return web.json_response({"ok": True}, status=202)

    async def health(request: web.Request) -> web.Response:
        return web.Response(text="ok")

    app = web.Application(client_max_size=1 << 27)
    app.add_routes([web.post("/", accept), web.get("/healthz", health)])
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


if __name__ == "__main__":
    main()
