"""What is solved so far, in a folder, so that a killed run goes on where it was; read back, every bit is checked."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from lowbit.core import atomic

_SEAL, _NOTE = "lowbit.seal", "lowbit.note"
"""In a file's metadata: the hash of all that it holds, and the text that was given with it."""


def sealed(arrays: Mapping[str, np.ndarray], note: str = "") -> bytes:
    """Returns a safetensors file of named arrays and a text, with a hash of both."""
    whole = {name: np.array(array, order="C") for name, array in arrays.items()}
    return save(whole, {_NOTE: note, _SEAL: _hash(whole, note)})


def opened(content: bytes) -> tuple[dict[str, np.ndarray], str] | None:
    """Returns what `sealed` was given, or None where the content is not exactly that, to the bit."""
    try:
        length = int.from_bytes(content[:8], "little")
        metadata = _metadata(content[8 : 8 + length])
        arrays = load(content)
        note = metadata[_NOTE]
        return (arrays, note) if metadata[_SEAL] == _hash(arrays, note) else None
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError):
        return None


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
        hashed = hashlib.sha256(text.encode())
        for tree in content():
            _add(hashed, tree)
        self.folder = Path(folder) / hashed.hexdigest()[:24]

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """Returns what `keep` kept under a name, or None where there is nothing, or a bit of it has changed."""
        if self.folder is None or not (path := self.folder / f"{name}.safetensors").is_file():
            return None
        content = opened(path.read_bytes())
        return None if content is None else content[0]

    def keep(self, name: str, arrays: dict[str, Any]) -> None:
        """Keeps named arrays, whole or not at all."""
        if self.folder is not None:
            content = sealed({key: np.asarray(value) for key, value in arrays.items()})
            atomic.write_file(self.folder / f"{name}.safetensors", content)


def _metadata(header: bytes) -> dict[str, str]:
    return json.loads(header)["__metadata__"]


def _hash(arrays: Mapping[str, np.ndarray], note: str) -> str:
    hashed = hashlib.sha256(note.encode())
    for name in sorted(arrays):
        array = arrays[name]
        hashed.update(f"\0{name}\0{array.dtype}\0{array.shape}\0".encode())
        hashed.update(array.tobytes())
    return hashed.hexdigest()


def digest(tree: Any) -> str:
    """Returns hexadecimal digits that stand for a tree of arrays: structure, shapes, dtypes and values."""
    hashed = hashlib.sha256()
    _add(hashed, tree)
    return hashed.hexdigest()[:24]


def _add(found: Any, tree: Any) -> None:
    found.update(str(jax.tree.structure(tree)).encode())
    for leaf in jax.tree.leaves(tree):
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
