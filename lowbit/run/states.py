"""Trees of arrays in one safetensors file, written whole or not at all, and checked when read back."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lowbit.core import atomic
from lowbit.core.kept import opened, sealed


def save_tree(path: Path, tree: Any, **meta: Any) -> None:
    """Writes the leaves of ``tree`` in order, and ``meta`` as JSON; a kill leaves the old file or the new one."""
    leaves = {f"leaf_{i:05d}": _array(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
    atomic.write(path, sealed(leaves, json.dumps(meta, sort_keys=True)))


def load_tree(path: Path, like: Any, key: str) -> tuple[Any, dict[str, Any]] | None:
    """Returns the tree that `save_tree` wrote, with the structure of ``like``, and its ``meta``.

    Returns:
        The tree, or None if there is no such file, a bit of it is another than was written, it was written with another
        ``key``, or its leaves do not fit ``like``: in each case the caller computes it again.
    """
    try:
        found = opened(path.read_bytes())
    except OSError:
        return None
    if found is None:
        return None
    stored, meta = found[0], json.loads(found[1])
    leaves, structure = jax.tree.flatten(like)
    names = sorted(stored)
    if meta.get("key") != key or [(x.shape, x.dtype) for x in map(_array, leaves)] != [
        (stored[name].shape, stored[name].dtype) for name in names
    ]:
        return None
    tree = jax.tree.unflatten(structure, [_like(leaf, stored[name]) for leaf, name in zip(leaves, names, strict=True)])
    return tree, meta


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _array(leaf: Any) -> np.ndarray:
    """A leaf as an array of numbers: of a random key, its data."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _like(leaf: Any, stored: np.ndarray) -> jax.Array:
    array = jax.numpy.asarray(stored)
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else array


class State:
    """The state of one training, after every epoch.

    Args:
        path: of its file.
        key: what the training depends on.
        commit: of lowbit, which made it.
        accept_stale: also go on from what another commit left.
    """

    def __init__(self, path: Path, key: str, commit: str | None = None, *, accept_stale: bool = False):
        self.path, self.key, self.commit, self.accept_stale = path, key, commit, accept_stale

    def load(self, like: Any) -> tuple[Any, int] | None:
        """Returns a tree as ``like`` and the number of epochs after which it was kept; None where there is none to go on from."""
        found = load_tree(self.path, like, self.key)
        if found is None or (found[1].get("commit") != self.commit and not self.accept_stale):
            return None
        return found[0], int(found[1]["epochs"])

    def save(self, tree: Any, epochs: int) -> None:
        """Keeps a tree."""
        save_tree(self.path, tree, key=self.key, epochs=epochs, commit=self.commit)
