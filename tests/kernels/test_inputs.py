"""How the native kernels put inputs on their grid: a scale an example, NaN that spreads, steps with one number."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lowbit_kernels import (
    CpuConfig,
    StaticActivation,
    fused_matmul,
    pack_conv,
    pack_matrix,
    prepare,
    prepare_conv,
    prepare_steps,
    quant_conv,
    status,
)

RNG = np.random.default_rng(5)
GRID = StaticActivation(jnp.float32(0.05), jnp.int32(3))
CASES = {
    "dense": ((3, 3, 6, 20), 1),
    "grouped": ((3, 3, 3, 20), 2),
    "depthwise": ((3, 3, 1, 6), 6),
}


def images(dtype="float32"):
    x = RNG.standard_normal((3, 7, 6, 6)) * np.array([1.0, 40.0, 0.0])[:, None, None, None]  # the last: zeros
    return jnp.asarray(x, dtype)


def windows(x, w, groups):
    """Sums over windows in float64, zeros around, by shifts: without a convolution."""
    (batch, height, width, _), (kh, kw, inputs, out) = x.shape, w.shape
    x = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = np.zeros((batch, height, width, out))
    for n in range(out):
        first = n // (out // groups) * inputs
        for u in range(kh):
            for v in range(kw):
                y[..., n] += x[:, u : u + height, v : v + width, first : first + inputs] @ w[u, v, :, n]
    return y


@pytest.mark.parametrize("isa", status().isas)
@pytest.mark.parametrize("name", CASES)
def test_every_example_of_a_convolution_may_have_its_own_scale(name, isa):
    kernel, groups = CASES[name]
    codes = RNG.integers(-127, 128, kernel)
    w = pack_conv(codes, np.ones(kernel[3], np.float32), bits=8)
    for dtype in ("float32", "bfloat16"):
        x = images(dtype)
        most = np.abs(np.asarray(x, np.float32)).max((1, 2, 3), keepdims=True)
        scale = np.where(most == 0, np.float32(1), most * np.float32(1 / 127))
        steps = np.clip(np.rint(np.asarray(x, np.float32) * (np.float32(1) / scale)), -128, 127)
        want = (windows(steps, codes, groups).astype(np.float32) * scale).astype(np.float32)
        options = {"activation": "int8", "feature_group_count": groups, "out_dtype": "float32"}
        native = prepare_conv(w, feature_group_count=groups)
        got = quant_conv(x, native, implementation="cpu", config=CpuConfig(isa=isa), **options)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(quant_conv(x, w, implementation="reference", **options), want)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("name", CASES)
def test_what_sums_over_a_nan_is_nan_and_nothing_else(name, layout):
    kernel, groups = CASES[name]
    codes = RNG.integers(-7, 8, kernel)
    w = pack_conv(codes, np.ones(kernel[3], np.float32), bits=4)
    x = images().at[1, 0, 3, 4].set(jnp.nan).at[2, 5, 5, 0].set(-jnp.nan)
    where = windows(np.isnan(x), np.ones(kernel), groups) > 0
    axes = (0, 1, 2, 3) if layout == "NHWC" else (0, 3, 1, 2)
    options = {"activation": GRID, "feature_group_count": groups, "layout": layout}
    native = prepare_conv(w, feature_group_count=groups)
    for isa in status().isas:
        run = {"implementation": "cpu", "config": CpuConfig(isa=isa), **options}
        kept = np.asarray(quant_conv(x.transpose(axes), native, keeps_nan=True, **run))
        plain = np.asarray(quant_conv(x.transpose(axes), native, **run))
        np.testing.assert_array_equal(kept, np.where(where.transpose(axes), np.nan, plain))
        assert not np.isnan(plain).any()


@pytest.mark.parametrize("group", [32, 5])
def test_rows_with_nan_are_nan_where_asked(group):
    codes = RNG.integers(-7, 8, (64, 33))
    scales = np.ones((-(-64 // group), 33), np.float32)
    w = prepare(pack_matrix(codes, scales, bits=4, group=group))
    x = jnp.asarray(RNG.standard_normal((5, 64)), jnp.float32).at[3, 63].set(jnp.nan)
    for isa in status().isas:
        for columns in (False, True):
            run = {"activation": GRID, "implementation": "cpu", "config": CpuConfig(isa=isa), "x_columns": columns}
            kept = fused_matmul(x.T if columns else x, w, keeps_nan=True, **run).value
            plain = fused_matmul(x.T if columns else x, w, **run).value
            assert not np.isnan(plain).any()
            np.testing.assert_array_equal(np.isnan(kept).all(1), [False, False, False, True, False])
            np.testing.assert_array_equal(np.delete(kept, 3, 0), np.delete(plain, 3, 0))


def test_steps_with_one_number_have_no_row_and_do_the_same():
    w = prepare(pack_matrix(RNG.integers(-7, 8, (24, 20)), np.ones((1, 20), np.float32), bits=4))
    x, bias = jnp.asarray(RNG.standard_normal((5, 24)), jnp.float32), jnp.asarray(RNG.standard_normal(20), jnp.float32)
    steps = prepare_steps([("mul", 0.25), ("add", bias), ("max", 0.0), ("min", 6.0)], 20)
    assert steps.table.shape == (1, 2, 16)
    assert steps.numbers == (0.25, None, 0.0, 6.0)
    plain = fused_matmul(x, w, activation=GRID, implementation="cpu").value
    want = lax.min(lax.max(plain * np.float32(0.25) + bias, jnp.float32(0)), jnp.float32(6))  # a quarter is exact
    for isa in status().isas:
        got = fused_matmul(x, w, activation=GRID, steps=steps, implementation="cpu", config=CpuConfig(isa=isa)).value
        np.testing.assert_array_equal(got, want)


def test_a_dynamic_convolution_takes_floats():
    w = pack_conv(np.ones((1, 1, 4, 4), int), np.ones(4, np.float32), bits=4)
    with pytest.raises(ValueError, match='"int8" with float x'):
        quant_conv(jnp.zeros((1, 2, 2, 4), jnp.int8), w, activation="int8")
    with pytest.raises(ValueError, match="activation must be a StaticActivation"):
        quant_conv(jnp.zeros((1, 2, 2, 4), jnp.float32), w, activation="fp8")
