"""PACT: values and gradients by hand and by its equations in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.quantizers.pact import pact
from tests.quantizers.by_hand import gradients, row
from tests.quantizers.equations import STEPS, S, close, pulled, rng, rows


def test_pact_golden():
    """alpha = 3 at two bits: levels 0 1 2 3; alpha gets a gradient where x >= alpha only."""
    q = pact("a2").input
    value, to_x, to = gradients(q, {"clip": jnp.full((1, 1), 3.0)}, row([-1, 0.4, 1.6, 3.0, 5.0]), is_weight=False)
    np.testing.assert_array_equal(value, [0, 0, 2, 3, 3])
    np.testing.assert_array_equal(to["clip"], [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(to_x, [0, 1, 1, 0, 0])
    with pytest.raises(ValueError, match=r"pact is for inputs, got 'w4,a4'"):
        pact("w4,a4")


@pytest.mark.parametrize("text", ["a4", "auint4", "auint4/sym", "a4/sym"])
def test_pact(text):
    """Choi et al., 2018, section 3.1: dy/dalpha is 1 from x = alpha on, else 0; dy/dx is 1 in between.

    A signed grid clips at its lowest level, -8 / 7 alpha, and dy/dalpha is that.
    """
    q = pact(text).input
    two_sided = text == "a4/sym"
    alpha = S * (7 if two_sided else 15)
    x, g = rows(), rng().normal(size=(2, STEPS.size))
    to_x, to, value = pulled(q, {"clip": np.full((1, 1), alpha)}, x, g, is_weight=False)
    bottom = -8 * S if two_sided else 0.0
    np.testing.assert_allclose(value, np.round(np.clip(x, bottom, alpha) / S) * S, atol=1e-6)
    close(to_x, g * ((x > bottom) & (x < alpha)))
    below = (x <= bottom) * (-8 / 7 if two_sided else 0.0)
    close(to["clip"], (g * ((x >= alpha) + below)).sum(), np.abs(g).sum())
