"""`budget`: what a plan may cost, in one unit or in several at once."""

import dataclasses
import math
from collections.abc import Mapping

UNITS = {
    "bits": "mean stored bits of a weight, scales and zero points included",
    "bytes": "stored bytes of all weights, scales included, and of the parameters that stay as they are",
    "macs": "multiply-adds that are not of two integers",
    "bops": "bit operations: multiply-adds times the bits of both operands",
    "milliseconds": "measured time of the operations, one after the other",
    "flash": "bytes of weights and scales at the widths that the target stores, and of parameters that stay as they are",
    "ram": "bytes of the input of an operation and of one that reads its result, at once: the largest of these",
}
"""What every unit counts."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a plan may cost: every limit holds. None: no limit.

    Attributes:
        bits: mean stored bits of a weight, scales and zero points included.
        bytes: of all weights, scales included, and of parameters that are no operation's weight.
        macs: multiply-adds that are not of two integers.
        bops: bit operations.
        milliseconds: the sum of measured times.
        flash: bytes at the widths that the target stores.
        ram: bytes of activations.
    """

    bits: float | None = None
    bytes: float | None = None
    macs: float | None = None
    bops: float | None = None
    milliseconds: float | None = None
    flash: float | None = None
    ram: float | None = None

    @property
    def limits(self) -> Mapping[str, float]:
        """The limits that there are, by unit."""
        return {name: value for name in UNITS if (value := getattr(self, name)) is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name} <= {value:,.10g}" for name, value in self.limits.items())


def budget(
    *,
    bits: float | None = None,
    bytes: float | None = None,
    macs: float | None = None,
    bops: float | None = None,
    milliseconds: float | None = None,
    flash: float | None = None,
    ram: float | None = None,
) -> Budget:
    """Returns a budget for `lowbit.allocate`: every limit that is given holds.

    Args:
        bits: mean stored bits of a weight that is quantized, scales and zero points included.
        bytes: stored bytes of all weights, scales included, and of the parameters that are no operation's weight.
        macs: multiply-adds that are not of two integers.
        bops: bit operations: multiply-adds times the bits of both operands (32 of what stays in float32).
        milliseconds: measured time of the operations, one after the other.
        flash: bytes of the parameters at the widths that the target stores.
        ram: bytes of the input of an operation and of one that reads its result, at once.

    Raises:
        TypeError: for a limit that is no number.
        ValueError: for a limit that is not positive and finite, or where there is none.

    Example:
        >>> print(budget(bits=3.5, bytes=100_000))
        bits <= 3.5, bytes <= 100,000
    """
    limits = Budget(bits, bytes, macs, bops, milliseconds, flash, ram)
    for name, value in limits.limits.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} must be a number: {UNITS[name]}; got {value!r:.40} ({type(value).__name__})")
        if not math.isfinite(value) or value < 0 or (value == 0 and name != "macs"):
            raise ValueError(f"{name} must be positive and finite: {UNITS[name]}; got {value!r}")
    if not limits.limits:
        raise ValueError(f"budget needs a limit: one or several of {', '.join(UNITS)}")
    return limits
