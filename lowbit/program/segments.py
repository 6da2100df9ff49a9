"""A block cut out of a program: the equations between two operations, the values that come in, and the one that goes out."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from .evaluate import again
from .read import Equation, Loop, Program, Value, everywhere
from .taps import Place

INLINED = ("jit", "remat")
"""Calls that are read through: the others keep their derivative, and hold no operation that a block may begin or end with."""


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """Equations from the first operation to the last, and to the value that other equations read.

    Attributes:
        equations: in order.
        inputs: the data that comes in, in order of its first reader.
        places: where each is read, for `lowbit.program.taps.tapped`.
        out: what goes out.
        out_place: where it is made.
        fixed: what is read that is no data.
        loops: the scans that it is in, outermost first.
    """

    equations: tuple[Equation, ...]
    inputs: tuple[Value, ...]
    places: tuple[Place, ...]
    out: Value
    out_place: Place
    fixed: tuple[Value, ...]
    loops: tuple[Loop, ...]

    def run(self, inputs: Sequence[Any], fixed: Callable[[Value], Any]) -> Any:
        """Returns what goes out, of what comes in; ``fixed`` says what is no data."""
        env: dict[Value, Any] = dict(zip(self.inputs, inputs, strict=True))

        def get(value: Value) -> Any:
            if value not in env:
                env[value] = fixed(value)
            return env[value]

        for equation in self.equations:
            env.update(zip(equation.outs, again(equation, [get(v) for v in equation.ins]), strict=True))
        return env[self.out]


def cut(
    program: Program, operations: Collection[tuple[int, ...]], first: tuple[int, ...], last: tuple[int, ...]
) -> Block:
    """Returns the block between two operations.

    It goes on after the last operation through bias, activation and residual sum, as far as one equation alone reads the value, needs
    nothing that comes later and holds no operation; and it begins where the operations before the first, with what goes on after them, end.

    Args:
        program: read with `INLINED` inlined.
        operations: the addresses of all operations.
        first: the address of the first.
        last: the address of the last.

    Raises:
        ValueError: where the two are in different loops, or inside a call that is not read through, or the last comes first.
    """
    by_address = {e.address: e for e in everywhere(program.equations)}
    for address in (first, last):
        if address not in by_address:
            raise ValueError(
                f"the operation at {address} is inside a call whose own derivative is kept, a branch or a while loop"
            )
    start, end = by_address[first], by_address[last]
    if start.scope is not end.scope:
        raise ValueError(
            "the first and the last operation are in different loops: a block lies in one of them, or outside"
        )
    order = program.order
    if order[start] > order[end]:
        raise ValueError("the last operation comes before the first")
    level = program.equations if start.scope is None else start.scope.equations
    holds = {e for e in level if _holds(e, operations)}
    readers = program.readers
    before: set[Equation] = set()
    for equation in level:
        if equation in holds and equation.is_data and order[equation] < order[start]:
            before |= {equation, *_tail(equation, holds, readers, order)}
    tail = _tail(end, holds, readers, order)
    out = (tail or [end])[-1].outs[0]
    inside, todo = set(), [out]
    while todo:
        value = todo.pop()
        source = value.source
        if (
            value.is_data
            and source is not None
            and source.scope is start.scope
            and source not in before
            and source not in inside
        ):
            inside.add(source)
            todo += source.ins
    equations = tuple(sorted(inside, key=lambda e: order[e]))
    own = {v for e in equations for v in e.outs}
    inputs: dict[Value, Place] = {}
    fixed: dict[Value, None] = {}
    for equation in equations:
        for i, value in enumerate(equation.ins):
            if value.is_data and value not in own:
                inputs.setdefault(value, Place(equation.address, i, is_operand=True))
            elif not value.is_data and not value.is_written:
                fixed[value] = None
    assert out.source is not None
    place = Place(out.source.address, out.source.outs.index(out))
    return Block(equations, tuple(inputs), tuple(inputs.values()), out, place, tuple(fixed), _loops(program, start))


def _holds(equation: Equation, operations: Collection[tuple[int, ...]]) -> bool:
    depth = len(equation.address)
    return any(address[:depth] == equation.address for address in operations)


def _tail(
    equation: Equation,
    holds: Collection[Equation],
    readers: Mapping[Value, Sequence[Equation | None]],
    order: Mapping[Equation, int],
) -> list[Equation]:
    """What follows an operation up to the value that others read."""
    tail: list[Equation] = []
    value = equation.outs[0]
    while len(set(readers.get(value, ()))) == 1:
        (reader,) = set(readers[value])
        if reader is None or reader in holds or reader.scope is not equation.scope or len(reader.outs) != 1:
            break
        others = [v.source for v in reader.ins if v is not value and v.is_data and v.source is not None]
        if any(source not in order or (order[source] > order[equation] and source not in tail) for source in others):
            break
        tail.append(reader)
        value = reader.outs[0]
    return tail


def _loops(program: Program, equation: Equation) -> tuple[Loop, ...]:
    loops: list[Loop] = []
    scope = equation.scope
    while scope is not None:
        loops.insert(0, scope)
        scope = next(e.scope for e in everywhere(program.equations) if e.loop is scope)
    return tuple(loops)
