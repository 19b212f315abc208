"""Our loop against diffusers' QwenImageEditPlusPipeline: the same numbers."""

# diffusers annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import functools
import itertools
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as stock

from tests.engine.support import Told, encoded, picture, reference, resolved
from vellumd.engine import latents, schedule
from vellumd.engine.copies import view_size
from vellumd.engine.model import Model
from vellumd.engine.run import Run
from vellumd.images import Canvas
from vellumd.models import LoraRef, ResolvedEdit

WIDTH, HEIGHT = 64, 96
PICTURES = [picture(120, 90, 1), picture(64, 128, 2), picture(100, 100, 3)]
REFERENCES = [reference(encoded(image)) for image in PICTURES]
LIGHTNING = {"scheduler": "lightning", "loras": (LoraRef(name="lightning-8", scale=0.8),)}


@pytest.fixture
def stock_pipeline(model: Model, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stock pipeline over the same components, given the mm_token_type_ids it forgets."""
    parts = model.parts
    encoder = parts.text_encoder
    forward = encoder.forward

    @functools.wraps(forward)
    def with_positions(input_ids: torch.Tensor, **rest: Any) -> Any:
        kinds = (input_ids == encoder.config.image_token_id).int()
        return forward(input_ids=input_ids, mm_token_type_ids=kinds, **rest)

    monkeypatch.setattr(encoder, "forward", with_positions)
    monkeypatch.setattr(stock, "CONDITION_IMAGE_SIZE", model.card.vision_area)
    monkeypatch.setattr(stock, "VAE_IMAGE_SIZE", model.card.canvas_area)
    pipeline: Any = diffusers.QwenImageEditPlusPipeline(
        diffusers.FlowMatchEulerDiscreteScheduler.from_config(parts.scheduler),
        parts.vae, encoder, parts.processor.tokenizer, parts.processor, parts.transformer,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawing(pipeline: Any, seed: int) -> torch.Generator:
    """What `pipeline` and the steps of its schedule are to draw noise by.

    The demo's own schedule draws some at each step, which the pipeline leaves to chance.
    """
    generator = torch.Generator().manual_seed(seed)
    step = functools.partial(pipeline.scheduler.step, generator=generator)
    pipeline.scheduler.step = step
    return generator


def ours(model: Model, edit: ResolvedEdit) -> torch.Tensor:
    """The clean tokens of `edit` by our own loop."""
    sizes = [image.size for image in PICTURES[: len(edit.images)]]
    run = Run(model, edit, Told(), lambda: False)
    canvas = Canvas.plan(edit.size, sizes, model.card.canvas_area)
    model.loras.use(edit.loras)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.png" for number in range(len(sizes))]
        for file, image in zip(files, PICTURES, strict=False):
            file.write_bytes(encoded(image))
        return run.denoise(run.encode(files, canvas), canvas, 0)


CASES = list(itertools.product((1, 2, 3), (1.0, 3.0), (4, 8), ("base", "lightning")))
"""Number of references, guidance, steps, schedule."""
PAIRS = [
    (1, 1.0, 4, "lightning"), (1, 3.0, 8, "base"), (2, 1.0, 8, "lightning"),
    (2, 3.0, 4, "base"), (3, 1.0, 4, "base"), (3, 3.0, 4, "lightning"),
]  # fmt: skip
"""Those of them in which each value meets each other one, but for eight steps of three."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All cases when full."""
    if "mode" in metafunc.fixturenames:
        cases = CASES if metafunc.config.getoption("--full") else PAIRS
        metafunc.parametrize(("count", "scale", "steps", "mode"), cases)


def test_same_latents_as_the_stock_pipeline(
    model: Model, stock_pipeline: Any, count: int, scale: float, steps: int, mode: str
) -> None:
    """References, guidance, steps, schedule and LoRA give the stock pipeline's latents."""
    edit = resolved(
        REFERENCES[:count], steps=steps, true_cfg_scale=scale, size=f"{WIDTH}x{HEIGHT}",
        prompt="노을로 바꿔 줘",
        **(LIGHTNING if mode == "lightning" else {}),
    )  # fmt: skip
    tokens = ours(model, edit)
    if mode == "lightning":
        stock_pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(
            schedule.LIGHTNING
        )
    expected = stock_pipeline(
        image=PICTURES[:count], prompt=edit.prompt, negative_prompt=" ", true_cfg_scale=scale,
        width=WIDTH, height=HEIGHT, num_inference_steps=steps,
        generator=drawing(stock_pipeline, edit.seed), output_type="latent",
    ).images  # fmt: skip
    assert (tokens - expected).abs().max() <= 1e-4


def test_same_picture_as_the_stock_pipeline(model: Model, stock_pipeline: Any) -> None:
    """Decoding ends in the same pixels, one rounding apart at most."""
    edit = resolved(REFERENCES[:2], size=f"{WIDTH}x{HEIGHT}")
    latent = latents.unpack(ours(model, edit), WIDTH, HEIGHT)
    expected = stock_pipeline(
        image=PICTURES[:2], prompt=edit.prompt, width=WIDTH, height=HEIGHT, true_cfg_scale=1.0,
        num_inference_steps=edit.steps, generator=drawing(stock_pipeline, edit.seed),
    ).images[0]  # fmt: skip
    painted = model.codec.decode(latent)
    assert painted.size == expected.size
    pairs = zip(painted.tobytes(), expected.tobytes(), strict=True)
    assert max(abs(a - b) for a, b in pairs) <= 1


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "make it blue"},
        {"true_cfg_scale": 3.0},
        {"scheduler": "lightning"},
        {"loras": LIGHTNING["loras"]},
        {"seed": 8},
        {"images": tuple(REFERENCES[:1])},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_demo_tells_differences(model: Model, change: dict[str, Any]) -> None:
    """Each of these changes the latents far beyond the tolerance, so parity means something."""
    edit = resolved(REFERENCES[:2], size=f"{WIDTH}x{HEIGHT}")
    other = edit.model_copy(update=change)
    assert (ours(model, edit) - ours(model, other)).abs().max() > 0.02


def test_positions_and_zero_cond_t_tell(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgetting mm_token_type_ids or zero_cond_t, the two silent traps, would be seen."""
    edit = resolved(REFERENCES[:2], size=f"{WIDTH}x{HEIGHT}")
    right = ours(model, edit)
    with monkeypatch.context() as patch:
        patch.setattr(
            model.parts.text_encoder.model,
            "get_rope_index",
            lambda ids, **_: (torch.arange(ids.shape[1]).expand(3, 1, -1), None),
        )
        model.store.clear()
        assert (ours(model, edit) - right).abs().max() > 0.02
    model.store.clear()
    transformer = model.parts.transformer
    with monkeypatch.context() as patch:
        for module in (transformer, *transformer.transformer_blocks):
            patch.setattr(module, "zero_cond_t", False)
        assert (ours(model, edit) - right).abs().max() > 0.02


def test_the_longest_picture_is_encoded() -> None:
    """A strip at the limits gets sizes that the vision tower takes."""
    width, height = view_size(16_384, 16, 384 * 384)
    assert height >= 32
    assert width / height <= 200


@pytest.mark.parametrize("size", [(736, 1011), (1024, 1024), (4000, 300), (33, 64)])
def test_auto_is_the_stock_size(size: tuple[int, int]) -> None:
    """`auto` takes the last picture's ratio at the model's area, as the stock pipeline."""
    canvas = Canvas.plan("auto", [(50, 50), size], 1024 * 1024)
    expected = stock.calculate_dimensions(1024 * 1024, size[0] / size[1])
    assert (canvas.width, canvas.height) == expected
    assert view_size(*size, 384 * 384) == stock.calculate_dimensions(384 * 384, size[0] / size[1])
