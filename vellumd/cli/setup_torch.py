"""`make setup` chooses the torch for this machine: CUDA where an NVIDIA driver is, else CPU.

Standard library alone: it runs before anything is installed. Its own index is PyTorch's;
where that is out of reach, the default index has to do.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

from vellumd import platform

INDEX = "https://download.pytorch.org/whl"
CUDA = "cu130"
PROBE_S = 5.0

CPU_SIZE, CUDA_SIZE = "0.2 GB", "3 GB"
"""Downloads of torch with what it needs, rounded up."""


@dataclass(frozen=True)
class Choice:
    """The torch to install: from `index` (None: the default one), and the line that says why."""

    install: bool
    index: str | None
    line: str


def choose(
    system: str, installed: str | None, driver: bool, reachable: Callable[[str], bool]
) -> Choice:
    """The torch for a machine of `sys.platform` `system`.

    `installed` is the version already there, `reachable` tells whether an index answers.
    """
    if installed:
        return Choice(False, None, f"torch {installed} is installed and kept.")
    if driver and system != "win32":  # the default index has CUDA wheels
        return Choice(
            True, None, f"torch with CUDA, about {CUDA_SIZE}: an NVIDIA driver was found."
        )
    flavour, size = (CUDA, CUDA_SIZE) if driver else ("cpu", CPU_SIZE)
    found = "an NVIDIA driver was found" if driver else "no NVIDIA driver was found"
    index = f"{INDEX}/{flavour}"
    if reachable(index):
        kind = "with CUDA" if driver else "for the CPU"
        return Choice(
            True, index, f"torch {kind}, about {size}, from PyTorch's own index: {found}."
        )
    size = CPU_SIZE if system in ("win32", "darwin") else CUDA_SIZE
    return Choice(
        True,
        None,
        f"torch of the default index, about {size}: {found}, "
        f"but PyTorch's own index did not answer within {PROBE_S:g} s.",
    )


def answers(index: str) -> bool:
    """Whether the index answers within `PROBE_S`, name lookup included."""
    found = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{index}/torch/", timeout=PROBE_S):  # noqa: S310
                found.set()
        except OSError:
            return

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PROBE_S)
    return found.is_set()


def installed_version() -> str | None:
    """The version of torch in this environment, if any."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def main() -> int:
    """Print the choice and install it with this interpreter's pip."""
    choice = choose(sys.platform, installed_version(), platform.nvidia_driver(), answers)
    print(choice.line, flush=True)
    if not choice.install:
        return 0
    source = ["--index-url", choice.index] if choice.index else []
    pip = [sys.executable, "-m", "pip", "install", "--quiet", *source]
    return subprocess.run([*pip, "torch>=2.10", "torchvision"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
