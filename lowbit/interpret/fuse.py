"""What follows a product goes into its native call: bias, factors, relu, and the next operation's quantization.

A traced program in which products with prepared weights are single equations is evaluated with, after each of them, the
longest run of float32 operations with one number a channel that nothing else reads, and the codes of the operation that
reads the end of it. The kernel does the same operations in the same order, each rounded once: no number changes.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lowbit.packed import native_calls
from lowbit.packed import product as products
from lowbit.packed.arena import Placed
from lowbit.program import compat
from lowbit.program.evaluate import traced
from lowbit.program.read import Equation, Program, Value

from . import fuse_axes as axes
from . import fuse_loops as loops
from . import windows

MOST_STEPS = 8
RESIDUAL = "residual"

_RESHAPES = ("reshape", "squeeze", "expand_dims", "broadcast_in_dim")
"""Operations that keep the order of what they read where they keep its size."""

_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass
class Step:
    """One operation after a product.

    Attributes:
        kind: as in `lowbit_kernels.prepare_steps`.
        operand: the number, or numbers, of the channels; or the array that is added.
        channels: the axes of the operand's broadcast form that are the channels; none of a scalar.
        is_negated: whether it is subtracted.
    """

    kind: str
    operand: Value
    channels: tuple[int, ...]
    rank: int
    is_negated: bool = False


@dataclasses.dataclass
class Chain:
    """A product and what its call does besides.

    Attributes:
        equation: the product.
        last: the last equation that the call stands for.
        steps: in order.
        moves: movements among them, which come after the call: the steps do not mind.
        out: what the last equation makes.
        channels: its axes that are the channels.
        rows: what the moves do to an array of the other axes.
        readers: products that read it as codes; all on one grid.
        is_kept: whether anything else reads it.
        by_channel: whether codes say which channels are NaN: of a reader that sums over some alone.
    """

    equation: Equation
    last: Equation
    steps: list[Step]
    moves: list[Equation]
    out: Value
    channels: tuple[int, ...] = ()
    rows: list[Any] = dataclasses.field(default_factory=list)
    readers: list[Equation] = dataclasses.field(default_factory=list)
    is_kept: bool = True
    by_channel: bool = False


def run(program: Program, values: Sequence[Any]) -> list[Any]:
    """Returns the results of a program.

    Args:
        program: with products as equations (`lowbit.packed.product`); its parameters are its fixed inputs.
        values: its inputs.
    """
    return _Run(program, dict(zip(program.inputs, values, strict=True))).outs()


def _is_product(equation: Equation | None) -> bool:
    return equation is not None and equation.name == products.NAME


def has_product(program: Program) -> bool:
    """Returns whether a program, or the body of a call in it, has a product that may be put together with what follows."""
    return any(_is_product(e) or _holds_product(e) for e in program.equations)


def _holds_product(equation: Equation) -> bool:
    return equation.call is not None and any(has_product(body) for body in equation.bodies)


class _Run:
    """One evaluation of a program: which operations follow each product is settled before, and what they read is computed when asked for.

    Args:
        program: with products that are single equations.
        env: its inputs' values; placed ones are cut out of the arena only where an operation of XLA reads them.
    """

    def __init__(self, program: Program, env: dict[Value, Any]):
        self.program = program
        self.placed = {value: x for value, x in env.items() if isinstance(x, Placed)}
        self.env = {value: x for value, x in env.items() if not isinstance(x, Placed)}
        self.own = set(program.equations)
        self.codes: dict[Value, tuple[Array, Array]] = {}
        self.chains: dict[Equation, Chain] = {}  # by the last equation
        self.inside: set[Equation] = set()
        self.given: dict[Equation, Value] = {}  # of a product that reads codes: which value's
        for equation in program.equations:
            if _is_product(equation):
                chain = self.follow(equation)
                self.chains[chain.last] = chain
        for chain in list(self.chains.values()):
            self.find_readers(chain)

    def get(self, value: Value) -> Any:
        """A value, computed now if it was not: operands of steps may come later in the program."""
        if value in self.env:
            return self.env[value]
        if value in self.placed:
            self.env[value] = self.placed[value].array()
            return self.env[value]
        if value.is_written:
            return traced(value)
        assert value.source is not None
        if value.source in self.chains:
            self.call(self.chains[value.source])
        else:
            self.compute(value.source)
        return self.env[value]

    def place(self, value: Value) -> Any:
        """A value as a native call reads it: where it lies in an arena, if it is a reshaped parameter that does."""
        if value in self.placed:
            return self.placed[value]
        source = value.source
        if source is None or source.name not in _RESHAPES or len(source.ins) != 1 or value.dtype != source.ins[0].dtype:
            return self.get(value)
        inner = self.place(source.ins[0]) if math.prod(value.shape) == math.prod(source.ins[0].shape) else None
        return inner.reshape(value.shape) if isinstance(inner, Placed) else self.get(value)

    def outs(self) -> list[Any]:
        for equation in self.program.equations:
            if equation in self.chains:
                if equation.outs[0] not in self.env:
                    self.call(self.chains[equation])
            elif equation not in self.inside and not all(v in self.env for v in equation.outs):
                self.compute(equation)
        return [self.get(v) for v in self.program.outs]

    def compute(self, equation: Equation) -> None:
        if equation.call in ("scan", "while", "cond") and _holds_product(equation):
            results = loops.CALLS[equation.call](run, equation, [self.place(v) for v in equation.ins])
        elif equation.name == "reduce_window_max":
            results = [windows.largest(equation.eqn, self.get(equation.ins[0]))]
        else:
            results = compat.rebind(equation.eqn, [self.get(v) for v in equation.ins])
        self.env.update(zip(equation.outs, results, strict=True))

    # What is put into a call.

    def reader(self, value: Value) -> Equation | None:
        """The one equation of this program that reads a value, or None."""
        readers = self.program.readers.get(value, [])
        one = readers[0] if len(readers) == 1 else None
        return one if one in self.own else None

    def follow(self, equation: Equation) -> Chain:
        value = equation.outs[0]
        chain = Chain(equation, equation, [], [], value)
        product = equation.params["product"]
        channels = native_calls.channels_of(product, _order(equation))
        if channels is None:
            return chain
        chain.channels = channels
        while (after := self.reader(chain.out)) is not None:
            if after in self.inside or after in self.chains:  # of two products that are added the first has the sum
                break
            longer = self.step(after, chain) if len(chain.steps) < MOST_STEPS - 1 else None
            if longer is not None:
                steps, last = longer
                chain.steps += steps
                self.absorb(chain, after, last)
                continue
            moved = axes.moved(after, chain.channels)
            if moved is None:
                break
            chain.channels, rows = moved
            chain.moves.append(after)
            chain.rows.append(rows)
            self.absorb(chain, after, after)
        return chain

    def absorb(self, chain: Chain, first: Equation, last: Equation) -> None:
        self.inside |= {chain.last, first}
        self.inside.discard(last)
        chain.last, chain.out = last, last.outs[0]

    def step(self, equation: Equation, chain: Chain) -> tuple[list[Step], Equation] | None:
        """The steps that an equation is, and the last equation that belongs to it."""
        value, name = chain.out, equation.name
        if name == "clamp" and equation.ins[1] is value:
            low, high = (_number(equation.ins[i]) for i in (0, 2))
            if (low, high) == (-_LARGEST, _LARGEST) and (not chain.steps or chain.steps[-1].kind == "mul"):
                return [], equation  # a product is saturated already
            if low is not None and high is not None:
                return [Step("max", equation.ins[0], (), 0), Step("min", equation.ins[2], (), 0)], equation
            return None
        if name not in ("add", "sub", "mul", "max", "min") or len(equation.ins) != 2:
            return None
        if name == "sub" and equation.ins[0] is not value:
            return None
        other = equation.ins[1] if equation.ins[0] is value else equation.ins[0]
        if other is value or equation.outs[0].shape != value.shape or other.dtype != np.float32:
            return None
        if other.is_data or not axes.varying(other) <= set(chain.channels):
            takes = name == "add" and self.takes_residual(chain, other)
            return ([Step(RESIDUAL, other, (), 0)], equation) if takes else None
        channels = chain.channels if other.shape else ()
        step = Step("add" if name == "sub" else name, other, channels, len(value.shape), name == "sub")
        if name != "mul":
            return [step], equation
        # A product that a sum follows is saturated; one that is not may be infinite, which the kernel's is not.
        after = self.reader(equation.outs[0])
        if after is None or after.name != "clamp" or after.ins[1] is not equation.outs[0]:
            return None
        if tuple(_number(after.ins[i]) for i in (0, 2)) != (-_LARGEST, _LARGEST):
            return None
        self.inside.add(equation)
        return [step], after

    def takes_residual(self, chain: Chain, other: Value) -> bool:
        """Whether the call of a product may add an array to what its steps so far give."""
        product = chain.equation.params["product"]
        is_first = not chain.moves and all(step.kind != RESIDUAL for step in chain.steps)
        return (
            is_first and other.shape == product.shape and native_calls.takes_residual(product, _order(chain.equation))
        )

    def find_readers(self, chain: Chain) -> None:
        if not chain.channels:
            return
        readers = self.program.readers.get(chain.out, [])
        after = self.reader(chain.out)
        if after is not None and (flat := axes.flattened(after, chain.channels)) is not None:
            following = [e for e in self.program.readers.get(after.outs[0], []) if e is not None]
            takers = [e for e in following if self.takes_codes(e, after.outs[0], flat[0]) and not _has_groups(e)]
            if takers and len(takers) == len(self.program.readers[after.outs[0]]) and len(takers) == 1:
                chain.moves.append(after)
                chain.rows.append(flat[1])
                self.chains.pop(chain.last)
                self.absorb(chain, after, after)
                chain.channels, chain.readers, chain.is_kept = flat[0], takers, False
                self.chains = {**self.chains, chain.last: chain}
                self.given[takers[0]] = chain.out
            return
        product = chain.equation.params["product"]
        is_image = not product.is_dot and len(product.shape) == 4 and not chain.moves
        takers = [
            e
            for e in readers
            if e is not None and self.takes_codes(e, chain.out, chain.channels) and (is_image or not _has_groups(e))
        ]
        same = [e for e in takers if _grid(e) == _grid(takers[0])]
        chain.readers, chain.is_kept = same, not same or len(same) != len(readers)
        chain.by_channel = any(map(_has_groups, same))
        self.given |= dict.fromkeys(same, chain.out)

    def takes_codes(self, equation: Equation, value: Value, channels: tuple[int, ...]) -> bool:
        """Whether a product may read a value as codes of its static grid, with a mark a row."""
        if equation not in self.own or not _is_product(equation) or equation.ins[0] is not value:
            return False
        product, order = equation.params["product"], _order(equation)
        if product.activation != "static" or value.dtype != np.float32 or equation.ins.count(value) != 1:
            return False
        params = dict(product.params)
        if product.is_dot:
            (lc, _), (lb, _) = params["dimension_numbers"]
            return not order.batch and not lb and set(lc) == set(channels)
        is_plain = all(d == 1 for d in params["lhs_dilation"]) and all(n >= 0 for p in params["padding"] for n in p)
        return is_plain and channels == (params["dimension_numbers"].lhs_spec[1],)

    # The calls.

    def call(self, chain: Chain) -> None:
        equation = chain.equation
        params = equation.params
        x, grid, weight = self.operands(equation)
        emit = None
        if chain.readers:
            reader = chain.readers[0]
            scale, zero = (self.place(v) for v in reader.ins[1:3])
            next_product = reader.params["product"]
            emit = native_calls.StaticActivation(scale=scale, zero=zero, lo=next_product.lo, hi=next_product.hi)
        value, codes, marks = native_calls.run(
            params["product"],
            x,
            grid,
            weight,
            steps=[(s.kind, None if s.kind == RESIDUAL else self.numbers(s)) for s in chain.steps],
            residual=next((self.residual(s.operand, chain) for s in chain.steps if s.kind == RESIDUAL), None),
            emit=emit,
            keep=chain.is_kept,
            keeps_nan=params["keeps_nan"],
            by_channel=chain.by_channel,
        )
        for move, rows in zip(chain.moves, chain.rows, strict=True):
            value, codes = (None if a is None else compat.rebind(move.eqn, [a])[0] for a in (value, codes))
            marks = None if marks is None else rows(marks)
        if chain.is_kept:
            self.env[chain.out] = value
        if codes is not None:
            assert marks is not None
            self.codes[chain.out] = codes, marks

    def residual(self, value: Value, chain: Chain) -> Any:
        """What is added, without zeros that only follow its channels: the call knows these."""
        channels = native_calls.channels_of(chain.equation.params["product"], _order(chain.equation))
        source = value.source
        if channels != (len(value.shape) - 1,) or source is None or source.name != "pad":
            return self.get(value)
        return self.get(source.ins[0] if axes.is_widened(source) else value)

    def operands(self, equation: Equation) -> tuple[Any, Any, Any]:
        source = self.given.get(equation)
        read = self.get if _order(equation).batch else self.place  # of several matrices each is cut out of one array
        others = [read(v) for v in equation.ins[1:]]
        if source is None:
            return products.operands(equation.params, [self.get(equation.ins[0]), *others])
        codes, marks = self.codes[source]
        x, grid, weight = products.operands(equation.params, [codes, *others])
        marks = marks[0] if equation.params["product"].is_dot and marks.ndim == codes.ndim else marks
        return x, native_calls.Grid(marks, grid.zero), weight

    def numbers(self, step: Step) -> Any:
        """A step's operand: a number, or one a channel."""
        if (number := _number(step.operand)) is not None:
            return -number if step.is_negated else number
        operand = jnp.asarray(self.get(step.operand), jnp.float32)
        operand = -operand if step.is_negated else operand
        if not step.channels or operand.size == 1:
            return operand.reshape(())
        kept = [i for i in range(operand.ndim) if i in step.channels]
        operand = operand[tuple(slice(None) if i in kept else 0 for i in range(operand.ndim))]
        return jnp.transpose(operand, [kept.index(i) for i in step.channels]).reshape(-1)


def _has_groups(equation: Equation) -> bool:
    """Whether a product sums over some channels of an input alone."""
    return dict(equation.params["product"].params).get("feature_group_count", 1) > 1


def _order(equation: Equation) -> Any:
    """The weight of a product, shapes for arrays."""
    shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in equation.ins]
    return products.operands(equation.params, shapes)[2]


def _grid(equation: Equation) -> tuple[Any, ...]:
    product = equation.params["product"]
    return (*equation.ins[1:3], product.lo, product.hi)


def _number(value: Value) -> float | None:
    return float(value.value) if value.is_written and value.shape == () else None
