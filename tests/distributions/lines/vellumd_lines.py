"""A door for programs on this machine: JSON objects, one a line, over TCP."""

import asyncio
import base64
import json
from contextlib import closing, suppress
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vellumd import Delivery, EditRequest, TransportContext, TransportSpec, errors, hookimpl

LINE_MAX = 64 << 20  # bytes: a picture in base64


class LinesSettings(BaseModel):
    """Takes edits as lines of JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    port: int = Field(8300, ge=1, le=65535, description="TCP port on 127.0.0.1.")


class Lines:
    """The door. `owed` are the replies that are not confirmed, by their requests' ids."""

    def __init__(self, context: TransportContext) -> None:
        self.context = context
        self.owed: dict[str, Delivery] = {}
        self.more_owed = asyncio.Condition()

    async def run(self) -> None:
        port = self.context.settings.port
        async with asyncio.TaskGroup() as tasks:
            server = await asyncio.start_server(
                lambda *io: tasks.create_task(self.serve(*io)), "127.0.0.1", port, limit=LINE_MAX
            )
            self.context.report(True, f"listens on port {port}")
            try:
                async for delivery in self.context.deliveries():
                    async with self.more_owed:
                        self.owed[delivery.reply] = delivery
                        self.more_owed.notify_all()
            finally:
                server.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(ConnectionError, ValueError):  # gone, or a line too long
            while line := await reader.readline():
                writer.write(json.dumps(await self.answer(line)).encode() + b"\n")
                await writer.drain()

    async def answer(self, line: bytes) -> dict[str, Any]:
        try:
            match json.loads(line):
                case {"id": str(id), "image": str(image), "prompt": str(prompt)}:
                    picture = await self.context.stage(base64.b64decode(image))
                    request = EditRequest.parse({"images": [picture], "prompt": prompt})
                    job = await self.context.jobs.submit(request, key=id, reply=id)
                    return {"accepted": job.id}
                case {"wait": str(id)}:
                    async with asyncio.timeout(60), self.more_owed:
                        delivery = await self.more_owed.wait_for(lambda: self.owed.get(id))
                    file = await self.context.jobs.result(delivery.job.id)
                    picture = await asyncio.to_thread(file.read_bytes)
                    return {"job": delivery.job.id, "image": base64.b64encode(picture).decode()}
                case {"confirm": str(id)} if id in self.owed:
                    await self.owed.pop(id).delivered()
                    return {"confirmed": id}
        except errors.VellumError as error:
            return {"error": error.public()}
        except TimeoutError:
            return {"error": errors.Timeout("wait: there is no reply yet.").public()}
        except (ValueError, RecursionError):  # neither JSON nor base64
            pass
        return {"error": errors.BadRequest("line: it asks for nothing that there is.").public()}


@hookimpl
def vellumd_transports() -> list[TransportSpec]:
    return [TransportSpec("lines", LinesSettings, Lines)]
