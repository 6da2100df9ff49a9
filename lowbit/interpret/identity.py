"""`identity`: the walk that changes nothing, in value and gradient. What every other interpretation is measured against."""

from collections.abc import Callable
from typing import Any

import jax

from .trace import Model, trace
from .walk import Walk


def identity(fn: Model) -> Callable[..., Any]:
    """Returns a function equal to ``fn``, evaluated by the walk through every call that holds an operation."""

    def run(params: Any, *args: Any, **kwargs: Any) -> Any:
        traced = trace(fn, params, args, kwargs)
        paths = frozenset(op.path for op in traced.inventory.operations)
        walk = Walk(traced.inventory, lambda op, values, state: (op.rebind(values), state), paths, inside="keep")
        outs, _ = walk.run(traced.leaves, {})
        return jax.tree.unflatten(traced.out_tree, outs)

    return run
