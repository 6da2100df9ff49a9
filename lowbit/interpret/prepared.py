"""Weights in the kernels' order, remembered between calls of `lowbit.execute`. Changes no number."""

import weakref
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.core.checks import is_traced
from lowbit.packed import native
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan


class Prepared:
    """The prepared form of the last packed weights of a plan, by weight, as long as the weights' own arrays live.

    A weight is known by the identity of its arrays, which nothing can change in place; the containers around them can
    change, and are not looked at. Where an array can be changed in place (numpy's), nothing is remembered.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self.known: dict[tuple[str, str], tuple[tuple[weakref.ref[Any], ...], Any]] = {}

    def __call__(self, qparams: QParams, platform: str = "cpu") -> dict[str, Any]:
        """Returns the form of a platform's kernels of every weight that needs one, by key; none under a trace."""
        orders = {}
        for key, (q, row, site) in native.candidates(self.plan, qparams, platform).items():
            arrays = jax.tree.leaves(q)
            if any(is_traced(x) for x in arrays):
                continue
            sources, order = self.known.get((key, platform), ((), None))
            if len(sources) != len(arrays) or any(ref() is not x for ref, x in zip(sources, arrays, strict=True)):
                order = apart(native.order_of(q, row, site, platform.removesuffix("-interpreter")), arrays)
                self.known.pop((key, platform), None)
                if all(isinstance(x, jax.Array) for x in arrays):
                    place = (key, platform)
                    self.known[place] = tuple(weakref.ref(x, self._forgetter(place)) for x in arrays), order
            orders[key] = order
        return orders

    def _forgetter(self, key: tuple[str, str]) -> Any:
        me = weakref.ref(self)

        def forget(dead: Any) -> None:
            known = {} if (memo := me()) is None else memo.known
            if any(ref is dead for ref in known.get(key, ((), None))[0]):
                del known[key]

        return forget


def apart(order: Any, arrays: list[Any]) -> Any:
    """Returns the same tree, holding none of the arrays it was made from: a compiled program may hand its argument back as it is."""
    mine = {id(x) for x in arrays}
    with jax.ensure_compile_time_eval():
        return jax.tree.map(lambda x: jnp.array(x, copy=True) if id(x) in mine else x, order)
