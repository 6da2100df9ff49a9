"""TWN: values by hand, its error on normal weights, gradients straight through."""

import numpy as np
import pytest

from lowbit.quantizers.twn import twn
from tests.quantizers.by_hand import check_error_on_normal_weights, row, started
from tests.quantizers.equations import check_straight_through_everywhere


def test_twn_golden():
    """Delta = .7 x .5, alpha = mean of those beyond."""
    value = started(twn("wternary").weight, row([-1.2, 0.3, -0.1, 0.4]))
    np.testing.assert_allclose(value, [-0.8, 0, 0, 0.8], rtol=1e-6)
    for bad in (lambda: twn("w4"), lambda: twn("wternary", factor=2.0)):
        with pytest.raises(ValueError):
            bad()


def test_error_on_normal_weights():
    """.03 dB above the best ternary grid."""
    check_error_on_normal_weights(twn("wternary/tensor").weight, 0.191625)


def test_straight_through_everywhere():
    check_straight_through_everywhere(twn("wternary").weight)
