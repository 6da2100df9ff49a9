"""`perturbed`: the model with something added to the weights or results of its operations.

A derivative by a delta at zero is the derivative by that weight or result; a delta that is the error of a quantizer is
that operation quantized, alone. Deltas are traced: many settings are one compilation, and `jax.vmap` runs them together.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.core.keywords import merged, shares_keywords
from lowbit.core.paths import nearest
from lowbit.interpret.operations import Operation
from lowbit.interpret.state import layer_operand
from lowbit.interpret.trace import Model, Trace, trace_planned
from lowbit.interpret.walk import Walk, plain
from lowbit.packed import arguments
from lowbit.plan.rows import Plan, Row, Site

Deltas = Mapping[str, Mapping[str, Any]]
"""``{path: {role: what is added}}``."""

OUTPUT = "output"
"""The role of an operation's result."""


def perturbed(fn: Model, plan: Plan, *, custom_vjp: str = "raise") -> Callable[..., Any]:
    """Returns ``run(params, deltas, *args, **kwargs)``: ``fn`` in float, with ``deltas`` added where they say.

    ``deltas`` is ``{path: {role: array}}``. A path that is the ``key`` of a leaf site with the role ``weight`` adds to that
    parameter, in its own shape, wherever it is read. An operation's path with the role ``weight`` adds to a derived weight after
    the arithmetic, to a constant, or to one operation's own reading (``embedding@1``) of a shared leaf; with ``input``, ``lhs`` or ``rhs``,
    to what it reads; with ``output``, to what it makes. These have the shape that the operation reads or makes, or one that
    broadcasts to it; inside a scan over layers, stacked: a leading axis of that length. Inside another loop every turn adds the same.
    A key that is missing is zero and costs nothing.

    Args:
        fn: the function that the plan was bound for.
        plan: from `lowbit.bind`; only its operations matter, not how they are quantized.
        custom_vjp: ``"raise"`` if an operation with a delta lies inside a function with its own gradient, or ``"body"`` to
            differentiate the body.

    Returns:
        A function, jitted inside and cached by ``(fn, plan)``, which keys the deltas have, and shapes; without deltas it is ``jax.jit(fn)``.

    Raises:
        TypeError: at the call, for deltas that are no such tree.
        ValueError: at the call, for a path or role that the plan has not, a shape that does not fit, or another plan's operations.

    Example:
        >>> from lowbit.interpret.bind import bind
        >>> params, x = {"a": jnp.eye(2), "b": 2.0 * jnp.ones((2, 1))}, jnp.ones((1, 2))
        >>> fn = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
        >>> run = perturbed(fn, bind(fn, {}, params, x))
        >>> slope = jax.grad(lambda d: run(params, {"a": {"output": d}}, x).sum())(jnp.zeros((1, 2)))
        >>> slope.tolist(), run(params, {"b": {"weight": jnp.ones((2, 1))}}, x).tolist()
        ([[2.0, 2.0]], [[6.0]])
    """
    if custom_vjp not in ("raise", "body"):
        raise ValueError(f"custom_vjp must be 'raise' or 'body', got {custom_vjp!r}")
    arguments.check(fn=fn, plan=plan)
    return _perturbed(fn, plan, custom_vjp)


@functools.lru_cache(maxsize=256)
def _perturbed(fn: Model, plan: Plan, custom_vjp: str) -> Callable[..., Any]:
    inside = "raise" if custom_vjp == "raise" else "any"
    compiled = jax.jit(
        lambda params, deltas, args, kwargs: (
            _run(fn, plan, inside, params, deltas, args, kwargs) if deltas else fn(params, *args, **kwargs)
        )
    )

    @shares_keywords("lowbit.observe.perturbed", fn)
    def run(params: Any, deltas: Deltas, /, *args: Any, kwargs: Any = None, **keywords: Any) -> Any:
        arguments.check(params=params)
        _check(plan, deltas)
        given = merged(keywords, kwargs)
        arguments.check_call(fn, params, args, given)
        return compiled(params, {path: dict(roles) for path, roles in deltas.items() if roles}, args, given)

    return run


def _run(
    fn: Model, plan: Plan, inside: str, params: Any, deltas: Deltas, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    traced = trace_planned(fn, plan, params, args, dict(kwargs))
    rows = {row.path: row for row in plan.rows}
    leaves, at_operations = list(traced.leaves), {}
    for path, roles in deltas.items():
        rest = dict(roles)
        if "weight" in rest and path in _leaf_keys(plan):
            i = traced.paths.index(path)
            leaves[i] = _added(leaves[i], rest.pop("weight"), f"the weight of {path!r}")
        if rest:
            at_operations[path] = rest
    _check_shapes(traced, rows, at_operations)

    def at(op: Operation, values: list[Any], given: Any) -> tuple[Any, Any]:
        operands = [
            _added(plain(v), given[site.role], f"the {site.role} of {op.path!r}") if site.role in given else _plain(v)
            for site, v in zip(rows[op.path].sites, values, strict=True)
        ]
        out = op.rebind(operands)
        return (_added(out, given[OUTPUT], f"the output of {op.path!r}") if OUTPUT in given else out), given

    walk = Walk(traced.inventory, at, frozenset(at_operations), inside=inside)
    outs, _ = walk.run(leaves, at_operations)
    return jax.tree.unflatten(traced.out_tree, outs)


def _plain(value: Any) -> Any:
    return value if isinstance(value, tuple) else plain(value)


def _added(value: Any, delta: Any, what: str) -> Any:
    if jnp.broadcast_shapes(value.shape, delta.shape) != tuple(value.shape):
        raise ValueError(
            f"{what} has the shape {tuple(value.shape)}; its delta must broadcast to it, got {delta.shape}"
        )
    return value + delta.astype(value.dtype)


def _leaf_keys(plan: Plan) -> frozenset[str]:
    return frozenset(site.key for row in plan.rows for site in row.sites if site.kind == "leaf")


def _roles(plan: Plan) -> dict[str, set[str]]:
    roles_of: dict[str, set[str]] = {key: {"weight"} for key in _leaf_keys(plan)}
    for row in plan.rows:
        floats = {site.role for site in row.sites if not (row.primitive == "gather" and site.role == "input")}
        roles_of.setdefault(row.path, set()).update(floats, {OUTPUT})
    return roles_of


def _check(plan: Plan, deltas: Any) -> None:
    if not isinstance(deltas, Mapping) or not all(isinstance(roles, Mapping) for roles in deltas.values()):
        raise TypeError(f"deltas must be {{path: {{role: array}}}}, got {type(deltas).__name__}")
    known = _roles(plan)
    for path, roles in deltas.items():
        if path not in known:
            near = ", ".join(nearest(str(path), known)) or "(the plan has no operation)"
            raise ValueError(f"deltas: no operation or weight {path!r}; the nearest paths are {near}")
        for role, delta in roles.items():
            if role not in known[path]:
                raise ValueError(f"deltas[{path!r}] may have {', '.join(sorted(known[path]))}, got {role!r}")
            if not (hasattr(delta, "shape") and hasattr(delta, "dtype")):
                raise TypeError(f"deltas[{path!r}][{role!r}] must be an array, got {type(delta).__name__}")


def _check_shapes(traced: Trace, rows: Mapping[str, Row], deltas: Deltas) -> None:
    for op in traced.inventory.operations:
        for role, delta in deltas.get(op.path, {}).items():
            want = _shape(op, rows[op.path], role)
            stack = rows[op.path].stack
            fits = delta.ndim == len(want) or not stack
            if not fits or tuple(delta.shape[: len(stack)]) != stack or _unfit(delta.shape, want):
                raise ValueError(
                    f"deltas[{op.path!r}][{role!r}] must have the shape {want}, or broadcast to it{' after the layers' if stack else ''}, got {tuple(delta.shape)}"
                )


def _unfit(shape: tuple[int, ...], want: tuple[int, ...]) -> bool:
    if len(shape) > len(want):
        return True
    return any(n not in (1, m) for n, m in zip(shape[::-1], want[::-1], strict=False))


def _shape(op: Operation, row: Row, role: str) -> tuple[int, ...]:
    if role == OUTPUT:
        return (*row.stack, *op.eqn.outvars[0].aval.shape)
    index = next(i for i, site in enumerate(row.sites) if site.role == role)
    return (*row.stack, *op.eqn.invars[index].aval.shape)


def zeros(fn: Model, plan: Plan, params: Any, *args: Any, roles: tuple[str, ...] = ("weight",), **kwargs: Any) -> Any:
    """Returns deltas of zero for every operation of a plan: what `perturbed` is differentiated by.

    Args:
        fn: the function.
        plan: its plan.
        params: parameters; only shapes and dtypes matter.
        *args: example arguments.
        roles: which of ``weight``, ``input``, ``lhs``, ``rhs`` and ``output``. A weight that is a leaf has its own key, once.
        **kwargs: keyword arguments.

    Example:
        >>> from lowbit.interpret.bind import bind
        >>> params, x, fn = {"w": jnp.eye(2)}, jnp.ones((3, 2)), lambda p, x: x @ p["w"]
        >>> jax.tree.map(jnp.shape, zeros(fn, bind(fn, {}, params, x), params, x, roles=("weight", "output")))
        {'w': {'output': (3, 2), 'weight': (2, 2)}}
    """
    traced = trace_planned(fn, plan, params, args, kwargs)
    by_key: dict[str, dict[str, Any]] = {}
    for op in traced.inventory.operations:
        row = plan[op.path]
        for role in roles:
            site = next((s for s in row.sites if s.role == role), None)
            if site is not None and site.kind == "leaf" and role == "weight":
                by_key.setdefault(site.key, {})[role] = jnp.zeros(site.operand.shape, site.operand.dtype)
            elif role == OUTPUT or (site is not None and not (op.is_lookup and role == "input")):
                dtype = op.eqn.outvars[0].aval.dtype if site is None else _dtype(site)
                by_key.setdefault(op.path, {})[role] = jnp.zeros(_shape(op, row, role), dtype)
    return by_key


def _dtype(site: Site) -> Any:
    return jnp.dtype(layer_operand(site).dtype)
