"""TensorFlow's fake quantization: values and gradients by hand and by its rule in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.quantizers.fake_quant import fake_quant
from tests.quantizers.by_hand import gradients, row
from tests.quantizers.equations import GRIDS, S, case_of, close, pulled, summed


def test_fake_quant_golden():
    """TensorFlow's rule: x on the nudged range, min below it, max above. 8 bits of [-0.1, 0.2]."""
    low, high = -0.1001, 0.1999
    q = fake_quant("auint8").input
    scale = np.float32((high - low) / 255)
    zero = round(-low / scale)
    nudged = ((0 - zero) * scale, (255 - zero) * scale)
    x = row([nudged[0] - 1e-3, nudged[0], 0.031, nudged[1], nudged[1] + 1e-3])
    value, to_x, to = gradients(q, {"min": jnp.full((1, 1), low), "max": jnp.full((1, 1), high)}, x, is_weight=False)
    np.testing.assert_allclose(
        value, [nudged[0], nudged[0], round(0.031 / scale) * scale, nudged[1], nudged[1]], rtol=1e-5
    )
    np.testing.assert_array_equal(to_x, [0, 1, 1, 1, 0])
    np.testing.assert_allclose(to["min"], [1, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(to["max"], [0, 0, 0, 0, 1], atol=1e-6)


@pytest.mark.parametrize(("text", "is_weight"), [k for k in GRIDS if k[0] != "a2"], ids=str)
def test_fake_quant(text, is_weight):
    """TensorFlow: to x on the nudged range, ends included; to min what lies below it, to max what lies above."""
    q, grid, per_row, shape, _, x, g = case_of(fake_quant, text, is_weight)
    low, high = (end * S for end in grid.ends)
    if q.spec.symmetric and low < 0:
        low = -(2 ** (q.spec.format.bits - 1)) * S if "narrow" not in text else low
    learn = {"max": np.full(shape, high)} | ({} if q.spec.symmetric else {"min": np.full(shape, low)})
    to_x, to, _ = pulled(q, learn, x, g, is_weight=is_weight)
    under, over = x < low, x > high
    close(to_x, g * ~(under | over))
    of_max = over.astype(float)
    if q.spec.symmetric and grid.low < 0:
        of_max = of_max - under
    close(to["max"], summed(g * of_max, per_row), np.abs(g).sum())
    if not q.spec.symmetric:
        close(to["min"], summed(g * under, per_row), np.abs(g).sum())


def test_fake_quant_widens_where_tensorflow_shifts():
    """[2, 6] becomes [0, 6]: 15 steps of 0.4, zero exact, six representable."""
    q = fake_quant("auint4").input
    x = np.array([[-1.0, 0.0, 2.0, 6.0, 7.0]])
    to_x, to, value = pulled(
        q, {"min": np.full((1, 1), 2.0), "max": np.full((1, 1), 6.0)}, x, np.ones_like(x), is_weight=False
    )
    np.testing.assert_allclose(value, [[0.0, 0.0, 2.0, 6.0, 6.0]], atol=1e-6)
    np.testing.assert_array_equal(to_x, [[0, 1, 1, 1, 0]])
    assert (to["min"].item(), to["max"].item()) == pytest.approx((1.0, 1.0))
