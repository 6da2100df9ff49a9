"""Factors by expected noise: what they are where the best is known, and the error that they leave, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.rewrites.balance import balance
from lowbit.rewrites.smooth import smooth
from tests.values import normal


def error(fn, params, rules, x):
    """Squared error of results on packed parameters, rounded to nearest, over that of the results."""
    want = np.asarray(fn(params, {}, x), np.float64)
    qparams, plan, _ = lb.quantize(fn, params, rules, state={}, batches=[(x,)], recipe="rtn")
    got = np.asarray(lb.execute(fn, plan)(qparams, {}, x), np.float64)
    return np.sum((got - want) ** 2) / np.sum(want**2)


def uneven(*shape, seed, axis, spread):
    """Normal values whose channels differ in size by factors of a log-normal."""
    scales = np.exp(np.random.default_rng(seed).normal(0, spread, shape[axis]))
    return normal(seed + 1, *shape) * np.asarray(scales, np.float32).reshape(
        [-1 if i == axis else 1 for i in range(len(shape))]
    )


def depthwise(p, s, x):
    dims = ("NHWC", "HWIO", "NHWC")
    y = jax.nn.relu(x @ p["a"])
    y = jax.lax.conv_general_dilated(y, p["d"], (1, 1), "SAME", dimension_numbers=dims, feature_group_count=8)
    return jax.nn.relu(y) @ p["b"]


def test_before_a_depthwise_weight_ranges_of_inputs_become_equal():
    """Its rows have scales of their own, so that factors cost nothing, and the narrowest range is the best there is."""
    params = {"a": uneven(4, 8, seed=0, axis=1, spread=1.5), "d": normal(5, 3, 3, 1, 8), "b": normal(6, 8, 3)}
    x = normal(7, 2, 6, 6, 4)
    rewritten, new, _ = balance(rules={"d": "w8,a8", "**": "keep"}, batches=[(x,)])(depthwise, params, {})
    y = np.maximum(np.asarray(x, np.float64) @ np.asarray(new["a"], np.float64), 0)
    largest = y.max((0, 1, 2))
    np.testing.assert_allclose(largest, largest[0], rtol=1e-5)
    assert "a -> d: 8 channels" in str(rewritten)
    whole = {"**": "w8,a8"}
    _, new, _ = balance(rules=whole, batches=[(x,)])(depthwise, params, {})
    assert error(depthwise, new, whole, x) < 0.3 * error(depthwise, params, whole, x)


@pytest.mark.parametrize("rules", ["w8,a8", "w4,a8", "w8/tensor,a8"])
def test_it_loses_no_more_than_any_smoothing(rules):
    """One layer behind another: within a tenth of the best of eleven exponents of SmoothQuant, whatever the bits."""
    params = {"a": uneven(16, 32, seed=3, axis=1, spread=1.0), "b": uneven(32, 64, seed=5, axis=0, spread=0.7)}
    x = normal(9, 256, 16)

    def fn(p, s, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    asked = {"b": rules, "**": "keep"}
    scaled, new, _ = balance(rules=asked, batches=[(x,)])(fn, params, {})
    left = error(scaled, new, asked, x)
    tried = [smooth(alpha, batches=[(x,)])(fn, params, {})[1] for alpha in np.linspace(0, 1, 11)]
    assert left < 1.1 * min(error(fn, p, asked, x) for p in tried)
    assert left < 0.7 * error(fn, params, asked, x)


def residual(p, s, x):
    h = x - jnp.mean(x, axis=-1, keepdims=True)
    h = h * jax.lax.rsqrt(jnp.mean(h**2, axis=-1, keepdims=True)) * p["g"]
    return h + jnp.tanh(h @ p["w"]) @ p["v"]


def test_inputs_are_multiplied_where_nothing_takes_factors():
    """A norm's gain that a residual sum reads, and a tanh: no parameter makes these channels alone."""
    params = {"g": uneven(32, seed=11, axis=0, spread=1.2), "w": normal(13, 32, 16) * 0.02, "v": normal(14, 16, 32)}
    x = normal(15, 64, 32)
    asked = {"**": "w8,a8"}
    rewritten, new, _ = balance(online=True, rules=asked, batches=[(x,)])(residual, params, {})
    assert set(new["balance"]) <= {"w", "v"}
    assert "inputs of w: 32 channels" in str(rewritten)
    t, w = np.asarray(new["balance"]["w"], np.float64), np.asarray(new["w"], np.float64)
    np.testing.assert_allclose(t[:, None] * w, np.asarray(params["w"], np.float64), rtol=1e-6)
    want, got = (np.asarray(f(p, {}, x), np.float64) for f, p in ((residual, params), (rewritten, new)))
    assert np.abs(want - got).max() < 1e-5 * np.abs(want).max()
    assert error(rewritten, new, asked, x) < 0.5 * error(residual, params, asked, x)


def test_makers_on_one_scale_are_minded():
    """8-bit weights with one scale each, inputs in float: near what equalization is for."""
    params = {"a": uneven(16, 32, seed=21, axis=1, spread=1.5), "b": normal(23, 32, 8)}
    x = normal(24, 64, 16)

    def fn(p, s, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    asked = {"**": "w6/tensor"}
    scaled, new, _ = balance(rules=asked, batches=[(x,)])(fn, params, {})
    assert error(scaled, new, asked, x) < 0.5 * error(fn, params, asked, x)


@pytest.mark.parametrize("bad", [{"steps": 1}, {"sweeps": 0}])
def test_bad_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="balance needs steps >= 2"):
        balance(**bad)
