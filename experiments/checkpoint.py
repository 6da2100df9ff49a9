"""Trees of arrays in one safetensors file, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lowbit.core.atomic import replacing


def save_tree(path: Path, tree: Any, **meta: Any) -> None:
    """Writes the leaves of ``tree`` in order, and ``meta`` as JSON; a kill leaves the old file or the new one."""
    leaves = {f"leaf_{i:05d}": _array(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
    with replacing(path) as part:
        save_file(leaves, part, metadata={"experiment": json.dumps(meta)})


def load_tree(path: Path, like: Any, **meta: Any) -> Any | None:
    """Returns the tree that `save_tree` wrote, with the structure of ``like``.

    Returns:
        The tree, or None if there is no such file, it is damaged, it was written with another ``meta``, or its
        leaves do not fit ``like``: in each case the caller computes it again.
    """
    if read_meta(path) != meta:
        return None
    leaves, structure = jax.tree.flatten(like)
    stored = load_file(path)
    if [(x.shape, x.dtype) for x in map(_array, leaves)] != [
        (stored[k].shape, stored[k].dtype) for k in sorted(stored)
    ]:
        return None
    return jax.tree.unflatten(
        structure, [_like(leaf, stored[name]) for leaf, name in zip(leaves, sorted(stored), strict=True)]
    )


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _array(leaf: Any) -> np.ndarray:
    """A leaf as an array of numbers: of a random key, its data."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _like(leaf: Any, stored: np.ndarray) -> jax.Array:
    array = jax.numpy.asarray(stored)
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else array


def read_meta(path: Path) -> dict[str, Any] | None:
    """Returns the ``meta`` a file was written with, or None if there is no such file or it is damaged."""
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            return json.loads((file.metadata() or {})["experiment"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
