"""BitNet b1.58: values by hand, its error on normal weights, gradients straight through."""

import numpy as np
import pytest

from lowbit.quantizers.bitnet import bitnet
from tests.quantizers.by_hand import check_error_on_normal_weights, row, started
from tests.quantizers.equations import check_straight_through_everywhere


def test_bitnet_golden():
    """gamma = .5, and rounding."""
    value = started(bitnet("wternary").weight, row([-1.2, 0.3, -0.1, 0.4]))
    np.testing.assert_allclose(value, [-0.5, 0.5, 0, 0.5], rtol=1e-6)
    with pytest.raises(ValueError):
        bitnet("w2")


def test_error_on_normal_weights():
    """1.41 dB above the best ternary grid."""
    check_error_on_normal_weights(bitnet("wternary/tensor").weight, 0.263382)


def test_straight_through_everywhere():
    check_straight_through_everywhere(bitnet("wternary").weight)
