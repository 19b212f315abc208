"""How benches of the engine keep their figures: with when, on what and with which torch."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import torch


def keep(figures: dict[str, Any], out: Path | None) -> None:
    """Print `figures`, and write them to `out` if it is named."""
    cuda = torch.cuda.is_available()
    record = {
        "at": datetime.now().astimezone().isoformat(),
        "device": torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} cores",
        "torch": torch.__version__,
        **figures,
    }
    text = json.dumps(record, indent=1)
    print(text)
    if out:
        out.write_text(text + "\n", "utf-8")
