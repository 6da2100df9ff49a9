"""Whether packed parameters are still what they were at the last call: a look at their containers, without flattening."""

import dataclasses
import itertools
import operator
from typing import Any

import jax

from lowbit.core.qtensor import QTensor
from lowbit.packed.trees import Dropped, QParams


@dataclasses.dataclass(frozen=True)
class Near:
    """Packed parameters as their containers held them, while these live: a look at every entry, without flattening.

    Attributes:
        dicts: every dictionary of the parameters.
        lists: every list of them.
        keys: of the dictionaries, one after the other.
        values: of dictionaries and lists, one after the other.
        counts: the entries of each.
        sites: a copy of the dictionaries of the sites. Comparing these is quick where every entry is the same object; one
            of the same value is the same.
        others: the arrays that have no place in the arena.
    """

    dicts: list[dict[Any, Any]]
    lists: list[list[Any]]
    keys: list[Any]
    values: list[Any]
    counts: list[int]
    sites: Any
    others: list[Any]

    @classmethod
    def of(cls, qparams: QParams, others: list[Any]) -> "Near | None":
        """Returns that of packed parameters; None where they are held by other containers than tuples, lists, dictionaries."""
        dicts: list[Any] = []
        lists: list[Any] = []
        waiting: list[Any] = [qparams.params]
        for node in waiting:
            if type(node) in (dict, list):
                (dicts if type(node) is dict else lists).append(node)
                waiting += node.values() if type(node) is dict else node
            elif type(node) is tuple:
                waiting += node
            elif not (node is None or isinstance(node, QTensor | Dropped | jax.Array)):
                return None
        values = [*_all(map(dict.values, dicts)), *_all(lists)]
        counts = [*map(len, dicts), *map(len, lists)]
        return cls(dicts, lists, [*_all(dicts)], values, counts, _copied(qparams.sites), others)

    def is_unchanged(self, qparams: QParams) -> bool:
        """Whether every container of the same packed parameters holds what it held."""
        try:
            is_same = qparams.sites == self.sites
        except Exception:  # noqa: BLE001 (an array, which was exchanged, is not compared with another as a truth value)
            return False
        return (
            is_same
            and [*map(len, self.dicts), *map(len, self.lists)] == self.counts
            and [*_all(self.dicts)] == self.keys
            and all(map(operator.is_, itertools.chain(_all(map(dict.values, self.dicts)), *self.lists), self.values))
        )


_all = itertools.chain.from_iterable


def _copied(node: Any) -> Any:
    return {key: _copied(value) for key, value in node.items()} if type(node) is dict else node
