"""What is known of values without evaluating a model: constants that depend on no input, and what is of integers alone."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from . import compat
from .read import Value


def written_value(value: Value) -> Any:
    """Returns a constant that depends on no input, before it was spread; None of others."""
    while value.source is not None and value.source.name in ("broadcast_in_dim", "reshape"):
        value = value.source.ins[0]
    return full_value(value)


def full_value(value: Value) -> Any:
    """Returns a constant that depends on no input, of its own shape; None of others."""
    if value.source is None:
        return None if value.value is None or isinstance(value.value, jax.core.Tracer) else np.asarray(value.value)
    if value.is_data:
        return None
    values = [full_value(v) for v in value.source.ins]
    if any(v is None for v in values):
        return None
    with jax.ensure_compile_time_eval():
        results = compat.rebind(value.source.eqn, [jnp.asarray(v) for v in values])
    return np.asarray(results[value.source.outs.index(value)])


def is_integral(value: Value, _seen: dict[Value, bool] | None = None) -> bool:
    """Returns whether a value is constant, or computed of integers and booleans alone."""
    seen: dict[Value, bool] = {} if _seen is None else _seen
    if not value.is_data:
        return True
    if value not in seen:
        seen[value] = False
        source = value.source
        if not jnp.issubdtype(value.dtype, jnp.floating):
            seen[value] = source is None or (source.call is None and all(is_integral(v, seen) for v in source.ins))
    return seen[value]
