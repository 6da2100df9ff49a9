"""How wide the weights are in a compiled file, and how wide they may be: what tells a low-bit model from an inflated one."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lowbit.core.qtensor import QTensor
from lowbit.core.spec import Spec
from lowbit.packed.trees import QParams
from lowbit.targets.target import Target

from . import stablehlo

WIDTHS = (2, 4, 8, 16)
"""Bits in which StableHLO stores integer weights."""


class Stored(NamedTuple):
    """Integers that are stored together, as a weight is.

    Attributes:
        elements: how many.
        bits: that all of them take, without scales.
    """

    elements: int
    bits: int


def stored_width(bits: int, widths: Sequence[int] = WIDTHS) -> int:
    """Returns the bits that an integer of ``bits`` takes where ``widths`` can be stored, ascending; else the last.

    Example:
        >>> [stored_width(bits) for bits in (1, 2, 3, 4, 5, 8, 16)]
        [2, 2, 4, 4, 8, 8, 16]
    """
    return next((width for width in widths if bits <= width), widths[-1])


def most_bits(spec: Spec) -> int:
    """Returns the bits that a code may take in a form: 8 where integer or negative scales are multiplied into the codes.

    Example:
        >>> from lowbit.formats.lookup import specs
        >>> [most_bits(specs(text)[0]) for text in ("w4", "w3", "w4/signed", "w4/g32/int5")]
        [4, 4, 8, 8]
    """
    is_multiplied = spec.merged != spec or (spec.has_signed_scales and spec.format.is_integer)
    return max(8, stored_width(spec.format.bits)) if is_multiplied else stored_width(spec.format.bits)


def bits_per_weight(stored: Sequence[Stored]) -> float | None:
    """Returns the mean over all elements; None without any."""
    elements = sum(each.elements for each in stored)
    return sum(each.bits for each in stored) / elements if elements else None


def widened(manifest: Mapping[str, Any], target: Target, stored: Sequence[Stored]) -> str:
    """Returns what is stored wider than the target has to; empty where nothing is.

    A weight takes the first of ``target.widths`` that holds its bits, one more where zero points may be subtracted from it.
    It may take bytes where it is small: ``target.small_bytes``.

    Args:
        manifest: of the bundle.
        target: what compiled it.
        stored: what its file holds. More elements than the weights have are padding, or other constants.
    """
    wanted = [_wanted(entry, target) for entry in manifest["weights"]]
    others = max(sum(each.elements for each in stored) - sum(n for n, _ in wanted), 0)
    for width in sorted({width for _, width in wanted}):
        wide = sum(each.elements for each in stored if each.bits >= width * each.elements + 8)  # less fills a last byte
        allowed = sum(n for n, bits in wanted if bits > width) + others
        if wide > allowed:
            return f"at least {wide - allowed:,} weights take more than the {width} bits that hold them"
    return ""


def _wanted(entry: Mapping[str, Any], target: Target) -> tuple[int, int]:
    """Elements of a weight, and the bits that each may take."""
    count = int(np.prod(entry["shape"]))
    bits = entry["bits"] + entry["has_zero_points"]
    if entry["stored_bits"] > stored_width(entry["bits"]):  # codes with a sign, or an integer scale, multiplied in
        bits = entry["stored_bits"]
    width = stored_width(bits, target.widths)
    return count, (max(width, 8) if count * width <= 8 * target.small_bytes else width)


def _codes(q: QTensor) -> int:
    return int(np.prod(q.shape))


def weights(qparams: QParams) -> list[dict[str, Any]]:
    """Returns the entries of a manifest's ``weights``: what was packed, and in how many bits a bundle holds it."""
    return [
        {
            "path": path,
            "shape": list(q.shape),
            "spec": q.spec.text,
            "bits": q.spec.format.bits,
            "stored_bits": most_bits(q.spec),
            "has_zero_points": q.zero is not None,
            "bits_per_weight": round(q.bits_per_element, 4),
        }
        for path, q in qparams.weights().items()
    ]


def check_size(found: stablehlo.Contents, qparams: QParams, constants: Any) -> None:
    """Raises where a module's constants take more than what was packed: a float copy of a weight slipped in.

    Args:
        found: the module's contents.
        qparams: packed.
        constants: arguments that became constants.

    Raises:
        ValueError: with the largest constants.
    """

    def bits(leaf: Any) -> int:
        if isinstance(leaf, QTensor):
            scales = sum(bits(x) for x in jax.tree.leaves((leaf.scale, leaf.zero)))
            return _codes(leaf) * most_bits(leaf.spec) + 4 * scales
        return leaf.size * leaf.dtype.itemsize * 8

    leaves = jax.tree.leaves((qparams, constants), is_leaf=lambda x: isinstance(x, QTensor))
    honest = sum(bits(leaf) for leaf in leaves if hasattr(leaf, "dtype"))
    limit = honest + honest // 4 + 8 * 32768
    if found.constant_bits > limit:
        largest = sorted(found.constants, key=lambda c: -c.bits)[:3]
        listed = ", ".join(f"{'x'.join(map(str, c.shape))} {c.element}" for c in largest)
        raise ValueError(
            f"the exported constants take {found.constant_bits // 8:,} bytes and the packed weights {honest // 8:,}; the "
            f"largest constants: {listed}. Does the function close over arrays, or write a table of constants?"
        )
