"""The vision tower's own forward: the features of transformers', in fewer calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.engine.support import calls_of
from vellumd.engine.qwen_vl import Rotation, fuse_norms
from vellumd.engine.vision import Grids, Layout, Tower, Windows

GRIDS: dict[str, Grids] = {
    "equal windows": ((32, 32),),
    "windows cut off": ((28, 28),),
    "one of a patch": ((2, 2),),
    "three of all shapes": ((28, 28), (36, 20), (2, 42)),
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


def patches(grids: Grids) -> Tensor:
    """Those of pictures of noise."""
    numbers = torch.Generator().manual_seed(2)
    count = sum(rows * columns for rows, columns in grids)
    return torch.randn(count, 3 * 2 * 14 * 14, generator=numbers)


@torch.inference_mode()
def stock(tower: Any, grids: Grids, dtype: torch.dtype = torch.float32) -> Tensor:
    """What transformers' tower sees."""
    grid = torch.tensor([(1, *sides) for sides in grids])
    seen: Tensor = tower.to(dtype)(patches(grids).to(dtype), grid_thw=grid).pooler_output
    return seen


@torch.inference_mode()
def own(tower: Any, grids: Grids, dtype: torch.dtype = torch.float32) -> Tensor:
    """What ours sees, with the norms that a loaded model has."""
    fuse_norms(tower.to(dtype))
    return Tower(tower).see(patches(grids).to(dtype), grids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
def test_the_features_of_the_stock_tower(grids: Grids, dtype: torch.dtype) -> None:
    """Beyond rounding nothing changes, also where windows are of unequal lengths."""
    expected, seen = stock(tower(), grids, dtype), own(tower(), grids, dtype)
    assert expected.abs().max() > 0.5
    bound = 4 * torch.finfo(dtype).eps * float(expected.abs().max())
    torch.testing.assert_close(seen, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["equal windows", "one of a patch"])
def test_the_bits_of_the_stock_tower(name: str, dtype: torch.dtype) -> None:
    """Where no window is filled up, attention has nothing to add to what it sums."""
    assert torch.equal(own(tower(), GRIDS[name], dtype), stock(tower(), GRIDS[name], dtype))


def test_one_call_a_block() -> None:
    """However many windows there are; the stock tower makes one for each."""
    attention = "scaled_dot_product_attention"
    grids = GRIDS["three of all shapes"]
    assert calls_of(attention, lambda: stock(tower(), grids)) > 50
    assert calls_of(attention, lambda: own(tower(), grids)) == 4


@torch.inference_mode()
def test_known_sizes_cost_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their layout is made once, and is that of one tower; the pictures may be others."""
    made: list[Grids] = []

    def told(tower: Any, grids: Grids, *rest: Any) -> Layout:
        made.append(grids)
        return layout(tower, grids, *rest)

    layout = Layout.of
    monkeypatch.setattr(Layout, "of", told)
    first, second = GRIDS["windows cut off"], GRIDS["three of all shapes"]
    fuse_norms(one := tower())
    ours = Tower(one)
    for grids in (first, second, first, second):
        again = 2 * patches(grids)
        assert torch.equal(ours.see(again, grids), Tower(one).see(again, grids))
    assert len(made) == 2 + 4


@torch.inference_mode()
def test_what_hangs_on_blocks_happens() -> None:
    """Once each: their weights may come from the host, and a cancel is looked for there."""
    calls: list[int] = []
    fuse_norms(one := tower())
    for number, block in enumerate(one.blocks):
        block.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
        block.register_forward_hook(lambda *_, number=number: calls.append(-number))
    Tower(one).see(patches(((4, 4),)), ((4, 4),))
    assert calls == [0, 0, 1, -1, 2, -2, 3, -3]


def rotation(tokens: int) -> Rotation:
    """Each token has its own."""
    angles = torch.arange(float(tokens))[:, None].repeat(1, 4)
    return Rotation.of(angles, angles)


def test_shorter_windows_are_filled_up() -> None:
    """The table holds each patch once, and nothing counts where it is filled up."""
    windows = Windows.of([4, 2, 1], rotation(7), torch.float32)
    assert windows.rows.tolist() == [[0, 1, 2, 3], [4, 5, 0, 0], [6, 0, 0, 0]]
    assert windows.mask is not None
    assert (windows.mask == 0)[:, 0, 0].sum(1).tolist() == [4, 2, 1]
    assert windows.rows.flatten()[windows.back].tolist() == list(range(7))
    assert windows.rotation.cos[..., 0, 0].tolist() == windows.rows.tolist()


@pytest.mark.parametrize("lengths", [[4, 2, 1], [3, 3]], ids=str)
def test_what_is_cut_is_joined_again(lengths: list[int]) -> None:
    """Each patch in its window, whether or not some are filled up."""
    tokens = torch.rand(sum(lengths), 2, 3)
    windows = Windows.of(lengths, rotation(len(tokens)), torch.float32)
    table = windows.cut(tokens)
    for window, part in zip(table, tokens.split(lengths), strict=True):
        assert torch.equal(window[: len(part)], part)
    assert torch.equal(windows.joined(table), tokens)
