"""Edges of shapes and dtypes: nothing in a batch, nothing in an axis, one in an axis, float64."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from lowbit.core.clipping import Octav, Percentile
from lowbit.core.ranges import MSE, MovingAverage
from tests.values import normal

CONV = lambda p, x: lax.conv_general_dilated(x, p["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))  # noqa: E731
DENSE = lambda p, x: x @ p["w"]  # noqa: E731


@pytest.mark.parametrize("rule", ["w8,a8", "w8,a8/dynamic", "w4", "w4/g4,a8/dynamic/sym"])
def test_an_empty_batch_has_an_empty_result_and_says_nothing_about_ranges(rule):
    params, x, nothing = {"w": normal(0, 16, 8)}, normal(1, 5, 16), jnp.zeros((0, 16))
    plan = lb.bind(DENSE, {"**": rule}, params, x)
    qstate = lb.calibrate(DENSE, plan, params, [(x,)])
    with_nothing = lb.calibrate(DENSE, plan, params, [(nothing,), (x,), (nothing,)])
    jax.tree.map(np.testing.assert_array_equal, qstate, with_nothing)
    qparams = lb.pack(plan, params, qstate)
    assert lb.simulate(DENSE, plan)(params, qstate, nothing).shape == (0, 8)
    for implementation in (None, "carried", "reference"):
        y = lb.execute(DENSE, plan, implementation=implementation)(qparams, nothing)
        assert (y.shape, y.dtype) == ((0, 8), jnp.float32)


def test_a_training_step_on_nothing_changes_no_range():
    params, x = {"w": normal(0, 16, 8)}, normal(1, 5, 16)
    plan = lb.bind(DENSE, {"**": lb.lsq("w4,a4")}, params, x)
    qstate = lb.init(DENSE, plan, params, x)
    y, after = lb.simulate(DENSE, plan, train=True)(params, qstate, x[:0], key=jax.random.key(0), step=0)
    assert y.shape == (0, 8)
    jax.tree.map(np.testing.assert_array_equal, qstate, after)
    with pytest.raises(ValueError, match="saw no data: every batch was empty"):
        lb.init(DENSE, plan, params, x[:0])


@pytest.mark.parametrize("rule", [None, Percentile(99.0), MSE(), MovingAverage(0.9), Octav()])
def test_calibration_on_nothing_but_zero_warns_and_names_what_has_no_range(rule):
    params, x = {"w": normal(0, 16, 8)}, normal(1, 5, 16)
    whole = lb.rtn("w8,a8")
    ranged = whole if rule is None else lb.Quantizers(weight=whole.weight, input=lb.rtn("w8,a8", range=rule).input)
    plan = lb.bind(DENSE, {"**": ranged}, params, x)
    with pytest.warns(UserWarning, match="the input of 'w' held nothing but 0 in the calibration data"):
        lb.init(DENSE, plan, params, 0 * x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lb.calibrate(DENSE, plan, params, [(0 * x,), (x,)])
        lb.init(DENSE, lb.bind(DENSE, {"**": "w8,a8/dynamic"}, params, x), params, 0 * x)


def test_an_empty_batch_of_images():
    params, x = {"w": normal(0, 3, 3, 4, 8)}, normal(1, 2, 6, 6, 4)
    plan = lb.bind(CONV, {"**": "w8,a8"}, params, x)
    qstate = lb.init(CONV, plan, params, x)
    assert lb.simulate(CONV, plan)(params, qstate, x[:0]).shape == (0, 6, 6, 8)
    assert lb.execute(CONV, plan)(lb.pack(plan, params, qstate), x[:0]).shape == (0, 6, 6, 8)


@pytest.mark.parametrize("shape", [(0, 8), (16, 0)])
@pytest.mark.parametrize("rule", ["w8,a8/dynamic", "w4/g4,a8/dynamic"])
def test_a_weight_without_elements(rule, shape):
    params, x = {"w": jnp.zeros(shape)}, normal(1, 5, shape[0])
    plan = lb.bind(DENSE, {"**": rule}, params, x)
    qstate = lb.init(DENSE, plan, params, x)
    qparams = lb.pack(plan, params, qstate)
    want = np.zeros((5, shape[1]), np.float32)
    np.testing.assert_array_equal(lb.simulate(DENSE, plan)(params, qstate, x), want)
    for implementation in (None, "reference"):
        np.testing.assert_array_equal(lb.execute(DENSE, plan, implementation=implementation)(qparams, x), want)


@pytest.mark.parametrize("rule", ["w4/g32", "w4/g32,a8", "wmxfp4", "w4/t4x4"])
def test_a_group_on_an_axis_of_length_1_is_that_axis(rule):
    """One input feature, as of a time embedding: a scale for each weight, which makes each a level times its scale."""
    params, x = {"w": normal(0, 1, 12)}, normal(1, 4, 1)
    plan = lb.bind(DENSE, {"**": rule}, params, x)
    qstate = lb.init(DENSE, plan, params, x)
    want, qparams = lb.simulate(DENSE, plan)(params, qstate, x), lb.pack(plan, params, qstate)
    if rule == "w4/g32":  # the largest level times a float32 scale is the weight
        np.testing.assert_allclose(want, x * params["w"], rtol=2.0**-22)
    for implementation in (None, "reference"):
        y = lb.execute(DENSE, plan, implementation=implementation)(qparams, x)
        np.testing.assert_allclose(y, want, rtol=0 if plan.rows[0].is_integer else 2.0**-22)


def test_a_product_without_contraction_has_no_groups():
    with pytest.raises(ValueError, match="needs a contracted axis"):
        lb.bind(lambda p, x: jnp.einsum("i,j->ij", x, p["w"]), {"w": "w4/g4"}, {"w": normal(0, 8)}, normal(1, 3))


def test_a_depthwise_kernel_of_one_tap_takes_groups():
    params, x = {"w": normal(0, 1, 1, 1, 8)}, normal(1, 1, 4, 4, 8)

    def fn(p, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, p["w"], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=8)

    plan = lb.bind(fn, {"**": "w4/g32"}, params, x)
    y = lb.execute(fn, plan)(lb.pack(plan, params, lb.init(fn, plan, params, x)), x)
    np.testing.assert_allclose(y, x * params["w"][0, 0, 0], rtol=2.0**-22)


X64 = {
    "dense": (DENSE, (16, 4), (3, 16), {}),
    "conv": (CONV, (3, 3, 4, 8), (1, 5, 5, 4), {}),
    "layer norm": (lambda p, x: jax.nn.standardize(x @ p["w"]), (16, 4), (3, 16), {"integer": True}),
    "softmax": (lambda p, x: jax.nn.softmax(x @ p["w"]), (16, 4), (3, 16), {"integer": True}),
    "groups": (DENSE, (16, 4), (3, 16), {"integer": True, "rule": "w4/g4,a8"}),
    "wide": (lambda p, x: jax.nn.softmax(x @ p["w"]), (16, 4), (3, 16), {"integer": True, "rule": "w8,aint16"}),
}


@pytest.mark.parametrize("name", X64)
def test_float32_models_compute_the_same_under_x64(name):
    fn, kernel, shape, options = X64[name]
    options = dict(options)
    rule = options.pop("rule", "w8,a8")
    params, x = {"w": np.asarray(normal(0, *kernel))}, np.asarray(normal(1, *shape))

    def results():
        p, a = jax.tree.map(jnp.asarray, (params, x))
        plan = lb.bind(fn, {"**": rule}, p, a, **options)
        qstate = lb.init(fn, plan, p, a)
        y = lb.execute(fn, plan)(lb.pack(plan, p, qstate), a)
        np.testing.assert_array_equal(y, lb.simulate(fn, plan)(p, qstate, a))
        return np.asarray(y)

    want = results()
    with jax.enable_x64(True):
        got = results()
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


def test_a_float64_model_runs_in_xla_and_says_so():
    with jax.enable_x64(True):
        params, x = {"w": jnp.asarray(normal(0, 16, 4), jnp.float64)}, jnp.asarray(normal(1, 3, 16), jnp.float64)
        plan = lb.bind(DENSE, {"**": "w8,a8"}, params, x)
        qstate = lb.init(DENSE, plan, params, x)
        qparams = lb.pack(plan, params, qstate)
        y = lb.execute(DENSE, plan)(qparams, x)
        assert y.dtype == jnp.float64
        np.testing.assert_array_equal(y, lb.simulate(DENSE, plan)(params, qstate, x))
        assert "float64" in lb.explain(DENSE, plan, qparams, x)
        assert "carried" in lb.explain(DENSE, plan, qparams, x)
