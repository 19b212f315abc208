"""What a bench found, on the disk as soon as it is known."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import torch


def device_name() -> str:
    """The card, or what there is in its place."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores"


class Record(dict[str, Any]):
    """Figures by name. Each is printed and, with `out`, written when it is set.

    So a run that is cut short loses only what was under way.
    """

    def __init__(self, out: Path | None) -> None:
        super().__init__(
            at=datetime.now().astimezone().isoformat(),
            device=device_name(),
            torch=torch.__version__,
        )
        self._out = out

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        print(name, json.dumps(value), flush=True)
        if self._out is not None:
            new = self._out.with_suffix(".new")
            new.write_text(json.dumps(self, indent=1) + "\n")
            new.replace(self._out)


def keep(figures: dict[str, Any], out: Path | None) -> None:
    """Print all of `figures` and write them, where they are known at once."""
    record = Record(None)
    record.update(figures)
    text = json.dumps(record, indent=1)
    print(text)
    if out:
        out.write_text(text + "\n", "utf-8")
