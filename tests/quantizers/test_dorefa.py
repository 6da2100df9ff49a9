"""DoReFa: values and gradients by hand and by its equations in float64."""

import numpy as np
import pytest

from lowbit.quantizers.dorefa import dorefa
from tests.quantizers.by_hand import gradients, row
from tests.quantizers.equations import STEPS, close, pulled, rng


def test_dorefa_golden():
    """Eq. (9): r = [-1, 0.1, 0.5, 1], tanh / max = [-1, .1309, .6068, 1], two bits: -1, 1/3, 1/3, 1."""
    x = row([-1.0, 0.1, 0.5, 1.0])
    value, to_x, _ = gradients(dorefa("w2/tensor").weight, {}, x)
    np.testing.assert_allclose(value, [-1, 1 / 3, 1 / 3, 1], rtol=1e-6)
    assert (np.asarray(to_x) > 0).all()
    value, to_x, _ = gradients(dorefa("a2").input, {}, row([-0.5, 0.2, 0.9, 1.5]), is_weight=False)
    np.testing.assert_allclose(value, [0, 1 / 3, 1, 1], rtol=1e-6)
    np.testing.assert_array_equal(to_x, [0, 1, 1, 0])
    binary = dorefa("wbinary/tensor").weight
    np.testing.assert_allclose(gradients(binary, {}, x)[0], np.array([-1, 1, 1, 1]) * 0.65, rtol=1e-6)
    with pytest.raises(ValueError, match="not negative"):
        dorefa("a4/sym")


@pytest.mark.parametrize("text", ["w1/channel", "w1/tensor", "wbinary/g8"])
def test_dorefa_of_one_bit(text):
    """Zhou et al., 2016, Eqs. (7), (8): E|r| sign(r), and the gradient as it came, to the largest weight as well."""
    q = dorefa(text).weight
    r, g = rng().normal(size=(3, 40)).astype(np.float32), rng().normal(size=(3, 40))
    to_x, _, value = pulled(q, {}, r, g)
    blocks = {"w1/channel": r.reshape(3, 1, 40), "w1/tensor": r.reshape(1, 1, 120), "wbinary/g8": r.reshape(3, 5, 8)}[
        text
    ]
    want = np.abs(blocks.astype(np.float64)).mean(-1, keepdims=True) * np.sign(blocks)
    np.testing.assert_allclose(value, want.reshape(3, 40), rtol=1e-6)
    close(to_x, g)


@pytest.mark.parametrize("text", ["w2/tensor", "w4/channel"])
def test_dorefa_of_more_bits(text):
    """Eq. (9) differentiated, quantize_k straight through: r_o = tanh(r) / m has dr_o/dr_i in m = max |tanh r| as well."""
    q = dorefa(text).weight
    r, g = rng().normal(size=(3, 40)).astype(np.float32).astype(np.float64), rng().normal(size=(3, 40))
    to_x, _, value = pulled(q, {}, r, g)
    t = np.tanh(r)
    axis = (0, 1) if "tensor" in text else 1
    m = np.abs(t).max(axis, keepdims=True)
    steps = 2**q.spec.format.bits - 1
    np.testing.assert_allclose(value, 2 * np.round((t / (2 * m) + 0.5) * steps) / steps - 1, atol=1e-6)
    of_m = -(g * t).sum(axis, keepdims=True) / m**2 * np.where(np.abs(t) == m, np.sign(t), 0.0)
    want = (g / m + of_m) * (1 - t**2)
    np.testing.assert_allclose(to_x, want, atol=40 * 16 * 2.0**-24 * np.abs(g).max() / m.min())


@pytest.mark.parametrize("text", ["a4", "auint4/sym"])
def test_dorefa_of_inputs(text):
    """Eq. (11): quantize_k of x clipped to [0, 1], straight through there, ends included."""
    x = np.stack([STEPS, -STEPS]) / 16
    x = np.where((x > 0) & (x < 1), x * 0.99, x)  # away from ties: float32 has no fifteenth
    g = rng().normal(size=x.shape)
    to_x, _, value = pulled(dorefa(text).input, {}, x, g, is_weight=False)
    np.testing.assert_allclose(value, np.round(np.clip(x, 0, 1) * 15) / 15, atol=1e-6)
    close(to_x, g * ((x >= 0) & (x <= 1)))
