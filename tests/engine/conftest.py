"""What the engine's tests share: the demo model, loaded once, and engine processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.support import PICTURES, Child
from vellumd import model_card, protocol

# As the worker sets it: before torch comes up, or its idle threads fight for the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def demo() -> Path:
    """The demo model's folder, as it ships."""
    return model_card.DEMO_FOLDER


@pytest.fixture(scope="session")
def model(demo: Path) -> Any:
    """The demo loaded in this process, with canvas and pictures of 64x64 for speed."""
    import torch

    from vellumd.engine import loading, lora
    from vellumd.engine.model import Model

    card = model_card.read("demo").model_copy(update={"canvas_area": 4096, "vision_area": 4096})
    parts = loading.load(demo, torch.device("cpu"), lambda *_: None)
    return Model(parts, lora.Loras(parts, demo, card, {}), card)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """The files of `PICTURES`."""
    paths = [tmp_path / f"input-{number}.png" for number in (1, 2)]
    for path, data in zip(paths, PICTURES, strict=True):
        path.write_bytes(data)
    return paths


@pytest.fixture(scope="session")
def spawn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Child]]:
    """Starts a child; `engine` is its factory, by default the torch-free one."""
    children: list[Child] = []

    def start(engine: str | None = "tests.engine.engines:create", **settings: Any) -> Child:
        root = str(Path(__file__).parents[2])
        child = Child(tmp_path_factory.mktemp("spool"), {**os.environ, "PYTHONPATH": root})
        children.append(child)
        if engine is not None:
            cache = child.spool / "cache"
            child.send(
                protocol.Init(engine=engine, settings=settings, spool=child.spool, cache=cache)
            )
        return child

    yield start
    for child in children:
        child.close()
