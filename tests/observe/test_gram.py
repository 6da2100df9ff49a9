"""Second moments of every form of input, against sums written out in float64: the quadratic form of a change of the weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from lowbit.core.moments import ChannelMax, ChannelMean, Gram
from tests.values import normal

WANTED = {"**": {"input": (Gram(), ChannelMean(), ChannelMax())}}


def conv(weight, x, numbers, strides=(1, 1), padding="SAME", image=None, kernel=None, groups=1):
    """A convolution of one weight, as a model."""

    def fn(params, x):
        return lax.conv_general_dilated(
            x, params["w"], strides, padding, image, kernel, dimension_numbers=numbers, feature_group_count=groups
        )

    return fn, weight, x


NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")
FORMS = {
    "plain": conv(normal(0, 3, 3, 4, 5), normal(1, 2, 6, 5, 4), NHWC),
    "stride": conv(normal(2, 3, 2, 3, 5), normal(3, 2, 7, 6, 3), NHWC, strides=(2, 3), padding="VALID"),
    "padding": conv(normal(4, 3, 3, 3, 4), normal(5, 2, 5, 5, 3), NHWC, padding=((2, 0), (1, 3))),
    "cropping": conv(normal(6, 2, 2, 3, 4), normal(7, 2, 6, 6, 3), NHWC, padding=((-1, 0), (0, -2))),
    "dilation": conv(normal(8, 2, 3, 3, 4), normal(9, 2, 8, 8, 3), NHWC, kernel=(2, 3)),
    "transposed": conv(normal(10, 3, 3, 3, 4), normal(11, 2, 4, 4, 3), NHWC, padding=((1, 1), (2, 1)), image=(2, 2)),
    "groups": conv(normal(12, 3, 3, 2, 6), normal(13, 2, 5, 5, 4), NHWC, groups=2),
    "depthwise": conv(normal(14, 3, 3, 1, 8), normal(15, 2, 5, 5, 4), NHWC, groups=4),
    "NCHW": conv(normal(16, 5, 4, 3, 2), normal(17, 2, 4, 6, 5), NCHW, strides=(1, 2)),
    "NCHW depthwise": conv(normal(18, 4, 1, 3, 3), normal(19, 2, 4, 5, 5), NCHW, groups=4),
    "one axis": conv(normal(20, 4, 3, 5), normal(21, 2, 9, 3), ("NHC", "HIO", "NHC"), strides=(2,)),
    "dense": (lambda p, x: x @ p["w"], normal(22, 6, 4), normal(23, 2, 3, 6)),
    "dense on the left": (lambda p, x: p["w"] @ x, normal(24, 4, 6), normal(25, 6, 5)),
    "two axes": (lambda p, x: jnp.einsum("bhd,dhn->bn", x, p["w"]), normal(26, 3, 2, 4), normal(27, 5, 2, 3)),
    "merged axes": (lambda p, x: x @ p["w"].reshape(6, 4), normal(28, 2, 3, 4), normal(29, 5, 6)),
    "transposed then merged": (
        lambda p, x: x @ p["w"].transpose(1, 0, 2).reshape(6, 4),
        normal(30, 2, 3, 4),
        normal(31, 5, 6),
    ),
    "reversed": (lambda p, x: x @ p["w"][::-1], normal(34, 6, 4), normal(35, 5, 6)),
    "transposed, kernel reversed": (
        lambda p, x: lax.conv_transpose(x, p["w"], (2, 2), "SAME", dimension_numbers=NHWC, transpose_kernel=True),
        normal(36, 3, 2, 4, 5),
        normal(37, 2, 4, 3, 5),
    ),
    "experts": (lambda p, x: jnp.einsum("ebk,nek->ebn", x, p["w"]), normal(32, 4, 3, 5), normal(33, 3, 2, 5)),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_quadratic_form_is_the_error_of_the_result(form):
    """``sum |fn(W + D) - fn(W)|^2 = n tr(D^T H D)``, and the mean is the mean response, for a D of every matrix."""
    fn, weight, x = FORMS[form]
    plan = lb.bind(fn, {}, {"w": weight}, x)
    other = 0.5 * x + 1.0
    found = lb.observe(fn, plan, {"w": weight}, [(x,), (other,)], WANTED)["w"]["input"]
    view = plan["w"].matrix
    with jax.enable_x64(True):
        change = np.asarray(normal(99, *weight.shape), np.float64)
        results = [
            np.asarray(fn({"w": jnp.asarray(change)}, jnp.asarray(np.asarray(v, np.float64)))) for v in (x, other)
        ]
    d = np.asarray(view.matrices(jnp.asarray(change, jnp.float32)), np.float64)
    h = np.asarray(found["gram"], np.float64)
    assert h.shape == (view.size[0], view.size[1], view.size[1])
    rows = sum(r.size for r in results) / (view.size[0] * view.size[2])
    want = sum((r**2).sum() for r in results)
    terms = np.einsum("mkn,mkl,mln->", np.abs(d), np.abs(h), np.abs(d)) * rows
    assert abs(np.einsum("mkn,mkl,mln->", d, h, d) * rows - want) <= 8 * 2.0**-24 * np.sqrt(rows) * terms
    mean = np.einsum("mk,mkn->", np.asarray(found["channel_mean"], np.float64), d) * rows
    assert abs(mean - sum(r.sum() for r in results)) <= 8 * 2.0**-24 * np.sqrt(rows) * terms
    # Each entry alone, so that no two can be exchanged.
    basis = np.zeros((view.size[0] * view.size[1], *view.size), np.float32)
    for i, (m, k) in enumerate(np.ndindex(*view.size[:2])):
        basis[i, m, k, 0] = 1.0
    respond = jax.jit(jax.vmap(lambda one, v: fn({"w": view.leaf(one)}, v), (0, None)))
    values = np.concatenate([np.abs(np.asarray(respond(basis, v))).reshape(len(basis), -1) for v in (x, other)], 1)
    np.testing.assert_allclose(found["channel_max"].reshape(-1), values.max(1), rtol=2.0**-22)
