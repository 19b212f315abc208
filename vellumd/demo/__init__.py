"""The embedded model (`model/`), the toy world it knows, its judge, and its training."""

import os


def one_thread() -> None:
    """Have torch, if it is not up yet, use one thread that does not spin while it waits.

    The demo's tensors are too small to be shared: two threads take 0.44 s for an edit that
    one does in 0.30 s.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
