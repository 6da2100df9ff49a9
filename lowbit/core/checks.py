"""Checks on values, where there are values: under a trace they are skipped."""

from typing import Any

import jax.numpy as jnp
from jax.core import Tracer


def is_traced(x: Any) -> bool:
    """Returns whether ``x`` has no value yet: inside jit, vmap or grad."""
    return isinstance(x, Tracer)


def is_finite(x: Any) -> bool:
    """Returns whether a float array holds neither NaN nor infinity; True for traced arrays and for other dtypes."""
    if is_traced(x) or not jnp.issubdtype(x.dtype, jnp.floating):
        return True
    return bool(jnp.all(jnp.isfinite(x)))
