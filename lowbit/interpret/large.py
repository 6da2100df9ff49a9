"""Large weights by themselves: beside what goes in and what comes out, one piece of one weight is held.

A program of all weights holds a float copy of each, for XLA writes down what a reduction reads; of a large model there is no
room for that. Small weights stay together, in one program.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax import lax
from jaxtyping import Array

from lowbit.core.checks import is_traced
from lowbit.core.meshes import explicit_mesh
from lowbit.core.qtensor import QTensor
from lowbit.core.quantizer import Quantizer
from lowbit.core.ranges import Full
from lowbit.core.spec import Operand
from lowbit.packed import pieces
from lowbit.packed.arrays import WHOLE_BYTES
from lowbit.packed.bits import pack, packing_axis
from lowbit.plan.rows import Site
from lowbit.quantizers.rtn import RTN

from .state import QState, quantizer_of


def is_large(x: Any) -> bool:
    """Returns whether a weight is taken by itself: it has values, on one device, and more of them than a quarter of a piece."""
    if is_traced(x) or not isinstance(x, jax.Array) or x.size <= pieces.ELEMENTS // 4:
        return False
    return len(x.sharding.device_set) == 1 and explicit_mesh(x) is None


def started(site: Site, x: Array, key: Array) -> QState:
    """Returns the initial state of a large weight."""
    quantizer, operand = quantizer_of(site), site.operand
    along = _alone(quantizer, operand) if isinstance(getattr(quantizer, "range", None), Full) else None
    count = 1 if along is None else pieces.count_of(x.size, x.shape[along])
    if along is None or count == 1:
        return _started(quantizer, operand, x, key)
    size = x.shape[along] // count

    def piece(i: int) -> QState:
        part = lax.dynamic_slice_in_dim(x, i * size, size, axis=along)
        return _started(quantizer, dataclasses.replace(operand, shape=tuple(part.shape)), part, key)

    return pieces.joined(count, piece, along)


def packed(site: Site, state: QState, x: Array, codes: Array | None) -> QTensor:
    """Returns a large weight packed, with the codes given or those nearest."""
    quantizer, operand = quantizer_of(site), site.operand
    bits = quantizer.spec.format.bits
    place = packing_axis(tuple(x.shape), bits, operand.contract, operand.stack) if bits <= 8 else None
    along = _alone(quantizer, operand, place)
    unit = WHOLE_BYTES if along == place else 1
    count = 1 if along is None else pieces.count_of(x.size, x.shape[along], unit)
    if along is None or count == 1:
        return _packed(quantizer, operand, place, state, x, codes)
    size = x.shape[along] // count

    def part(a: Any, start: int) -> Any:
        is_cut = np.ndim(a) == x.ndim and a.shape[along] == x.shape[along]
        return lax.dynamic_slice_in_dim(a, start, size, axis=along) if is_cut else a

    def piece(i: int) -> QTensor:
        cut = jax.tree.map(lambda a: part(a, i * size), (state, x, codes))
        return _packed(quantizer, dataclasses.replace(operand, shape=tuple(cut[1].shape)), place, *cut)

    q = pieces.joined(count, piece, along)
    return q if place is None else dataclasses.replace(q, packed_axis=(place - x.ndim, x.shape[place]))


def _alone(quantizer: Quantizer, operand: Operand, place: int | None = None) -> int | None:
    """The longest axis along which neither a scale is shared nor a byte is cut; None where there is none, or it is not known."""
    if not isinstance(quantizer, RTN) or quantizer.spec.scale.spec is not None:
        return None
    shape, blocks = operand.shape, quantizer.spec.granularity.blocks(operand)
    axes = [i for i, block in enumerate(blocks) if block == 1 and (i != place or shape[i] % WHOLE_BYTES == 0)]
    return max(axes, key=lambda i: shape[i], default=None)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _started(quantizer: Quantizer, operand: Operand, x: Array, key: Array) -> QState:
    return quantizer.init(operand, {"values": x}, key)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _packed(
    quantizer: Quantizer, operand: Operand, place: int | None, state: QState, x: Array, codes: Array | None
) -> QTensor:
    q = quantizer.encode(state, x, operand)
    q = q if codes is None else dataclasses.replace(q, codes=codes)
    return pack(q, operand.contract, operand.stack, axis=place)
