"""The flow of docs/http.md, imported into a real Node-RED as it is written."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.e2e.flows import run
from tests.e2e.node_red import ROOT, NodeRed
from vellumd.testing import DaemonProcess, free_port

PAGE = (ROOT / "docs" / "http.md").read_text("utf-8")


def test_the_flow_of_the_guide(tmp_path: Path, node_red: NodeRed) -> None:
    """A photo in, its edit out."""
    (text,) = re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    port = free_port()
    text = text.replace("127.0.0.1:8200", f"127.0.0.1:{port}")
    text = text.replace("/home/pi/photo.png", str(tmp_path / "in.png"))
    text = text.replace("/home/pi/result.png", str(tmp_path / "out.png"))
    daemon = DaemonProcess(tmp_path, "http", {"port": port})
    daemon.start()
    try:
        run(node_red, json.loads(text), tmp_path)
    finally:
        daemon.close()
