"""From a function and example arguments to a jaxpr and its operations."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from lowbit.core.paths import flatten
from lowbit.core.qtensor import QTensor
from lowbit.packed.trees import Dropped
from lowbit.plan.rows import Plan
from lowbit.program.compat import jaxpr_of
from lowbit.program.read import LAYERS
from lowbit.program.read import read as read_program

from .inventory import take_inventory
from .operations import Inventory

Model = Callable[..., Any]

Args = Sequence[Any]
"""What a model is called with after its parameters, as jax takes it: any tree of arrays each."""

Kwargs = Mapping[str, Any]
"""Its keyword arguments."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """A traced call.

    Attributes:
        jaxpr: closed; parameter leaves come first.
        inventory: its operations.
        leaves: flat values, parameters first; quantized ones are `QTensor`.
        paths: of the parameters.
        out_tree: structure of the result.
        param_tree: structure of the parameters.
        memo: what was computed of all this, by name: no value of the call is in it.
    """

    jaxpr: ClosedJaxpr
    inventory: Inventory
    leaves: list[Any]
    paths: list[str]
    out_tree: Any
    param_tree: Any
    memo: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def avals(self) -> list[Any]:
        """Shapes and dtypes of its leaves."""
        return [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in self.jaxpr.jaxpr.invars]

    @property
    def bare(self) -> "Trace":
        """The trace without the values of its call: what a plan carries."""
        return dataclasses.replace(self, leaves=[])

    @property
    def count(self) -> int:
        """How many of the leaves are parameters."""
        return len(self.paths)


def _is_leaf(x: Any) -> bool:
    return isinstance(x, QTensor | Dropped)


def _abstract(leaf: Any) -> Any:
    if isinstance(leaf, QTensor | Dropped):
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(leaf.dtype))
    return leaf


def trace(
    fn: Model,
    params: Any,
    args: Args,
    kwargs: dict[str, Any],
    *,
    has_codes: bool = False,
    has_picks: bool = True,
) -> Trace:
    """Returns the trace of ``fn(params, *args, **kwargs)``; packed parameters stand for their float values.

    Args:
        fn: the function.
        params: its parameters.
        args: its arguments.
        kwargs: its keyword arguments.
        has_codes: whether int8 and int16 arguments are codes that stand for float32 values.
        has_picks: whether a matrix that data picks is a weight, and a scan over layers stays one; not so in a full-integer
            plan, where every layer has grids of its own.

    Raises:
        TypeError: if ``fn`` is not callable, or a parameter is not an array.
    """
    if not callable(fn):
        raise TypeError(f"fn must be a function of (params, *args), got {type(fn).__name__}")
    paths, values, param_tree = flatten(params, is_leaf=_is_leaf)
    for path, leaf in zip(paths, values, strict=True):
        if not (_is_leaf(leaf) or (hasattr(leaf, "shape") and hasattr(leaf, "dtype"))):
            raise TypeError(f"parameter {path!r} must be an array, got {type(leaf).__name__}")
    rest, rest_tree = jax.tree.flatten((tuple(args), kwargs))
    leaves = values + rest
    out_tree = None

    def flat(*leaves):
        nonlocal out_tree
        inner_args, inner_kwargs = jax.tree.unflatten(rest_tree, leaves[len(paths) :])
        out = fn(jax.tree.unflatten(param_tree, leaves[: len(paths)]), *inner_args, **inner_kwargs)
        flat_out, out_tree = jax.tree.flatten(out)
        return flat_out

    shown = [_abstract(leaf) for leaf in leaves]
    if has_codes:
        shown = [jax.ShapeDtypeStruct(x.shape, jnp.float32) if x.dtype in (jnp.int8, jnp.int16) else x for x in shown]
    jaxpr = jaxpr_of(flat, shown)
    shapes = [tuple(var.aval.shape) for var in jaxpr.jaxpr.invars[: len(paths)]]
    program = read_program(jaxpr, fixed=len(paths), inlined=() if has_picks else (LAYERS,))
    return Trace(
        jaxpr, take_inventory(program, paths, shapes, has_picks=has_picks), leaves, paths, out_tree, param_tree
    )


def trace_planned(
    fn: Model, plan: Plan, params: Any, args: Args, kwargs: dict[str, Any], *, has_codes: bool = False
) -> Trace:
    """Returns the trace of a function whose operations are those of a plan, read as that plan's kind reads it.

    Args:
        fn: the function.
        plan: its plan.
        params: its parameters, float or packed.
        args: its arguments.
        kwargs: its keyword arguments.
        has_codes: as in `trace`.

    Raises:
        TypeError: as `trace` does.
        ValueError: if the function has other operations.
    """
    traced = trace(fn, params, args, kwargs, has_codes=has_codes, has_picks=not plan.is_full_integer)
    _check_same_operations(traced.inventory, plan)
    return traced


def _is_empty(inventory: Inventory) -> bool:
    return any(v.is_data and 0 in v.shape for v in inventory.program.inputs)


def _named_as(inventory: Inventory, plan: Plan) -> bool:
    """Names the operations of a call without examples as the plan does, and returns whether it has no others.

    Of no index jax picks nothing: there is no look-up in the call, and what is computed of it is a constant without elements. The
    other operations of a shared table would be counted anew.
    """
    left, named = list(plan.rows), []
    for op in inventory.operations:
        alike = [row for row in left if (row.base, row.primitive) == (op.base, op.primitive)]
        if not alike:
            return False
        row = next((row for row in alike if row.source == op.source), alike[0])
        left = left[left.index(row) + 1 :]
        named.append(dataclasses.replace(op, path=row.path))
    inventory.operations = named
    return True


def _check_same_operations(inventory: Inventory, plan: Plan) -> None:
    """Raises ValueError, listing both sides, where a traced function has other operations than its plan.

    A call without examples may lack look-ups, and what follows them.
    """
    traced_paths = [op.path for op in inventory.operations]
    planned = [row.path for row in plan.rows]
    if traced_paths == planned:
        return
    if sorted(traced_paths) == sorted(planned) or (_is_empty(inventory) and _named_as(inventory, plan)):
        return
    extra = [path for path in traced_paths if path not in planned]
    missing = [path for path in planned if path not in traced_paths]
    raise ValueError(
        f"this function's operations are not those of the plan: it has {extra or 'no others'}, and lacks "
        f"{missing or 'none'}. The plan has {planned}; bind a plan for this function"
    )
