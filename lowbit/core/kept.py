"""What is solved so far, in a folder, so that a killed run goes on where it was."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load, save

from lowbit.core import atomic


class Kept:
    """Solved windows of one run, in ``folder/<fingerprint>``; nothing where ``folder`` is None.

    The fingerprint is of a text and of every array that the run depends on: of another run, nothing is found. A function
    that it depends on is known by what it makes of the data.

    Args:
        folder: where; None: nowhere, and ``content`` is not asked for.
        text: the plan's fingerprint, the method and its hyper-parameters.
        content: trees of arrays, one after the other: parameters, all batches, results of functions.
    """

    def __init__(self, folder: str | Path | None, text: str, content: Callable[[], Iterable[Any]]):
        self.folder = None
        if folder is None:
            return
        found = hashlib.sha256(text.encode())
        for tree in content():
            _add(found, tree)
        self.folder = Path(folder) / found.hexdigest()[:24]

    def read(self, name: str) -> dict[str, np.ndarray] | None:
        """Returns what `write` kept under a name, or None."""
        if self.folder is None or not (path := self.folder / f"{name}.safetensors").is_file():
            return None
        return load(path.read_bytes())

    def write(self, name: str, arrays: dict[str, Any]) -> None:
        """Keeps named arrays, whole or not at all."""
        if self.folder is not None:
            content = save({key: np.array(value, order="C") for key, value in arrays.items()})
            atomic.write(self.folder / f"{name}.safetensors", content)


def digest(tree: Any) -> str:
    """Returns hexadecimal digits that stand for a tree of arrays: structure, shapes, dtypes and values."""
    found = hashlib.sha256()
    _add(found, tree)
    return found.hexdigest()[:24]


def _add(found: Any, tree: Any) -> None:
    found.update(str(jax.tree.structure(tree)).encode())
    for leaf in jax.tree.leaves(tree):
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
