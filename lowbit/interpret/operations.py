"""What reading a program finds: its operations, and what else a plan says of it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lowbit.program import compat, primitives
from lowbit.program.read import Equation, Program

from .kinds import Address, Data, Kind, Picked


@dataclasses.dataclass(frozen=True)
class Operation:
    """One matmul, convolution or embedding look-up, as found.

    Attributes:
        equation: the equation.
        base: the path without ``@0``; `path` adds it.
        kinds: the kind of either operand.
        stack: lengths of the enclosing scans over layers.
        source: where it was written, or, where a traced body does not say, where the call of it was.
        picked: of a look-up, the axes of its table that it picks from.
        own_gradient: the function with its own derivative that it is in, with its source line; "" outside.
        path: unique name.
    """

    equation: Equation
    base: str
    kinds: tuple[Kind, Kind]
    stack: tuple[int, ...]
    source: str
    picked: tuple[int, ...] = ()
    own_gradient: str = ""
    path: str = ""

    @property
    def eqn(self) -> Any:
        """The equation as traced."""
        return self.equation.eqn

    @property
    def address(self) -> Address:
        """Where it is."""
        return self.equation.address

    @property
    def is_lookup(self) -> bool:
        """Whether it picks parts of its left operand."""
        return self.equation.name in primitives.LOOKUPS

    @property
    def weight(self) -> int | None:
        """Which operand is the weight; None where both depend on data."""
        is_weight = [not isinstance(kind, Data) or isinstance(kind, Picked) for kind in self.kinds]
        return is_weight.index(True) if any(is_weight) else None

    @property
    def primitive(self) -> str:
        """The primitive's name; a look-up is a ``gather``, also where one index made it a dynamic slice."""
        return "gather" if self.is_lookup else self.equation.name

    def operands(self, values: Sequence[Any]) -> list[Any]:
        """Returns the two operands from those of the equation: all indices of a look-up are one."""
        return [values[0], tuple(values[1:])] if self.is_lookup else list(values)

    def rebind(self, operands: Sequence[Any]) -> Any:
        """Returns the equation's result on two operands, which are arrays."""
        left, right = operands
        return compat.rebind(self.eqn, [left, *right] if self.is_lookup else [left, right])[0]


@dataclasses.dataclass
class Inventory:
    """What `lowbit.interpret.inventory.take_inventory` found. Plain data, made once per trace.

    Attributes:
        program: what was read.
        leaves: the paths of the parameter leaves.
        operations: in program order.
        layer_scans: addresses of scans over stacked parameters; their sites have a state per layer.
        unseen: ``(primitive, source line)`` of primitives that may hide a matmul: known ones, and unknown ones that take
            parameters.
        sizes: the leaves' elements.
        shapes: their shapes.
        picks: addresses of look-ups that only move a weight, to the operation that takes what they pick as one.
        uses: by leaf, the primitives that compute with it, in order.
        results: addresses of the operations that feed the results.
    """

    program: Program
    leaves: list[str]
    operations: list[Operation] = dataclasses.field(default_factory=list)
    layer_scans: set[Address] = dataclasses.field(default_factory=set)
    unseen: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    sizes: list[int] = dataclasses.field(default_factory=list)
    shapes: list[tuple[int, ...]] = dataclasses.field(default_factory=list)
    picks: frozenset[Address] = frozenset()
    uses: dict[int, dict[str, None]] = dataclasses.field(default_factory=dict)
    results: frozenset[Address] = frozenset()

    @property
    def by_address(self) -> dict[Address, Operation]:
        """The operations by where they are."""
        return {op.address: op for op in self.operations}
