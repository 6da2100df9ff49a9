"""Finding batch norms: per-channel normalisations that follow a matmul or convolution, by data flow, never by name.

A value is *fixed* if it depends on parameters, state and constants alone. From the result of every operation whose weight
is a parameter, `find` follows additions, products and movements with fixed values that vary along one output channel axis
only. The chain is a batch norm if one of its factors holds a square root of something fixed.

In a training function the batch's own statistics take the place of the running ones. They are recognised by the update
``running' = m * running + (1 - m) * batch`` of a leaf of state: with ``running`` read in place of ``batch``, training and
evaluation are the same chain.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from lowbit.interpret import moves
from lowbit.program import compat, primitives
from lowbit.program.read import Equation, Program, Value

from .fixed import MOVES, ROOTS, Reader
from .traced import Traced


@dataclasses.dataclass(frozen=True)
class Step:
    """One equation of a chain: ``add``, ``sub``, ``rsub`` (fixed minus value), ``mul``, ``div``, ``neg`` or ``move``.

    Attributes:
        equation: the equation.
        kind: what it does.
        fixed: the variable of the other operand, or None.
        axes: which axes of the operation's result make up every axis of the equation's result.
    """

    equation: Equation
    kind: str
    fixed: Any
    axes: moves.Axes


@dataclasses.dataclass(frozen=True)
class Norm:
    """A batch norm that folds into the operation before it.

    Attributes:
        path: of the operation: its weight's leaf path.
        leaf: index of the weight among the parameters.
        leaf_axis: axis of the weight that counts output channels; None where one factor serves all.
        op: the operation's equation.
        steps: from the operation's result to the norm's.
        axis: the channel axis of the operation's result.
        stats: indices of the running statistics among the leaves of state, in a training function.
    """

    path: str
    leaf: int
    leaf_axis: int | None
    op: Equation
    steps: tuple[Step, ...]
    axis: int | None
    stats: tuple[int, ...]

    def place(self, axes: moves.Axes) -> int | None:
        """Returns where the channel axis is in a value of these axes."""
        return next((i for i, atoms in enumerate(axes) if self.axis in {axis for axis, _ in atoms}), None)


@dataclasses.dataclass(frozen=True)
class Left:
    """What looks like a batch norm and is left as it is.

    Attributes:
        where: the operation's path, or the leaf of state.
        reason: why.
    """

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


def find(program: Traced) -> tuple[tuple[Norm, ...], tuple[Left, ...]]:
    """Returns the batch norms that fold, in program order, and what looks like one and does not."""
    reader = Reader(program)
    weights = _weights(program)
    norms: list[Norm] = []
    left: list[Left] = []
    seen: set[Equation] = set()
    for equation in program.equations:
        if equation.name not in primitives.PRODUCTS or all(reader.is_fixed(v) for v in equation.ins):
            continue
        steps = _chain(reader, equation)
        if steps is None:
            continue
        seen.update(step.equation for step in steps)
        norm = _norm(reader, weights, equation, steps)
        (norms if isinstance(norm, Norm) else left).append(norm)  # pyright: ignore[reportArgumentType]
    norms, used = _without_other_uses(reader, norms)
    return tuple(norms), (*left, *used, *_unattached(reader, seen), *_hidden(reader, norms))


def _weights(program: Traced) -> dict[Value, tuple[int, moves.Axes]]:
    """Parameters, moved at most: ``variable -> (leaf, axes)``. Reversed axes are forgotten, so that none is scaled."""
    weights = {var: (i, moves.leaf_axes(var.shape)) for i, var in enumerate(program.params)}
    for equation in program.equations:
        if not equation.ins or equation.ins[0] not in weights:
            continue
        leaf, axes = weights[equation.ins[0]]
        if equation.name == "rev":
            weights[equation.outs[0]] = (
                leaf,
                tuple(() if i in equation.params["dimensions"] else atoms for i, atoms in enumerate(axes)),
            )
        elif equation.name in MOVES and (moved := moves.track(equation.eqn, axes)) is not None:
            weights[equation.outs[0]] = leaf, moved
    return weights


def _chain(reader: Reader, op: Equation) -> list[Step] | None:
    """The steps from an operation's result to a norm's, or None where no norm follows."""
    var = op.outs[0]
    axes, steps, end = moves.leaf_axes(var.shape), [], 0
    is_normal = is_shifted = False
    while True:
        readers = reader.program.readers.get(var, [])
        options = [step for e in readers if e is not None and (step := _step(reader, e, var, axes)) is not None]
        if len(options) != 1 or (is_normal and len(readers) > 1):
            break
        (step,) = options
        if is_normal and (is_shifted or step.kind == "neg") and step.kind != "move":
            break
        steps.append(step)
        if step.kind != "move":
            is_normal = is_normal or (step.kind in ("mul", "div") and reader.is_root(step.fixed))
            is_shifted = is_normal and step.kind in ("add", "sub", "rsub")
            end = len(steps) if is_normal else 0
        var, axes = step.equation.outs[0], step.axes
    return steps[:end] or None


def _step(reader: Reader, equation: Equation, var: Value, axes: moves.Axes) -> Step | None:
    name = equation.name
    if name == "neg":
        return Step(equation, "neg", None, axes)
    if name in MOVES:
        moved = moves.track(equation.eqn, axes)
        return None if moved is None else Step(equation, "move", None, moved)
    if name not in ("add", "sub", "mul", "div") or equation.outs[0].shape != var.shape:
        return None
    is_second = equation.ins[0] is not var
    other = equation.ins[0 if is_second else 1]
    if other is var or not reader.is_fixed(other) or (is_second and name == "div"):
        return None
    if len(reader.varies(other)) > 1:
        return None
    return Step(equation, "rsub" if is_second and name == "sub" else name, other, axes)


def _norm(
    reader: Reader, weights: Mapping[Value, tuple[int, moves.Axes]], op: Equation, steps: list[Step]
) -> Norm | Left:
    """The norm of a chain, or why it does not fold."""
    program = reader.program
    line = steps[-1].equation.source or op.name
    sides = [i for i in range(2) if op.ins[i] in weights]
    if not sides:
        return Left(line, "the operation before it has no weight that is a parameter, moved at most")
    side = sides[0]
    leaf, axes = weights[op.ins[side]]
    path = program.paths[leaf]
    if not jnp.issubdtype(program.params[leaf].dtype, jnp.floating):
        return Left(path, f"the weight is {program.params[leaf].dtype}, not float")
    if not _is_single_use(program, program.params[leaf], op):
        return Left(path, "the weight has another use, which folding would change")
    channel: int | None = None
    for step in steps:
        for at in reader.varies(step.fixed) if step.fixed is not None else ():
            atoms = step.axes[at]
            size = step.equation.outs[0].shape[at]
            if len(atoms) != 1 or atoms[0][1] != size or (channel is not None and atoms[0][0] != channel):
                return Left(path, "the norm is not along one axis of the operation's result")
            channel = atoms[0][0]
    leaf_axis = None
    if channel is not None:
        operand_axis = _weight_axis(op, side, channel)
        if operand_axis is None:
            return Left(path, f"the norm is along axis {channel} of the result, which does not come from the weight")
        atoms = axes[operand_axis]
        if len(atoms) != 1 or atoms[0][1] != program.params[leaf].shape[atoms[0][0]]:
            return Left(path, "the output channels are not one whole axis of the weight's leaf")
        leaf_axis = atoms[0][0]
    fixed = set().union(*(reader.upstream(step.fixed) for step in steps if step.fixed is not None))
    stats = tuple(sorted(reader.batch[var] for var in fixed if var in reader.batch))
    return Norm(path, leaf, leaf_axis, op, tuple(steps), channel, stats)


def _is_single_use(program: Traced, var: Value, op: Equation) -> bool:
    while True:
        readers = program.readers.get(var, [])
        if len(readers) != 1 or readers[0] is None:
            return False
        if readers[0] is op:
            return True
        var = readers[0].outs[0]


def _weight_axis(op: Equation, side: int, channel: int) -> int | None:
    """The axis of the weight operand that an axis of the result comes from, or None."""
    numbers = op.params["dimension_numbers"]
    if op.name == "conv_general_dilated":
        return numbers.rhs_spec[0] if side == 1 and numbers.out_spec[1] == channel else None
    contract, batch = numbers
    free = [[i for i in range(v.ndim) if i not in contract[k] and i not in batch[k]] for k, v in enumerate(op.ins)]
    from_weight = [*batch[side], *([None] * len(free[0]) if side == 1 else free[0]), *(free[1] if side == 1 else ())]
    return from_weight[channel] if channel < len(from_weight) else None


def _without_other_uses(reader: Reader, norms: list[Norm]) -> tuple[list[Norm], list[Left]]:
    """The norms whose inner values nothing else needs, once running statistics stand for the batch's."""
    program = reader.program
    folded = {leaf for norm in norms for leaf in norm.stats}
    ends = {n.steps[-1].equation.outs[0]: n for n in norms}
    inner = {e.outs[0]: n for n in norms for e in (n.op, *(s.equation for s in n.steps[:-1]))}
    todo = [v for i, v in enumerate(program.outs) if reader.averages.get(i) not in folded]
    done: set[Value] = set()
    failed: set[str] = set()
    while todo:
        var = todo.pop()
        if var in done:
            continue
        done.add(var)
        if var in inner:
            failed.add(inner[var].path)
        if var in ends:
            todo += ends[var].op.ins
        elif var.source is not None:
            todo += var.source.ins
    reason = "the operation's result is used before the norm as well"
    return [n for n in norms if n.path not in failed], [Left(n.path, reason) for n in norms if n.path in failed]


def _unattached(reader: Reader, seen: set[Equation]) -> list[Left]:
    """Products of data with a fixed root that belong to no chain: a norm of an input, after relu, over several axes."""
    names = []
    for i, equation in enumerate(reader.program.equations):
        if equation in seen or equation.name not in ("mul", "div") or all(reader.is_fixed(v) for v in equation.ins):
            continue
        if any(reader.is_fixed(v) and not v.is_written and reader.is_root(v) for v in equation.ins):
            where = equation.source or f"equation {i}"
            names.append(
                Left(where, "a fixed normalisation that does not directly follow an operation on one channel axis")
            )
    return names


def _hidden(reader: Reader, norms: list[Norm]) -> list[Left]:
    """Running averages that no folded norm reads, and calls that hold matmuls and read state or fixed roots."""
    program = reader.program
    folded = {leaf for norm in norms for leaf in norm.stats}
    hidden = [
        Left(program.state_paths[leaf], "a running average that belongs to no folded norm")
        for leaf in sorted(reader.averages.values())
        if leaf not in folded
    ]
    for leaf, result in program.updates.items():
        old, new = program.state[leaf], program.outs[result]
        if new.source is None or not (old.ndim and jnp.issubdtype(old.dtype, jnp.floating)):
            continue
        call = new.source.call
        if call is not None and old in new.source.ins:
            hidden.append(Left(program.state_paths[leaf], f"updated inside {call}: a norm there is not looked for"))
    for equation in program.equations:
        if equation.call is not None and _holds_norm(equation, [reader.is_fixed(v) for v in equation.ins]):
            where = equation.source or equation.name
            hidden.append(Left(where, f"inside {equation.call}: a norm there is not looked for"))
    return hidden


def _holds_norm(equation: Equation, fixed: list[bool]) -> bool:
    """Whether a call multiplies data with the root of a value that is fixed, which it is given."""
    numbered = list(enumerate(equation.bodies))
    bodies = numbered[1:] if equation.call == "while" else numbered
    return any(_body_holds_norm(body, [fixed[k] for k in compat.operands(equation.eqn, i)]) for i, body in bodies)


def _body_holds_norm(body: Program, fixed: list[bool]) -> bool:
    known = dict(zip(body.inputs, fixed, strict=True))
    roots: set[Value] = set()
    for equation in body.equations:
        flags = [known.get(v, True) for v in equation.ins]
        given = [v for v in equation.ins if not v.is_written]
        if equation.call is not None and _holds_norm(equation, flags):
            return True
        if all(flags):
            if (equation.name in ROOTS and given) or any(v in roots for v in given):
                roots.update(equation.outs)
        elif equation.name in ("mul", "div") and any(v in roots for v in given):
            return True
        known.update({v: all(flags) for v in equation.outs})
    return False
