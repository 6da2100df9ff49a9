"""Named roundings: what `nearest` of a format may do at and between its levels."""

import functools
from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from lowbit.core.qtensor import Nearest
from lowbit.core.rounding import half_away, nearest_even, stochastic
from lowbit.core.spec import Format

Round = Callable[[Array], Array]
"""From float32 to the nearest whole numbers, by some rule, with the gradient of the identity."""

ROUNDINGS: dict[str, Round] = {"nearest_even": nearest_even, "half_away": half_away}
"""``nearest_even`` (default; ml_dtypes, hardware); ``half_away`` (ties away from zero; microxcaling)."""


def rounding_named(name: str) -> Round:
    """Returns the rounding of this name.

    Raises:
        ValueError: naming the known ones.
    """
    if name not in ROUNDINGS:
        raise ValueError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {name!r}")
    return ROUNDINGS[name]


def check_rounds(format: Format, rounding: str) -> None:
    """Raises ValueError unless ``format`` can round as named; codebooks have no ties rule but their own."""
    rounding_named(rounding)
    if rounding != "nearest_even" and not format.has_rounding:
        raise ValueError(f"{format.name} has its own nearest level; rounding must be 'nearest_even', got {rounding!r}")


def nearest_of(format: Format, rounding: str) -> Nearest:
    """Returns ``format.nearest`` with a named rounding.

    Example:
        >>> from lowbit.formats.integer import Integer
        >>> import jax.numpy as jnp
        >>> nearest_of(Integer(4), "half_away")(jnp.array(2.5), -8.0, 7.0).item()
        3.0
    """
    check_rounds(format, rounding)
    if rounding == "nearest_even":
        return format.nearest
    nearest: Any = format.nearest  # a format that `has_rounding` takes round=
    return functools.partial(nearest, round=rounding_named(rounding))


def stochastic_nearest(format: Format, key: Array) -> Nearest:
    """Returns ``format.nearest`` with stochastic rounding: the expected level is the value, within the levels.

    Args:
        format: integers and floats.
        key: a typed key.

    Raises:
        ValueError: for codebooks.
    """
    if not format.has_rounding:
        raise ValueError(f"stochastic rounding needs an integer or float format, got {format.name}")
    nearest: Any = format.nearest
    return functools.partial(nearest, round=functools.partial(stochastic, key=key))
