"""A jaxpr as values and equations: read once, in program order, for everything that reads or evaluates a model.

Every value is known by identity. It is *data* if it depends on the inputs that are not fixed; the rest is constant once the
fixed inputs are. Calls are inlined as far as the reader wants; what is kept has its bodies as programs of their own. The
body of a scan takes from outside what its turns do not change: those values are the same inside.
"""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import compat, primitives
from .eqn import Eqn

CALLS = ("jit", "remat", "custom_jvp", "custom_vjp")
"""Calls of one body with its operands and results: what an evaluation that nobody differentiates inlines."""


LAYERS = "layers"
"""Among what a reading inlines: scans over what is no data. Their turns are written out, one after the other."""

OF_DATA = "custom_jvp of data"
"""Among what a reading inlines: functions with their own gradient, of data. What is computed of parameters keeps it."""

_SPLICED = 1 << 20
"""Where the equations of `spliced` are in the trace: behind all traced ones."""


@dataclasses.dataclass(eq=False, slots=True)
class Value:
    """One value of a program.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        is_data: whether it depends on inputs that are not fixed.
        source: the equation that makes it; None for inputs and written constants.
        value: of a written constant.
        literal: the same as it was traced: a literal may be weakly typed.
    """

    shape: tuple[int, ...]
    dtype: Any
    is_data: bool
    source: "Equation | None" = dataclasses.field(default=None, repr=False)
    value: Any = dataclasses.field(default=None, repr=False)
    literal: Any = dataclasses.field(default=None, repr=False)

    @property
    def ndim(self) -> int:
        """The number of its axes."""
        return len(self.shape)

    @property
    def is_written(self) -> bool:
        """Whether it is a constant of the program itself: a literal, or an array that the function closed over."""
        return self.value is not None


@dataclasses.dataclass(eq=False)
class Equation:
    """One equation between values.

    Attributes:
        eqn: as traced.
        ins: what it reads.
        outs: what it makes.
        address: where it is in the trace: equation index, body index, equation index, ..., equation index.
        scope: the loop it is in, or None.
        caller: the inlined call it comes from, or None.
        inlined: the calls that are inlined in its bodies.
    """

    eqn: Eqn
    ins: list[Value]
    outs: list[Value]
    address: tuple[int, ...] = ()
    scope: "Loop | None" = dataclasses.field(default=None, repr=False)
    caller: "Equation | None" = dataclasses.field(default=None, repr=False)
    inlined: Collection[str] = dataclasses.field(default=CALLS, repr=False)

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.eqn.primitive.name

    @property
    def params(self) -> Mapping[str, Any]:
        """The primitive's parameters."""
        return self.eqn.params

    @functools.cached_property
    def call(self) -> str | None:
        """What sort of call it is, as `lowbit.program.compat.kind` says; None of what is no call."""
        return compat.kind(self.eqn)

    @property
    def is_data(self) -> bool:
        """Whether it reads data."""
        return any(v.is_data for v in self.ins)

    @property
    def word(self) -> str:
        """What sort of call it is, or the primitive's name: what a table of handlers is asked for."""
        return self.call or self.name

    @functools.cached_property
    def source(self) -> str:
        """Where it was written, or the call that it is in."""
        line = "" if self.is_made else compat.source_line(self.eqn)
        return line or ("" if self.caller is None else self.caller.source)

    @functools.cached_property
    def is_made(self) -> bool:
        """Whether it stands for a part of an equation that is no call as it was traced: a user never wrote it."""
        return self.caller is not None and (self.caller.is_made or self.caller.name in primitives.RAGGED)

    @functools.cached_property
    def is_unseen(self) -> bool:
        """Whether it may hide a product of matrices that cannot be read."""
        return compat.is_unseen(self.eqn)

    @functools.cached_property
    def loop(self) -> "Loop | None":
        """Of a scan: its body."""
        return _loop(self) if self.call == "scan" else None

    @functools.cached_property
    def bodies(self) -> "tuple[Program, ...]":
        """Of a call: its bodies, in the order of `lowbit.program.compat.bodies`."""
        if self.loop is not None:
            return (self.loop.body,)
        return tuple(_called(self, i, body) for i, body in enumerate(compat.bodies(self.eqn)))


@dataclasses.dataclass(eq=False)
class Program:
    """Equations in program order.

    Attributes:
        inputs: in order; the fixed ones come first.
        equations: in order.
        outs: results.
        count: how many of the inputs are fixed.
    """

    inputs: list[Value]
    equations: list[Equation]
    outs: list[Value]
    count: int = 0

    @functools.cached_property
    def order(self) -> dict[Equation, int]:
        """The place of every equation, those inside loops included."""
        return {equation: i for i, equation in enumerate(everywhere(self.equations))}

    @functools.cached_property
    def readers(self) -> dict[Value, list[Equation | None]]:
        """Who reads each value, in order, inside loops too; None stands for a result, of the program or of a turn.

        An elementwise equation or a movement whose results nothing reads is no reader.
        """
        by_value: dict[Value, list[Equation | None]] = {}
        for value in self.outs:
            by_value.setdefault(value, []).append(None)
        for equation in reversed(list(everywhere(self.equations))):
            if equation.call == "scan" and equation.is_data and equation.loop is not None:
                for value in (*equation.loop.afters, *equation.loop.ys):
                    by_value.setdefault(value, []).append(None)
        for equation in reversed(list(everywhere(self.equations))):
            is_plain = equation.name in primitives.ELEMENTWISE or equation.name in primitives.MOVES
            if not is_plain or any(v in by_value for v in equation.outs):
                for value in equation.ins:
                    by_value.setdefault(value, []).append(equation)
        return {value: readers[::-1] for value, readers in by_value.items()}


@dataclasses.dataclass(eq=False)
class Loop:
    """The body of a scan.

    Attributes:
        inits: what is carried, before the first turn: values outside.
        carries: the same inside, at the start of a turn; what no turn changes is the value outside.
        afters: inside, at the end of a turn.
        xs: what is scanned over: values outside.
        slices: a turn's part of it: values inside.
        ys: what a turn returns: values inside.
        equations: of the body.
        body: the same as a program: of constants, carries and slices.
        n_consts: how many of the body's inputs are the same in every turn; they come first.
        length: how many turns there are.
        is_reversed: whether the last is the first.
    """

    inits: list[Value]
    carries: list[Value]
    afters: list[Value]
    xs: list[Value]
    slices: list[Value]
    ys: list[Value]
    equations: list[Equation]
    body: Program
    n_consts: int
    length: int
    is_reversed: bool


def everywhere(equations: Sequence[Equation]) -> Iterator[Equation]:
    """Yields equations in order, each followed by those of its loop, where that is over data."""
    for equation in equations:
        yield equation
        if equation.call == "scan" and equation.is_data and equation.loop is not None:
            yield from everywhere(equation.loop.equations)


def read(closed: Any, *, fixed: int = 0, inlined: Collection[str] = CALLS) -> Program:
    """Returns the program of a closed jaxpr.

    Args:
        closed: the closed jaxpr.
        fixed: how many of its first inputs are fixed: no data.
        inlined: the calls (words of `lowbit.program.compat.kind`) whose bodies become part of the program, `LAYERS`, `OF_DATA`.

    Example:
        >>> import jax
        >>> program = read(jax.make_jaxpr(lambda w, x: jax.nn.relu(x) * (2 * w))(1.0, 2.0), fixed=1)
        >>> [(e.name, e.outs[0].is_data) for e in program.equations]
        [('max', True), ('mul', False), ('mul', True)]
    """
    inputs = [_value(v, is_data=i >= fixed) for i, v in enumerate(closed.jaxpr.invars)]
    return within(closed, inputs, count=fixed, inlined=inlined)


def within(
    closed: Any,
    inputs: Sequence[Value],
    *,
    count: int = 0,
    inlined: Collection[str] = CALLS,
    address: tuple[int, ...] = (),
    scope: "Loop | None" = None,
    caller: Equation | None = None,
) -> Program:
    """Returns the program of a closed jaxpr whose inputs are values of another: equations that may be put among its own.

    Args:
        closed: the closed jaxpr, or a body.
        inputs: its inputs.
        count: how many of them are fixed.
        inlined: as in `read`.
        address: where it is.
        scope: the loop it is in.
        caller: the call it is of.
    """
    equations: list[Equation] = []
    reading = _Reading(equations, inlined, scope)
    outs = reading.body(closed.jaxpr, closed.consts, inputs, address, caller)
    return Program(list(inputs), equations, outs, count)


def _value(var: Any, *, is_data: bool, source: Equation | None = None) -> Value:
    return Value(tuple(getattr(var.aval, "shape", ())), getattr(var.aval, "dtype", None), is_data, source)


def constant(value: Any) -> Value:
    """Returns a written constant."""
    return Value(tuple(jnp.shape(value)), jnp.result_type(value), False, value=value)


@dataclasses.dataclass
class _Reading:
    """One list of equations as it grows, those of inlined calls included; other bodies get lists of their own."""

    equations: list[Equation]
    inlined: Collection[str]
    scope: Loop | None

    def body(
        self,
        jaxpr: Any,
        consts: Sequence[Any],
        inputs: Sequence[Value],
        address: tuple[int, ...],
        caller: Equation | None,
    ) -> list[Value]:
        env: dict[Any, Value] = dict(zip(jaxpr.constvars, map(constant, consts), strict=True))
        env.update(zip(jaxpr.invars, inputs, strict=True))

        def get(var: Any) -> Value:
            if compat.is_literal(var):
                value = np.asarray(var.val, var.aval.dtype)
                return Value(tuple(var.aval.shape), var.aval.dtype, False, value=value, literal=var.val)
            return env[var]

        for index, eqn in enumerate(jaxpr.eqns):
            ins = [get(v) for v in eqn.invars]
            equation = Equation(eqn, ins, [], (*address, index), self.scope, caller, self.inlined)
            if self.is_inlined(equation):
                (inner,) = compat.bodies(eqn)
                equation.outs = self.body(inner.jaxpr, inner.consts, ins, (*equation.address, 0), equation)
            elif LAYERS in self.inlined and _is_over_layers(equation):
                equation.outs = self.turns(equation)
            else:
                is_data = equation.is_data
                equation.outs = [_value(v, is_data=is_data, source=equation) for v in eqn.outvars]
                self.equations.append(equation)
            env.update(zip(eqn.outvars, equation.outs, strict=True))
        return [get(v) for v in jaxpr.outvars]

    def is_inlined(self, equation: Equation) -> bool:
        """Whether a call's body becomes part of the program."""
        has_own = equation.call == "custom_jvp" and OF_DATA in self.inlined and equation.is_data
        return has_own or (equation.call is not None and equation.call in self.inlined)

    def turns(self, equation: Equation) -> list[Value]:
        """The results of a scan, its turns written out."""
        (inner,) = compat.bodies(equation.eqn)
        n_consts, n_carry = compat.scan_counts(equation.eqn)
        consts, carry = equation.ins[:n_consts], equation.ins[n_consts : n_consts + n_carry]
        xs, length = equation.ins[n_consts + n_carry :], equation.params["length"]
        bodies: dict[int, list[Value]] = {}
        for turn in reversed(range(length)) if equation.params["reverse"] else range(length):
            parts = self.spliced(lambda *xs, turn=turn: [x[turn] for x in xs], xs, equation, turn)
            given = [*consts, *carry, *parts]
            outs = self.body(inner.jaxpr, inner.consts, given, (*equation.address, turn), equation)
            carry, bodies[turn] = outs[:n_carry], outs[n_carry:]
        ys = [value for turn in range(length) for value in bodies[turn]]
        count = len(ys) // length
        stacked = self.spliced(
            lambda *ys: [jnp.stack(ys[i::count]) for i in range(count)], ys if count else [], equation, length
        )
        return [*carry, *stacked]

    def spliced(self, function: Any, values: Sequence[Value], caller: Equation, turn: int) -> list[Value]:
        """The results of a function of values: new equations of a scan's turn."""
        if not values:
            return []
        closed = jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values))
        return self.body(closed.jaxpr, closed.consts, values, (*caller.address, turn, _SPLICED), caller)


def _is_over_layers(equation: Equation) -> bool:
    """Whether a scan of data is over parameters or constants, or counts its turns."""
    if equation.call != "scan" or not equation.is_data or not equation.params["length"]:
        return False
    n_consts, n_carry = compat.scan_counts(equation.eqn)
    counters = [v for v in equation.ins[n_consts : n_consts + n_carry] if not v.is_data]
    is_counting = any(jnp.issubdtype(v.dtype, jnp.integer) for v in counters)
    return is_counting or any(not v.is_data for v in equation.ins[n_consts + n_carry :])


def _called(equation: Equation, index: int, body: compat.Body) -> Program:
    """The body of a call that is kept; its inputs are its own."""
    given = compat.operands(equation.eqn, index)
    inputs = [_value(v, is_data=equation.ins[i].is_data) for v, i in zip(body.jaxpr.invars, given, strict=True)]
    where = {"address": (*equation.address, index), "scope": equation.scope, "caller": equation}
    return within(body, inputs, inlined=equation.inlined, **where)


def _loop(equation: Equation) -> Loop:
    eqn = equation.eqn
    (body,) = compat.bodies(eqn)
    n_consts, n_carry = compat.scan_counts(eqn)
    consts, inits = equation.ins[:n_consts], equation.ins[n_consts : n_consts + n_carry]
    xs = equation.ins[n_consts + n_carry :]
    has_data = equation.is_data
    unchanged = [body.jaxpr.outvars[i] is body.jaxpr.invars[n_consts + i] for i in range(n_carry)]
    carries = [
        init if same else Value(init.shape, init.dtype, has_data) for init, same in zip(inits, unchanged, strict=True)
    ]
    slices = [Value(v.shape[1:], v.dtype, v.is_data) for v in xs]
    params = eqn.params
    nothing = Program([], [], [])
    loop = Loop(inits, carries, [], xs, slices, [], [], nothing, n_consts, params["length"], params["reverse"])
    inputs = [*consts, *carries, *slices]
    where = {"address": (*equation.address, 0), "scope": loop, "caller": equation}
    loop.body = within(body, inputs, inlined=equation.inlined, **where)
    loop.equations = loop.body.equations
    loop.afters, loop.ys = loop.body.outs[:n_carry], loop.body.outs[n_carry:]
    return loop


def spliced(function: Any, values: Sequence[Value], scope: Loop | None = None) -> Program:
    """Returns the program of a function of values of another program: new equations, to be read with the old ones.

    Args:
        function: of arrays, traced for the values' shapes.
        values: what it is called with.
        scope: the loop that they are in.
    """
    closed = jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values))
    return within(closed, values, scope=scope)
