"""TQT: values and gradients by hand and by its equations in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.quantizers.tqt import tqt
from tests.quantizers.by_hand import gradients, row
from tests.quantizers.equations import STEPS, Grid, S, close, pulled, rng, rows, summed


def test_tqt_golden():
    """t = 3: 2**ceil(log2 3) = 4, four bits: s = 1/2; the gradient to log2 t is s ln 2 (level - x / s), level outside."""
    q = tqt("w4/tensor").weight
    x = row([0.6, -9.0, 9.0, 1.0])
    value, to_x, to = gradients(q, {"log2_threshold": jnp.log2(jnp.full((1, 1), 3.0))}, x)
    np.testing.assert_array_equal(value, [0.5, -4, 3.5, 1.0])
    np.testing.assert_array_equal(to_x, [1, 0, 0, 1])
    np.testing.assert_allclose(to["log2_threshold"], 0.5 * np.log(2) * np.array([-0.2, -8, 7, 0]), atol=1e-6)
    with pytest.raises(ValueError, match="write /sym"):
        tqt("w8,a8")


@pytest.mark.parametrize(
    ("text", "grid", "steps"), [("w4", Grid(-8, 7), 8), ("w4/tensor", Grid(-8, 7), 8), ("wuint4", Grid(0, 15), 16)]
)
@pytest.mark.parametrize("beyond", [0.0, -0.5])
def test_tqt(text, grid, steps, beyond):
    """Jain et al., 2020, Eqs. (6) to (8): inside is n <= round(x / s) <= p; s = 2**ceil(log2 t) / 2**(b - 1)."""
    q = tqt(text).weight
    per_row, shape = "tensor" not in text, (1, 1) if "tensor" in text else (2, 1)
    x, g = rows(), rng().normal(size=(2, STEPS.size))
    to_x, to, _ = pulled(q, {"log2_threshold": np.full(shape, np.log2(S * steps) + beyond)}, x, g)
    r = np.round(x / S)
    inside = (r >= grid.low) & (r <= grid.high)
    dt = S * np.log(2) * np.where(inside, r - x / S, np.where(r < grid.low, grid.low, grid.high))
    close(to_x, g * inside)
    close(to["log2_threshold"], summed(g * dt, per_row), np.abs(g * dt).sum())


def test_tqt_of_inputs():
    q = tqt("a4/sym").input
    x, g = rows(), rng().normal(size=(2, STEPS.size))
    to_x, to, _ = pulled(q, {"log2_threshold": np.full((1, 1), 1.0)}, x, g, is_weight=False)
    r = np.round(x / S)
    inside = (r >= -8) & (r <= 7)
    close(to_x, g * inside)
    dt = S * np.log(2) * np.where(inside, r - x / S, np.where(r < -8, -8, 7))
    close(to["log2_threshold"], (g * dt).sum(), np.abs(g * dt).sum())
