"""Weights of ordinary plans in the kernels' order, remembered between calls of `lowbit.execute`. Changes no number."""

import functools
import weakref
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.core.checks import is_traced
from lowbit.interpret.trace import Args, Kwargs
from lowbit.packed import native
from lowbit.packed.arena import of_native_calls
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan

from .fused import fused
from .implementations import ANYWHERE
from .kernel_orders import Orders, TraceOf


class Prepared:
    """The prepared form of the last packed weights of a plan, by weight, as long as the weights' own arrays live.

    A weight is known by the identity of its arrays, which nothing can change in place; the containers around them can
    change, and are not looked at. Where an array can be changed in place (numpy's), nothing is remembered. See
    `lowbit.interpret.kernel_orders.KernelOrders`.
    """

    advice = (
        "so that these operations run in plain XLA, 10 to 40 times slower: call qparams = lowbit.prepare(plan, qparams) "
        "outside jax.jit, or let"
    )

    def __init__(self, plan: Plan):
        self.plan = plan
        self.known: dict[tuple[str, str], tuple[tuple[weakref.ref[Any], ...], Any]] = {}

    def platform(self, implementation: str | None, platform: str) -> str | None:
        """Returns the platform, unless the implementation has no kernels or this machine's lack."""
        is_missing = platform == "cpu" and native.status() is not None
        return None if implementation in ANYWHERE or is_missing else platform

    def __call__(self, qparams: QParams, args: Args, kwargs: Kwargs, platform: str) -> dict[str, Any]:
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

    def attached(self, qparams: QParams, orders: Orders) -> QParams:
        """Returns the parameters with the orders of weights beside these."""
        return native.attached(qparams, orders) if orders else qparams

    def on_cpu(self, trace_of: TraceOf, qparams: QParams, args: Any, kwargs: Any, orders: Orders) -> Any:
        """Returns one call's result, what follows native products being inside them."""
        return fused(functools.partial(trace_of, where="cpu"), qparams, args, kwargs)

    def read_alone(self, qparams: QParams, orders: Orders) -> list[bool]:
        """Returns which arrays native calls alone read: weights, and the grids of inputs."""
        return of_native_calls(self.plan, qparams, orders)

    def unprepared(self, qparams: QParams, args: Args, kwargs: Kwargs) -> list[str]:
        """Returns the operations whose weights are packed only."""
        weights = qparams.weights()
        paths = []
        for row in self.plan.quantized:
            site = row.weight
            if site is not None and site.key in weights and native.why_not(row, site) is None:
                paths += [] if native.is_for(weights[site.key], "cpu") else [row.path]
        return paths

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
