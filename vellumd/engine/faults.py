"""What an exception of an engine means: out of memory, a disk without room, a lost card.

Told by name and text where it is torch's own, because nothing here knows torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOMEM, ENOSPC, EROFS

from vellumd import errors

NO_MEMORY = (
    "out of memory",  # CUDA's allocator and driver, MPS
    "can't allocate memory",  # torch's allocator of the CPU
    "not enough memory",  # the same on Windows
    "STATUS_ALLOC_FAILED",  # cuBLAS and cuDNN
    "unable to find an engine",  # torch, when cuDNN's workspaces found no room one after the other
)
"""What a RuntimeError of torch says that is about memory."""


LOST = "CUDA error", "Triton Error [CUDA]"
"""What a RuntimeError says of a call that the card did not answer: torch's, Triton's."""


class UnstoredError(Exception):
    """The edit was made, but there is no room for its result."""


@contextmanager
def storing() -> Iterator[None]:
    """What is full here is the disk with the results: raises `UnstoredError`."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise UnstoredError from error
        raise


def coded(error: Exception) -> errors.VellumError:
    """What to tell a user of `error`, without its text."""
    if isinstance(error, errors.VellumError):
        return error
    if isinstance(error, UnstoredError):
        return errors.StorageFull("The disk has no room for the result.")
    if is_full(error):
        return errors.StorageFull(
            "The engine has no room for files of its own, in its cache or the folder for "
            "temporary files."
        )
    if is_memory(error):
        return errors.OutOfMemory("The edit does not fit in memory.")
    return errors.Internal("The engine failed unexpectedly.")


def is_full(error: BaseException) -> bool:
    """Whether `error` says that nothing can be written: no room, no quota, read-only."""
    return isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT, EROFS)


def is_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, the machine's or the card's."""
    if isinstance(error, OSError):
        return error.errno == ENOMEM
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY))
    )


def is_sticky(error: BaseException) -> bool:
    """Whether `error` is one after which a CUDA context answers nothing any more."""
    lost = type(error).__name__ == "AcceleratorError" or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in LOST)
    )
    return lost and not is_memory(error)
