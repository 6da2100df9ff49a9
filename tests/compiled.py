"""What XLA compiled for a test is kept for the next run, in a folder outside the tree that all test processes share.

JAX writes an entry in place, so that a process beside it may read half of one. Each process therefore has a folder of its own,
and whole entries are linked from there into the shared one, and from there to all, before every test file and at the end.
A run that is killed leaves nothing half written in the shared folder. `LOWBIT_COMPILED=` (empty) keeps nothing.
"""

import contextlib
import hashlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

MAX_BYTES = 2 << 30
_OWN = "own-"
_DAY = 24 * 3600


def _processor() -> str:
    """What machine code is for: a processor of the same name has other features under another hypervisor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU "))}))


def shared_folder() -> Path | None:
    """The folder for these versions, flags, device count and processor; None where `LOWBIT_COMPILED` is empty."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lowbit", "compiled")
    root = os.environ.get("LOWBIT_COMPILED", str(cache))
    versions = [f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib", "lowbit-kernels")]
    flags = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(("XLA_", "JAX_"))]
    key = "\n".join([platform.machine(), _processor(), *versions, *flags])
    return Path(root, hashlib.sha256(key.encode()).hexdigest()[:16]) if root else None


def prune(root: Path, limit: int = MAX_BYTES) -> None:
    """Deletes what was read longest ago until ``limit`` bytes are left, and the folders of processes that were killed."""
    for own in root.glob(f"*/{_OWN}*"):
        if time.time() - own.stat().st_mtime > _DAY:
            shutil.rmtree(own, ignore_errors=True)
    entries = [(path.stat(), path) for path in root.glob("*/*") if path.is_file()]
    excess = sum(stat.st_size for stat, _ in entries) - limit
    for stat, path in sorted(entries, key=lambda entry: max(entry[0].st_atime, entry[0].st_mtime)):
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= stat.st_size


def link_new(source: Path, target: Path) -> int:
    """Links the entries of one folder that another lacks into it; returns how many."""
    there = set(os.listdir(target))
    missing = [name for name in os.listdir(source) if name not in there and not name.startswith(_OWN)]
    for name in missing:
        with contextlib.suppress(FileExistsError, FileNotFoundError):  # another process linked or pruned it
            os.link(source / name, target / name)
    return len(missing)


class Cache:
    """The plugin: JAX's compilation cache in a folder of this process, exchanged with the shared one."""

    def __init__(self, shared: Path):
        shared.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.shared, self.own = shared, Path(tempfile.mkdtemp(prefix=_OWN, dir=shared))
        link_new(shared, self.own)
        jax.config.update("jax_compilation_cache_dir", str(self.own))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        # A GPU's own caches lie in this folder, and their path would be part of every key: no other process had a hit.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
        compilation_cache.reset_cache()

    def exchange(self) -> None:
        """Gives what this process compiled and takes what others did."""
        link_new(self.own, self.shared)
        link_new(self.shared, self.own)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[Any]:
        result = yield
        if nextitem is None or nextitem.path != item.path:
            self.exchange()
        return result

    def pytest_unconfigure(self) -> None:
        shutil.rmtree(self.own, ignore_errors=True)
