"""Integer convolutions as products of windows: those of jax in int32, whatever the layout, stride, padding or groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from lowbit.core.qtensor import QTensor
from lowbit.formats.lookup import spec_from_text
from lowbit.interpret.patches import patch_sums
from tests.values import normal

CASES = {
    "strided, dilated": ((2, 9, 8, 6), (3, 2, 6, 5), ((2, 1), ((1, 2), (0, 1)), (1, 1), (2, 1), 1), ("NHWC", "HWIO", "NHWC")),
    "transposed": ((1, 5, 4, 3), (3, 3, 3, 4), ((1, 1), ((2, 1), (1, 1)), (2, 2), (1, 1), 1), ("NHWC", "HWIO", "NHWC")),
    "depthwise": ((1, 6, 6, 8), (3, 3, 1, 8), ((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 8), ("NHWC", "HWIO", "NHWC")),
    "grouped, NCHW": ((2, 6, 5, 5), (4, 3, 3, 3), ((1, 2), ((0, 0), (1, 0)), (1, 1), (1, 1), 2), ("NCHW", "OIHW", "NCHW")),
    "one dimension": ((2, 11, 4), (5, 4, 3), ((2,), ((-1, 2),), (1,), (1,), 1), ("NWC", "WIO", "NWC")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_sums_are_those_of_a_convolution_in_int32(name):
    shape, kernel, (strides, padding, left, right, groups), layout = CASES[name]
    rng = np.random.default_rng(len(name))
    x, w = (jnp.asarray(rng.integers(-128, 128, s), jnp.int8) for s in (shape, kernel))
    numbers = lax.conv_dimension_numbers(shape, kernel, layout)
    params = {"window_strides": strides, "padding": padding, "lhs_dilation": left, "rhs_dilation": right,
              "dimension_numbers": numbers, "feature_group_count": groups, "batch_group_count": 1}  # fmt: skip
    ones = (1,) * len(shape)
    lhs, rhs = (
        QTensor(
            q,
            jnp.ones(ones),
            jnp.full(ones, zero, jnp.int32),
            spec_from_text("int8/affine/tensor", is_weight=True),
            "float32",
            (),
            stage="codes",
        )
        for q, zero in ((x, 7), (w, -3))
    )
    want = lax.conv_general_dilated(x.astype(jnp.int32) - 7, w.astype(jnp.int32) + 3, **params)
    np.testing.assert_array_equal(patch_sums(params, lhs, rhs), want)


def test_a_convolution_lowered_for_a_gpu_multiplies_bytes():
    params, x = {"w": normal(0, 3, 3, 8, 16)}, normal(1, 2, 6, 6, 8)

    def fn(p, x):
        return lax.conv_general_dilated(x, p["w"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    plan = lb.bind(fn, {"**": "w4,a8"}, params, x)
    qparams = lb.pack(plan, params, lb.calibrate(fn, plan, params, [(x,)]))
    run = lb.execute(fn, plan, platform="cuda")
    text = jax.jit(run).trace(qparams, x).lower(lowering_platforms=("cuda",)).as_text()
    assert [line.count("xi8>") for line in text.splitlines() if "stablehlo.dot_general" in line] == [2]
    assert "im2col" in lb.explain(fn, plan, qparams, x, platform="cuda")
    want = lb.execute(fn, plan, implementation="reference")(qparams, x)
    for platform in ("cuda-interpreter", "tpu-interpreter"):
        np.testing.assert_array_equal(lb.execute(fn, plan, platform=platform)(qparams, x), want)
