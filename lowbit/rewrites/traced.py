"""A model as a program: what rewrites read and evaluate."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax

from lowbit.core.paths import flatten
from lowbit.program.compat import jaxpr_of
from lowbit.program.read import Equation, Program, Value
from lowbit.program.read import read as read_program


@dataclasses.dataclass(frozen=True, eq=False)
class Traced:
    """A traced ``fn(params, state, *args, **kwargs)``, its ``jit`` calls inlined.

    Attributes:
        program: its inputs are the leaves of params and of state, which are fixed, and of the rest, in this order.
        paths: of the leaves of params.
        state_paths: of the leaves of state.
        out_tree: structure of the result.
        updates: for each leaf of state that the result holds anew, ``{index among the leaves of state: index among the
            results}``; empty where ``fn`` returns no state.
    """

    program: Program
    paths: tuple[str, ...]
    state_paths: tuple[str, ...]
    out_tree: Any
    updates: Mapping[int, int]

    @property
    def equations(self) -> Sequence[Equation]:
        """The equations, in program order."""
        return self.program.equations

    @property
    def params(self) -> Sequence[Value]:
        """The values of the leaves of params."""
        return self.program.inputs[: len(self.paths)]

    @property
    def state(self) -> Sequence[Value]:
        """The values of the leaves of state."""
        return self.program.inputs[len(self.paths) :][: len(self.state_paths)]

    @property
    def outs(self) -> Sequence[Value]:
        """The results."""
        return self.program.outs

    @property
    def readers(self) -> Mapping[Value, Sequence[Equation | None]]:
        """The equations that read each value; None stands for a result."""
        return self.program.readers

    def start(self, leaves: Sequence[Any]) -> dict[Value, Any]:
        """Returns what the inputs are."""
        return dict(zip(self.program.inputs, leaves, strict=False))


def trace_model(
    fn: Callable[..., Any],
    params: Any,
    state: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    inlined: Collection[str] = ("jit",),
) -> Traced:
    """Returns the trace of ``fn(params, state, *args, **kwargs)``; only shapes and dtypes matter.

    Args:
        fn: the function.
        params: its parameters.
        state: what else it takes.
        args: its arguments.
        kwargs: its keyword arguments.
        inlined: the calls whose bodies become part of the program.

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
    paths, state_paths = tuple(flatten(params)[0]), tuple(flatten(state)[0])
    fixed = len(paths) + len(state_paths)
    return Traced(
        read_program(jaxpr_of(flat, avals), fixed=fixed, inlined=inlined),
        paths,
        state_paths,
        jax.tree.structure(out),
        _updates(out, [keys for keys, _ in state_entries]),
    )


def _updates(out: Any, state_keys: Sequence[Any]) -> dict[int, int]:
    """Which results are the leaves of the new state, where ``out`` is ``(y, state')``: those with the leaf's own path."""
    if not (isinstance(out, tuple) and len(out) == 2):
        return {}
    first = len(jax.tree.leaves(out[0]))
    places = {keys: first + i for i, (keys, _) in enumerate(jax.tree_util.tree_flatten_with_path(out[1])[0])}
    return {i: places[keys] for i, keys in enumerate(state_keys) if keys in places}
