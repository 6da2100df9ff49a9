"""A model as one flat list of equations: what rewrites read and evaluate."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from lowbit.core.paths import flatten
from lowbit.interpret import compat


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A traced ``fn(params, state, *args, **kwargs)``, its ``jit`` calls inlined.

    Attributes:
        closed: the closed jaxpr; its inputs are the leaves of params, of state, of the rest, in this order.
        paths: of the leaves of params.
        state_paths: of the leaves of state.
        out_tree: structure of the result.
        updates: for each leaf of state that the result holds anew, ``{index among the leaves of state: index among the
            results}``; empty where ``fn`` returns no state.
    """

    closed: Any
    paths: tuple[str, ...]
    state_paths: tuple[str, ...]
    out_tree: Any
    updates: Mapping[int, int]

    @property
    def eqns(self) -> Sequence[Any]:
        """The equations, in program order."""
        return self.closed.jaxpr.eqns

    @property
    def params(self) -> Sequence[Any]:
        """The variables of the leaves of params."""
        return self.closed.jaxpr.invars[: len(self.paths)]

    @property
    def state(self) -> Sequence[Any]:
        """The variables of the leaves of state."""
        return self.closed.jaxpr.invars[len(self.paths) :][: len(self.state_paths)]

    @property
    def outs(self) -> Sequence[Any]:
        """The variables of the results."""
        return self.closed.jaxpr.outvars

    @functools.cached_property
    def producers(self) -> Mapping[Any, int]:
        """The index of the equation that makes each variable."""
        return {var: i for i, eqn in enumerate(self.eqns) for var in eqn.outvars}

    @functools.cached_property
    def consumers(self) -> Mapping[Any, list[int]]:
        """The indices of the equations that read each variable; -1 stands for the results."""
        found: dict[Any, list[int]] = {}
        for i, eqn in enumerate(self.eqns):
            for var in eqn.invars:
                if not compat.is_literal(var):
                    found.setdefault(var, []).append(i)
        for var in self.outs:
            if not compat.is_literal(var):
                found.setdefault(var, []).append(-1)
        return found

    def start(self, leaves: Sequence[Any]) -> dict[Any, Any]:
        """Returns the values of the inputs and constants by variable."""
        jaxpr = self.closed.jaxpr
        return {
            **dict(zip(jaxpr.constvars, self.closed.consts, strict=True)),
            **dict(zip(jaxpr.invars, leaves, strict=False)),
        }


def read(fn: Callable[..., Any], params: Any, state: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Program:
    """Returns the program of ``fn(params, state, *args, **kwargs)``; only shapes and dtypes matter.

    Raises:
        TypeError: if ``fn`` is not callable.
    """
    if not callable(fn):
        raise TypeError(f"fn must be a function of (params, state, *args), got {type(fn).__name__}")
    state_entries, _ = jax.tree_util.tree_flatten_with_path(state)
    leaves, tree = jax.tree.flatten((params, state, tuple(args), dict(kwargs)))
    out: Any = None

    def flat(*leaves: Any) -> list[Any]:
        nonlocal out
        params, state, args, kwargs = jax.tree.unflatten(tree, leaves)
        result = fn(params, state, *args, **kwargs)
        out = jax.tree.map(lambda _: 0, result)  # the structure alone: no tracer outlives the trace
        return jax.tree.leaves(result)

    avals = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else leaf for leaf in leaves]
    nested = jax.make_jaxpr(flat)(*avals)
    closed = jax.make_jaxpr(lambda *leaves: _inlined(nested.jaxpr, nested.consts, leaves))(*avals)
    return Program(
        closed,
        tuple(flatten(params)[0]),
        tuple(flatten(state)[0]),
        jax.tree.structure(out),
        _updates(out, [keys for keys, _ in state_entries]),
    )


def _inlined(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    env = {**dict(zip(jaxpr.constvars, consts, strict=True)), **dict(zip(jaxpr.invars, args, strict=True))}

    def get(var: Any) -> Any:
        return var.val if compat.is_literal(var) else env[var]

    for eqn in jaxpr.eqns:
        values = [get(v) for v in eqn.invars]
        if compat.kind(eqn) == "jit":
            (body,) = compat.bodies(eqn)
            outs = _inlined(body.jaxpr, body.consts, values)
        else:
            outs = compat.rebind(eqn, values)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [get(v) for v in jaxpr.outvars]


def _updates(out: Any, state_keys: Sequence[Any]) -> dict[int, int]:
    """Which results are the leaves of the new state, where ``out`` is ``(y, state')``: those with the leaf's own path."""
    if not (isinstance(out, tuple) and len(out) == 2):
        return {}
    first = len(jax.tree.leaves(out[0]))
    places = {keys: first + i for i, (keys, _) in enumerate(jax.tree_util.tree_flatten_with_path(out[1])[0])}
    return {i: places[keys] for i, keys in enumerate(state_keys) if keys in places}
