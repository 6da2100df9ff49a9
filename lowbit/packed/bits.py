"""From codes to bytes: which axis they share bytes along, and back to one code per element."""

import dataclasses
import math

from lowbit.core.qtensor import QTensor, zero_dtype
from lowbit_kernels import pack_codes, packed_length


def packing_axis(shape: tuple[int, ...], bits: int, contract: tuple[int, ...] = (), stack: int = 0) -> int:
    """Returns the axis along which codes share bytes: the one that pads least; of equals, the last contracted one.

    Args:
        shape: of the codes.
        bits: of one code.
        contract: the contracted axes, preferred.
        stack: leading axes that count layers, never packed along.
    """
    candidates = list(range(stack, len(shape))) or [len(shape) - 1]

    def cost(axis: int) -> tuple[int, bool, int]:
        rest = math.prod(n for i, n in enumerate(shape) if i != axis)
        return packed_length(shape[axis], bits) * rest, axis not in contract, -axis

    return min(candidates, key=cost)


def pack(q: QTensor, contract: tuple[int, ...] = (), stack: int = 0, *, axis: int | None = None) -> QTensor:
    """Returns ``q`` packed: uint8 codes along `packing_axis`, scales in their stored dtype.

    Formats of 16 bits, and scalars, keep one code per element.

    Args:
        q: levels or codes.
        contract: the contracted axes.
        stack: leading axes that count layers.
        axis: along which codes share bytes, in place of `packing_axis`.
    """
    if q.stage == "packed":
        return q
    q = q.encode()
    scale = pack(q.scale) if isinstance(q.scale, QTensor) else q.scale
    zero = None if q.zero is None else zero_dtype(q.zero, q.spec)
    bits = q.spec.format.bits
    if bits > 8 or q.codes.ndim == 0:
        return dataclasses.replace(q, scale=scale, zero=zero)
    axis = packing_axis(q.shape, bits, contract, stack) if axis is None else axis
    static = (axis - q.ndim, q.shape[axis])
    codes = pack_codes(q.codes, bits, axis)
    return dataclasses.replace(q, codes=codes, scale=scale, zero=zero, stage="packed", packed_axis=static)


def unpack(q: QTensor) -> QTensor:
    """Returns ``q`` with one integer code per element; anything not packed as it is."""
    if q.stage != "packed":
        return q
    scale = unpack(q.scale) if isinstance(q.scale, QTensor) else q.scale
    return QTensor(q.unpacked_codes(), scale, q.zero, q.spec, q.dtype, q.groups, stage="codes")
