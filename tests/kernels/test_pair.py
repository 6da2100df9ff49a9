"""Products of two quantized arrays, against sums written out in float64 and rounded as the contract says."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit_kernels import CpuConfig, StaticActivation, status
from lowbit_kernels.cpu.pair import quant_product

ISAS = status().isas
ATTENTION = {
    "logits": ((2, 9, 3, 16), (2, 11, 3, 16), (((3,), (3,)), ((0, 2), (0, 2)))),
    "values": ((2, 3, 9, 21), (2, 21, 3, 35), (((3,), (1,)), ((0, 1), (0, 2)))),
    "no batch": ((5, 70), (70, 17), (((1,), (0,)), ((), ()))),
    "one batch": ((4, 33, 6), (4, 33, 2), (((1,), (1,)), ((0,), (0,)))),
    "three batches": ((2, 2, 2, 5, 4), (2, 2, 2, 4, 3), (((4,), (3,)), ((0, 1, 2), (0, 1, 2)))),
    "several axes": ((3, 4, 5, 6), (5, 6, 7, 2), (((2, 3), (0, 1)), ((), ()))),
    "few": ((1, 1, 3), (1, 2, 3), (((2,), (2,)), ((0,), (0,)))),
    "long": ((130, 400), (40, 400), (((1,), (1,)), ((), ()))),
}
GRIDS = {
    "signed": StaticActivation(jnp.float32(0.021), jnp.int32(-7)),
    "unsigned": StaticActivation(jnp.float32(0.013), jnp.int32(31), 0, 255),
    "narrow": StaticActivation(jnp.float32(0.3), jnp.float32(0), -8, 7),
    "without 0": StaticActivation(jnp.float32(0.02), jnp.int32(-140)),
    "dynamic": None,
}


def steps(x, grid, contract):
    """Codes less the zero point, in float64, and the scale in float32, by the formula of `numerics.py`."""
    x = np.asarray(x, np.float32)
    if grid is None:
        largest = np.max(np.abs(x), axis=contract, keepdims=True)
        scale = np.where(largest == 0, np.float32(1), largest * np.float32(1 / 127.0)).astype(np.float32)
        lo, hi, zero = -128, 127, 0
    else:
        scale, lo, hi, zero = np.full((1,) * x.ndim, grid.scale, np.float32), grid.lo, grid.hi, int(grid.zero)
    codes = np.rint(x * (np.float32(1) / scale)).astype(np.float64)
    return np.clip(codes, lo - zero, hi - zero), scale


def expected(x, w, numbers, left, right):
    (lc, rc), (lb, rb) = numbers
    letters = iter("abcdefghijklmnop")
    rows, columns = [""] * x.ndim, [""] * w.ndim
    for i, j in [*zip(lb, rb, strict=True), *zip(lc, rc, strict=True)]:
        rows[i] = columns[j] = next(letters)
    rows, columns = [a or next(letters) for a in rows], [a or next(letters) for a in columns]
    batch = [rows[i] for i in lb]
    out = [*batch, *(a for a in rows if a not in columns), *(a for a in columns if a not in rows)]
    text = f"{''.join(rows)},{''.join(columns)}->{''.join(out)}"
    (a, s_x), (b, s_w) = steps(x, left, lc), steps(w, right, rc)
    total = np.einsum(text, a, b).astype(np.float32)  # below 2**24 or rounded once, as int32 to float32 is
    # One element along what is summed: the sums below copy scales to where results are.
    one = [np.ones([1 if i in c else n for i, n in enumerate(y.shape)], np.float32) for y, c in ((x, lc), (w, rc))]
    return (total * np.einsum(text, one[0], s_w * one[1])) * np.einsum(text, s_x * one[0], one[1])


def drawn(shape, seed):
    return np.random.default_rng(seed).standard_t(3, shape).astype(np.float32)


@pytest.mark.parametrize("case", ATTENTION)
@pytest.mark.parametrize("isa", ISAS)
def test_sums_are_exact(case, isa):
    first, second, numbers = ATTENTION[case]
    x, w = drawn(first, 0), drawn(second, 1)
    for left, right in itertools.product(GRIDS.values(), GRIDS.values()):
        got = quant_product(jnp.asarray(x), jnp.asarray(w), numbers, left, right, config=CpuConfig(isa=isa))
        np.testing.assert_array_equal(got, expected(x, w, numbers, left, right), err_msg=f"{left}, {right}")


@pytest.mark.parametrize("grid", ["signed", "dynamic"])
@pytest.mark.parametrize("case", ["logits", "values"])
def test_what_sums_over_a_nan_is_nan(case, grid):
    first, second, numbers = ATTENTION[case]
    x, w, grid = drawn(first, 0), drawn(second, 1), GRIDS[grid]
    x[1, 2, 1, 5], w[0, 4, 2, 3] = np.nan, np.nan
    got = np.asarray(quant_product(jnp.asarray(x), jnp.asarray(w), numbers, grid, grid, keeps_nan=True))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(np.asarray(jax.lax.dot_general(x, w, numbers))))


def test_threads_and_vmap_change_nothing():
    first, second, numbers = ATTENTION["logits"]
    x, w = jnp.asarray(drawn((4, *first), 0)), jnp.asarray(drawn((4, *second), 1))
    call = lambda x, w, n=None: quant_product(x, w, numbers, GRIDS["signed"], None, config=CpuConfig(threads=n))  # noqa: E731
    want = jnp.stack([call(a, b, 1) for a, b in zip(x, w, strict=True)])
    np.testing.assert_array_equal(jax.vmap(call)(x, w), want)
    np.testing.assert_array_equal(jnp.stack([call(a, b) for a, b in zip(x, w, strict=True)]), want)


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"x": "text"}, TypeError, "x"),
        ({"x": jnp.ones((2, 3), jnp.int32)}, ValueError, "floats"),
        ({"numbers": ((1,), (0,))}, TypeError, "numbers"),
        ({"numbers": (((1,), (1,)), ((), ()))}, ValueError, "length"),
        ({"numbers": (((5,), (0,)), ((), ()))}, ValueError, "axes"),
        ({"left": "int8"}, TypeError, "StaticActivation"),
        ({"right": StaticActivation(jnp.float32(1), jnp.int32(0), -300, 7)}, ValueError, "codes"),
        ({"keeps_nan": 3}, TypeError, "keeps_nan"),
        ({"config": 3}, ValueError, "CpuConfig"),
        ({"x": jnp.ones((2, 0)), "w": jnp.ones((0, 2))}, ValueError, "products"),
    ],
)
def test_wrong_calls_say_what_is_wrong(change, error, word):
    call = {
        "x": jnp.ones((2, 3)),
        "w": jnp.ones((3, 2)),
        "numbers": (((1,), (0,)), ((), ())),
        "left": None,
        "right": None,
    }
    with pytest.raises(error, match=word):
        quant_product(**{**call, **change})


def test_zero_points_far_from_the_grid_are_refused():
    grid = StaticActivation(jnp.float32(1), jnp.int32(3_000_000))
    with pytest.raises(Exception, match="zero point"):
        jax.block_until_ready(quant_product(jnp.ones((2, 3)), jnp.ones((3, 2)), (((1,), (0,)), ((), ())), grid, None))
