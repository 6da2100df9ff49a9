"""The calls of `lowbit.execute`: what is made of packed parameters once, and served as long as their arrays live."""

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax

from lowbit.core.checks import is_traced
from lowbit.interpret.trace import Args, Kwargs
from lowbit.packed.arena import Layout, arranged
from lowbit.packed.platforms import by_platform
from lowbit.packed.trees import QParams

from .kernel_orders import KernelOrders, Orders, TraceOf
from .near import Near

Call = Callable[[Args, Kwargs], Any]
"""``(args, kwargs) -> result``."""


class Served:
    """One plan's compiled calls.

    A call with the arrays of the last one costs a look at their identities: containers may have changed, arrays cannot.

    Args:
        trace_of: one call, under jit.
        orders: the plan's weights in the kernels' order.
    """

    def __init__(self, trace_of: TraceOf, orders: KernelOrders):
        self.trace_of, self.orders = trace_of, orders
        self.compiled: dict[Any, Any] = {}
        self.last: _Last | None = None

    def known(self, qparams: Any, args: Args, kwargs: Kwargs) -> Call | None:
        """Returns the call where these parameters, and as many arguments, were served last; None otherwise."""
        last = self.last
        if last is None or not isinstance(qparams, QParams) or last.given != (len(args), tuple(kwargs)):
            return None
        if (near := last.near) is not None and last.owner() is qparams and near.is_unchanged(qparams):
            return functools.partial(last.call, near.others, last.arena)
        leaves, tree = jax.tree.flatten(qparams)
        if list(map(id, leaves)) != last.ids or tree != last.tree or self.last is not last:
            return None
        return functools.partial(last.call, last.layout.apart([*leaves, *last.held]), last.arena)

    def prepared(self, qparams: QParams, args: Args, kwargs: Kwargs, where: str | None, kernels: str | None) -> Call:
        """Returns the call for packed parameters.

        Args:
            qparams: packed parameters.
            args: the arguments.
            kwargs: the keyword arguments.
            where: the platform that it is traced for; None is chosen when lowered.
            kernels: into whose kernels' order weights are put where they are not yet; None for none.
        """
        orders: Orders = {} if kernels is None else self.orders(qparams, args, kwargs, kernels)
        leaves, tree = jax.tree.flatten(qparams)
        held, order_tree = jax.tree.flatten(orders)
        arrays = [*leaves, *jax.tree.leaves((args, kwargs))]
        stays = where is not None and all(isinstance(x, jax.Array) for x in leaves) and not any(map(is_traced, arrays))
        layout, arena = Layout(len(leaves) + len(held)), None
        if stays and where == kernels == "cpu":
            layout, arena = arranged([*leaves, *held], self.orders.read_alone(qparams, orders))
        key = tree, order_tree, layout, where, kernels
        if key not in self.compiled:
            self.compiled[key] = self.compile(tree, order_tree, layout, where, kernels)
        call, others = self.compiled[key], layout.apart([*leaves, *held])
        if stays:
            given = len(args), tuple(kwargs)
            self.last = _Last(qparams, leaves, tree, held, layout, arena, call, given, Near.of(qparams, others), self)
        return lambda args, kwargs: call(others, arena, args, kwargs)

    def compile(self, tree: Any, order_tree: Any, layout: Layout, where: str | None, kernels: str | None) -> Any:
        """Returns the jitted call for parameters of a structure."""
        count = tree.num_leaves

        @jax.jit
        def compiled(others, arena, args, kwargs):
            arrays = layout.together(others, arena)
            qparams, orders = jax.tree.unflatten(tree, arrays[:count]), jax.tree.unflatten(order_tree, arrays[count:])
            given = self.orders.attached(qparams, orders), args, kwargs

            def plain(given, orders):
                del orders
                return self.trace_of(*given, where=where, is_fused=False)

            def on_cpu(given, orders):
                qparams, args, kwargs = given
                return self.orders.on_cpu(self.trace_of, qparams, args, kwargs, orders)

            if kernels != "cpu":  # nothing is placed
                return plain(given, orders)
            if where is not None:
                return on_cpu(given, orders)
            return by_platform({"cpu": on_cpu}, plain, jax.eval_shape(plain, given, orders), given, orders)

        return compiled


class _Last:
    """The parameters of the last call, known by their arrays' identities; forgotten when one of them dies."""

    def __init__(
        self,
        qparams: QParams,
        leaves: Sequence[Any],
        tree: Any,
        held: Sequence[Any],
        layout: Layout,
        arena: Any,
        call: Any,
        given: Any,
        near: Near | None,
        owner: Served,
    ):
        self.ids, self.tree, self.held, self.layout, self.arena = list(map(id, leaves)), tree, held, layout, arena
        self.call, self.given, self.near = call, given, near
        me, home = weakref.ref(self), weakref.ref(owner)

        def forget(_: Any) -> None:
            owner = home()
            if owner is not None and owner.last is me():
                owner.last = None

        def part(_: Any) -> None:
            if (last := me()) is not None:
                last.near = None

        self.owner = weakref.ref(qparams, part)
        self.refs = [weakref.ref(leaf, forget) for leaf in leaves]
