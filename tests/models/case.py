"""What a public architecture is to lowbit: a function of parameters and arguments, tiny and random."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
    """A model.

    Attributes:
        fn: ``fn(params, *args)``.
        params: its parameters.
        args: its arguments.
        rules: what has to be said beside ``"**": "w8,a8"`` for it to bind: empty where nothing has.
    """

    fn: Callable[..., Any]
    params: Any
    args: tuple[Any, ...]
    rules: Mapping[str, str] = dataclasses.field(default_factory=dict)


def random(shapes: Any) -> Any:
    """Returns a tree of random values for a tree of shapes: scales around one, the rest small, variances positive."""

    def leaf(keys: Any, x: Any) -> Any:
        name = jax.tree_util.keystr(keys)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.zeros(x.shape, x.dtype)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        values = rng.standard_normal(x.shape).astype(np.float32)
        if any(word in name for word in ("scale", "gamma", "var")):
            return jnp.asarray(1 + 0.1 * np.abs(values), x.dtype)
        inputs = max(int(np.prod(x.shape[:-1])), 1) if len(x.shape) > 1 else 100
        return jnp.asarray(values / np.sqrt(inputs), x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def values(seed: int, *shape: int) -> Any:
    """Returns random float32 values."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def tokens(*shape: int, size: int = 90) -> Any:
    """Returns random token numbers, none of them special."""
    return jnp.asarray(np.random.default_rng(7).integers(5, size, shape), jnp.int32)
