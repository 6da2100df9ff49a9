"""The test vectors of an export: the example call, and more like it where one call says little.

One image tells little about a network whose results are close and not exact: 87 of 397 images were off by up to .05 where the
first was off by nothing. Where the example is a batch of one there are `COUNT` calls, and every target is compared on all.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .signature import Call

COUNT = 64
"""Calls where the example is a batch of one."""

_BYTES = 1 << 24
"""What made test vectors may take, results included: a decoder's cache is an argument and a result of every call."""


def of_call(call: Call, given: Sequence[Sequence[Any]], results: Sequence[Any] = ()) -> list[list[jax.Array]]:
    """Returns the flat inputs of every test vector: the example's, then those given, then made ones up to `COUNT`.

    Made ones lie within the range of the example's values: mixes of a float array with itself in another order, times a
    factor of 1/4 to 1; of integers and truth values the same in another order, so that indices stay indices. Arrays with
    infinities, which masks have, stay as they are; an example without values gets standard normals.

    Args:
        call: the exported call.
        given: arguments of further calls, all of them, constants included.
        results: shapes and dtypes of a call's results: where all would take more than 16 MB, fewer calls are made.

    Raises:
        ValueError: if a given call has other inputs than the example.
    """
    first = call.vectors()
    cases = [first, *(_flat(call, args, i) for i, args in enumerate(given))]
    if not _is_batch_of_one(call):
        return cases
    rng = np.random.default_rng(2)
    size = sum(math.prod(map(int, x.shape)) * x.dtype.itemsize for x in (*first, *results))
    while len(cases) < min(COUNT, max(_BYTES // max(size, 1), 1)):
        drawn = zip(call.leaves, first, strict=True)
        cases.append([_like(x, rng, has_values=not isinstance(leaf, jax.ShapeDtypeStruct)) for leaf, x in drawn])
    return cases


def _is_batch_of_one(call: Call) -> bool:
    """Whether the first array among the inputs begins with an axis of length 1; so do calls of scalars alone."""
    leading = (leaf.shape[0] for leaf in call.leaves if len(leaf.shape) > 0)
    return next(leading, 1) == 1


def _like(x: jax.Array, rng: np.random.Generator, *, has_values: bool) -> jax.Array:
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    if not has_values:
        return jnp.asarray(rng.normal(size=x.shape) if is_float else rng.integers(0, 2, x.shape), x.dtype)
    if not is_float:
        return jnp.asarray(rng.permutation(np.asarray(x).reshape(-1)).reshape(x.shape))
    values = np.asarray(x, np.float64)
    if not np.isfinite(values).all():
        return x
    share, factor = rng.uniform(size=2)
    other = rng.permutation(values.reshape(-1)).reshape(values.shape)
    return jnp.asarray((0.25 + 0.75 * factor) * (share * values + (1.0 - share) * other), x.dtype)


def _flat(call: Call, args: Any, index: int) -> list[jax.Array]:
    if not isinstance(args, tuple | list) or len(args) != len(call.args):
        raise ValueError(
            f"vectors[{index}] must be a tuple of {len(call.args)} arguments, as args is, got "
            f"{len(args) if isinstance(args, tuple | list) else type(args).__name__}"
        )
    moving = [arg for i, arg in enumerate(args) if i not in call.constant]
    leaves, tree = jax.tree.flatten(moving)
    wanted = [(tuple(x.shape), str(x.dtype)) for x in call.leaves]
    got = [(tuple(np.shape(x)), str(getattr(x, "dtype", type(x).__name__))) for x in leaves]
    if tree != call.tree or got != wanted:
        raise ValueError(f"vectors[{index}] must have the inputs of args, {wanted}, got {got}")
    return [jnp.asarray(x) for x in leaves]


def stacked(cases: Sequence[Sequence[Any]]) -> list[Any]:
    """Returns the flat arrays of all calls, along a first axis that counts them; those of one call as they are."""
    if len(cases) == 1:
        return list(cases[0])
    return [np.stack([np.asarray(x) for x in column]) for column in zip(*cases, strict=True)]
