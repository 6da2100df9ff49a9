"""A traced function as one flat list of equations: calls inlined, scans kept as loops over flat bodies.

Every value is a `Var`, known by identity. A value is *data* if it depends on the arguments; the rest is constant once the
parameters are: it is computed when wanted, by `Constants`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lowbit.interpret import compat
from lowbit.interpret.trace import Trace
from lowbit.interpret.walk import plain, reevaluate

_INLINED = ("jit", "remat", "custom_jvp")


@dataclasses.dataclass(eq=False)
class Var:
    """One value of the program.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        is_data: whether it depends on the arguments.
        source: the equation that makes it; None for inputs and written constants.
        value: of a written constant.
    """

    shape: tuple[int, ...]
    dtype: Any
    is_data: bool
    source: "Equation | None" = dataclasses.field(default=None, repr=False)
    value: Any = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(eq=False)
class Equation:
    """One equation between values.

    Attributes:
        eqn: as traced.
        ins: what it reads.
        outs: what it makes.
        address: where it is in the trace.
        source: where it was written, or the call that it is in.
        scope: the loop it is in, or None.
        loop: of a scan over data.
    """

    eqn: Any
    ins: list[Var]
    outs: list[Var]
    address: tuple[int, ...] = ()
    source: str = ""
    scope: "Loop | None" = dataclasses.field(default=None, repr=False)
    loop: "Loop | None" = dataclasses.field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.eqn.primitive.name


@dataclasses.dataclass(eq=False)
class Loop:
    """The body of a scan over data.

    Attributes:
        inits: what is carried, before the first turn: values outside.
        carries: the same inside, at the start of a turn.
        afters: inside, at the end of a turn.
        xs: what is scanned over: values outside.
        slices: a turn's part of it: values inside.
        ys: what a turn returns: values inside.
        equations: of the body.
    """

    inits: list[Var]
    carries: list[Var]
    afters: list[Var]
    xs: list[Var]
    slices: list[Var]
    ys: list[Var]
    equations: list[Equation]


@dataclasses.dataclass(eq=False)
class Flat:
    """The program.

    Attributes:
        inputs: parameters first, then the arguments.
        equations: in order.
        outs: results.
        count: how many of the inputs are parameters.
    """

    inputs: list[Var]
    equations: list[Equation]
    outs: list[Var]
    count: int


def flatten(traced: Trace) -> Flat:
    """Returns the flat program of a trace.

    Raises:
        ValueError: for control flow that depends on data in a way integers cannot follow, by its source line.
    """
    jaxpr = traced.jaxpr.jaxpr
    inputs = [Var(tuple(v.aval.shape), v.aval.dtype, i >= traced.count) for i, v in enumerate(jaxpr.invars)]
    equations: list[Equation] = []
    outs = _body(equations, jaxpr, traced.jaxpr.consts, inputs, (), None, "")
    return Flat(inputs, equations, outs, traced.count)


def _constant(value: Any) -> Var:
    return Var(tuple(jnp.shape(value)), jnp.result_type(value), False, value=value)


def _body(
    equations: list[Equation],
    jaxpr: Any,
    consts: Sequence[Any],
    inputs: Sequence[Var],
    at: tuple[int, ...],
    scope: "Loop | None",
    caller: str,
) -> list[Var]:
    env: dict[Any, Var] = dict(zip(jaxpr.constvars, map(_constant, consts), strict=True))
    env.update(zip(jaxpr.invars, inputs, strict=True))

    def get(var: Any) -> Var:
        return _constant(np.asarray(var.val, var.aval.dtype)) if compat.is_literal(var) else env[var]

    for index, eqn in enumerate(jaxpr.eqns):
        address = (*at, index)
        ins = [get(v) for v in eqn.invars]
        kind, has_data = compat.kind(eqn), any(v.is_data for v in ins)
        source = compat.source_line(eqn) or caller
        if kind in _INLINED:
            (inner,) = compat.bodies(eqn)
            outs = _body(equations, inner.jaxpr, inner.consts, ins, (*address, 0), scope, source)
        else:
            if has_data and kind not in (None, "scan"):
                raise ValueError(
                    f"integer=True cannot place {eqn.primitive.name} ({source}): of control flow, only "
                    f"scans over data have an integer form"
                )
            outs = [Var(tuple(v.aval.shape), v.aval.dtype, has_data) for v in eqn.outvars]
            equation = Equation(eqn, ins, outs, address, source, scope)
            for out in outs:
                out.source = equation
            if has_data and kind == "scan":
                equation.loop = _loop(equation)
            equations.append(equation)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [get(v) for v in jaxpr.outvars]


def _loop(equation: Equation) -> Loop:
    eqn = equation.eqn
    (body,) = compat.bodies(eqn)
    n_consts, n_carry = compat.scan_counts(eqn)
    consts, inits, xs = (
        equation.ins[:n_consts],
        equation.ins[n_consts : n_consts + n_carry],
        equation.ins[n_consts + n_carry :],
    )
    bad = [v for v in xs if not v.is_data]
    if bad:
        raise ValueError(
            f"integer=True cannot place the scan at {equation.source}: it is over parameters or constants of "
            f"shape {bad[0].shape}; write the layers out in a Python loop"
        )
    unchanged = [body.jaxpr.outvars[i] is body.jaxpr.invars[n_consts + i] for i in range(n_carry)]
    carries = [init if same else Var(init.shape, init.dtype, True) for init, same in zip(inits, unchanged, strict=True)]
    slices = [Var(v.shape[1:], v.dtype, True) for v in xs]
    loop = Loop(list(inits), carries, [], list(xs), slices, [], [])
    inputs, address = [*consts, *carries, *slices], (*equation.address, 0)
    outs = _body(loop.equations, body.jaxpr, body.consts, inputs, address, loop, equation.source)
    loop.afters, loop.ys = outs[:n_carry], outs[n_carry:]
    return loop


class Constants:
    """The values of everything that is not data, computed when wanted, each once.

    Args:
        leaves: by input; quantized parameters may be `QTensor`.
    """

    def __init__(self, leaves: dict[Var, Any]):
        self.known: dict[Var, Any] = dict(leaves)

    def raw(self, var: Var) -> Any:
        """Returns the value; a quantized weight that has only been moved stays quantized."""
        if var not in self.known:
            if var.source is None:
                return var.value
            values = [self.raw(v) for v in var.source.ins]
            self.known.update(zip(var.source.outs, reevaluate(var.source.eqn, values), strict=True))
        return self.known[var]

    def value(self, var: Var) -> Array:
        """Returns the value as an array."""
        return jnp.asarray(plain(self.raw(var)))

    def small(self, var: Var) -> Array:
        """Returns the value before it was spread: of the same rank, of length 1 along the axes it does not vary on."""
        source = var.source
        if source is not None and source.name == "broadcast_in_dim":
            return self.small(source.ins[0]).reshape(small_shape(var))
        if source is not None and source.name in _LIKE:
            return reevaluate(source.eqn, [self.small(source.ins[0])])[0]
        return self.value(var)


_LIKE = ("convert_element_type", "copy", "stop_gradient", "neg")


def small_shape(var: Var) -> tuple[int, ...]:
    """Returns the shape of `Constants.small`."""
    source = var.source
    if source is not None and source.name == "broadcast_in_dim":
        shape = [1] * len(var.shape)
        inner = small_shape(source.ins[0])
        for axis, n in zip(source.eqn.params["broadcast_dimensions"], inner, strict=True):
            shape[axis] = n
        return tuple(shape)
    if source is not None and source.name in _LIKE:
        return small_shape(source.ins[0])
    return var.shape
