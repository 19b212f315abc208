"""Calls that differ between systems."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIMITS = """
import resource
from vellumd import platform
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))
platform.more_files()
platform.more_files()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_as_many_files_as_allowed() -> None:
    """The soft limit becomes the hard one."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITS], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["128", "128"]
