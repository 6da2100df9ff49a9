"""Rounding to nearest: microxcaling's vectors, and its gradients in float64."""

import numpy as np
import pytest

from lowbit.quantizers.rtn import rtn
from tests.quantizers.by_hand import KEY, operand_of, row
from tests.quantizers.equations import GRIDS, check_round_to_nearest


def test_microxcaling_vectors():
    """E4M3 block with floor scales: half away gives 416 for 400 / 1, nearest even 384 (both from the reference)."""
    x = row([485, 475, 400, -485, -475, -450, 2.0**-6, -(2.0**-6)])
    for rounding, third in (("half_away", 416.0), ("nearest_even", 384.0)):
        q = rtn("wmxfp8_e4m3", rounding=rounding).weight
        value = q.fake(q.init(operand_of(x), {"values": x}, KEY), x, operand_of(x))[0]
        np.testing.assert_array_equal(value, [448, 448, third, -448, -448, -448, 2.0**-6, -(2.0**-6)])
    x = row([1.0234375, 1.0390625, 1.2578125, 1.9453125, 1.9921875, -1.9765625, 0.01171875, 0.00390625])
    q = rtn("wmxint8", rounding="half_away").weight
    value = q.fake(q.init(operand_of(x), {"values": x}, KEY), x, operand_of(x))[0]
    np.testing.assert_array_equal(value, [1.03125, 1.046875, 1.265625, 1.953125, 1.984375, -1.984375, 0.015625, 0.0])
    x = row([-1, -1.75, -1.99, 1.99])
    q = rtn("wmxint4").weight
    value = q.fake(q.init(operand_of(x), {"values": x}, KEY), x, operand_of(x))[0]
    np.testing.assert_array_equal(value, [-1, -1.75, -1.75, 1.75])


@pytest.mark.parametrize(("text", "is_weight"), GRIDS, ids=str)
def test_round_to_nearest(text, is_weight):
    check_round_to_nearest(rtn, text, is_weight)
