"""Random float32 arrays, drawn by numpy: XLA compiles a generator anew for every shape, Student's t for two seconds."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def heavy_tailed(seed: int | tuple[int, ...], *shape: int, freedom: float = 4.0) -> jax.Array:
    """Student's t: outliers that a scale has to reach, or to clip."""
    return jnp.asarray(np.random.default_rng(seed).standard_t(freedom, shape), jnp.float32)


def variables(module: nn.Module, *args: Any) -> Any:
    """What ``module.init`` makes, drawn here: kernels of unit gain; scales and variances 1, other vectors 0."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)
    rng = np.random.default_rng(0)

    def drawn(keys: Any, leaf: Any) -> jax.Array:
        if leaf.ndim > 1:
            return jnp.asarray(rng.standard_normal(leaf.shape) * math.prod(leaf.shape[:-1]) ** -0.5, leaf.dtype)
        return jnp.full(leaf.shape, keys[-1].key in ("scale", "var"), leaf.dtype)

    return jax.tree_util.tree_map_with_path(drawn, shapes)


def kernel_init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32, **_: Any) -> jax.Array:
    """An initializer for Flax nnx, which makes its parameters at once: a kernel of unit gain, another for every shape."""
    del key
    return jnp.asarray(np.random.default_rng(shape).standard_normal(shape) * math.prod(shape[:-1]) ** -0.5, dtype)
