"""The trace of a block tells all of its time, by names that differ only where they are cut."""

from __future__ import annotations

import torch

from tests.bench import trace

FA3 = "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<" + "x" * 40


def test_kernels_that_begin_alike_are_summed() -> None:
    """The time of neither is lost, and each falls into its group."""
    found = trace.summed([
        (FA3 + "one", 1, 4.9), (FA3 + "other", 1, 1.1), ("nvjet_sm90_qqtst_128x128", 12, 5.0),
        ("_norm_rotate", 4, 2.0), ("_by_head", 3, 0.5), ("Memcpy DtoD", 2, 0.25),
    ])  # fmt: skip
    assert found["kernels"][FA3.removeprefix("void ")[: trace.NAME]] == [2, 6.0]
    assert found["groups_ms"] == {
        "attention": 6.5, "matrix products": 5.0, "fused kernels": 2.0, "copies and others": 0.25,
    }  # fmt: skip
    assert found["kernels_ms"] == 13.75
    assert found["60_blocks_ms"] == 825.0
    assert found["groups_of_60_blocks_ms"]["attention"] == 390.0


def test_a_block_runs_alone_with_what_it_was_given() -> None:
    """What the forward does beside it is left out."""
    block, other = torch.nn.Linear(64, 64), torch.nn.GELU()
    rows = torch.randn(256, 64)
    found = trace.of_block(lambda: other(block(rows)), block, torch.device("cpu"))
    assert found["groups_ms"]["matrix products"] > 0
    assert found["kernels"]["aten::addmm"][0] == 1
    assert not any("gelu" in name for name in found["kernels"])
