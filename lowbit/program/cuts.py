"""Values that all the data behind a value goes through: what a view of it as a function of one leaf can stop at."""

import heapq
from collections.abc import Mapping

import jax.numpy as jnp

from . import primitives
from .axes import rooted, stripped
from .read import Equation, Value

_DEEP = 96
"""Equations behind a value that are looked at: as many as `lowbit.program.canonical.View` looks at."""

_REDUCTIONS = ("reduce_max", "reduce_sum")


class Cuts:
    """Finds them, and remembers which values hold integers and constants alone.

    Args:
        order: of all equations.
    """

    def __init__(self, order: Mapping[Equation, int]):
        self.order = order
        self.free: dict[Value, bool] = {}

    def of(self, value: Value) -> set[Value] | None:
        """Returns the values that every path from ``value`` back to a product or an input goes through; None: not known.

        The sweep goes from the last equation to the first: where one value is left to be looked at, all goes through it. It
        ends at what is no elementwise equation, reduction or movement, so that a sum on a residual stream is a step or two.
        """
        value, _ = stripped(value, rooted(value))
        cuts: set[Value] = set()
        seen, todo = {value}, [(-self._place(value), 0, value)]
        for count in range(_DEEP):
            if not todo:
                break
            _, _, now = heapq.heappop(todo)
            if not todo:
                cuts.add(now)
            source = now.source
            if source is None or not _is_seen_through(source):
                break
            if source.name == "select_n" and not source.ins[0].is_data:  # it may be known which case is taken
                return None
            for i, operand in enumerate(source.ins):
                inner, _ = stripped(operand, rooted(operand))
                if inner not in seen and not self.is_free(inner):
                    seen.add(inner)
                    heapq.heappush(todo, (-self._place(inner), len(source.ins) * count + i, inner))
        return cuts

    def is_free(self, value: Value, depth: int = 0) -> bool:
        """Returns whether a value is no float, or computed without any float that depends on data."""
        if not value.is_data or not jnp.issubdtype(value.dtype, jnp.floating):
            return True
        if value not in self.free:
            source = value.source
            self.free[value] = (
                source is not None
                and depth < _DEEP
                and _is_seen_through(source)
                and all(self.is_free(v, depth + 1) for v in source.ins)
            )
        return self.free[value]

    def _place(self, value: Value) -> int:
        return -1 if value.source is None else self.order.get(value.source, -1)


def _is_seen_through(equation: Equation) -> bool:
    return equation.name in primitives.ELEMENTWISE or equation.name in primitives.MOVES or equation.name in _REDUCTIONS
