"""A forecaster for a thermostat: the day that follows three days of hourly temperatures, as a correction of yesterday.

Three strided convolutions and two dense layers, without batch norm; what they give is added to the last 24 hours of the
input. So the network starts at the seasonal-naive forecast and learns what to change. Integers hold all of it: the sum of
the two is one more quantized tensor.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import lowbit as lb
from experiments.data.temperature import CONTEXT, HORIZON, SCALE
from lowbit.run import Model


class Forecaster(nn.Module):
    """Temperatures of the next 24 hours, in the scale of the input."""

    widths: tuple[int, ...] = (16, 24, 32)
    hidden: int = 48

    @nn.compact
    def __call__(self, x: Float[Array, "batch 72 1"]) -> Float[Array, "batch 24"]:
        h = x
        for i, width in enumerate(self.widths):
            h = nn.relu(nn.Conv(width, (5,), strides=2, name=f"conv_{i}")(h))
        h = nn.relu(nn.Dense(self.hidden, name="dense")(h.reshape(h.shape[0], -1)))
        change = nn.Dense(HORIZON, kernel_init=nn.initializers.normal(0.01), name="head")(h)
        return x[:, -HORIZON:, 0] + change


def build(seed: int) -> Model:
    """Returns the network with parameters drawn from ``seed``."""
    module = Forecaster()
    return Model(*lb.linen(module, module.init(jax.random.key(seed), jnp.zeros((1, CONTEXT, 1)))))


def seasonal_naive(x: np.ndarray) -> np.ndarray:
    """Returns the last 24 hours: tomorrow as today."""
    return x[:, -HORIZON:, 0]


def mean_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Returns the mean absolute error over all hours of the horizon, in degrees Celsius."""
    return SCALE * float(np.mean(np.abs(found.astype(np.float64) - wanted)))
