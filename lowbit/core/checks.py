"""Checks on values, where there are values: under a trace they are skipped."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Law = Callable[[Any, Any], Any]
"""Of numpy or `jax.numpy`, and an array."""


def is_traced(x: Any) -> bool:
    """Returns whether ``x`` has no value yet: inside jit, vmap or grad."""
    return isinstance(x, Tracer)


_FEW = 1 << 20
"""Up to so many values are looked at here, by numpy: a compiled check is one program for every structure of shapes."""


def holds(named: Mapping[str, Sequence[Any]], law: Law) -> dict[str, bool]:
    """Returns by name whether a law holds for all values of all arrays; many are looked at where they are, in one program.

    Args:
        named: arrays with values.
        law: a function of numpy or `jax.numpy`, and an array; it returns booleans.
    """
    arrays = [x for each in named.values() for x in each]
    if sum(np.size(x) for x in arrays) <= _FEW and all(getattr(x, "is_fully_addressable", True) for x in arrays):
        flags = jax.device_get({name: list(each) for name, each in named.items()})
        with np.errstate(all="ignore"):
            return {name: all(bool(np.all(law(np, x))) for x in each) for name, each in flags.items()}
    large = {name: [x for x in each if _is_large(x)] for name, each in named.items()}
    small = {name: [x for x in each if not _is_large(x)] for name, each in named.items()}
    flags = jax.device_get(_hold(small, law))
    return {name: bool(flags[name]) and all(_holds_in_parts(x, law) for x in large[name]) for name in named}


_MANY = 1 << 22
"""So many values are looked at at once: a program writes down a byte of each before it knows of all."""


def _is_large(x: Any) -> bool:
    return isinstance(x, jax.Array) and x.size > _MANY and len(x.sharding.device_set) == 1


def _holds_in_parts(x: jax.Array, law: Law) -> bool:
    along = max(range(x.ndim), key=lambda i: x.shape[i])
    size = max(_MANY * x.shape[along] // x.size, 1)
    if size >= x.shape[along]:
        return bool(_hold({"x": [x]}, law)["x"])
    for start in range(0, x.shape[along], size):
        count = min(size, x.shape[along] - start)
        part = jax.lax.dynamic_slice_in_dim(x, start, count, axis=along)  # compiled once, wherever it starts
        if not bool(_hold({"x": [part]}, law)["x"]):
            return False
    return True


@functools.partial(jax.jit, static_argnames="law")
def _hold(named: dict[str, Sequence[Any]], law: Law) -> dict[str, Any]:
    flags = {name: [jnp.all(law(jnp, x)) for x in each] for name, each in named.items()}
    return {name: jnp.all(jnp.array(each, bool)) for name, each in flags.items()}


def not_finite(named: Mapping[str, Any]) -> list[str]:
    """Returns the names of trees with a float array that holds NaN or infinity; traced arrays are passed over.

    Example:
        >>> not_finite({"a": jnp.ones(2), "b": {"c": jnp.array([1.0, jnp.inf])}})
        ['b']
    """
    floats = {
        name: [x for x in jax.tree.leaves(tree) if not is_traced(x) and jnp.issubdtype(x.dtype, jnp.floating)]
        for name, tree in named.items()
    }
    with jax.ensure_compile_time_eval():  # arrays that an outer jit closes over have values too
        answers = holds({name: arrays for name, arrays in floats.items() if arrays}, _is_finite)
    return [name for name, is_finite in answers.items() if not is_finite]


def _is_finite(numpy: Any, x: Any) -> Any:
    return numpy.isfinite(x)
