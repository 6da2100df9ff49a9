"""Rounding, powers of two, exact means, gradients, metrics, QTensor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.core.gradients import element_wise, inclusive, straight_through, unmasked
from lowbit.core.metrics import cosine, nmse, sqnr_db
from lowbit.core.powers import ceil_power_of_two, exponent, power_of_two, power_of_two_scale
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.ranges import scale_zero
from lowbit.core.rounding import cast_once, clip_between, rounded_product, stochastic
from lowbit.core.scales import stored_scale
from lowbit.core.spec import Channel, Operand, Spec
from lowbit.core.statistics import Sample
from lowbit.core.weight_statistics import exact_mean
from lowbit.core.words import storage_named
from lowbit.formats.integer import Integer
from lowbit.formats.lookup import format_named, spec_from_text
from tests.values import heavy_tailed, normal

NORMAL_FLOATS = st.floats(2.0**-125, 2.0**125, width=32)


@settings(max_examples=60, deadline=None)
@given(NORMAL_FLOATS)
def test_exponents_are_exact(x):
    assert int(exponent(jnp.asarray(x, jnp.float32))) == np.frexp(np.float32(x))[1] - 1
    up = float(ceil_power_of_two(jnp.asarray(x, jnp.float32)))
    assert up >= x > up / 2
    assert float(ceil_power_of_two(jnp.asarray(up, jnp.float32))) == up


def test_powers_are_exact():
    k = np.arange(-126, 128)
    np.testing.assert_array_equal(np.asarray(power_of_two(jnp.asarray(k))), np.ldexp(np.float32(1), k))


@settings(max_examples=60, deadline=None)
@given(st.floats(2.0**-60, 2.0**60, width=32), st.sampled_from([6.0, 7.5, 28.0, 448.0, 57344.0, 127.0]))
def test_scale_rules(amax, top):
    """Floor is the specification's formula; ceil is the smallest scale that does not saturate."""
    a = jnp.asarray(amax, jnp.float32)
    floor = float(power_of_two_scale(a, top))
    assert floor == 2.0 ** (np.floor(np.log2(np.float64(a))) - np.floor(np.log2(top)))
    ceil = float(power_of_two_scale(a, top, rule="ceil"))
    assert ceil * top >= float(a) > ceil * top / 2


def test_scale_rules_at_the_edges():
    assert float(power_of_two_scale(jnp.float32(0.0), 6.0)) == 1.0
    assert np.isnan(power_of_two_scale(jnp.float32(np.nan), 6.0))
    assert np.isfinite(power_of_two_scale(jnp.float32(np.inf), 6.0))
    with pytest.raises(ValueError, match="floor, ceil, even, got 'round'"):
        power_of_two_scale(jnp.float32(1.0), 6.0, rule="round")


def test_stochastic_rounding_has_no_bias():
    """Mean error 0 within 5 standard errors; mean squared error step**2 / 6 (Gupta et al., 2015)."""
    x = jax.random.uniform(jax.random.key(0), (200_000,), minval=-5.0, maxval=5.0)
    error = np.asarray(stochastic(x, jax.random.key(1)) - x, np.float64)
    assert abs(error.mean()) < 5 * np.sqrt(1 / 6 / x.size)
    assert abs(error.var() - 1 / 6) < 5 * np.sqrt(1 / 30 / x.size)


def test_casts_are_made_even_where_a_compiler_would_drop_them():
    x = normal(0, 64)
    there_and_back = jax.jit(lambda x: cast_once(x, jnp.bfloat16).astype(jnp.float32) + 1.0)(x)
    np.testing.assert_array_equal(there_and_back, np.asarray(x.astype(jnp.bfloat16)).astype(np.float32) + 1.0)


def test_products_are_rounded_before_a_sum():
    a, b, c = (normal(seed, 1000) for seed in range(3))
    got = jax.jit(lambda a, b, c: rounded_product(a, b) + c)(a, b, c)
    np.testing.assert_array_equal(got, np.asarray(a) * np.asarray(b) + np.asarray(c))


def test_exact_mean_is_one_number():
    """The same bits eagerly, under jit and in another order; within 2**-23 of the largest."""
    x = jnp.abs(heavy_tailed(0, 97, 5, freedom=2.0))
    mean = exact_mean(x, (97, 1))
    np.testing.assert_array_equal(mean, jax.jit(lambda x: exact_mean(x, (97, 1)))(x))
    np.testing.assert_array_equal(mean, exact_mean(x[::-1], (97, 1)))
    expected = np.asarray(x, np.float64).mean(0)
    assert (np.abs(np.asarray(mean)[0] - expected) < 2.0**-22 * np.asarray(x).max(0)).all()
    masked = exact_mean(x, (97, 1), x > 1.0)
    inside = np.where(np.asarray(x) > 1, np.asarray(x, np.float64), np.nan)
    np.testing.assert_allclose(masked[0], np.nanmean(inside, 0), rtol=2e-6)
    assert not np.asarray(exact_mean(jnp.zeros((4, 2)), (4, 1))).any()


def test_gradient_rules():
    x = jnp.array([-9.0, -8.0, 0.3, 7.0, 7.4])
    strict, soft = Integer(4).nearest, inclusive(Integer(4).nearest)
    np.testing.assert_array_equal(jax.grad(lambda x: strict(x, -8.0, 7.0).sum())(x), [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(jax.grad(lambda x: soft(x, -8.0, 7.0).sum())(x), [0, 1, 1, 1, 0])
    np.testing.assert_array_equal(strict(x, -8.0, 7.0), soft(x, -8.0, 7.0))
    through = unmasked(Integer(4).nearest)
    np.testing.assert_array_equal(jax.grad(lambda x: through(x, -8.0, 7.0).sum())(x), np.ones(5))
    np.testing.assert_array_equal(through(x, -8.0, 7.0), strict(x, -8.0, 7.0))
    g = jnp.array([1.0, -2.0, 3.0])
    y = jnp.array([0.25, 0.25, 1.75])
    got = jax.grad(lambda y: (g * element_wise(strict, 0.1)(y, -8.0, 7.0)).sum())(y)
    np.testing.assert_allclose(got, g * (1 + 0.1 * np.sign(g) * (y - np.round(y))), rtol=1e-6)
    assert float(straight_through(jnp.float32(1.0), jnp.float32(np.pi))) == np.float32(np.pi)


def test_a_clip_passes_the_gradient_strictly_inside():
    """LSQ, Eq. (3): none at a bound and beyond it, where the bounds take it."""

    def clipped(x, low, high):
        return jnp.sum(clip_between(x, low, high))

    x = jnp.array([-9.0, -8.0, -7.9, 0.0, 6.9, 7.0, 8.0])
    to_x, to_low, to_high = jax.grad(clipped, (0, 1, 2))(x, -8.0, 7.0)
    np.testing.assert_array_equal(to_x, [0, 0, 1, 1, 1, 0, 0])
    assert (float(to_low), float(to_high)) == (2.0, 2.0)


def test_metrics():
    x = heavy_tailed(0, 100, 30, freedom=3.0)
    y = x * 1.1
    np.testing.assert_allclose(nmse(x, y), 0.01, rtol=1e-5)
    np.testing.assert_allclose(sqnr_db(x, y), 20.0, rtol=1e-5)
    np.testing.assert_allclose(cosine(x, y), 1.0, rtol=1e-5)
    assert float(sqnr_db(x, x)) == np.inf


def test_a_range_includes_zero():
    """Zero is a level, also of a channel whose values have one sign: the range is widened, never moved."""
    low, high = jnp.array([0.5, -3.0, -1.0]), jnp.array([2.0, -1.0, 3.0])
    scale, zero = scale_zero(low, high, Spec(Integer(8, signed=False), Channel(), symmetric=False))
    np.testing.assert_allclose(scale, np.array([2.0, 3.0, 4.0]) / 255, rtol=1e-6)
    np.testing.assert_array_equal(zero, [0, 255, 64])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "e8m0"])
def test_scales_are_stored_as_they_were_used(dtype):
    spec = spec_from_text(f"int4/g8/{dtype}", is_weight=True)
    scale = jnp.abs(heavy_tailed(0, 4, 3, freedom=2.0)) * 0.01
    used = stored_scale(scale, spec)
    q = quantize_with(normal(1, 32, 3), spec, used, None, (8, 1)).encode()
    assert q.scale.dtype.itemsize == (1 if dtype == "e8m0" else 2)
    np.testing.assert_array_equal(q.scale_values, used)
    grad = jax.grad(lambda s: stored_scale(s, spec).sum())(scale)
    np.testing.assert_array_equal(grad, np.ones_like(grad))


def test_quantized_scales():
    """Two-level scales: no scale is zero, the largest is kept within half a unit, encode is exact."""
    for text, most in (("fp4_e2m1/g16/e4m3", 1 / 16), ("nf4/g16/dq", 1 / 255)):
        spec = spec_from_text(text, is_weight=True)
        scale = jnp.abs(heavy_tailed(0, 64, 8, freedom=2.0)) * 0.01
        q = stored_scale(scale, spec)
        assert isinstance(q, QTensor)
        assert (np.asarray(q.dequantize()) > 0).all()
        np.testing.assert_array_equal(q.encode().dequantize(), q.dequantize())
        error = np.abs(np.asarray(q.dequantize()) - np.asarray(scale))
        bound = np.asarray(scale) if "e4m3" in text else np.asarray(scale).max(0)
        assert (error <= most * bound + 2.0**-9 * np.asarray(q.scale_values).max()).all()


def test_specs_are_consistent():
    def refused(text, says):
        with pytest.raises(ValueError, match=says):
            spec_from_text(text, is_weight=True)

    with pytest.raises(ValueError, match="stored as one of"):
        storage_named("float64", format_named)
    refused("int4/int5", "an integer per group of a channel, got /channel")
    refused("int4n/g8/int5", "would waste the sign of a scale: got .*, which is its own mirror image; use /uint5")
    refused("int4n/signed", "own mirror image")
    refused("fp4_e2m1/g16/e4m3/signed", "own mirror image")
    refused("uint4/signed/sym", "no negative levels")
    refused("int4/affine/signed", "symmetric grids")
    refused("int4/g32/e8m0/signed", "has no sign: leave out")
    refused("int4/g32/int5/signed", "has a sign anyway: leave out")
    with pytest.raises(ValueError, match="/signed is for weights"):
        spec_from_text("int8/sym/signed", is_weight=False)


def test_qtensor():
    spec = spec_from_text("int4/g8", is_weight=True)
    x = heavy_tailed(0, 3, 20, 5, freedom=2.0)
    blocks = (1, 8, 1)
    q = quantize_with(x, spec, jnp.full((3, 3, 5), 0.25), None, blocks)
    assert q.blocks == blocks
    assert q.shape == (3, 20, 5)
    part = jax.tree.map(lambda a: a[1], q)  # static fields count axes from the end
    assert part.blocks == (8, 1)
    np.testing.assert_array_equal(part.dequantize(), q.dequantize()[1])
    np.testing.assert_array_equal(jax.vmap(lambda q: q.dequantize())(q), q.dequantize())
    with pytest.raises(ValueError, match="call encode"):
        q.unpacked_codes()
    assert q.encode().encode().codes.dtype == jnp.int8


def test_a_sample_sees_every_channel():
    """One of every stretch of 120 values: at equal distances it would see the first of 24 channels alone."""
    x = jnp.broadcast_to(jnp.arange(24.0), (5 * 1024, 24))
    sample = Sample(1024)
    kept = sample.finish(sample.update(sample.init(Operand(x.shape)), x, Operand(x.shape)))
    counts = np.bincount(np.asarray(kept, int), minlength=24)
    assert counts.min() > 0
    assert counts.max() < 3 * 1024 / 24
    few = sample.finish(sample.update(sample.init(Operand((10,))), jnp.arange(10.0), Operand((10,))))
    assert set(few.tolist()) == set(range(10))
