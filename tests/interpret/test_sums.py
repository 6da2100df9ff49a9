"""Sums of integers are exact however long, along whatever axes, and refused where int32 has no room: beside int64 in numpy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from lowbit.interpret.matmul import Matmul
from lowbit.interpret.sums import exact_sum
from lowbit.packed import native
from lowbit.packed.bits import unpack

NHWC = ("NHWC", "HWIO", "NHWC")


def _matmul(fn, *args):
    return Matmul.of(jax.make_jaxpr(fn)(*args).jaxpr.eqns[-1])


def _convolved(x, w, strides, padding, lhs_dilation, rhs_dilation, feature_groups, batch_groups):
    """An NHWC by HWIO convolution in int64, one tap of the window after another."""
    spread = np.zeros(
        (x.shape[0], *((n - 1) * d + 1 for n, d in zip(x.shape[1:3], lhs_dilation, strict=True)), x.shape[3]), np.int64
    )
    spread[:, :: lhs_dilation[0], :: lhs_dilation[1]] = x
    pad = [(0, 0), *((max(low, 0), max(high, 0)) for low, high in padding), (0, 0)]
    wide = np.pad(spread, pad)
    for axis, (low, high) in enumerate(padding, 1):
        wide = np.take(wide, range(max(-low, 0), wide.shape[axis] - max(-high, 0)), axis=axis)
    heights = [
        (n - (k - 1) * d - 1) // s + 1
        for n, k, d, s in zip(wide.shape[1:3], w.shape[:2], rhs_dilation, strides, strict=True)
    ]
    batch, channels, inputs = x.shape[0] // batch_groups, w.shape[3], w.shape[2]
    out = np.zeros((batch, *heights, channels), np.int64)
    for i, j in itertools.product(range(w.shape[0]), range(w.shape[1])):
        at = [
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip((i, j), rhs_dilation, heights, strides, strict=True)
        ]
        taken = wide[:, at[0], at[1]]
        for o in range(channels):
            features = o // (channels // feature_groups) * inputs
            examples = o // (channels // batch_groups) * batch if batch_groups > 1 else 0
            part = taken[examples : examples + batch, ..., features : features + inputs]
            out[..., o] += part @ w[i, j, :, o].astype(np.int64)
    return out


CONVOLUTIONS = {
    "patches": ((2, 8, 8, 3), (8, 8, 3, 4), {"window_strides": (8, 8)}),
    "dilated": ((1, 20, 9, 2), (7, 3, 2, 3), {"rhs_dilation": (2, 1), "padding": ((5, 7), (1, 0))}),
    "transposed": ((1, 6, 5, 2), (6, 7, 2, 3), {"lhs_dilation": (2, 3), "padding": ((4, 3), (6, 5))}),
    "negative padding": ((1, 12, 9, 2), (6, 5, 2, 3), {"lhs_dilation": (1, 2), "padding": ((-1, 2), (3, -2))}),
    "wide window": ((1, 2, 3, 1), (7, 5, 1, 2), {"padding": ((6, 6), (4, 4))}),
    "grouped": ((1, 9, 5, 12), (5, 3, 4, 6), {"feature_group_count": 3, "padding": ((2, 2), (1, 1))}),
    "depthwise": ((1, 40, 6, 5), (31, 3, 1, 5), {"feature_group_count": 5, "padding": ((15, 15), (1, 1))}),
    "batch groups": ((6, 8, 5, 4), (5, 3, 4, 6), {"batch_group_count": 3}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_cut_along_every_contracted_axis(name):
    """Seven products in one float32 sum: far fewer than fit, so that every axis, and several at once, are cut."""
    shape, kernel, params = CONVOLUTIONS[name]
    params = {"window_strides": (1, 1), "padding": ((0, 0), (0, 0)), **params}
    rng = np.random.default_rng(0)
    x, w = rng.integers(-255, 256, shape), rng.integers(-127, 128, kernel)
    left, right = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)
    matmul = _matmul(lambda a, b: lax.conv_general_dilated(a, b, dimension_numbers=NHWC, **params), left, right)
    got = exact_sum(matmul, left, right, 2.0**24 / 7)
    given = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "feature_group_count": 1, "batch_group_count": 1, **params}
    want = _convolved(x, w, *(given[k] for k in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")),
                      given["feature_group_count"], given["batch_group_count"])  # fmt: skip
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("most", [1, 7, 100])
def test_a_dot_is_cut_along_every_contracted_axis(most):
    rng = np.random.default_rng(1)
    x, w = rng.integers(-255, 256, (2, 3, 5, 7, 4)), rng.integers(-127, 128, (7, 2, 5, 6, 3))
    numbers = (((1, 2, 3), (4, 2, 0)), ((0,), (1,)))
    left, right = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)
    matmul = _matmul(lambda a, b: lax.dot_general(a, b, numbers), left, right)
    got = exact_sum(matmul, left, right, 2.0**24 / most)
    np.testing.assert_array_equal(got, np.einsum("bcdem,ebdnc->bmn", x, w))


def _bright(shape, seed):
    """Values near the end of their range: codes near 255, sums near their bound."""
    return jnp.asarray(np.random.default_rng(seed).uniform(0.9, 1.0, shape), jnp.float32)


def _conv(**params):
    return lambda p, x: lax.conv_general_dilated(x, p["w"], dimension_numbers=NHWC, **params)


def _square(p, x):
    return jnp.einsum("bqchd,bkchd->bqk", x * p["s"], x)


LONG = {
    "patch embedding": (_conv(window_strides=(32, 32), padding="VALID"), (32, 32, 3, 4), (1, 32, 64, 3), "w8,a8"),
    "long depthwise": (_conv(window_strides=(1, 1), padding="VALID", feature_group_count=2), (600, 1, 1, 2), (1, 610, 1, 2), "w8,a8"),
    "big groups": (_conv(window_strides=(1, 1), padding="SAME", feature_group_count=2), (128, 1, 12, 4), (1, 40, 1, 24), "w8,a8"),
    "16-bit inputs": (_conv(window_strides=(16, 16), padding="VALID"), (16, 16, 3, 4), (1, 16, 32, 3), "w8,aint16"),
    "groups of 16 bits": (lambda p, x: x @ p["w"], (1200, 3), (2, 1200), "w8/g600,aint16"),
    "several axes": (lambda p, x: jnp.einsum("bcdk,cdkn->bn", x, p["w"]), (9, 10, 11, 3), (2, 9, 10, 11), "w8,a8"),
    "two activations": (_square, (), (1, 3, 12, 5, 16), "a8"),
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_a_long_sum_is_the_same_everywhere_and_exact(name):
    """Sums that float32 alone would round: they pass 2**24 and are odd half of the time."""
    fn, kernel, shape, rule = LONG[name]
    params = {"w": _bright(kernel, 0)} if kernel else {"s": jnp.float32(1.0)}
    x = _bright(shape, 1)
    rule = rule if kernel else "w8,a8"
    plan = lb.bind(fn, {"**": rule}, params, x)
    qstate = lb.init(fn, plan, params, x)
    want, qparams = lb.simulate(fn, plan)(params, qstate, x), lb.pack(plan, params, qstate)
    for implementation in (None, "carried", "reference"):
        np.testing.assert_array_equal(lb.execute(fn, plan, implementation=implementation)(qparams, x), want)


def test_the_accumulator_of_a_patch_embedding_is_an_integer_of_numpy():
    fn, kernel, shape, _ = LONG["patch embedding"]
    params, x = {"w": _bright(kernel, 0)}, _bright(shape, 1)
    plan = lb.bind(fn, {"**": "w8,a8"}, params, x)
    qstate = lb.init(fn, plan, params, x)
    qparams = lb.pack(plan, params, qstate)
    q, state = unpack(qparams.params["w"]), qparams.sites["w"]["input"]
    scale, zero = np.asarray(state["scale"]).ravel()[0], np.asarray(state["zero"]).ravel()[0]
    codes = np.round(np.asarray(x) * (np.float32(1) / scale)).astype(np.int64)
    low, high = plan.rows[0].sites[0].spec.format.low, plan.rows[0].sites[0].spec.format.high
    codes = np.clip(codes, int(low - zero), int(high - zero)).reshape(1, 1, 32, 2, 32, 3)
    total = np.einsum("bihjwc,hwcn->bijn", codes, np.asarray(q.codes, np.int64))
    assert total.max() > 2**24
    assert (total % 2 == 1).any()
    want = (total.astype(np.float32) * np.asarray(q.scale_values).reshape(-1)) * scale
    np.testing.assert_array_equal(lb.simulate(fn, plan)(params, qstate, x), want)


def test_what_int32_has_no_room_for_is_refused_by_name():
    params, x = (
        {"a": {"w": jax.ShapeDtypeStruct((70000, 2), jnp.float32)}},
        jax.ShapeDtypeStruct((1, 70000), jnp.float32),
    )
    fn = lambda p, x: x @ p["a"]["w"]  # noqa: E731
    with pytest.raises(ValueError, match=r"a/w .*70000 products.*may pass int32, which holds 65793"):
        lb.bind(fn, {"**": "w8,a8"}, params, x)
    assert len(lb.bind(fn, {"**": "w8/g1024,a8"}, params, x)) == 1  # a group is summed alone
    assert len(lb.bind(fn, {"**": "w4,a8"}, params, x)) == 1


def test_depthwise_taps_past_a_float32_sum_run_in_the_kernel_of_grouped_convolutions():
    """600 taps are too many for the depthwise body, which sums in float32: the other one sums in int32."""
    fn, kernel, shape, rule = LONG["long depthwise"]
    params, x = {"w": _bright(kernel, 0)}, _bright(shape, 1)
    plan = lb.bind(fn, {"**": rule}, params, x)
    qstate = lb.init(fn, plan, params, x)
    qparams = lb.prepare(plan, lb.pack(plan, params, qstate), platform="cpu")
    if native.status() is None:
        assert lb.explain(fn, plan, qparams, x).split()[1] == "cpu"
        assert not qparams.params["w"].matrix.depthwise
    np.testing.assert_array_equal(lb.execute(fn, plan)(qparams, x), lb.simulate(fn, plan)(params, qstate, x))


def test_what_the_kernel_cannot_sum_runs_in_xla_and_says_so():
    """70000 products with 4-bit inputs, which the kernel takes for 8-bit ones."""
    params, x = {"w": _bright((70000, 2), 0)}, _bright((1, 70000), 1)
    fn = lambda p, x: x @ p["w"]  # noqa: E731
    plan = lb.bind(fn, {"**": "w8,a4"}, params, x)
    qstate = lb.init(fn, plan, params, x)
    qparams = lb.pack(plan, params, qstate)
    assert "65793 products" in lb.explain(fn, plan, qparams, x)
    np.testing.assert_array_equal(lb.execute(fn, plan)(qparams, x), lb.simulate(fn, plan)(params, qstate, x))
