"""Every format: code tables against ml_dtypes, ties, saturation, special values, packing."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.formats.codebook import NF4, Codebook, learned_codebook, lloyd_max
from lowbit.formats.density import LAPLACE, NORMAL, density_of, rectified, student_t, uniform
from lowbit.formats.integer import Integer
from lowbit.formats.lookup import format_named, format_words, spec_from_text
from lowbit.formats.minifloat import FORMATS
from lowbit.formats.optimum import best_levels, best_scale, levels_of, mean_squared_error
from lowbit.formats.rounding import nearest_of, rounding_named, stochastic_nearest
from lowbit.formats.signs import MidRise, Ternary, mid_rise_of, pack_base3, unpack_base3

ORACLES = {
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
}
EVERY = sorted({spec_from_text(word, is_weight=True).format for word in format_words()}, key=lambda f: f.name)


@pytest.mark.parametrize("numbers", FORMATS, ids=lambda f: f.name)
def test_floats_are_those_of_ml_dtypes(numbers):
    """All codes decode and encode alike; all ties, their neighbours and heavy-tailed values round alike."""
    oracle = ORACLES[numbers.name]
    codes = np.arange(2**numbers.bits, dtype=np.uint8)
    table = codes.view(oracle).astype(np.float32)
    np.testing.assert_array_equal(numbers.decode(jnp.asarray(codes)), table)
    finite = np.isfinite(table)
    np.testing.assert_array_equal(numbers.encode(jnp.asarray(table[finite])), codes[finite])
    nan = np.array([np.nan], np.float32)
    has_nan = np.isnan(table).any()
    np.testing.assert_array_equal(numbers.encode(jnp.asarray(nan)), nan.astype(oracle).view(np.uint8) if has_nan else 0)
    levels = np.unique(table[finite])
    ties = (levels[1:] / 2 + levels[:-1] / 2).astype(np.float32)
    tails = np.random.default_rng(0).standard_t(2, 20000).astype(np.float32)
    near = [np.nextafter(ties, np.float32(d), dtype=np.float32) for d in (np.inf, -np.inf)]
    points = np.clip(np.concatenate([levels, ties, *near, tails]), numbers.low, numbers.high)
    got = jax.jit(lambda x: numbers.nearest(x, numbers.low, numbers.high))(points)
    np.testing.assert_array_equal(got, points.astype(oracle).astype(np.float32))


def test_half_away_differs_at_ties_only():
    """E2M1's ties .25 .75 1.25 1.75 2.5 3.5 5 7: even 0 1 1 2 2 4 4 6, away .5 1 1.5 2 3 4 6 6."""
    fp4 = format_named("fp4_e2m1")
    ties = jnp.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0])
    np.testing.assert_array_equal(nearest_of(fp4, "nearest_even")(ties, -6.0, 6.0), [0, 1, 1, 2, 2, 4, 4, 6])
    np.testing.assert_array_equal(nearest_of(fp4, "half_away")(ties, -6.0, 6.0), [0.5, 1, 1.5, 2, 3, 4, 6, 6])
    with pytest.raises(ValueError, match="own nearest level"):
        nearest_of(NF4, "half_away")
    with pytest.raises(ValueError, match="one of nearest_even, half_away, got 'up'"):
        rounding_named("up")


@pytest.mark.parametrize("name", ["int4", "fp4_e2m1"])
def test_stochastic_rounding_takes_a_neighbour_and_has_no_bias(name):
    numbers = format_named(name)
    x = jax.random.uniform(jax.random.key(0), (100_000,), minval=-5.5, maxval=5.5)
    levels = levels_of(numbers)
    got = np.asarray(stochastic_nearest(numbers, jax.random.key(1))(x, numbers.low, numbers.high))
    above = levels[np.searchsorted(levels, np.asarray(x), side="left")]
    below = levels[np.searchsorted(levels, np.asarray(x), side="right") - 1]
    assert ((got == above) | (got == below)).all()
    assert abs((got - np.asarray(x)).mean()) < 5 * 1.0 / np.sqrt(x.size)
    with pytest.raises(ValueError, match="integer or float"):
        stochastic_nearest(NF4, jax.random.key(1))


@pytest.mark.parametrize("numbers", EVERY, ids=lambda f: f.name)
def test_every_format(numbers):
    """nearest is nearest, saturates, keeps NaN; encode and decode are exact inverses; the name finds the format."""
    assert format_named(numbers.name) == numbers
    x = np.random.default_rng(1).standard_t(2, 4000).astype(np.float32) * np.float32(numbers.reach / 3)
    x = np.concatenate([x, [0.0, np.inf, -np.inf, 1e-30, -1e30]]).astype(np.float32)
    run = jax.jit(lambda x: numbers.nearest(x, numbers.low, numbers.high))
    got = run(x)
    codes = numbers.encode(got)
    assert codes.dtype.itemsize == (2 if numbers.bits > 8 else 1)
    np.testing.assert_array_equal(numbers.decode(codes), got)
    np.testing.assert_array_equal(run(np.asarray(got)), got)
    assert float(got[-4]) == numbers.high
    assert float(got[-3]) == numbers.low
    assert np.isnan(numbers.nearest(jnp.float32(np.nan).reshape(1), numbers.low, numbers.high)).all()
    if numbers.bits <= 8:
        levels = levels_of(numbers)
        assert len(levels) <= 2**numbers.bits
        clipped = np.clip(x, numbers.low, numbers.high).astype(np.float64)
        best = np.abs(clipped[:, None] - levels).min(1)
        np.testing.assert_allclose(np.abs(clipped - np.asarray(got, np.float64)), best, atol=2e-7 * numbers.reach)


def test_integers():
    assert (Integer(1).low, Integer(1).high, Integer(1, signed=False).high) == (-1.0, 0.0, 1.0)
    assert (Integer(8, narrow=True).low, Integer(4, signed=False, narrow=True).high) == (-127.0, 14.0)
    assert (Integer(16).low, Integer(16).high) == (-32768.0, 32767.0)
    for bad, error in ((0, ValueError), (9, ValueError), (True, TypeError), (4.0, TypeError)):
        with pytest.raises(error):
            Integer(bad)
    with pytest.raises(ValueError, match="one level left"):
        Integer(1, narrow=True)


def test_nf4():
    """QLoRA's appendix E: sixteen levels, ends at -1 and 1, an exact zero."""
    assert len(NF4.levels) == 16
    assert (NF4.low, NF4.high, 0.0 in NF4.levels) == (-1.0, 1.0, True)
    np.testing.assert_array_equal(NF4.decode(jnp.arange(16, dtype=jnp.uint8)), np.float32(NF4.levels))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-1, 1), max_size=23), st.integers(1, 3))
def test_base3_packing(codes, rows):
    x = jnp.asarray([codes] * rows, jnp.int8).reshape(rows, -1)
    packed = pack_base3(x)
    assert packed.shape == (rows, -(-len(codes) // 5))
    np.testing.assert_array_equal(unpack_base3(packed, len(codes)), x)


def test_base3_bytes():
    """Golden: digits 0 1 2 2 1 | 2 -> 0 + 3 + 18 + 54 + 81 = 156, 2; all ones -> 242."""
    assert pack_base3(jnp.array([-1, 0, 1, 1, 0, 1], jnp.int8)).tolist() == [156, 2]
    assert pack_base3(jnp.ones(5, jnp.int8)).tolist() == [242]
    with pytest.raises(ValueError, match="take 2 bytes, got 1"):
        unpack_base3(jnp.zeros(1, jnp.uint8), 6)


def test_mid_rise():
    assert levels_of(MidRise(2)).tolist() == [-3, -1, 1, 3]
    assert MidRise(1).name == "binary"
    assert mid_rise_of(spec_from_text("2/narrow", is_weight=True)).format.name == "int2n"
    with pytest.raises(ValueError, match="1 to 8 bits, got 9"):
        MidRise(9)


def test_codebooks():
    learned = learned_codebook(np.random.default_rng(0).standard_normal(4000), 3)
    assert len(learned.levels) == 8
    assert format_named(learned.name) == learned
    assert spec_from_text(learned.name + "/g32", is_weight=True).format == learned
    uneven = Codebook((-1.0, 0.0, 0.5, 2.0))
    ties = jnp.array([-0.5, 0.25, 1.25, jnp.nextafter(jnp.float32(1.25), 2.0)])  # half way, to the lower level
    np.testing.assert_array_equal(uneven.nearest(ties, -1.0, 2.0), [-1.0, 0.0, 0.5, 2.0])
    for bad in ((1.0,), (0.0, 0.0), (1.0, 0.0), (-2.0, -1.0), (0.0, np.inf), (0.0, 0.1)):
        with pytest.raises(ValueError):
            Codebook(bad)


def test_lloyd_max_on_samples_and_weights():
    """Two clusters; a weight moves a level; equal values; the levels are a fixed point of the conditions."""
    assert lloyd_max(np.array([0.0, 0.2, 0.9, 1.1]), 2).round(6).tolist() == [0.1, 1.0]
    assert lloyd_max(np.array([0.0, 0.2, 0.9, 1.1]), 2, weights=np.array([1.0, 3.0, 1.0, 1.0])).round(6).tolist() == [
        0.15,
        1.0,
    ]
    assert lloyd_max(np.full(5, 3.0), 4).tolist() == [3.0]
    x = np.random.default_rng(0).standard_t(4, 20000)
    w = np.random.default_rng(1).uniform(0.1, 1.0, x.size)
    levels = lloyd_max(x, 16, weights=w, iterations=5000)
    index = np.searchsorted((levels[1:] + levels[:-1]) / 2, x)
    means = [np.average(x[index == i], weights=w[index == i]) for i in range(16)]
    np.testing.assert_allclose(levels, means, atol=1e-6)
    with pytest.raises(ValueError, match="2 to 256 levels, got 1"):
        lloyd_max(x, 1)
    with pytest.raises(ValueError, match="weights >= 0"):
        lloyd_max(x, 4, weights=-w)


# Max, 1960, and the closed forms: every printed digit. Bits -> Lloyd-Max error; mid-rise step and error; narrow step and
# error; full integer step and error.
NORMAL_TABLE = {
    1: (0.363380, (1.59577, 0.363380), None, (1.22401, 0.595087)),
    2: (0.117482, (0.99569, 0.118846), (1.22401, 0.190174), (1.04839, 0.149431)),
    3: (0.0345478, (0.58602, 0.0374397), (0.65077, 0.04686), (0.60182, 0.0406382)),
    4: (0.00950101, (0.33520, 0.0115429), (0.35341, 0.0128894), (0.33861, 0.0118640)),
    5: (0.00250467, (0.18814, 0.00349521), (0.19325, 0.00369322), (0.18879, 0.00352596)),
    6: (6.4424e-4, (0.10406, 0.00104005), (0.10549, 0.00106929), (0.10418, 0.00104285)),
    7: (1.63478e-4, (0.05687, 3.04333e-4), (0.05726, 3.08622e-4), (0.05689, 3.04579e-4)),
    8: (4.11851e-5, (0.03076, 8.76862e-5), (0.03087, 8.8308e-5), (0.03077, 8.77069e-5)),
}
LEVELS = {
    2: (0.45278, 1.51042),
    3: (0.24509, 0.75601, 1.34391, 2.15195),
    4: (0.12840, 0.38805, 0.65676, 0.94234, 1.25623, 1.61805, 2.06902, 2.73259),
}
"""Positive halves of the Lloyd-Max levels."""


def printed(value, digits):
    """``digits`` as a table would print ``value``."""
    text = f"{digits:.10g}"
    places = len(text.split("e")[0].split(".")[1]) if "." in text else 0
    places += int(text.split("e-")[1]) if "e-" in text else 0
    return abs(value - digits) <= 0.5000001 * 10.0**-places


@pytest.mark.parametrize("bits", NORMAL_TABLE)
def test_least_errors_on_the_normal_density(bits):
    lloyd, mid, narrow, full = NORMAL_TABLE[bits]
    levels, error = best_levels(2**bits)
    assert printed(error, lloyd)
    assert all(printed(a, b) for a, b in zip(levels[2 ** (bits - 1) :], LEVELS.get(bits, ()), strict=False))
    step, error = best_scale(MidRise(bits))
    assert printed(2 * step, mid[0])
    assert printed(error, mid[1])
    for numbers, expected in ((Integer(bits), full), *(((Integer(bits, narrow=True), narrow),) if narrow else ())):
        scale, error = best_scale(numbers)
        assert printed(scale, expected[0])
        assert printed(error, expected[1])


def test_least_errors_of_named_rules():
    """Ternary optimum, TWN, BitNet, LSQ's start, from the same reference table."""
    scale, error = best_scale(Ternary())
    assert printed(scale, 1.22401)
    assert printed(error, 0.190174)
    mean = np.sqrt(2 / np.pi)
    assert printed(mean_squared_error(np.array([-1, 0, 1]) * mean), 0.263382)
    for bits, start, expected in ((2, 1.5958, 0.2210), (3, 0.9213, 0.0711), (4, 0.6031, 0.0303), (8, 0.1416, 0.00167)):
        step = 2 * mean / np.sqrt(2 ** (bits - 1) - 1)
        assert printed(step, start)
        assert printed(mean_squared_error(levels_of(Integer(bits)) * step), expected)


def test_densities():
    """Moments at infinity are 1, 0, 1; Lloyd-Max for Laplace at two bits has its known error, 0.1762."""
    for density in (NORMAL, LAPLACE, uniform()):
        moments = [float(density.moment(order, np.array([np.inf]))[0]) for order in range(3)]
        np.testing.assert_allclose(moments, [1, 0, 1], atol=1e-12)
    assert round(best_levels(4, LAPLACE)[1], 4) == 0.1762
    for bad, says in (
        (lambda: uniform(1.0, 1.0), "low < high, got 1.0"),
        (lambda: student_t(2.0), "above 2"),
        (lambda: density_of(lambda t: -np.exp(-t * t)), "non-negative"),
        (lambda: density_of(np.exp, 3.0, 2.0), "low < high"),
    ):
        with pytest.raises(ValueError, match=says):
            bad()


def test_densities_by_integration():
    """Integrated moments are those of the closed forms; a tail of power 4 keeps its variance, 3."""
    x = np.linspace(-7.0, 7.0, 101)
    front = 1.0 / np.sqrt(2.0)
    for closed, function in (
        (NORMAL, lambda t: np.exp(-t * t / 2)),
        (LAPLACE, lambda t: front * np.exp(-np.abs(t) / front)),
    ):
        integrated = density_of(function)
        for order in range(3):
            np.testing.assert_allclose(integrated.moment(order, x), closed.moment(order, x), atol=1e-13)
    assert student_t(3.0).power == pytest.approx(3.0, rel=1e-10)
    box = density_of(np.ones_like, -1.0, 2.0)
    np.testing.assert_allclose(box.moment(2, x), uniform(-1.0, 2.0).moment(2, x), atol=1e-13)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_least_errors_of_other_densities(bits):
    """Uniform: step**2 / 12 exactly, by Lloyd-Max and by a mid-rise grid; after a relu, the clip of one bit more (narrow)."""
    count = 2**bits
    assert best_levels(count, uniform(0.0, 1.0))[1] == pytest.approx(count**-2 / 12, rel=1e-9)
    scale, error = best_scale(MidRise(bits), uniform())
    assert error == pytest.approx(4.0**-bits, rel=1e-9)
    assert 2 * scale == pytest.approx(np.sqrt(12) / count, rel=1e-4)  # flat around the optimum
    scale, error = best_scale(Integer(bits, signed=False), rectified(NORMAL))
    step = {1: 1.22401, 2: 0.65077, 4: 0.19325, 8: 0.01653}[bits]
    assert printed(scale, step)
    if bits == 8:
        assert printed(10 * np.log10(rectified(NORMAL).power / error), 46.02)


def test_heavy_tails_need_uneven_levels():
    """On Student's t with 5 degrees: Lloyd-Max below the floating grid, that below the even one; all above the floor."""
    density = student_t(5.0)
    even, floating = (best_scale(format_named(name), density)[1] for name in ("int4", "fp4_e2m1"))
    assert 4.0**-4 * density.power * 0.5 < best_levels(16, density)[1] < floating < even
