"""A real headless Node-RED in a folder of its own, driven by its admin API."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from vellumd.testing import free_port

ROOT = Path(__file__).parents[2]
INSTALLED = {"4": ROOT / "build" / "node-red", "5": ROOT / "build" / "node-red-5"}
"""Where `make test` and `make trust` put it, by major version; 5 with a node of its own."""
START_S = 30.0
SETTINGS = """
module.exports = {
    uiPort: %d, uiHost: "127.0.0.1", httpAdminRoot: "/admin", disableEditor: %s,
    credentialSecret: false, apiMaxLength: "64mb", telemetry: { enabled: false },
    mqttReconnectTime: 500, editorTheme: { tours: false },
    externalModules: { palette: { allowInstall: false }, modules: { allowInstall: false } },
    logging: { console: { level: "info", metrics: false, audit: false } },
};
"""


class NodeRed:
    """Started by the constructor.

    `modules` is a node_modules folder with further nodes; `editor` serves the pages, too.
    """

    def __init__(
        self, folder: Path, version: str = "4", modules: Path | None = None, *, editor: bool = False
    ) -> None:
        self.folder = folder / "node-red"
        self.folder.mkdir()
        if modules is not None:
            shutil.copytree(modules, self.folder / "node_modules")
        self.url = f"http://127.0.0.1:{(port := free_port())}/admin"
        settings = self.folder / "settings.js"
        settings.write_text(SETTINGS % (port, json.dumps(not editor)))
        installed = INSTALLED[version] / "node_modules"
        program = installed / "node-red" / "red.js"
        assert program.exists(), "Node-RED is missing: `make test` installs it, 5 `make trust`"
        node = next(installed.glob("node-*-*/bin/node"), "node")
        options = ["--userDir", str(self.folder), "--settings", str(settings)]
        self._command = [str(node), str(program), *options]
        self._cleared = 0
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        end = time.monotonic() + START_S
        while True:
            try:
                self.ask("GET", "/flows")
            except OSError:
                if time.monotonic() > end:
                    self.close()  # nobody else knows of it
                    raise AssertionError((self.folder / "log").read_text()) from None
                time.sleep(0.05)
            else:
                return

    def clear(self) -> None:
        """Forget all flows and all that was said; start it where it was killed."""
        if self._process.poll() is not None:
            self.start()
        self.deploy([])
        self._cleared = (self.folder / "log").stat().st_size

    def deploy(self, nodes: list[dict[str, Any]]) -> None:
        """Replace all flows."""
        self.ask("POST", "/flows", nodes, {"Node-RED-API-Version": "v1"})

    def press(self, node: str) -> None:
        """Press the button of an inject node, as soon as the runtime has it."""
        end = time.monotonic() + START_S
        while True:
            try:
                self.ask("POST", f"/inject/{node}", {})
            except FileNotFoundError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)
            else:
                return

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> bytes:
        """The admin API's answer; raises `OSError`."""
        data = None if body is None else json.dumps(body).encode()
        head = {"Content-Type": "application/json", "Accept": "*/*", **(headers or {})}
        request = urllib.request.Request(self.url + path, data, head, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                found: bytes = answer.read()
                return found
        except urllib.error.HTTPError as error:
            error.close()
            raise FileNotFoundError(path) from None

    def log(self) -> str:
        """What it said since it was cleared."""
        return (self.folder / "log").read_bytes()[self._cleared :].decode()

    def close(self) -> None:
        """SIGKILL, as a power cut does; `start` may follow."""
        self._process.kill()
        self._process.wait(10)
