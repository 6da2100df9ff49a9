"""Memory of a test process: hundreds of networks compile to more programs than a machine holds."""

import gc
import os
from pathlib import Path

import jax
import pytest

from lowbit.export.memory import give_back

ROOM = 3 << 30
"""Bytes that a process may hold before it lets go of what it compiled."""

_HELD = Path("/proc/self/statm")


def held() -> int:
    """Returns the bytes of memory that this process holds; 0 where the system does not say."""
    return int(_HELD.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if _HELD.exists() else 0


class Room:
    """Lets go of compiled programs after a test that left more than `ROOM`; the folder on disk has what is needed again.

    What is left after that counts for twice itself, so that a process which cannot be small is not emptied after every test.
    """

    def __init__(self):
        self.most = ROOM

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self) -> None:
        if held() > self.most:
            jax.clear_caches()
            gc.collect()
            give_back()
            self.most = max(ROOM, 2 * held())
