"""What is fixed in a program: computed from parameters, state and constants alone, and along which axes it varies."""

from typing import Any

import jax.numpy as jnp

from lowbit.interpret import moves
from lowbit.program import primitives

from .traced import Traced

ROOTS = primitives.ROOTS - {"cbrt"}
_ELEMENTWISE = primitives.ELEMENTWISE | primitives.CASTS
MOVES = primitives.SAME | primitives.CASTS | (primitives.SHAPED - {"rev"})
"""Primitives that move values or cast them, and keep every one of them."""


class Reader:
    """What is fixed in a program, and along which axes it varies.

    Attributes:
        program: the model.
        batch: variables that hold a statistic of the batch, with the leaf of state that keeps its running average.
        averages: results that are such an average, with the same leaf.
    """

    def __init__(self, program: Traced):
        self.program = program
        self.batch: dict[Any, int] = {}
        self.averages: dict[int, int] = {}
        self.leaves = {*program.params, *program.state}
        self._fixed = self._all_fixed()
        self._varies: dict[Any, frozenset[int]] = {}
        self.batch, self.averages = self._statistics()
        self._fixed = self._all_fixed()  # now with running statistics in place of the batch's

    def is_fixed(self, var: Any) -> bool:
        """Whether a variable depends on parameters, state and constants alone."""
        return var.is_written or var in self._fixed

    def _all_fixed(self) -> set[Any]:
        fixed = {*self.leaves, *self.batch}
        for equation in self.program.equations:
            if all(v.is_written or v in fixed for v in equation.ins):
                fixed.update(equation.outs)
        return fixed

    def _statistics(self) -> tuple[dict[Any, int], dict[int, int]]:
        batch, averages = {}, {}
        for leaf, result in self.program.updates.items():
            old, new = self.program.state[leaf], self.program.outs[result]
            statistic = None if new.is_written else self._averaged(new, old)
            if statistic is not None:
                batch[statistic] = leaf
                averages[result] = leaf
        return batch, averages

    def _averaged(self, new: Any, old: Any) -> Any:
        """The variable that ``new`` averages into ``old``, or None: the first one upstream that has another use."""
        var, is_mixed = new, False
        while not self.is_fixed(var) and (var is new or len(self.program.readers[var]) == 1):
            maker = var.source
            if maker is None:
                return None
            moving = [v for v in maker.ins if not self.is_fixed(v)]
            if maker.name not in (*_ELEMENTWISE, *MOVES) or len(moving) != 1:
                break
            is_mixed = is_mixed or any(self._reads(v, old) for v in maker.ins if v is not moving[0])
            var = moving[0]
        is_like = _long(var) == _long(old) and jnp.issubdtype(old.dtype, jnp.floating)
        return var if is_mixed and is_like and var is not new else None

    def _reads(self, var: Any, leaf: Any) -> bool:
        return leaf in self.upstream(var)

    def upstream(self, var: Any) -> set[Any]:
        """Every variable that a fixed one is computed from, itself included; batch statistics are where it ends."""
        sources, todo = set(), [var]
        while todo:
            var = todo.pop()
            if var.is_written or var in sources:
                continue
            sources.add(var)
            if var.source is not None and var not in self.batch:
                todo += var.source.ins
        return sources

    def is_root(self, var: Any) -> bool:
        """Whether a fixed variable is computed through a root of something that parameters or state decide."""
        for v in self.upstream(var):
            maker = v.source
            if maker is None or v in self.batch or maker.name not in ROOTS:
                continue
            if self.upstream(maker.ins[0]) & {*self.leaves, *self.batch}:
                return True
        return False

    def varies(self, var: Any) -> frozenset[int]:
        """The axes along which a fixed variable may vary."""
        if var.is_written and not var.shape:
            return frozenset()
        if var not in self._varies:
            self._varies[var] = self._axes(var)
        return self._varies[var]

    def _axes(self, var: Any) -> frozenset[int]:
        shape = var.shape
        every = frozenset(i for i, n in enumerate(shape) if n > 1)
        maker = None if var in self.batch else var.source
        if maker is None:
            return every
        name = maker.name
        if name == "broadcast_in_dim":
            dims = maker.params["broadcast_dimensions"]
            return frozenset(dims[i] for i in self.varies(maker.ins[0]))
        if name in _ELEMENTWISE and all(v.ndim in (0, len(shape)) for v in maker.ins):
            return frozenset().union(*(self.varies(v) for v in maker.ins))
        if name in MOVES:
            axes = moves.track(maker.eqn, moves.leaf_axes(maker.ins[0].shape))
            if axes is not None:
                inside = self.varies(maker.ins[0])
                return frozenset(i for i, atoms in enumerate(axes) if any(axis in inside for axis, _ in atoms))
        return every


def _long(var: Any) -> tuple[int, ...]:
    return tuple(n for n in var.shape if n > 1)
