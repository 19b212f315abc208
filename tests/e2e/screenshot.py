"""The picture of the editor in the README: `python -m tests.e2e.screenshot` (needs Chromium).

A real Node-RED with the palette package, at a real vellumd that is editing with its demo.
"""

from __future__ import annotations

import asyncio
import base64
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image

from tests.e2e.conftest import install
from tests.e2e.flows import flow, one
from tests.e2e.node_red import ROOT, NodeRed
from tests.plugins.mqtt.broker import Broker

PICTURE = ROOT / "docs" / "node-red.png"
SAMPLE = ROOT / "vellumd" / "demo" / "model" / "samples" / "shapes.png"
SIZE = (1440, 560)
BROWSER = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", f"--window-size={SIZE[0]},{SIZE[1]}",
)  # fmt: skip
SEEN = r"/step \d+\/\d+/.test(document.body.innerText + document.querySelector('svg').textContent)"
"""JavaScript: whether the editor shows a step."""


async def shoot(chromium: str, folder: Path, url: str) -> bytes:
    """What a browser shows at `url` once a step is seen, as PNG."""
    options = [*BROWSER, f"--user-data-dir={folder / 'profile'}", "--remote-debugging-port=0"]
    with (folder / "browser").open("wb") as said:
        browser = await asyncio.create_subprocess_exec(chromium, *options, url, stderr=said)
    try:
        async with asyncio.timeout(60), aiohttp.ClientSession() as session:
            while not (found := re.search(r"127\.0\.0\.1:\d+", (folder / "browser").read_text())):
                await asyncio.sleep(0.1)
            async with session.get(f"http://{found[0]}/json/list") as pages:
                page = next(one for one in await pages.json() if one["type"] == "page")
            async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:

                async def call(method: str, **params: Any) -> Any:
                    await socket.send_json({"id": 1, "method": method, "params": params})
                    while "id" not in (answer := await socket.receive_json()):
                        pass
                    return answer["result"]

                while not (await call("Runtime.evaluate", expression=SEEN))["result"].get("value"):
                    await asyncio.sleep(0.1)
                return base64.b64decode((await call("Page.captureScreenshot"))["data"])
    finally:
        browser.kill()
        await browser.wait()


def main() -> None:
    """Take it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("Chromium is missing: apt-get install chromium")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broker = Broker(folder)
        serve = [sys.executable, "-m", "vellumd", "serve", "--plugins.http.port=0"]
        options = [f"--plugins.mqtt.port={broker.port}", f"--store.dir={folder / 'data'}"]
        with (folder / "log").open("wb") as log:
            daemon = subprocess.Popen([*serve, *options], stdout=log, stderr=log)
        node_red = NodeRed(folder, modules=install(folder), editor=True)
        try:
            files = {"PICTURE": str(SAMPLE), "RESULT": str(folder / "out.png")}
            nodes = flow("palette/examples/edit", broker.port, **files)
            for node in nodes:
                if node["type"] == "vellumd-edit":
                    node |= {"name": "vellumd", "preset": "original"}
                    node["prompt"] = "make the circle blue"
            node_red.deploy(nodes)
            while "engine ready" not in (folder / "log").read_text():
                assert daemon.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
            for _ in range(10):
                node_red.press(one(nodes, "inject"))
            url = f"{node_red.url}/#flow/{nodes[0]['id']}"
            shot = Image.open(io.BytesIO(asyncio.run(shoot(chromium, folder, url))))
            shot.convert("P", palette=Image.Palette.ADAPTIVE).save(PICTURE, optimize=True)
        finally:
            node_red.close()
            daemon.terminate()
            daemon.wait(20)
            broker.close()


if __name__ == "__main__":
    main()
