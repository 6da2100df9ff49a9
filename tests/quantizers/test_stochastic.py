"""Stochastic rounding: what it costs, and its gradients in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.core.metrics import mean_squared_error
from lowbit.quantizers.stochastic import stochastic
from tests.quantizers.by_hand import KEY, operand_of
from tests.quantizers.equations import GRIDS, check_round_to_nearest


def test_stochastic_rounding_costs_three_decibels():
    """Mean squared error step**2 / 6 against step**2 / 12, no bias, within the levels."""
    x = jax.random.uniform(jax.random.key(8), (1, 65536), minval=-1.0, maxval=1.0)
    operand = operand_of(x)
    q = stochastic("w5/narrow/tensor").weight
    state = q.init(operand, {"values": x}, KEY)
    trained = q.train(state, x, operand, key=KEY, step=None).dequantize()
    ratio = mean_squared_error(x, trained) / mean_squared_error(x, q.fake(state, x, operand))
    np.testing.assert_allclose(10 * np.log10(ratio), 3.01, atol=0.1)
    step = float(state["fixed"]["scale"].reshape(()))
    assert abs(float(jnp.mean(trained - x))) < 5 * step / np.sqrt(6 * x.size)
    assert float(jnp.abs(trained).max()) <= 15 * step * (1 + 1e-6)
    for bad in (lambda: stochastic("wnf4"), lambda: stochastic("w4", width=2.0)):
        with pytest.raises(ValueError):
            bad()


@pytest.mark.parametrize(("text", "is_weight"), GRIDS, ids=str)
def test_round_to_nearest(text, is_weight):
    check_round_to_nearest(stochastic, text, is_weight)
