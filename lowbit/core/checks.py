"""Checks on values, where there are values: under a trace they are skipped."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer


def is_traced(x: Any) -> bool:
    """Returns whether ``x`` has no value yet: inside jit, vmap or grad."""
    return isinstance(x, Tracer)


def not_finite(named: Mapping[str, Any]) -> list[str]:
    """Returns the names of trees with a float array that holds NaN or infinity; traced arrays are passed over.

    One program checks everything: a check per array would compile one per shape.

    Example:
        >>> not_finite({"a": jnp.ones(2), "b": {"c": jnp.array([1.0, jnp.inf])}})
        ['b']
    """
    floats = {
        name: [x for x in jax.tree.leaves(tree) if not is_traced(x) and jnp.issubdtype(x.dtype, jnp.floating)]
        for name, tree in named.items()
    }
    floats = {name: arrays for name, arrays in floats.items() if arrays}
    if not floats:
        return []
    with jax.ensure_compile_time_eval():  # arrays that an outer jit closes over have values too
        found = jax.device_get(_are_finite(floats))
    return [name for name, is_finite in found.items() if not is_finite]


@jax.jit
def _are_finite(floats: dict[str, list[Any]]) -> dict[str, Any]:
    found = {name: [jnp.all(jnp.isfinite(x)) for x in arrays] for name, arrays in floats.items()}
    return {name: jnp.all(jnp.array(each, bool)) for name, each in found.items()}
