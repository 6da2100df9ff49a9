"""Rounding to nearest with a range rule for the inputs alone."""

import lowbit as lb
from lowbit.core.ranges import RangeRule


def with_inputs(weight: str, ranges: RangeRule) -> lb.Quantizers:
    """Returns rounding to nearest, weights by their largest magnitude, 8-bit inputs by a range rule."""
    return lb.Quantizers(weight=lb.rtn(weight).weight, input=lb.rtn(f"{weight},a8", range=ranges).input)
