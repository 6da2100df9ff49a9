"""A program cut into stretches, one after the other, each handing few values on: what is reconstructed block by block."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

from .evaluate import again
from .read import Equation, Program, Value


@dataclasses.dataclass(frozen=True, eq=False)
class Stretch:
    """Equations in a row.

    Attributes:
        equations: in order; those that compute with parameters alone are not among them.
        inputs: the data that comes in, in order of its first reader.
        outs: what later equations or the results read, in the order it is made.
        operations: addresses of the operations outside of loops, in order.
        has_loops: whether there are operations inside loops or calls that are not read through.
    """

    equations: tuple[Equation, ...]
    inputs: tuple[Value, ...]
    outs: tuple[Value, ...]
    operations: tuple[tuple[int, ...], ...]
    has_loops: bool

    def run(
        self,
        inputs: Sequence[Any],
        fixed: Callable[[Value], Any],
        at: Callable[[Equation, list[Any]], Any],
    ) -> list[Any]:
        """Returns what goes out.

        Args:
            inputs: what comes in.
            fixed: what every parameter is; what is computed from parameters alone is computed here, once.
            at: called at operations outside of loops, with what they read: what they make.
        """
        env: dict[Value, Any] = dict(zip(self.inputs, inputs, strict=True))
        chosen = set(self.operations)

        def get(value: Value) -> Any:
            if value not in env:
                if value.is_written:
                    env[value] = value.value
                elif value.source is None:
                    env[value] = fixed(value)
                else:
                    env.update(
                        zip(value.source.outs, again(value.source, [get(v) for v in value.source.ins]), strict=True)
                    )
            return env[value]

        for equation in self.equations:
            values = [get(v) for v in equation.ins]
            results = [at(equation, values)] if equation.address in chosen else again(equation, values)
            env.update(zip(equation.outs, results, strict=True))
        return [get(v) for v in self.outs]


def stretches(program: Program, operations: Collection[tuple[int, ...]], *, most: int = 3) -> tuple[Stretch, ...]:
    """Returns a program as stretches that hand on one value of what operations make, the last one all results.

    It is cut before an operation wherever one value alone carries on what the operations before it made: around residual blocks,
    and between layers in a row, of which as many as ``most`` stay together. Equations before the first operation are in the first
    stretch, those behind the last in the last.

    Args:
        program: with jit and remat inlined.
        operations: the addresses of all operations, inside loops too.
        most: operations in a stretch where the program allows a cut.

    Raises:
        ValueError: for ``most`` below 1.
    """
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    level = [e for e in program.equations if e.is_data]
    scopes = {address[:i] for address in operations for i in range(1, len(address))}
    holds = [e.address in operations or e.address in scopes for e in level]
    pieces = _pieces(program, level, holds)
    groups: list[list[int]] = []
    count = most
    for piece in pieces:
        here = sum(holds[i] for i in piece)
        if not groups or count + here > most:
            groups.append([])
            count = 0
        groups[-1] += piece
        count += here
    return tuple(_stretch(program, [level[i] for i in group], operations, scopes) for group in groups)


def _pieces(program: Program, level: Sequence[Equation], holds: Sequence[bool]) -> list[list[int]]:
    """The smallest stretches, as indices of equations."""
    last = {value: i for i, e in enumerate(level) for value in e.ins}
    last.update(dict.fromkeys(program.outs, len(level)))
    live: set[Value] = set()
    ends: list[int] = []
    candidate: int | None = None
    for i, equation in enumerate(level):
        if holds[i]:
            if candidate is not None:
                ends.append(candidate)
            candidate = None
        if holds[i] or any(v in live for v in equation.ins):
            live.update(equation.outs)
        live = {v for v in live if last.get(v, -1) > i}
        if len(live) == 1:
            candidate = i
    starts = [0, *(end + 1 for end in ends)]
    return [list(range(a, b)) for a, b in zip(starts, [*starts[1:], len(level)], strict=True)]


def _stretch(
    program: Program, equations: Sequence[Equation], operations: Collection[tuple[int, ...]], scopes: Collection[Any]
) -> Stretch:
    inside = {v for e in equations for v in e.outs}
    own = set(equations)
    inputs = dict.fromkeys(v for e in equations for v in e.ins if v.is_data and v not in inside)
    outside = {v for e in program.equations if e not in own for v in e.ins} | set(program.outs)
    outs = [v for e in equations for v in e.outs if v in outside]
    return Stretch(
        tuple(equations),
        tuple(inputs),
        tuple(outs),
        tuple(e.address for e in equations if e.address in operations),
        any(e.address in scopes for e in equations),
    )
