"""A real headless Node-RED in a folder of its own, driven by its admin API."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from vellumd.testing import free_port

ROOT = Path(__file__).parents[2]
INSTALLED = ROOT / "build" / "node-red"
START_S = 30.0
SETTINGS = """
module.exports = {
    uiPort: %d, uiHost: "127.0.0.1", httpAdminRoot: "/admin", disableEditor: true,
    credentialSecret: false, apiMaxLength: "64mb", telemetry: { enabled: false },
    externalModules: { palette: { allowInstall: false }, modules: { allowInstall: false } },
    logging: { console: { level: "info", metrics: false, audit: false } },
};
"""


class NodeRed:
    """Started by the constructor. What it says is in `folder/log`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "node-red"
        self.folder.mkdir()
        self.url = f"http://127.0.0.1:{(port := free_port())}/admin"
        settings = self.folder / "settings.js"
        settings.write_text(SETTINGS % port)
        program = INSTALLED / "node_modules" / "node-red" / "red.js"
        assert program.exists(), "Node-RED is missing: `make test` installs it"
        command = ["node", str(program), "--userDir", str(self.folder), "--settings", str(settings)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + START_S
        while True:
            try:
                self.ask("GET", "/flows")
            except OSError:
                assert time.monotonic() < end, (self.folder / "log").read_text()
                time.sleep(0.05)
            else:
                return

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

    def close(self) -> None:
        """Leave nothing running."""
        self._process.kill()
        self._process.wait(10)
