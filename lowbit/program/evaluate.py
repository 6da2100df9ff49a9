"""Programs are evaluated here: equation after equation, by a table of handlers, with the traced equation as the default."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import compat
from .read import Equation, Program, Value

Handler = Callable[[Equation, list[Any]], Sequence[Any]]
"""``(equation, what it reads) -> what it makes``, of whatever the evaluation carries."""


def again(equation: Equation, values: Sequence[Any]) -> Sequence[Any]:
    """Returns the results of an equation on other arrays, as it was traced."""
    return compat.rebind(equation.eqn, values)


def needed(equations: Sequence[Equation], outs: Sequence[Value]) -> list[Equation]:
    """Returns the equations that some results need, or that have effects, in order."""
    wanted, kept = set(outs), []
    for equation in reversed(equations):
        if equation.eqn.effects or any(v in wanted for v in equation.outs):
            kept.append(equation)
            wanted.update(equation.ins)
    return kept[::-1]


def written(value: Value) -> Any:
    """Returns a written constant as it is."""
    return value.value


def traced(value: Value) -> Any:
    """Returns a written constant as it was traced: a literal keeps its weak type."""
    return value.value if value.literal is None else value.literal


def evaluate(
    program: Program,
    args: Sequence[Any],
    handlers: Mapping[str, Handler] | None = None,
    otherwise: Handler = again,
    constant: Callable[[Value], Any] = written,
) -> list[Any]:
    """Returns the results of a program.

    Args:
        program: what `lowbit.program.read` returned, or a body of one of its calls.
        args: by input.
        handlers: by primitive, or sort of call: what an equation makes.
        otherwise: of the rest.
        constant: what a written constant is.
    """
    return run(program, dict(zip(program.inputs, args, strict=True)), handlers or {}, otherwise, constant)


def run(
    program: Program,
    env: dict[Value, Any],
    handlers: Mapping[str, Handler],
    otherwise: Handler,
    constant: Callable[[Value], Any] = written,
) -> list[Any]:
    """Returns `evaluate`, and adds to ``env`` what every value is."""

    def get(value: Value) -> Any:
        if value not in env:
            env[value] = constant(value)
        return env[value]

    for equation in program.equations:
        results = handlers.get(equation.word, otherwise)(equation, [get(v) for v in equation.ins])
        env.update(zip(equation.outs, results, strict=True))
    return [get(v) for v in program.outs]


def turns(
    equation: Equation,
    values: Sequence[Any],
    body: Callable[[Program, list[Any]], list[Any]],
    part: Callable[[Any, int], Any],
    joined: Callable[[list[Any]], Any],
) -> list[Any]:
    """Returns the results of a scan, its turns written out.

    Args:
        equation: the scan.
        values: what it reads.
        body: evaluates the body: ``(program, operands) -> results``.
        part: what a turn reads of what is scanned over: ``(x, index) -> slice``.
        joined: what the turns return, together, in order of the index.
    """
    loop = equation.loop
    assert loop is not None
    n_consts, n_carry = compat.scan_counts(equation.eqn)
    consts, carry, xs = values[:n_consts], list(values[n_consts : n_consts + n_carry]), values[n_consts + n_carry :]
    stacks: list[list[Any]] = []
    for i in reversed(range(loop.length)) if loop.is_reversed else range(loop.length):
        outs = body(loop.body, [*consts, *carry, *(part(x, i) for x in xs)])
        carry = outs[:n_carry]
        stacks.append(outs[n_carry:])
    stacks = stacks[::-1] if loop.is_reversed else stacks
    return [*carry, *(joined([parts[i] for parts in stacks]) for i in range(len(loop.ys)))]
