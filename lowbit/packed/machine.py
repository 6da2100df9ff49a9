"""What decides how long a kernel takes on this machine."""

import functools
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

import jax

from lowbit_kernels.cpu.library import ISA_VARIABLE, status
from lowbit_kernels.platforms import processor as processor


def machine() -> dict[str, str]:
    """Returns processor, cores, system, device, instruction set, the kernels' library, and versions, as text."""
    native = status()
    return {
        "processor": processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "device": f"{jax.default_backend()} {jax.devices()[0].device_kind}",
        "instruction set": os.environ.get(ISA_VARIABLE) or next(iter(native.isas), "none"),
        "kernels": _hash_of(native.path) if native.path else f"none: {native.reason}",
        "lowbit": importlib.metadata.version("lowbit"),
        "jax": jax.__version__,
    }


@functools.cache
def _hash_of(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
