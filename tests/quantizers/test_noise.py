"""Pseudo-noise: its variance, its share and its end, and its gradients in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.quantizers.noise import noise
from tests.quantizers.by_hand import KEY, operand_of
from tests.quantizers.equations import S, case_of, close, pulled


def test_noise_is_a_step_wide_and_ends():
    """Pseudo-noise: error uniform over one step, variance 1/12; from `until` on, rounding; rate quantizes a share."""
    x = jax.random.normal(KEY, (1, 65536))
    operand = operand_of(x)
    q = noise("w4/tensor", until=10).weight
    state = q.init(operand, {"values": x}, KEY)
    step = float(state["fixed"]["scale"].reshape(()))
    noisy = q.train(state, x, operand, key=KEY, step=jnp.int32(9)).dequantize()
    np.testing.assert_allclose(np.var(np.asarray(noisy - x)) / step**2, 1 / 12, rtol=0.02)
    after = q.train(state, x, operand, key=KEY, step=jnp.int32(10)).dequantize()
    np.testing.assert_array_equal(after, q.fake(state, x, operand))
    part = dataclasses.replace(q, rate=0.25).train(state, x, operand, key=KEY, step=jnp.int32(0)).dequantize()
    share = np.mean(np.asarray(part) == np.asarray(q.fake(state, x, operand)))
    assert abs(share - 0.25) < 0.01
    with pytest.raises(ValueError, match="needs key="):
        q.train(state, x, operand, key=None, step=None)
    for bad in (
        lambda: noise("w4", rate=0.0),
        lambda: noise("wnf4"),
        lambda: noise("w4", until=-1),
        lambda: noise("w4,a4"),
    ):
        with pytest.raises(ValueError):
            bad()


@pytest.mark.parametrize("text", ["w4", "w4/affine"])
def test_noise(text):
    """Defossez et al., 2022, section 3.2: w + step u has the derivative one, inside or not; served, Eq. (15)."""
    q, grid, _, shape, fixed, x, g = case_of(noise, text, True)
    fixed = {"scale": np.full(shape, S), **fixed}
    close(pulled(q, {}, x, g, fixed, train=True)[0], g)
    inside = (x / S >= grid.ends[0]) & (x / S <= grid.ends[1])
    close(pulled(q, {}, x, g, fixed)[0], g * inside)
    to_x, _, value = pulled(dataclasses.replace(q, rate=0.5), {}, x, g, fixed, train=True)
    untouched = value == x.astype(np.float32)
    close(to_x, g * (inside | untouched))
