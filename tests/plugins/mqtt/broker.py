"""A real Mosquitto in a folder of its own, to be killed and restarted at will."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from vellumd.testing import free_port

START_S = 10.0
ROOT = Path(__file__).parents[3]
CONF = """
listener {port} 127.0.0.1
allow_anonymous true
persistence true
autosave_on_changes true
autosave_interval 1
log_dest stderr
log_type all
log_timestamp_format %H:%M:%S
set_tcp_nodelay true

"""


class Broker:
    """Started by the constructor; `more` are further lines of its configuration.

    `log` in its folder tells each packet, and each time it wrote what it has.
    `whole` takes the configuration's place, with the `port` that it names.
    """

    def __init__(self, folder: Path, more: str = "", *, whole: str = "", port: int = 0) -> None:
        self.port = port or free_port()
        self.folder = folder / "broker"
        self.folder.mkdir()
        self._conf = self.folder / "mosquitto.conf"
        # As root it would otherwise become another user, who may not write here.
        user = f"\nuser {getpass.getuser()}\n"
        where = f"persistence_location {self.folder}/\n"
        lines = whole + where if whole else CONF.format(port=self.port) + where + more
        self._conf.write_text(lines + user)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it and wait until it listens."""
        program = shutil.which("mosquitto", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
        assert program, "Mosquitto is missing: `make test` installs it, or apt-get does"
        root = ["sh", "-c", f'exec "{program}" -c "{self._conf}"']
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(root, stdout=log, stderr=log)
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            assert self._process.poll() is None, (self.folder / "log").read_text()
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.01)
            else:
                return
        raise TimeoutError("Mosquitto did not start")

    def kill(self) -> None:
        """SIGKILL: what it has not written is lost."""
        self._end(signal.SIGKILL)

    def has_written(self, text: bytes) -> bool:
        """Whether a message with `text` in it would survive a kill now.

        That it is acknowledged does not say so: what Mosquitto hands on at once to somebody
        who is connected is no change that it would write for.
        """
        file = self.folder / "mosquitto.db"
        return file.exists() and text in file.read_bytes()

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start()

    def close(self) -> None:
        """Leave nothing running."""
        if self._process is not None:
            self._end(signal.SIGKILL)

    def _end(self, by: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(by)
        self._process.wait(START_S)
        self._process = None
