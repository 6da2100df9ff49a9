"""XNOR: its error on normal weights, its gradient by hand and by its equation in float64."""

import numpy as np
import pytest

from lowbit.quantizers.xnor import xnor
from tests.quantizers.by_hand import KEY, check_error_on_normal_weights, gradients, operand_of, row
from tests.quantizers.equations import close, pulled, rng


def test_error_on_normal_weights():
    """XNOR is the best binary grid."""
    check_error_on_normal_weights(xnor("wbinary/tensor").weight, 0.363380)


def test_xnor_gradient():
    """Section 3.1: g (1 / n + alpha [|W| < 1])."""
    x = row([-2.0, 0.5, 0.5, 1.0])
    state = xnor("wbinary").weight.init(operand_of(x), {"values": x}, KEY)
    _, to_x, _ = gradients(xnor("wbinary").weight, {}, x, state["fixed"])
    np.testing.assert_allclose(to_x, [0.25, 1.25, 1.25, 0.25], rtol=1e-6)


@pytest.mark.parametrize("text", ["wbinary", "wbinary/tensor", "wbinary/g8"])
def test_gradients_are_the_papers(text):
    """Rastegari et al., 2016, section 3.1: g (1 / n + alpha [|W| < 1]); a weight of exactly 1 is outside, for any alpha."""
    q = xnor(text).weight
    w = rng().normal(size=(3, 40)).astype(np.float32)
    w[:, ::7] = np.sign(w[:, ::7])
    g = rng().normal(size=w.shape)
    cut = {"wbinary": w.reshape(3, 1, 40), "wbinary/tensor": w.reshape(1, 1, 120), "wbinary/g8": w.reshape(3, 5, 8)}[
        text
    ]
    alpha = np.abs(cut.astype(np.float64)).mean(-1, keepdims=True)
    shape = {"wbinary": (3, 1), "wbinary/tensor": (1, 1), "wbinary/g8": (3, 5)}[text]
    to_x, _, _ = pulled(q, {}, w, g, {"scale": alpha.reshape(shape)})
    slope = (1 / cut.shape[-1] + alpha * (np.abs(cut) < 1)).reshape(3, 40)
    close(to_x, g * slope, np.abs(g))


def test_three_levels_are_refused():
    with pytest.raises(ValueError, match="ternary"):
        xnor("wternary")
