"""`QwenImageEditEngine`, as a script uses it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.engine.support import encoded, picture
from vellumd import errors, platform
from vellumd.engine.library import QwenImageEditEngine
from vellumd.models import Progress

PICTURE = picture(128, 96)


@pytest.fixture(scope="module")
def engine(demo: Path) -> Iterator[QwenImageEditEngine]:
    """The demo, loaded once from its folder."""
    with QwenImageEditEngine(demo) as engine:
        yield engine


@pytest.mark.filterwarnings("ignore:The embedded demo model")
class TestGenerate:
    """What `generate` takes and gives."""

    def test_the_predecessors_call(self, engine: QwenImageEditEngine, tmp_path: Path) -> None:
        """The call of the predecessor's README works unchanged and repeats exactly."""
        source, target = tmp_path / "photo.png", tmp_path / "output.png"
        PICTURE.save(source)
        results = []
        for _ in range(2):
            engine.generate(
                images=[str(source)], prompt="make it night", num_steps=8,
                true_cfg_scale=3.0, seed=42,
            ).save(target)  # fmt: skip
            with Image.open(target) as result:
                assert result.size == PICTURE.size
                results.append(result.tobytes())
        assert results[0] == results[1]

    def test_paths_bytes_and_pictures_are_alike(
        self, engine: QwenImageEditEngine, tmp_path: Path
    ) -> None:
        """A file, its bytes and the opened picture give the same result."""
        source = tmp_path / "photo.png"
        PICTURE.save(source)
        forms = (source, encoded(PICTURE), PICTURE)
        results = [engine.generate(form, "x", num_steps=2, seed=1).tobytes() for form in forms]
        assert results[0] == results[1] == results[2]

    @pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "F", "LA", "P", "1"])
    def test_pictures_of_any_mode(self, engine: QwenImageEditEngine, mode: str) -> None:
        """Pillow's other modes are taken too, also those that no PNG holds."""
        picture = PICTURE.convert("RGBA" if mode == "LA" else "RGB").convert(mode)
        assert engine.generate(picture, "x", num_steps=1, seed=1).size == PICTURE.size

    def test_n_size_and_progress(self, engine: QwenImageEditEngine) -> None:
        """n > 1 gives a list, width and height the size, the callback each step."""
        told: list[Progress] = []
        results = engine.generate(
            [PICTURE], "x", num_steps=2, seed=1, n=2, width=64, height=48, callback=told.append
        )
        assert [result.size for result in results] == [(64, 48)] * 2
        assert [(step.image, step.step) for step in told] == [(1, 1), (1, 2), (2, 1), (2, 2)]

    def test_alpha_and_mask(self, engine: QwenImageEditEngine) -> None:
        """Alpha comes back on demand, and a mask protects what is black in it."""
        transparent = PICTURE.copy()
        transparent.putalpha(200)
        result = engine.generate(
            transparent, "x", num_steps=1, seed=1, alpha="reapply",
            mask=Image.new("L", PICTURE.size, 0),
        )  # fmt: skip
        assert result.getchannel("A").getextrema() == (200, 200)

    @pytest.mark.parametrize(
        ("fields", "error"),
        [
            ({"num_steps": 0}, errors.BadRequest),
            ({"width": 64}, errors.BadSize),
            ({"preset": "nope"}, errors.UnknownPreset),
            ({"images": []}, errors.TooManyImages),
            ({"images": [b"no picture"]}, errors.BadImage),
        ],
    )
    def test_wrong_arguments(
        self, engine: QwenImageEditEngine, fields: dict[str, object], error: type[Exception]
    ) -> None:
        """What is wrong has the same error as on every door."""
        with pytest.raises(error):
            engine.generate(**{"images": [PICTURE], "prompt": "x", **fields})  # type: ignore[arg-type]


def test_the_demo_is_never_silent(engine: QwenImageEditEngine) -> None:
    """A picture of the demo comes with a Python warning."""
    with pytest.warns(UserWarning, match="demo model"):
        engine.generate(PICTURE, "x", num_steps=1, seed=1)


def test_many_steps_mean_the_original_preset(engine: QwenImageEditEngine) -> None:
    """From 20 steps on a call without preset runs without the Lightning LoRA."""
    from vellumd.models import implied_preset

    assert [implied_preset(steps) for steps in (None, 8, 19, 20, 28)] == [
        None, None, None, "original", "original",
    ]  # fmt: skip


def test_no_model() -> None:
    """Nothing is guessed: without a model, or with one that is not there, it is missing."""
    for arguments in ((), ("/no/such/folder",)):
        with pytest.raises(errors.ModelMissing):
            QwenImageEditEngine(*arguments)


def test_wrong_settings() -> None:
    """A misspelt setting is an error that names it."""
    with pytest.raises(errors.ConfigError, match="modell"):
        QwenImageEditEngine("demo", modell="x")


def test_load_unload_load(demo: Path) -> None:
    """After unload the object can be used again; generate loads by itself."""
    engine = QwenImageEditEngine(demo)
    engine.unload()
    with pytest.warns(UserWarning, match="demo model"):
        first = engine.generate(PICTURE, "x", num_steps=1, seed=1)
    engine.unload()
    with pytest.warns(UserWarning, match="demo model"):
        assert engine.generate(PICTURE, "x", num_steps=1, seed=1).tobytes() == first.tobytes()
    engine.unload()


def test_demo_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`demo` ships with vellumd: nothing is built into the user's cache folder."""
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    assert platform.cache_dir() == tmp_path / "cache"
    with QwenImageEditEngine("demo") as engine, pytest.warns(UserWarning, match="demo model"):
        assert engine.generate(PICTURE, "x", num_steps=1).size == PICTURE.size
    assert not (tmp_path / "cache").exists()


def test_constructing_is_cheap() -> None:
    """The import from `vellumd` and the object bring in no torch; loading does."""
    code = (
        "import sys; from vellumd import QwenImageEditEngine; QwenImageEditEngine('demo');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
