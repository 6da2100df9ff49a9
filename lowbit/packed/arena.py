"""Small arrays of packed parameters in one buffer: what a jitted call costs for each of its arguments, it then costs once."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.core.qtensor import QTensor
from lowbit.plan.rows import Plan
from lowbit_kernels.cpu.arena import Placed as Placed
from lowbit_kernels.cpu.arena import array_of as array_of
from lowbit_kernels.cpu.arena import is_placeable, place

from .native import NativeTensor
from .trees import QParams, flatten

SMALL = 1 << 16
"""Bytes of an array above which an argument of its own costs little beside reading it, and a copy would be memory."""

Place = tuple[int, int, tuple[int, ...], Any]
"""Of a placed array: its position among all, where it begins, its shape and its dtype."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the arrays of packed parameters, and of their kernels' orders, are. Hashable.

    Attributes:
        count: of all arrays.
        places: of those in the arena.
    """

    count: int
    places: tuple[Place, ...] = ()

    def apart(self, arrays: Sequence[Any]) -> list[Any]:
        """Returns those of all arrays that have no place in the arena."""
        placed = {i for i, *_ in self.places}
        return [x for i, x in enumerate(arrays) if i not in placed]

    def together(self, others: Sequence[Any], arena: Any) -> list[Any]:
        """Returns all arrays, in order, of those that have no place in the arena, and the arena."""
        placed = {i: Placed(arena, at, shape, dtype) for i, at, shape, dtype in self.places}
        rest = iter(others)
        return [placed[i] if i in placed else next(rest) for i in range(self.count)]


def of_native_calls(plan: Plan, qparams: QParams, orders: Mapping[str, Any]) -> list[bool]:
    """Returns, for every array of an ordinary plan's packed parameters and then of the orders, whether native calls alone read it.

    That are weights in the kernels' order, their packed forms, and the grids of inputs. Parameters that stay in float are read
    by other operations, and those of stacked layers by the loop over these.

    Args:
        plan: of the call.
        qparams: packed parameters.
        orders: weights in the kernels' order, by key.
    """
    stacked = {row.path for row in plan.rows if row.stack}
    stacked |= {row.weight.key for row in plan.rows if row.stack and row.weight is not None}
    paths, entries, _ = flatten(qparams.params)
    own: list[bool] = []
    for path, entry in zip(paths, entries, strict=True):
        is_own = isinstance(entry, NativeTensor) or (isinstance(entry, QTensor) and path in orders)
        own += [is_own and path not in stacked] * len(jax.tree.leaves(entry))
    for part in (qparams.sites, orders):
        for path in sorted(part):
            own += [path not in stacked] * len(jax.tree.leaves(part[path]))
    return own


def arranged(arrays: Sequence[Any], read_alone: Sequence[bool]) -> tuple[Layout, Any]:
    """Returns where arrays are, and their arena; None for the latter where there are not several small ones.

    Args:
        arrays: those of packed parameters, then those of their kernels' orders, concrete.
        read_alone: of each, whether native calls alone read it: an operation of XLA's would have to cut it out.
    """
    chosen = [i for i, x in enumerate(arrays) if read_alone[i] and is_placeable(x, SMALL)]
    devices = {device for i in chosen for device in arrays[i].devices()}
    if len(chosen) < 2 or len(devices) > 1:
        return Layout(len(arrays)), None
    data, offsets = place([arrays[i] for i in chosen])
    is_committed = any(arrays[i].committed for i in chosen)
    arena = jax.device_put(data, devices.pop()) if is_committed else jnp.asarray(data)
    places = ((i, at, tuple(arrays[i].shape), arrays[i].dtype) for i, at in zip(chosen, offsets, strict=True))
    return Layout(len(arrays), tuple(places)), arena
