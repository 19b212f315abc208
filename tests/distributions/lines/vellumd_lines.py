"""A door for programs on this machine: JSON objects, one a line, over TCP."""

import asyncio
import base64
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vellumd import Delivery, EditRequest, TransportContext, TransportSpec, errors, hookimpl

LINE_MAX = 64 << 20
"""Bytes of the longest line: a picture in base64."""


class LinesSettings(BaseModel):
    """Takes edits as lines of JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    port: int = Field(8300, ge=1, le=65535, description="TCP port on 127.0.0.1.")


class Lines:
    """The door. A sender is known by its name; its last connection is where it is."""

    def __init__(self, context: TransportContext) -> None:
        self.context = context
        self.senders: dict[str, asyncio.StreamWriter] = {}
        self.unconfirmed: dict[tuple[str, str], Delivery] = {}

    async def run(self) -> None:
        port = self.context.settings.port
        server = await asyncio.start_server(self.serve, "127.0.0.1", port, limit=LINE_MAX)
        self.context.report(True, f"listens on port {port}")
        try:
            async for delivery in self.context.deliveries():
                await self.deliver(delivery)
        finally:
            server.close()
            for writer in self.senders.values():
                writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                if answer := await self.take(line, writer):
                    await write(writer, answer)
        except (ConnectionError, ValueError):  # hung up, or a line over the limit
            pass
        finally:
            self.senders = {name: w for name, w in self.senders.items() if w is not writer}
            writer.close()

    async def take(self, line: bytes, writer: asyncio.StreamWriter) -> dict[str, Any] | None:
        order: dict[str, Any] = {}
        try:
            order = json.loads(line)
            sender = str(order["from"])
            if delivery := self.unconfirmed.pop((sender, order.get("confirm")), None):
                await delivery.delivered()
            if self.senders.get(sender) is not writer:
                self.senders[sender] = writer
                for key in [key for key in self.unconfirmed if key[0] == sender]:
                    await self.unconfirmed.pop(key).retry(0)
            if "image" not in order:
                return None
            image = await self.context.stage(base64.b64decode(order["image"]))
            request = EditRequest.parse({"images": [image], "prompt": order["prompt"]})
            id, reply = str(order["id"]), [sender, str(order["id"])]
            job = await self.context.jobs.submit(request, key=f"{sender} {id}", reply=reply)
            return {"id": id, "accepted": job.id}
        except errors.VellumError as error:
            return {"id": order.get("id"), "refused": error.public()}
        except (ValueError, KeyError, TypeError, RecursionError):
            return {"refused": errors.BadRequest("line: it is no order.").public()}

    async def deliver(self, delivery: Delivery) -> None:
        sender, id = delivery.reply
        self.unconfirmed[sender, id] = delivery
        if writer := self.senders.get(sender):
            reply: dict[str, Any] = {"id": id, "job": delivery.job.id}
            try:
                file = await self.context.jobs.result(delivery.job.id)
                reply["image"] = base64.b64encode(await asyncio.to_thread(file.read_bytes)).decode()
            except errors.VellumError as error:
                reply["error"] = error.public()
            await write(writer, reply)


async def write(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    writer.write(json.dumps(message).encode() + b"\n")
    try:
        async with asyncio.timeout(10):  # who does not read is hung up on
            await writer.drain()
    except (TimeoutError, ConnectionError):
        writer.transport.abort()


@hookimpl
def vellumd_transports() -> list[TransportSpec]:
    return [TransportSpec("lines", LinesSettings, Lines)]
