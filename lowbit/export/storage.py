"""How wide the weights are in a compiled file, and how wide they may be: what tells a low-bit model from an inflated one."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lowbit.core.spec import Spec
from lowbit.targets.table import Target

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
