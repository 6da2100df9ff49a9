"""What an integer computation is: a kind, of which `lowbit.interpret.integer.ops` has one in every file.

A kind says which equations it takes, which integer constants it needs, and what it computes from codes. Placing, packing,
simulating, executing and exporting ask the kind of a node, and know none by name but arguments, integers and loops.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.core.qtensor import QTensor
from lowbit.core.rounding import nearest_even
from lowbit.core.spec import Spec
from lowbit.program.read import Equation, Value

from .compute import code_dtype
from .fixed import Rounding
from .flat import Constants
from .nodes import Node
from .placer import Placer

Grid = tuple[Float[Array, ""], Float[Array, ""]]
"""Scale and zero point of a grid."""


@dataclasses.dataclass(frozen=True)
class Given:
    """What the constants of a node are made of, in float32.

    Attributes:
        node: the node.
        specs: of the grids that it reads.
        grids: their scales and zero points.
        spec: of the grid of its result.
        scale: of it.
        zero: of it.
        known: the values of parameters and constants.
        weight: of an operation: quantized, as the operation takes it.
    """

    node: Node
    specs: Sequence[Spec]
    grids: Sequence[Grid]
    spec: Spec
    scale: Array
    zero: Array
    known: Constants
    weight: QTensor | None

    @property
    def bits(self) -> int:
        """The largest width of what it reads: 8 and less, or 16."""
        return max((spec.format.bits for spec in self.specs), default=0)

    @cached_property
    def inverse(self) -> Array:
        """One over the scale of the result."""
        return 1.0 / self.scale

    def codes(self, x: Array) -> Array:
        """Returns values on the grid of the result."""
        low, high = self.spec.format.low, self.spec.format.high
        levels = jnp.clip(nearest_even(x * self.inverse) + self.zero, low, high)
        return self.spec.format.encode(levels)

    def bounds(self) -> dict[str, Array]:
        """Returns the codes between which clips leave the result: ``low``, ``high``."""
        low = jnp.float32(self.spec.format.low)
        high = jnp.float32(self.spec.format.high)
        for which, var in self.node.clips:
            bound = self.known.small(var).astype(jnp.float32).reshape(())
            code = jnp.clip(nearest_even(bound * self.inverse) + self.zero, self.spec.format.low, self.spec.format.high)
            low, high = (jnp.maximum(low, code), high) if which == "low" else (low, jnp.minimum(high, code))
        return {"low": low.astype(jnp.int32), "high": high.astype(jnp.int32)}


@dataclasses.dataclass(frozen=True)
class Taken:
    """What a node computes from: integers alone.

    Attributes:
        node: the node.
        codes: what it reads: codes, and integers and predicates that have no grid.
        zeros: int32 zero points of those that are codes.
        specs: of their grids.
        spec: of the grid of the result.
        c: the node's constants.
        weight: of an operation: its codes.
        rounding: how products are cut.
        known: values of constants that are no parameters: predicates, indices.
        carried: whether dots are computed on integers carried in float32, exactly, or on int8.
    """

    node: Node
    codes: Sequence[Any]
    zeros: Sequence[Array]
    specs: Sequence[Spec]
    spec: Spec
    c: Mapping[str, Any]
    weight: QTensor | None
    rounding: Rounding
    known: Constants
    carried: bool

    @property
    def bits(self) -> int:
        """The width of the widest codes that it reads: 8 (and less), or 16."""
        return max((spec.format.bits for spec in self.specs), default=0)

    @property
    def dtype(self) -> Any:
        """The dtype of the result's codes."""
        return code_dtype(self.spec)


class Kind(abc.ABC):
    """One kind of integer computation. Without state: the object stands for its file, whose name it has.

    Attributes:
        name: as nodes, plans and paths have it.
        after: kinds that are asked before this one whether an equation is theirs.
        takes_loops: whether it is asked about equations with bodies, and about no others.
        names: whether a grid may be called by its nodes: at first, where nothing else is on the grid (``last``), or never.
        reads_grids: whether what it reads is on grids; else it is integers that pick.
        joins: whether several tensors meet in it, whose spans are then compared.
        shares: whether they are on one grid, with the result.
        rounds_clips: whether the bounds that it absorbs are rounded to its grid.
    """

    name: ClassVar[str]
    after: ClassVar[tuple[str, ...]] = ()
    takes_loops: ClassVar[bool] = False
    names: ClassVar[Literal["first", "last", "never"]] = "first"
    reads_grids: ClassVar[bool] = True
    joins: ClassVar[bool] = False
    shares: ClassVar[bool] = False
    rounds_clips: ClassVar[bool] = True

    # placing

    def takes(self, equation: Equation, placer: Placer) -> bool:
        """Returns whether an equation of data becomes, or begins, a node of this kind."""
        del equation, placer
        return False

    def place(self, equation: Equation, placer: Placer, nodes: list[Node]) -> None:
        """Makes the node of an equation that it takes.

        Raises:
            ValueError: where something about the equation has no integer form.
        """
        raise NotImplementedError

    def supply(self, var: Value, placer: Placer, nodes: list[Node]) -> Value | None:
        """Returns a value on a grid of its own, making a node for it; None where that is not for this kind to do."""
        del var, placer, nodes

    def most_long(self, node: Node) -> tuple[int, int] | None:
        """Returns how many 16-bit codes a node adds, and how many its sums hold; None where it adds none."""
        del node

    def check_weight(self, node: Node, weight: QTensor, spec: Spec) -> None:
        """Raises where a node cannot take its weight.

        Args:
            node: the node.
            weight: as the operation takes it.
            spec: of its first input.

        Raises:
            ValueError: where a scale varies along what is summed over, or its groups leave the sums too few bits.
        """
        del node, weight, spec

    # computing

    def constants(self, given: Given) -> dict[str, Array]:
        """Returns the integer constants of a node."""
        del given
        return {}

    def held(self, node: Node) -> list[Value]:
        """Returns what a node may read of constants while it runs."""
        del node
        return []

    @abc.abstractmethod
    def compute(self, taken: Taken) -> list[Any]:
        """Returns the codes of a node's results."""

    def changes(self, equation: Equation) -> dict[str, Any]:
        """Returns the parameters in which a node's float definition differs from its equation."""
        del equation
        return {}

    # in float, for exports

    def needs_codes(self, *, bits: int, is_known: bool) -> bool:
        """Returns whether a form in float computes it on codes nevertheless.

        Args:
            bits: of its first input.
            is_known: whether a packed model holds all that the float definition takes.
        """
        del bits, is_known
        return False

    def rebuild(
        self, node: Node, values: Sequence[Array], scales: Sequence[float], known: Constants, bits: int
    ) -> tuple[Array, float]:
        """Returns a node's sum in float, and the value of one step of its accumulator, parameters that it absorbs left out.

        Args:
            node: the node.
            values: what it reads, float32.
            scales: of the grids that it reads, float64.
            known: constants.
            bits: of its first input.

        Raises:
            ValueError: where the sum itself depends on a parameter.
        """
        del values, scales, known, bits
        raise ValueError(
            f"{node.path} ({node.source}): this {node.kind} depends on a parameter, and packed models hold no floats"
        )


class Movement(Kind):
    """A kind that changes where elements are, or chooses among them: its result is on the grid of what it reads."""

    @abc.abstractmethod
    def moved(self, node: Node, values: Sequence[Any], zero: Array, get: Callable[[Value], Any]) -> list[Any]:
        """Returns a movement of codes, levels or floats.

        Args:
            node: the node.
            values: what it reads.
            zero: what stands for 0 among them.
            get: the values of constants.
        """

    def compute(self, taken: Taken) -> list[Any]:
        return self.moved(taken.node, taken.codes, taken.zeros[0], taken.known.value)
