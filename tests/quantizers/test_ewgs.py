"""EWGS: values and gradients by hand and by its equation in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.quantizers.ewgs import ewgs
from tests.quantizers.by_hand import gradients, row
from tests.quantizers.equations import GRIDS, S, case_of, close, pulled, summed


def test_ewgs_golden():
    """Eq. (7) at delta 0.3 over [0, 1]: two bits have three steps, so 0.1 over levels."""
    q = ewgs("wuint2/tensor", delta=0.3).weight
    x = row([0.2, 0.6, 1.4])
    value, to_x, _ = gradients(q, {"step": jnp.ones((1, 1))}, x)
    np.testing.assert_array_equal(value, [0, 1, 1])
    np.testing.assert_allclose(to_x, [1.02, 0.96, 1.04], rtol=1e-5)
    plain = gradients(ewgs("wuint2/tensor", delta=0.0).weight, {"step": jnp.ones((1, 1))}, x)[1]
    np.testing.assert_array_equal(plain, [1, 1, 1])
    with pytest.raises(ValueError, match=r"delta must be in \[0, 10\], got -1"):
        ewgs("w4", delta=-1.0)


@pytest.mark.parametrize(("text", "is_weight"), GRIDS, ids=str)
@pytest.mark.parametrize("delta", [0.0, 0.3])
def test_ewgs(text, is_weight, delta):
    """Lee et al., 2021, Eq. (7), on values over [0, 1]: g (1 + delta sign(g) (x_n - x_q)); the step gets LSQ's, so scaled."""
    q, grid, per_row, shape, fixed, x, g = case_of(lambda t: ewgs(t, delta=delta), text, is_weight)
    to_x, to, _ = pulled(q, {"step": np.full(shape, S)}, x, g, fixed, is_weight=is_weight)
    low, high = grid.ends
    v = np.clip(x / S, low, high)
    unit, level = (v - low) / (high - low), (np.round(v) - low) / (high - low)
    inside = (x / S > low) & (x / S < high)
    scaled = g * (1 + delta * np.sign(g) * (unit - level))
    close(to_x, scaled * inside)
    ds = g * np.round(v) - scaled * inside * v
    close(to["step"], summed(ds, per_row), 40 * np.abs(g).sum())
