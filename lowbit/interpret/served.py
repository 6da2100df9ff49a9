"""The calls of `lowbit.execute`: what is made of packed parameters once, and served as long as their arrays live."""

import dataclasses
import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.core.checks import is_traced
from lowbit.core.meshes import explicit_mesh
from lowbit.packed import native
from lowbit.packed.arena import Layout, Placed, arranged, array_of
from lowbit.packed.platforms import by_platform
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan
from lowbit.program.read import read

from . import fuse
from .near import Near
from .prepared import Prepared

Trace = Callable[..., Any]
"""``(qparams, args, kwargs, where=, is_fused=) -> result``: `where` is the platform it is traced for."""

Fixed = Callable[[QParams, Sequence[Any], Mapping[str, Any]], Mapping[str, Any]]
"""``(qparams, args, kwargs) -> {path: weight in the kernels' order}``."""

Call = Callable[[Sequence[Any], Mapping[str, Any]], Any]
"""``(args, kwargs) -> result``."""


class Served:
    """One plan's compiled calls.

    A call with the arrays of the last one costs a look at their identities: containers may have changed, arrays cannot.

    Args:
        plan: the plan.
        trace_of: one call, under jit.
        fixed: of a full-integer plan: its operations on the native kernels.
    """

    def __init__(self, plan: Plan, trace_of: Trace, fixed: Fixed | None = None):
        self.trace_of, self.fixed = trace_of, fixed
        self.orders = Prepared(plan)
        self.compiled: dict[Any, Any] = {}
        self.last: _Last | None = None

    def known(self, qparams: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
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

    def prepared(
        self, qparams: QParams, args: Sequence[Any], kwargs: Mapping[str, Any], where: str | None, kernels: str | None
    ) -> Call:
        """Returns the call for packed parameters.

        Args:
            qparams: packed parameters.
            args: the arguments.
            kwargs: the keyword arguments.
            where: the platform that it is traced for; None is chosen when lowered.
            kernels: into whose kernels' order weights are put where they are not yet; None for none.
        """
        orders: Mapping[str, Any] = {}
        if kernels is not None:
            orders = self.orders(qparams, kernels) if self.fixed is None else self.fixed(qparams, args, kwargs)
        leaves, tree = jax.tree.flatten(qparams)
        held, order_tree = jax.tree.flatten(orders)
        arrays = [*leaves, *jax.tree.leaves((args, kwargs))]
        stays = where is not None and all(isinstance(x, jax.Array) for x in leaves) and not any(map(is_traced, arrays))
        layout, arena = Layout(len(leaves) + len(held)), None
        if stays and where == kernels == "cpu":
            layout, arena = arranged(self.orders.plan, qparams, leaves, held, orders)
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
            fixed = orders if self.fixed is not None else None
            qparams = native.attached(qparams, orders) if orders and fixed is None else qparams

            def plain(given, fixed):
                del fixed
                return self.trace_of(*given, where=where, is_fused=False)

            def on_cpu(given, fixed):
                if fixed is not None:
                    return self.trace_of(*given, where="cpu", is_fused=False, orders=fixed)
                return fused(functools.partial(self.trace_of, where="cpu"), *given)

            given = qparams, args, kwargs
            if kernels != "cpu":  # nothing is placed
                return plain(given, fixed)
            if where is not None:
                return on_cpu(given, fixed)
            like = jax.eval_shape(plain, given, fixed)
            return by_platform({"cpu": on_cpu}, plain, like, given, fixed)

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


def fused(trace_of: Trace, qparams: QParams, args: Any, kwargs: Any) -> Any:
    """Returns one call's result, what follows its products being inside their native calls: the same bits, and gradients.

    The derivative is that of the operations one by one, as `lowbit.interpret.derivative` has it.
    """
    count = len(jax.tree.leaves(qparams))
    flat, tree = jax.tree.flatten((qparams, args, kwargs))
    arenas = [x.arena for x in flat if isinstance(x, Placed)][:1]

    def one_by_one(*flat: Any) -> Any:
        return trace_of(*jax.tree.unflatten(tree, map(array_of, flat)), is_fused=False)

    def products(*flat: Any) -> Any:
        return trace_of(*jax.tree.unflatten(tree, flat), is_fused=True)

    apart = [x for x in flat if not isinstance(x, Placed)]
    if explicit_mesh(apart) is not None:  # every product's results are spread in their types again: none joins another
        return one_by_one(*flat)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, Placed) else x for x in flat]
    closed, out_shapes = jax.make_jaxpr(products, return_shape=True)(*shapes)
    program = read(closed, fixed=count)
    if not fuse.has_product(program):
        return one_by_one(*flat)
    out_tree = jax.tree.structure(out_shapes)
    # What nothing reads, such as the packed form of a prepared weight, is no argument: each costs time in every call.
    read_here = [i for i, v in enumerate(program.inputs) if v in program.readers or _is_key(flat[i])]
    avals = [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) if not _is_key(x) else None for x in shapes]
    passed = [i for i in read_here if not isinstance(flat[i], Placed)]

    def whole(given: Sequence[Any]) -> list[Any]:
        *others, arena = given if arenas else (*given, None)
        values: dict[int, Any] = dict(zip(passed, others, strict=True))
        values |= {i: dataclasses.replace(x, arena=arena) for i in read_here if isinstance(x := flat[i], Placed)}
        return [values[i] if i in values else jnp.zeros(a.shape, a.dtype) for i, a in enumerate(avals)]  # pyright: ignore[reportOptionalMemberAccess] (of keys, which are all read)

    @jax.custom_vjp
    def run(*given: Any) -> Any:
        return jax.tree.unflatten(out_tree, fuse.run(program, whole(given)))

    def forward(*given: Any) -> Any:
        return run(*given), given

    def backward(given: Any, gradient: Any) -> Any:
        moving = [i for i, x in enumerate(given) if jnp.issubdtype(x.dtype, jnp.inexact)]

        def of_moving(*values: Any) -> Any:
            now = dict(zip(moving, values, strict=True))
            return one_by_one(*whole([now.get(i, x) for i, x in enumerate(given)]))

        gradients = dict(zip(moving, jax.vjp(of_moving, *(given[i] for i in moving))[1](gradient), strict=True))
        return tuple(gradients.get(i) for i in range(len(given)))

    run.defvjp(forward, backward)
    return run(*(flat[i] for i in passed), *arenas)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.extended)
