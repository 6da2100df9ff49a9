"""What a number depends on besides the config: versions, device, commit."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from lowbit.packed.machine import processor

PACKAGES = (
    "lowbit", "lowbit-kernels", "jax", "jaxlib", "flax", "optax", "numpy", "safetensors",
    "iree-base-compiler", "iree-base-runtime",
)  # fmt: skip
NUMERIC = ("python", "jax", "jaxlib", "flax", "optax", "numpy")
"""Of them, those whose other version may give other numbers: part of what a piece is known by."""


def environment() -> dict[str, Any]:
    """Returns versions, device and commit."""
    device = jax.devices()[0]
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "cpu": processor(),
            "cores": os.cpu_count(),
        },
        "system": platform.platform(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        **_commit(),
    }


def command() -> str:
    """Returns the command that this process runs, as one types it."""
    words = sys.argv[1:] if Path(sys.argv[0]).name in ("lowbit", "__main__.py") else sys.argv
    return shlex.join(words if words is sys.argv else ["lowbit", *words])


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> dict[str, Any]:
    """Of lowbit's own repository; None where lowbit was installed from a wheel."""
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent)]
    try:  # only of a repository that holds this file: a copy may lie in another one's folder
        subprocess.run([*command, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        commit = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*command, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit.stdout.strip(), "dirty": bool(changes.stdout.strip())}
