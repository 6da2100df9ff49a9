"""Which values share a grid: sets that grow together."""

from collections.abc import Iterable

from lowbit.program.read import Value

from .nodes import Node


class Grids:
    """Values, some of which are on one grid."""

    def __init__(self):
        self.parents: dict[Value, Value] = {}

    def _find(self, var: Value) -> Value:
        while var in self.parents:
            var = self.parents[var]
        return var

    def unify(self, *values: Value) -> None:
        """Puts values on one grid."""
        first, *rest = [self._find(v) for v in values]
        for other in rest:
            if self._find(other) is not self._find(first):
                self.parents[self._find(other)] = self._find(first)

    def named(self, nodes: Iterable[Node], values: Iterable[Value]) -> dict[Value, str]:
        """Returns the path of the first node whose result is on the grid of each value; nothing of values that have none.

        Args:
            nodes: that may name a grid, in the order in which they do.
            values: whose grids are asked for.
        """
        names: dict[Value, str] = {}
        for node in nodes:
            for out in node.outs:
                names.setdefault(self._find(out), node.path)
        return {var: names[self._find(var)] for var in values if self._find(var) in names}
