"""What is fixed in a program: computed from parameters, state and constants alone, and along which axes it varies."""

from typing import Any

import jax.numpy as jnp

from lowbit.interpret import moves
from lowbit.program import compat

from .program import Program

ROOTS = ("rsqrt", "sqrt", "pow")
"""Primitives that take a root: what tells a normalisation from other products."""

_SIMPLE = ("add", "sub", "mul", "div", "max", "min", "neg", "integer_pow", "square", "exp", "log", "abs", "select_n")
_ELEMENTWISE = (*ROOTS, *_SIMPLE, "convert_element_type")
_SAME = ("copy", "copy_p", "sharding_constraint", "optimization_barrier", "name", "stop_gradient")
MOVES = ("transpose", "squeeze", "expand_dims", "reshape", "broadcast_in_dim", "convert_element_type", *_SAME)
"""Primitives that move values or cast them, and keep every one of them."""


class Reader:
    """What is fixed in a program, and along which axes it varies.

    Attributes:
        program: the program.
        batch: variables that hold a statistic of the batch, with the leaf of state that keeps its running average.
        averages: results that are such an average, with the same leaf.
    """

    def __init__(self, program: Program):
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
        return compat.is_literal(var) or var in self._fixed

    def _all_fixed(self) -> set[Any]:
        found = {*self.leaves, *self.program.closed.jaxpr.constvars, *self.batch}
        for eqn in self.program.eqns:
            if all(compat.is_literal(v) or v in found for v in eqn.invars):
                found.update(eqn.outvars)
        return found

    def _statistics(self) -> tuple[dict[Any, int], dict[int, int]]:
        batch, averages = {}, {}
        for leaf, result in self.program.updates.items():
            old, new = self.program.state[leaf], self.program.outs[result]
            statistic = None if compat.is_literal(new) else self._averaged(new, old)
            if statistic is not None:
                batch[statistic] = leaf
                averages[result] = leaf
        return batch, averages

    def _averaged(self, new: Any, old: Any) -> Any:
        """The variable that ``new`` averages into ``old``, or None: the first one upstream that has another use."""
        var, is_mixed = new, False
        while not self.is_fixed(var) and (var is new or len(self.program.consumers[var]) == 1):
            made = self.program.producers.get(var)
            if made is None:
                return None
            eqn = self.program.eqns[made]
            moving = [v for v in eqn.invars if not self.is_fixed(v)]
            if eqn.primitive.name not in (*_ELEMENTWISE, *MOVES) or len(moving) != 1:
                break
            is_mixed = is_mixed or any(self._reads(v, old) for v in eqn.invars if v is not moving[0])
            var = moving[0]
        is_like = _long(var) == _long(old) and jnp.issubdtype(old.aval.dtype, jnp.floating)
        return var if is_mixed and is_like and var is not new else None

    def _reads(self, var: Any, leaf: Any) -> bool:
        return leaf in self.upstream(var)

    def upstream(self, var: Any) -> set[Any]:
        """Every variable that a fixed one is computed from, itself included; batch statistics are where it ends."""
        found, todo = set(), [var]
        while todo:
            var = todo.pop()
            if compat.is_literal(var) or var in found:
                continue
            found.add(var)
            made = self.program.producers.get(var)
            if made is not None and var not in self.batch:
                todo += self.program.eqns[made].invars
        return found

    def is_root(self, var: Any) -> bool:
        """Whether a fixed variable is computed through a root of something that parameters or state decide."""
        for v in self.upstream(var):
            made = self.program.producers.get(v)
            if made is None or v in self.batch or self.program.eqns[made].primitive.name not in ROOTS:
                continue
            if self.upstream(self.program.eqns[made].invars[0]) & {*self.leaves, *self.batch}:
                return True
        return False

    def varies(self, var: Any) -> frozenset[int]:
        """The axes along which a fixed variable may vary."""
        if compat.is_literal(var):
            return frozenset()
        if var not in self._varies:
            self._varies[var] = self._axes(var)
        return self._varies[var]

    def _axes(self, var: Any) -> frozenset[int]:
        shape = tuple(var.aval.shape)
        every = frozenset(i for i, n in enumerate(shape) if n > 1)
        made = None if var in self.batch else self.program.producers.get(var)
        if made is None:
            return every
        eqn = self.program.eqns[made]
        name = eqn.primitive.name
        first: Any = eqn.invars[0] if eqn.invars else None
        if name == "broadcast_in_dim":
            dims = eqn.params["broadcast_dimensions"]
            return frozenset(dims[i] for i in self.varies(first))
        if name in _ELEMENTWISE and all(v.aval.ndim in (0, len(shape)) for v in eqn.invars):
            return frozenset().union(*(self.varies(v) for v in eqn.invars))
        if name in MOVES:
            axes = moves.track(eqn, moves.leaf_axes(first.aval.shape))
            if axes is not None:
                inside = self.varies(first)
                return frozenset(i for i, atoms in enumerate(axes) if any(axis in inside for axis, _ in atoms))
        return every


def _long(var: Any) -> tuple[int, ...]:
    return tuple(n for n in var.aval.shape if n > 1)
