"""SEQ: values and gradients by hand and by its equations in float64."""

import numpy as np
import pytest

from lowbit.quantizers.seq import seq
from tests.quantizers.by_hand import KEY, gradients, operand_of, row
from tests.quantizers.equations import STEPS, S, close, pulled, rng, rows, summed


def test_seq_golden():
    """[-alpha, alpha] in 3 or 4 parts, their middles; a gradient up to alpha; init at the largest magnitude."""
    x = row([-1.0, -0.3, 0.2, 0.9])
    q = seq("wternary/tensor").weight
    state = q.init(operand_of(x), {"values": x}, KEY)
    np.testing.assert_allclose(q.fake(state, x, operand_of(x))[0], np.array([-1, 0, 0, 1]) * 2 / 3, rtol=1e-6)
    q = seq("w2/tensor").weight
    state = q.init(operand_of(x), {"values": x}, KEY)
    np.testing.assert_allclose(q.fake(state, x, operand_of(x))[0], [-0.75, -0.25, 0.25, 0.75], rtol=1e-6)
    _, to_x, to = gradients(q, state["learn"], row([0.9, 1.1]))  # 0.9 is beyond the outer level, within alpha
    np.testing.assert_array_equal(to_x, [1, 0])
    np.testing.assert_allclose(to["step"] * np.sqrt(2 * 3), [3 - 0.9 * 4, 3], atol=1e-5)
    with pytest.raises(ValueError, match="wternary or w2"):
        seq("w4")


@pytest.mark.parametrize(("text", "parts", "top"), [("wternary", 1.5, 1), ("w2", 4.0, 3), ("wternary/tensor", 1.5, 1)])
def test_seq(text, parts, top):
    """Liu et al., 2025, section 3.2, clipped at 0.99 as the authors do; learned is alpha over its levels, so the gradient grows."""
    q = seq(text).weight
    per_row, shape = "tensor" not in text, (1, 1) if "tensor" in text else (2, 1)
    x, g = rows(), rng().normal(size=(2, STEPS.size))
    to_x, to, value = pulled(q, {"step": np.full(shape, S)}, x, g)
    alpha, (k, shift) = parts * S, (3, 0.0) if top == 1 else (4, 0.5)
    w = x / alpha
    w_q = alpha * (np.round(np.clip(w, -0.99, 0.99) * k / 2 - shift) + shift) * 2 / k
    np.testing.assert_allclose(value, w_q, rtol=1e-6)
    to_alpha = g * (w_q / alpha - w * (inside := np.abs(w) < 1))
    count = STEPS.size if per_row else x.size
    close(to_x, g * inside)
    close(to["step"], parts * summed(to_alpha, per_row) / np.sqrt(count * top), np.abs(g).sum())
