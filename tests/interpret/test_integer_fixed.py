"""Fixed-point multiplication against Python's integers of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.interpret.integer.fixed import ROUNDINGS, fixed_point, fixed_points, rounding_named
from lowbit.interpret.integer.words import wide_product

SIZE = 64
WORD = st.integers(-(2**31) + 1, 2**31 - 1)
RUNS = {name: (jax.jit(rounding.multiply), jax.jit(rounding.shift)) for name, rounding in ROUNDINGS.items()}


def _half_up(p, s):
    return (p + (1 << (s - 1))) >> s


def _half_even(p, s):
    floor, rest, half = p >> s, p & ((1 << s) - 1), 1 << (s - 1)
    return floor + (rest > half or (rest == half and floor & 1))


def _half_away(x, k):
    return (abs(x) + (1 << k >> 1) >> k) * (1 if x >= 0 else -1)


def _gemmlowp(acc, q, right):
    if right < 0:
        most = (2**31 - 1) >> -right
        acc, right = max(min(acc, most), -most) << -right, 0
    nudge = 2**30 if acc * q >= 0 else 1 - 2**30
    total = acc * q + nudge
    return _half_away(abs(total) // 2**31 * (1 if total >= 0 else -1), right)  # C divides toward zero


WANT = {
    "exact": lambda acc, q, right: _half_even(acc * q, 31 + right),
    "tflite_single": lambda acc, q, right: _half_up(acc * q, 31 + right),
    "gemmlowp_double": _gemmlowp,
}
SHIFTS = {
    "exact": lambda x, k: _half_even(x, k) if k else x,
    "tflite_single": lambda x, k: _half_up(x, k) if k else x,
    "gemmlowp_double": _half_away,
}


def test_the_constants_of_gemmlowp():
    """Reference numbers of gemmlowp's QuantizeMultiplier."""
    assert fixed_point(0.3) == (1288490189, 1)
    assert fixed_point(0.1234567) == (2120969956, 3)
    assert fixed_point(0.0007) == (1539316279, 10)
    assert fixed_point(2.0**-8) == (1073741824, 7)
    assert fixed_point(0.0) == (0, 0)
    assert fixed_point(-0.3) == (-1288490189, 1)


def test_float32_multipliers_are_cut_exactly():
    rng = np.random.default_rng(0)
    values = np.float32(rng.normal(size=200)) * np.float32(2.0) ** rng.integers(-30, 30, 200).astype(np.float32)
    q, right = fixed_points(jnp.asarray(values))
    want = [fixed_point(float(v)) for v in values]
    assert list(zip(np.asarray(q).tolist(), np.asarray(right).tolist(), strict=True)) == want
    extremes = fixed_points(jnp.asarray([0.0, -0.0, 1e-38, 1e-12, 3e38, -3e38]))
    assert np.asarray(extremes[0]).tolist() == [0, 0, 0, 0, 2**31 - 1, -(2**31) + 1]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(WORD, WORD), min_size=SIZE, max_size=SIZE))
def test_products_have_64_bits(pairs):
    a, b = (np.array(x, np.int32) for x in zip(*pairs, strict=True))
    high, low = jax.jit(wide_product)(a, b)
    got = [(int(h) << 32) | (int(lo) & 0xFFFFFFFF) for h, lo in zip(high, low, strict=True)]
    assert got == [int(x) * int(y) for x, y in pairs]


@pytest.mark.parametrize("name", list(ROUNDINGS))
def test_large_sums_are_rounded_before_they_saturate(name):
    accs = [2_048_499_999, -2_048_499_999, 2**31 - 1, -(2**31) + 1]
    for multiplier in (0.999, 0.4, 1e-6, 2.0**-12):
        pair = fixed_point(multiplier)
        q, right = (np.full(len(accs), n, np.int32) for n in pair)
        got = np.asarray(RUNS[name][0](np.array(accs, np.int32), q, right)).tolist()
        assert got == [max(min(WANT[name](a, *pair), 2**30), -(2**30)) for a in accs]


@pytest.mark.parametrize("name", list(ROUNDINGS))
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_roundings_are_what_they_are_called(name, data):
    accs = data.draw(st.lists(WORD | st.integers(-5, 5), min_size=SIZE, max_size=SIZE))
    multipliers = data.draw(
        st.lists(st.floats(2.0**-30, 4.0) | st.sampled_from([0.5, 0.25, 1.0, 2.0**-12]), min_size=SIZE, max_size=SIZE)
    )
    signs = data.draw(st.lists(st.sampled_from([1.0, -1.0]), min_size=SIZE, max_size=SIZE))
    pairs = [fixed_point(m * s) for m, s in zip(multipliers, signs, strict=True)]
    q, right = (np.array(x, np.int32) for x in zip(*pairs, strict=True))
    multiply, shift = RUNS[name]
    got = np.asarray(multiply(np.array(accs, np.int32), q, right)).tolist()
    assert got == [max(min(WANT[name](a, *p), 2**30), -(2**30)) for a, p in zip(accs, pairs, strict=True)]
    k = np.array(data.draw(st.lists(st.integers(0, 30), min_size=SIZE, max_size=SIZE)), np.int32)
    assert np.asarray(shift(np.array(accs, np.int32) >> 1, k)).tolist() == [
        SHIFTS[name](a >> 1, int(s)) for a, s in zip(accs, k, strict=True)
    ]


@pytest.mark.parametrize("right", [1, 3, 6])
def test_double_rounding_differs_as_often_as_the_law_says(right):
    """P(gemmlowp != one rounding) = 2**-(right + 1), always by one."""
    rng = np.random.default_rng(right)
    count = 200_000
    acc = rng.integers(-(2**30), 2**30, count).astype(np.int32)
    q = rng.integers(2**30, 2**31, count).astype(np.int32)
    shifts = np.full(count, right, np.int32)
    once, twice = (np.asarray(RUNS[name][0](acc, q, shifts)) for name in ("exact", "gemmlowp_double"))
    rate, law = float(np.mean(once != twice)), 2.0 ** -(right + 1)
    assert np.max(np.abs(once - twice)) == 1
    assert abs(rate - law) < 5 * np.sqrt(law / count)  # five standard deviations


def test_an_unknown_rounding_is_named():
    with pytest.raises(ValueError, match=r"exact, tflite_single, gemmlowp_double, got 'nearest'"):
        rounding_named("nearest")
