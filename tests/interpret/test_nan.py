"""NaN and infinity through a quantized model: what sums over a NaN is NaN, on every route."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from lowbit.core import extremes
from lowbit.core.clipping import Percentile
from lowbit.core.ranges import Full, dynamic_range
from lowbit.core.rounding import unfused
from lowbit.core.spec import Operand
from lowbit.formats.lookup import spec_from_text
from lowbit.formats.minifloat import FORMATS
from lowbit.packed import native
from lowbit_kernels import numerics
from tests.values import normal

ROUTES = (None, "carried", "reference")


def routes(fn, rule, params, x, bad, **kwargs):
    """The result of every route for the inputs ``bad``, calibrated on ``x``."""
    plan = lb.bind(fn, {"**": rule}, params, x, **kwargs)
    qstate = lb.init(fn, plan, params, x)
    qparams = lb.pack(plan, params, qstate)
    yield "simulate", np.asarray(lb.simulate(fn, plan)(params, qstate, bad))
    for name in ROUTES:
        yield name, np.asarray(lb.execute(fn, plan, implementation=name)(qparams, bad))


def dense(p, x):
    return x @ p["w"]


def conv(p, x):
    return lax.conv_general_dilated(x, p["w"], (2, 1), ((1, 0), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))


def depthwise(p, x):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, p["w"], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=4)


def scores(p, x):
    return jnp.einsum("bik,bjk->bij", x, jnp.roll(x, 1, 0)) + 0.0 * p["w"].sum()


MODELS = {
    "dense": (dense, (64, 8), (2, 3, 64)),
    "conv": (conv, (3, 3, 4, 8), (2, 6, 5, 4)),
    "depthwise": (depthwise, (3, 3, 1, 4), (2, 6, 5, 4)),
}


@pytest.mark.parametrize(
    "rule", ["w8,a8", "w4,a8/sym", "w4/g32,a4", "w8,aint16", "w8,a8/dynamic", "w4/g32,a8/dynamic/affine"]
)
def test_a_dense_row_with_nan_is_nan(rule):
    """The float model says which results are NaN; the other rows are what they were, to the last bit."""
    params, x = {"w": normal(0, 64, 8)}, normal(1, 2, 3, 64)
    bad = x.at[1, 2, 5].set(jnp.nan).at[0, 0, 63].set(-jnp.nan)
    where = np.isnan(np.asarray(dense(params, bad)))
    assert where.sum() == 16
    whole = dict(routes(dense, rule, params, x, x))
    for name, y in routes(dense, rule, params, x, bad):
        np.testing.assert_array_equal(np.isnan(y), where, err_msg=str(name))
        np.testing.assert_array_equal(y[~where], whole[name][~where], err_msg=str(name))


@pytest.mark.parametrize(("name", "rule"), [("conv", "w8,a8"), ("depthwise", "w8,a8/sym")])
def test_windows_with_nan_are_nan(name, rule):
    """Brute force by float64 sums over windows: numpy adds NaN where XLA's convolution would."""
    fn, kernel, shape = MODELS[name]
    params, x = {"w": normal(2, *kernel)}, normal(3, *shape)
    bad = x.at[1, 3, 2, 1].set(jnp.nan)
    ones = {"w": jnp.ones(kernel)}
    mark = jnp.zeros(shape).at[1, 3, 2, 1].set(1.0)
    where = np.asarray(fn(ones, mark)) > 0
    assert where.any()
    assert not where.all()
    for route, y in routes(fn, rule, params, x, bad):
        np.testing.assert_array_equal(np.isnan(y), where, err_msg=str(route))


def test_both_operands_of_a_product_of_activations():
    params, x = {"w": normal(0, 4, 4)}, normal(4, 2, 3, 8)
    bad = x.at[1, 2, 5].set(jnp.nan)
    where = np.isnan(np.asarray(scores(params, bad)))
    for route, y in routes(scores, "w8,a8", params, x, bad):
        np.testing.assert_array_equal(np.isnan(y), where, err_msg=str(route))


@pytest.mark.parametrize("bad", [np.inf, -np.inf])
def test_infinity_takes_the_end_code_or_the_row(bad):
    """On a calibrated grid infinity is the end of the range, by the formula; a row with its own scale has no scale."""
    params, x = {"w": normal(0, 64, 8)}, normal(1, 4, 64)
    hurt = x.at[1, 5].set(bad)
    results = dict(routes(dense, "w8,a8", params, x, hurt))
    far = x.at[1, 5].set(np.sign(bad) * 1e6)
    for route, y in routes(dense, "w8,a8", params, x, far):
        np.testing.assert_array_equal(results[route], y)
    for rule in ("w8,a8/dynamic", "w4/g32,a8/dynamic"):
        for _, y in routes(dense, rule, params, x, hurt):
            np.testing.assert_array_equal(np.isnan(y).all(1), [False, True, False, False])
            assert not np.isnan(y[[0, 2, 3]]).any()


def test_a_full_integer_plan_takes_the_zero_point():
    """Documented: there is no NaN in integers, so it counts as 0.0, on every route."""
    params, x = {"w": normal(0, 16, 8)}, jnp.abs(normal(1, 4, 16)) - 0.3
    fn = lambda p, x: jax.nn.relu(x @ p["w"])  # noqa: E731
    hurt, zero = x.at[1, 5].set(jnp.nan), x.at[1, 5].set(0.0)
    for (route, y), (_, want) in zip(
        routes(fn, "w8,a8", params, x, hurt, integer=True),
        routes(fn, "w8,a8", params, x, zero, integer=True),
        strict=True,
    ):
        np.testing.assert_array_equal(y, want, err_msg=str(route))


@pytest.mark.parametrize("rule", [lb.lsq("w4,a4"), "w8,a8", "wternary,a8", "wmxfp4,a8", "w4/g8"], ids=str)
def test_a_diverged_model_has_no_finite_loss(rule):
    """One weight NaN: its column is NaN in simulation, and so are the loss and its gradient."""
    params, x = {"w": normal(0, 16, 8)}, normal(1, 4, 16)
    plan = lb.bind(dense, {"**": rule}, params, x)
    qstate = lb.init(dense, plan, params, x)
    hurt = {"w": params["w"].at[3, 2].set(jnp.nan)}
    y = np.asarray(lb.simulate(dense, plan)(hurt, qstate, x))
    np.testing.assert_array_equal(np.isnan(y).all(0), np.arange(8) == 2)
    loss = jax.grad(lambda p: (lb.simulate(dense, plan, train=True)(p, qstate, x)[0] ** 2).mean())
    assert not np.isfinite(loss(hurt)["w"]).all()


def test_calibration_names_site_and_batch():
    params, x = {"w": normal(0, 16, 8)}, normal(1, 4, 16)
    plan = lb.bind(dense, {"**": lb.rtn("w8,a8", range=Percentile(99.0))}, params, x)
    hurt = x.at[3, 15].set(jnp.nan)
    with pytest.raises(ValueError, match=r"the input of 'w' held NaN.* first in batch 2"):
        lb.calibrate(dense, plan, params, [(x,), (x,), (hurt,), (x,)])
    with pytest.raises(ValueError, match=r"the input of 'w' held NaN"):
        lb.init(dense, plan, params, hurt)
    with pytest.raises(ValueError, match="weight 'w' holds NaN"):
        lb.init(dense, plan, {"w": params["w"].at[15, 7].set(jnp.nan)}, x)
    with pytest.raises(ValueError, match=r"x holds NaN or infinity, 1 of 64 values, first at \(3, 15\)"):
        lb.quantize_array(hurt, "int4")
    scale = jax.jit(lambda x: lb.init(dense, plan, params, x)["fixed"]["w"]["input"]["scale"])(hurt)
    assert np.isnan(scale).all()


PLACES = ((0, 0), (5, 3), (0, 63), (63, 63), (63, 0))


@pytest.mark.parametrize(
    "text", ["int8/tensor", "int8", "int4/g32", "int4/g32/affine", "mxfp4", "nvfp4", "nf4/g64", "fp8_e4m3/tensor"]
)
def test_an_array_with_nan_under_jit(text):
    """The block of a NaN is NaN wherever it stands: XLA's own maximum loses it."""
    x = normal(0, 64, 64)

    def run(x):
        return lb.quantize_array(x, text).dequantize()

    bad = jnp.stack([x.at[at].set(jnp.nan) for at in PLACES])
    for at, y in zip(PLACES, np.asarray(jax.jit(jax.vmap(run))(bad)), strict=True):
        assert np.isnan(y[at]), (text, at)


@pytest.mark.parametrize("at", PLACES)
def test_extremes_keep_nan(at):
    """Against numpy, whose minimum and maximum keep NaN; fused into a sum, where XLA's lose it."""
    x = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    x[at] = np.nan

    def every(x):
        reduced = [f(x, axis) for axis in (None, 0, 1) for f in (extremes.largest, extremes.smallest)]
        reduced += [extremes.largest_magnitude(x, axis) for axis in (None, 0, 1)]
        sums = [
            extremes.at_least(x, 0.0),
            extremes.at_most(x, 0.0),
            extremes.larger(x, -x),
            extremes.smaller(x[::-1], x),
        ]
        return reduced, [jnp.sum(part) for part in (*sums, unfused(x * 2.0))]

    reduced, sums = jax.jit(every)(x)
    want = [f(x, axis=axis) for axis in (None, 0, 1) for f in (np.max, np.min)]
    want += [np.abs(x).max(axis=axis) for axis in (None, 0, 1)]
    for got, right in zip(reduced, want, strict=True):
        np.testing.assert_array_equal(got, right)
    assert np.isnan(sums).all()


def test_the_native_kernels_ran():
    """The route None is the kernels' own, where they are."""
    params, x = {"w": normal(0, 64, 8)}, normal(1, 4, 64)
    plan = lb.bind(dense, {"**": "w8,a8"}, params, x)
    text = lb.explain(dense, plan, lb.pack(plan, params, lb.init(dense, plan, params, x)), x)
    assert ("cpu" in text) == (native.status() is None)


def _scaled(range_):
    """Rows quantized as they come, under a range rule."""
    spec, operand = spec_from_text("int8/dynamic", is_weight=False), Operand((0, 0), contract=(1,), is_weight=False)
    return lambda x: x / dynamic_range(range_, x, operand, spec)[0]


@pytest.mark.parametrize(
    "scaled",
    [
        _scaled(Full()),
        _scaled(Percentile(99.0)),
        lambda x: x / numerics.dynamic_scale(x)[:, None],
        lambda x: lb.quantize_array(x, "int4/g8").dequantize(),
        lambda x: FORMATS[-1].decode(jnp.where(jnp.isnan(x), 127, 60).astype(jnp.uint8)),
        lambda x: extremes.nan_where(jnp.isnan(x), jnp.tanh(jnp.nan_to_num(x))),
    ],
    ids=["full", "percentile", "kernel", "blocks", "minifloat", "mask"],
)
@pytest.mark.parametrize("wrapped", [jax.jit, lambda f: jax.jit(jax.vmap(f))], ids=["jit", "vmap"])
def test_a_scale_of_nan_goes_through_an_exponential(scaled, wrapped):
    """However the compiler fuses what made it with what follows: the rows of a NaN, and no others."""
    x = normal(3, 8, 16).at[2, 9].set(jnp.nan)
    given = x if wrapped is jax.jit else jnp.stack([x, x])
    run = wrapped(lambda x: jax.nn.softmax(scaled(x), -1))
    for _ in range(3):
        found = np.isnan(np.asarray(run(given))).any(-1).reshape(-1, 8)
        assert found.tolist() == [[i == 2 for i in range(8)]] * len(found)


@pytest.mark.parametrize("rule", ["w8,a8", "w4,a8/dynamic"])
def test_nan_goes_through_an_exponential(rule):
    """What a compiler makes of ``exp`` of a constant NaN is no number of ours: asked several times, it answered differently."""
    params, x = {"a": normal(0, 8, 6)}, normal(1, 5, 8)
    fn = lambda p, x: jax.nn.softmax(x @ p["a"], -1)  # noqa: E731
    plan = lb.bind(fn, {"**": rule}, params, x)
    qstate = lb.init(fn, plan, params, x)
    qparams, at_nan = lb.pack(plan, params, qstate), x.at[2, 3].set(jnp.nan)
    for how in (None, "carried", "reference"):
        run = lb.execute(fn, plan, implementation=how)
        for _ in range(8):
            assert np.isnan(np.asarray(run(qparams, at_nan))).any(1).tolist() == [False, False, True, False, False]
