"""The parts of an edit that the bench times alone: nothing else is to run beside them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.bench.edits import pictures
from tests.bench.stages import Bench


def test_no_hash_is_taken_beside_what_follows(tmp_path: Path) -> None:
    """A LoRA's is waited for as long as that takes part."""
    calls: list[str] = []
    loras = SimpleNamespace(
        use=lambda wanted: calls.append(" ".join(lora.name for lora in wanted)),
        used=lambda: calls.append("waited for"),
    )
    card = SimpleNamespace(canvas_area=4096, vision_area=4096)
    model: Any = SimpleNamespace(loras=loras, card=card)
    for name, run in Bench(model, pictures(tmp_path, "new", 1)).host():
        if "LoRA" in name:
            run()
    assert calls == ["lightning-8", "lightning-8", "waited for", ""]
