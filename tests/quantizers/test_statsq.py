"""StatsQ: values by hand, values and gradients by its equation in float64."""

import numpy as np
import pytest

from lowbit.quantizers.statsq import statsq
from tests.quantizers.by_hand import KEY, operand_of, row
from tests.quantizers.equations import check_straight_through_everywhere, close, pulled, rng


def test_statsq():
    """alpha = 2 mean |w|; two bits: middles of [-alpha, alpha] in four parts; training follows the weights."""
    x = row([-1.0, 0.2, 0.4, 0.4])
    q = statsq("w2/tensor").weight
    state = q.init(operand_of(x), {"values": x}, KEY)
    np.testing.assert_allclose(q.fake(state, x, operand_of(x))[0], [-0.75, 0.25, 0.25, 0.25], rtol=1e-6)
    trained = q.train(state, 2 * x, operand_of(x), key=None, step=None).dequantize()
    np.testing.assert_allclose(trained[0], [-1.5, 0.5, 0.5, 0.5], rtol=1e-6)
    after = q.update(state, {"values": 2 * x})
    np.testing.assert_array_equal(q.fake(after, 2 * x, operand_of(x)), trained)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gradients_are_the_papers(bits):
    """Liu, Liu, Cheng, 2023, Eq. (7), and their training code: s held, dW_q / dW = 1 everywhere, clipped or not."""
    w = rng().standard_t(3, size=(4, 33)).astype(np.float32)
    s, n = 2 * np.abs(w.astype(np.float64)).mean(1, keepdims=True), 2 ** (bits - 1)
    w_q = s * (np.round(np.clip(w / s, -1, 1 - 1e-6) * n - 0.5) + 0.5) / n
    to_x, _, value = pulled(statsq(f"w{bits}").weight, {}, w, 3 * w_q, {"scale": s / (2 * n)})
    np.testing.assert_allclose(value, w_q, rtol=1e-6)
    close(to_x, 3 * w_q)


def test_straight_through_everywhere():
    check_straight_through_everywhere(statsq("w3").weight)
