"""Additive powers of two: levels that are sums of a few powers of two, denser near zero than equal steps are.

Li et al., Additive Powers-of-Two Quantization: An Efficient Non-uniform Discretization for Neural Networks, ICLR 2020,
https://arxiv.org/abs/1909.13144, Eq. (5) with ``k = 2``: term ``i`` of ``n`` is 0 or one of ``2**-(i + 1 + j n)``, j = 0, 1, 2.

Differs from the paper: levels are whole numbers (its sums times a power of two), so that the scale is another one; three
bits of magnitude are, as in its code, a term of two bits with one of a single bit: ``{0, 8, 4, 1} + {0, 2}``.
"""

import itertools

from .codebook import Codebook


def _magnitudes(bits: int) -> tuple[int, ...]:
    if bits == 3:
        terms = [(0, 8, 4, 1), (0, 2)]
    else:
        count = bits // 2
        largest = 3 * count
        terms = [(0, *(2 ** (largest - 1 - i - j * count) for j in range(3))) for i in range(count)]
    return tuple(sorted({sum(parts) for parts in itertools.product(*terms)}))


def additive(bits: int) -> Codebook:
    """Returns the additive powers of two of this many bits, one of them the sign.

    Raises:
        ValueError: for other bits than 3, 4, 5 and 7.

    Example:
        >>> additive(4).levels[7:]
        (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
    """
    if bits not in (3, 4, 5, 7):
        raise ValueError(f"additive powers of two have 3, 4, 5 or 7 bits, a sign and terms of two bits, got {bits}")
    positive = [float(level) for level in _magnitudes(bits - 1) if level]
    return Codebook((*(-level for level in reversed(positive)), 0.0, *positive), f"apot{bits}")


FORMATS = tuple(additive(bits) for bits in (3, 4, 5, 7))
"""The named formats."""


def named(name: str) -> Codebook | None:
    """Returns ``apot3``, ``apot4``, ``apot5`` or ``apot7``, or None."""
    return {form.name: form for form in FORMATS}.get(name)
