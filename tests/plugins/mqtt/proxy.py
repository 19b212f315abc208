"""A proxy between daemon and broker that understands packets: slow, cutting or forgetful."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

PUBLISH, PUBACK = 3, 4


class Packet:
    """One MQTT control packet as it is on the wire."""

    def __init__(self, data: bytes, head: int) -> None:
        self.data = data
        self._body = data[head:]
        self.pass_on: Callable[[], None]
        """Send it where it was going; for one that was held up."""

    @property
    def kind(self) -> int:
        """Its type."""
        return self.data[0] >> 4

    @property
    def qos(self) -> int:
        """Of a PUBLISH."""
        return self.data[0] >> 1 & 3

    @property
    def topic(self) -> str:
        """Of a PUBLISH."""
        return self._body[2 : 2 + self._length].decode()

    @property
    def mid(self) -> int:
        """The packet id of a PUBLISH with QoS 1, or of a PUBACK."""
        start = 2 + self._length if self.kind == PUBLISH else 0
        return int.from_bytes(self._body[start : start + 2], "big")

    @property
    def payload(self) -> bytes:
        """Of a PUBLISH, with its properties in front."""
        return self._body[4 + self._length :]

    @property
    def _length(self) -> int:
        return int.from_bytes(self._body[:2], "big")


class Proxy:
    """Listens on `port` and passes packets on, as long as `up` and `down` say so.

    Both are asked for each packet: `up` for those to the broker. `delay_s` passes before
    each 64 KiB.
    """

    def __init__(self, broker_port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.up: Callable[[Packet], bool] = lambda packet: True
        self.down: Callable[[Packet], bool] = lambda packet: True
        self.delay_s = 0.0
        self._broker_port = broker_port
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections without a word."""
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._sockets.clear()

    def close(self) -> None:
        """Listen no more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._broker_port), 5)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)  # that was for connecting: silence ends nothing
                self._sockets += [near, far]
                for ends in ((near, far, "up"), (far, near, "down")):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        writing = threading.Lock()

        def write(packet: Packet) -> None:
            with writing:
                for start in range(0, len(packet.data), 65_536):
                    time.sleep(self.delay_s)
                    sink.sendall(packet.data[start : start + 65_536])

        with suppress(OSError, ValueError), source.makefile("rb") as stream:
            while packet := read_packet(stream.read):
                packet.pass_on = partial(write, packet)
                if getattr(self, way)(packet):
                    packet.pass_on()
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def read_packet(read: Callable[[int], bytes]) -> Packet | None:
    """The next packet of a stream; None at its end."""
    head = read(1)
    size, shift = 0, 0
    while head:
        byte = read(1)
        if not byte:
            return None
        head += byte
        size |= (byte[0] & 127) << shift
        shift += 7
        if byte[0] < 128:
            body = read(size)
            return Packet(head + body, len(head)) if len(body) == size else None
    return None
