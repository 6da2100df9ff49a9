"""Depthwise convolutions as shifted products: values and derivatives in float64 loops, and what is left to the convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lowbit.solvers.depthwise import depthwise


def convolution(strides, padding, groups, **more):
    def fn(x, w):
        return lax.conv_general_dilated(
            x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups, **more
        )

    return fn


def equation(fn, x, w):
    return jax.make_jaxpr(fn)(x, w).jaxpr.eqns[0]


@pytest.mark.parametrize(
    ("strides", "padding", "size"),
    [
        ((1, 1), ((1, 1), (1, 1)), (6, 5)),
        ((2, 2), ((0, 1), (0, 1)), (6, 6)),
        ((2, 1), ((2, 0), (0, 0)), (7, 5)),
        ((3, 2), ((0, 0), (1, 3)), (8, 4)),  # a row and a column at the end that nothing reads
    ],
)
def test_values_and_both_derivatives_are_those_of_the_sums_written_out(strides, padding, size):
    rng = np.random.default_rng(1)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in ((2, *size, 3), (3, 2, 1, 3)))
    found = depthwise(equation(convolution(strides, padding, 3), x, w))
    assert found is not None
    y, back = jax.vjp(found, jnp.asarray(x), jnp.asarray(w))
    slope = rng.normal(size=y.shape).astype(np.float32)
    wide = np.pad(x.astype(np.float64), ((0, 0), *padding, (0, 0)))
    right, of_x, of_w = np.zeros(y.shape), np.zeros_like(wide), np.zeros(w.shape)
    for h in range(y.shape[1]):
        for v in range(y.shape[2]):
            for i in range(3):
                for j in range(2):
                    at = (slice(None), h * strides[0] + i, v * strides[1] + j)
                    right[:, h, v] += wide[at] * w[i, j, 0]
                    of_x[at] += slope[:, h, v] * w[i, j, 0]
                    of_w[i, j, 0] += np.sum(slope[:, h, v] * wide[at], axis=0)
    (up, _), (left, _) = padding
    of_x = of_x[:, up : up + size[0], left : left + size[1]]
    got_x, got_w = back(jnp.asarray(slope))
    for got, want in ((y, right), (got_x, of_x), (got_w, of_w)):
        np.testing.assert_allclose(got, want, atol=64 * np.finfo(np.float32).eps * np.max(np.abs(want)))


@pytest.mark.parametrize(
    ("fn", "kernel"),
    [
        (convolution((1, 1), "SAME", 1), (3, 3, 4, 4)),
        (convolution((1, 1), "SAME", 2), (3, 3, 2, 4)),
        (convolution((1, 1), "SAME", 4), (3, 3, 1, 8)),
        (convolution((1, 1), "SAME", 4, rhs_dilation=(2, 2)), (3, 3, 1, 4)),
        (lambda x, w: x[0, 0] @ w, (4, 2)),
    ],
)
def test_every_other_equation_is_left_as_it_is(fn, kernel):
    x = jnp.ones((1, 5, 5, 4))
    assert depthwise(jax.make_jaxpr(fn)(x, jnp.ones(kernel)).jaxpr.eqns[-1]) is None
