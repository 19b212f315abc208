"""The vision tower with all windows in one call: the stock one's features, with fewer calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.engine.support import calls_of
from vellumd.engine.qwen_vl import fuse_norms
from vellumd.engine.vision import Layout, Windows, gather_windows

GRIDS = {
    "equal windows": [(32, 32)],
    "windows cut off": [(28, 28)],
    "one of a patch": [(2, 2)],
    "three of all shapes": [(28, 28), (36, 20), (2, 42)],
}


def tower() -> Any:
    """The real tower's windows and patches, but narrow and of four blocks."""
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "depth": 4, "num_heads": 2, "patch_size": 14,
        "out_hidden_size": 32, "fullatt_block_indexes": [1, 3], "window_size": 112,
    }  # fmt: skip
    text = {
        "vocab_size": 8, "hidden_size": 32, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6},
    }  # fmt: skip
    torch.manual_seed(1)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, pad_token_id=0)
    made: Any = Qwen2_5_VLForConditionalGeneration(config).eval().model.visual
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return made


@torch.inference_mode()
def features(tower: Any, grids: list[tuple[int, int]]) -> Tensor:
    grid = torch.tensor([(1, *sides) for sides in grids])
    numbers = torch.Generator().manual_seed(2)
    patches = torch.randn(int(grid.prod(1).sum()), 3 * 2 * 14 * 14, generator=numbers)
    seen: Tensor = tower(patches, grid_thw=grid).pooler_output
    return seen


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
def test_the_features_of_the_stock_tower(grids: list[tuple[int, int]]) -> None:
    """Beyond float32's rounding nothing changes, also where windows are of unequal lengths."""
    one = tower()
    expected = features(one, grids)
    gather_windows(one)
    fuse_norms(one)
    seen = features(one, grids)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_one_call_a_block() -> None:
    """However many windows there are; the stock tower makes one for each."""
    one, attention = tower(), "scaled_dot_product_attention"
    grids = GRIDS["three of all shapes"]
    assert calls_of(attention, lambda: features(one, grids)) > 50
    gather_windows(one)
    assert calls_of(attention, lambda: features(one, grids)) == 4


def test_bounds_are_read_once() -> None:
    """Blocks take turns with two bounds; each is read back from the card once."""
    layout, bounds = Layout(), [torch.tensor([0, 4, 6]), torch.tensor([0, 6])]
    first = [layout.windows(one, torch.float32) for one in bounds]
    again = [layout.windows(one, torch.float32) for one in bounds]
    assert all(a is b for a, b in zip(first, again, strict=True))
    other = layout.windows(torch.tensor([0, 6]), torch.float32)
    assert other is not first[1]
    assert torch.equal(other.rows, first[1].rows) and other.mask is None


def test_a_rotation_is_made_once() -> None:
    """All blocks get the same one; another picture's is another."""
    layout, cos, sin = Layout(), torch.rand(3, 4), torch.rand(3, 4)
    first = layout.rotation(cos, sin)
    assert layout.rotation(cos, sin) is first
    assert not torch.equal(layout.rotation(cos + 1, sin).cos, first.cos)


def test_shorter_windows_are_filled_up() -> None:
    """The table holds each token once, and nothing counts where it is filled up."""
    windows = Windows.of(torch.tensor([0, 4, 6, 7]), torch.float32)
    assert windows.rows.tolist() == [[0, 1, 2, 3], [4, 5, 0, 0], [6, 0, 0, 0]]
    assert windows.mask is not None
    assert (windows.mask == 0)[:, 0, 0].sum(1).tolist() == [4, 2, 1]
    assert windows.rows.flatten()[windows.back].tolist() == list(range(7))


@pytest.mark.parametrize("bounds", [[0, 4, 6, 7], [0, 3, 6]], ids=str)
def test_what_is_cut_is_joined_again(bounds: list[int]) -> None:
    """Each token in its window, whether or not some are filled up."""
    windows = Windows.of(torch.tensor(bounds), torch.float32)
    tokens = torch.rand(bounds[-1], 2, 3)
    table = windows.cut(tokens)
    for window, start, end in zip(table, bounds, bounds[1:], strict=False):
        assert torch.equal(window[: end - start], tokens[start:end])
    assert torch.equal(windows.joined(table), tokens)
