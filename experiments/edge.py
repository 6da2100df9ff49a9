"""The edge compiler: an exported module through IREE, for the CPU of this machine."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from lowbit.core import atomic
from lowbit.export import iree


def require(*, without: str = "edge_images=0") -> None:
    """Raises ImportError, naming what to install, if the compiler or its runtime is missing.

    Args:
        without: the setting of a config that leaves IREE out.
    """
    try:
        is_there = iree.is_installed()
    except ModuleNotFoundError:  # find_spec of a submodule imports its parent
        is_there = False
    if not is_there:
        raise ImportError(
            "the edge compiler IREE is not installed: pip install 'lowbit[export]', "
            f"or leave that part out with --set {without}"
        )


def compiled(artifact: bytes, target: Path) -> Path:
    """Compiles a portable artifact to ``target`` and returns it."""
    atomic.write(target, iree.compile_artifact(artifact))
    return target


def loaded(target: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Returns ``f(x) -> y`` that runs the compiled module's ``main`` on one core."""
    from iree import runtime

    config = runtime.Config("local-sync")
    module = runtime.load_vm_module(runtime.VmModule.mmap(config.vm_instance, str(target)), config)

    def call(x: np.ndarray) -> np.ndarray:
        y = module.main(x)
        return y.to_host().copy()  # to_host() is a view of memory that goes with y

    return call
