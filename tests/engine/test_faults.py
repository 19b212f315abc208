"""What errors of torch, Triton and cuDNN mean for the process that meets them."""

from __future__ import annotations

import pytest

from vellumd.engine import faults

ILLEGAL = "an illegal memory access was encountered"


@pytest.mark.parametrize(
    ("text", "sticky", "memory"),
    [
        (f"CUDA error: {ILLEGAL}", True, False),
        (f"Triton Error [CUDA]: {ILLEGAL}", True, False),
        ("Triton Error [CUDA]: out of memory", False, True),
        ("CUDA error: out of memory", False, True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", False, True),
        ("FIND was unable to find an engine to execute this computation", False, True),
        ("mat1 and mat2 shapes cannot be multiplied", False, False),
    ],
)
def test_what_a_text_means(text: str, sticky: bool, memory: bool) -> None:
    """After a sticky one the process ends and the job is repeated by another; a lack of memory
    goes down the ladder; all else is the edit's own."""
    error = RuntimeError(text)
    assert (faults.is_sticky(error), faults.is_memory(error)) == (sticky, memory)
    assert not faults.is_sticky(ValueError(text))
