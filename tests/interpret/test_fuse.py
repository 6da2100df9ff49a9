"""The public call reaches the fused kernels in every layout, and gives the bits of simulation and of the reference."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from lowbit.interpret import windows
from tests.values import heavy_tailed, normal

WIDTH = 48


def calls(run, qparams, *args):
    """Of every native call in the lowered text, in order: its target, its steps, and whether it emits codes."""
    text = jax.jit(run).lower(qparams, *args).as_text()
    found = []
    for line in text.splitlines():
        if "custom_call @lowbit_kernels.cpu" not in line:
            continue
        (target,) = re.findall(r"@lowbit_kernels\.cpu\.(\w+)", line)
        kinds = re.findall(r"kinds = dense<\[?([\d, ]*)\]?> : tensor<(\d+)xi64>", line)[0]
        kinds = [int(k) for k in re.findall(r"\d", kinds[0])] * (int(kinds[1]) if kinds[0].isdigit() else 1)
        codes = re.findall(r"tensor<([\dx]+)xu?i8>", line.rsplit("->", 1)[1])[0]
        found.append(
            (
                target,
                tuple("residual" if k == 8 else ("add", "mul", "max", "min")[k % 4] for k in kinds),
                "0" not in codes.split("x"),
            )
        )
    return found


def relu_layers(apply):
    def fn(p, x):
        for name in sorted(p):
            x = jax.nn.relu(apply(p[name]["w"], x) + p[name]["b"])
        return x

    return fn


def layers(shape, bias, count=3, scale=1.0):
    return {f"l{i}": {"w": normal(i, *shape) * scale, "b": normal(10 + i, *bias) * 0.1} for i in range(count)}


def conv(numbers, groups=1, **options):
    def apply(w, x):
        return lax.conv_general_dilated(
            x, w, options.get("strides", (1,) * (x.ndim - 2)), options.get("padding", "SAME"),
            lhs_dilation=options.get("lhs_dilation"), rhs_dilation=options.get("rhs_dilation"),
            dimension_numbers=numbers, feature_group_count=groups,
        )  # fmt: skip

    return apply


def left(w, x):  # (out, in) @ (in,), one example at a time
    return jax.vmap(lambda v: w @ v)(x)


DENSE = layers((WIDTH, WIDTH), (WIDTH,), scale=0.2)
MATMUL, CONV = "matmul", "conv"
IMAGE = (2, 6, 5, 16)
MODELS = {
    "x @ w": (relu_layers(lambda w, x: x @ w), DENSE, normal(20, 5, WIDTH), MATMUL),
    "x @ w.T": (relu_layers(lambda w, x: x @ w.T), DENSE, normal(20, 5, WIDTH), MATMUL),
    "w @ x, vmapped": (relu_layers(left), DENSE, normal(20, 5, WIDTH), MATMUL),
    "tokens": (relu_layers(lambda w, x: jnp.einsum("bti,io->bto", x, w)), DENSE, normal(20, 2, 3, WIDTH), MATMUL),
    "NHWC HWIO": (
        relu_layers(conv(("NHWC", "HWIO", "NHWC"))),
        layers((3, 3, 16, 16), (16,), 2, scale=0.2), normal(20, *IMAGE), CONV,
    ),
    "NCHW OIHW": (
        relu_layers(conv(("NCHW", "OIHW", "NCHW"))),
        layers((16, 16, 3, 3), (16, 1, 1), 2, scale=0.2), normal(20, 2, 16, 6, 5), CONV,
    ),
    "NWC WIO": (
        relu_layers(conv(("NHC", "HIO", "NHC"), strides=(2,), rhs_dilation=(2,))),
        layers((5, 16, 16), (16,), 2, scale=0.2), normal(20, 2, 33, 16), CONV,
    ),
    "NCW OIW": (
        relu_layers(conv(("NCH", "OIH", "NCH"))),
        layers((16, 16, 5), (16, 1), 2, scale=0.2), normal(20, 2, 16, 9), CONV,
    ),
    "grouped NHWC": (
        relu_layers(conv(("NHWC", "HWIO", "NHWC"), groups=4)),
        layers((3, 3, 4, 16), (16,), 2, scale=0.3), normal(20, *IMAGE), CONV,
    ),
    "depthwise NHWC": (
        relu_layers(conv(("NHWC", "HWIO", "NHWC"), groups=16)),
        layers((3, 3, 1, 16), (16,), 2, scale=0.5), normal(20, *IMAGE), CONV,
    ),
    "depthwise NCHW": (
        relu_layers(conv(("NCHW", "OIHW", "NCHW"), groups=16)),
        layers((16, 1, 3, 3), (16, 1, 1), 2, scale=0.5), normal(20, 2, 16, 6, 5), CONV,
    ),
    "transposed": (
        relu_layers(conv(("NHWC", "HWIO", "NHWC"), lhs_dilation=(2, 2), padding=((1, 2), (-1, 3)))),
        layers((3, 3, 16, 16), (16,), 2, scale=0.2), normal(20, 2, 3, 4, 16), CONV,
    ),
}  # fmt: skip


def packed(fn, rule, params, x):
    plan = lb.bind(fn, {"**": rule}, params, x)
    qstate = lb.init(fn, plan, params, x)
    return plan, qstate, lb.pack(plan, params, qstate)


OTHERS = [
    *((name, "w4,a8/dynamic") for name in ("w @ x, vmapped", "NCHW OIHW", "grouped NHWC", "depthwise NHWC")),
    *((name, "w4,a4/sym") for name in ("x @ w.T", "NWC WIO")),
]


@pytest.mark.parametrize(("name", "rule"), [*((name, "w8,a8") for name in MODELS), *OTHERS])
def test_every_layout_is_one_call_an_operation_with_the_bits_of_simulation(name, rule):
    fn, params, x, target = MODELS[name]
    plan, qstate, qparams = packed(fn, rule, params, x)
    run = lb.execute(fn, plan, implementation="cpu")
    found = calls(run, lb.prepare(plan, qparams), x)
    assert [(t, kinds) for t, kinds, _ in found] == [(target, ("add", "max"))] * len(params)
    is_mixing = "dynamic" not in rule and name != "transposed"
    assert [codes for *_, codes in found] == [is_mixing] * (len(params) - 1) + [False]
    for data in (x, heavy_tailed(3, *x.shape)):
        np.testing.assert_array_equal(run(qparams, data), lb.simulate(fn, plan)(params, qstate, data))
    if name in ("x @ w", "NHWC HWIO"):
        np.testing.assert_array_equal(run(qparams, x), lb.execute(fn, plan, implementation="reference")(qparams, x))


@pytest.mark.parametrize("name", ["x @ w", "NHWC HWIO", "grouped NHWC", "depthwise NCHW", "transposed"])
def test_nan_spreads_through_codes_as_through_floats(name):
    fn, params, x, _ = MODELS[name]
    plan, qstate, qparams = packed(fn, "w8,a8", params, x)
    bad = x.at[(1, *(2 for _ in x.shape[1:]))].set(jnp.nan)
    got = lb.execute(fn, plan, implementation="cpu")(qparams, bad)
    want = lb.simulate(fn, plan)(params, qstate, bad)
    np.testing.assert_array_equal(got, want)
    assert bool(jnp.isnan(got).any())
    assert not bool(jnp.isnan(got).all())


def steps_model(p, x):
    x = x @ p["a"] * p["g"] + p["b"]  # batch normalization, folded or not
    x = jnp.minimum(jnp.maximum(x, 0.0), 6.0) - p["c"]
    return x @ p["d"]


def test_factors_clips_and_differences_are_steps():
    params = {
        "a": normal(0, 24, 40), "g": normal(1, 40), "b": normal(2, 40), "c": normal(3, 40), "d": normal(4, 40, 8)
    }  # fmt: skip
    x = heavy_tailed(5, 7, 24)
    plan, qstate, qparams = packed(steps_model, "w8,a8", params, x)
    run = lb.execute(steps_model, plan, implementation="cpu")
    assert calls(run, lb.prepare(plan, qparams), x) == [
        (MATMUL, ("mul", "add", "max", "min", "add"), True),
        (MATMUL, (), False),
    ]
    np.testing.assert_array_equal(run(qparams, x), lb.simulate(steps_model, plan)(params, qstate, x))


@pytest.mark.parametrize("low", [0.0, -0.5])
def test_a_clamp_between_two_numbers_is_two_steps(low):
    def clamped(p, x):
        return lax.clamp(low, x @ p["a"] + p["b"], 6.0) @ p["d"]

    params = {"a": normal(0, 24, 40), "b": normal(2, 40), "d": normal(4, 40, 8)}
    x = heavy_tailed(5, 7, 24).at[3, 1].set(jnp.nan)
    plan, _, qparams = packed(clamped, "w8,a8/dynamic", params, jnp.nan_to_num(x))
    run = lb.execute(clamped, plan, implementation="cpu")
    assert [steps for _, steps, _ in calls(run, lb.prepare(plan, qparams), x)] == [("add", "max", "min"), ()]
    got, want = run(qparams, x), lb.execute(clamped, plan, implementation="reference")(qparams, x)
    np.testing.assert_array_equal(got, want)
    assert np.isnan(got).any(axis=1).tolist() == [i == 3 for i in range(7)]


def read_twice(p, x):
    h = jax.nn.relu(x @ p["a"] + p["b"])
    return h @ p["c"] + h.sum(-1, keepdims=True), h @ p["d"]


def test_a_value_that_a_float_operation_reads_too_is_written_as_well():
    params = {"a": normal(0, 24, 40), "b": normal(2, 40), "c": normal(3, 40, 8), "d": normal(4, 40, 8)}
    x = normal(5, 7, 24)
    plan, qstate, qparams = packed(read_twice, "w8,a8", params, x)
    run = lb.execute(read_twice, plan, implementation="cpu")
    assert calls(run, lb.prepare(plan, qparams), x)[0] == (MATMUL, ("add", "max"), True)
    for got, want in zip(run(qparams, x), lb.simulate(read_twice, plan)(params, qstate, x), strict=True):
        np.testing.assert_array_equal(got, want)


def flat_model(p, x):
    x = jax.nn.relu(conv(("NHWC", "HWIO", "NHWC"))(p["a"], x) + p["b"])
    return x.reshape(x.shape[0], -1) @ p["c"]


def test_codes_of_an_image_stay_codes_when_it_is_flattened():
    params = {"a": normal(0, 3, 3, 4, 8), "b": normal(1, 8), "c": normal(2, 160, 10)}
    x = normal(3, 2, 4, 5, 4)
    plan, qstate, qparams = packed(flat_model, "w8,a8", params, x)
    run = lb.execute(flat_model, plan, implementation="cpu")
    assert [codes for *_, codes in calls(run, lb.prepare(plan, qparams), x)] == [True, False]
    for data in (x, x.at[1, 2, 2, 2].set(jnp.nan)):
        np.testing.assert_array_equal(run(qparams, data), lb.simulate(flat_model, plan)(params, qstate, data))


def dense_block(p, x):
    """Of two products that are added the first has the sum; what it adds may come later in the program."""
    h = jax.nn.relu(x @ p["a"] + p["b"])
    h = jax.nn.relu(h @ p["c"] + x @ p["d"])
    return h @ p["e"] + h


def image_block(p, x):
    """The largest of windows, channels of zeros behind them, and a sum in front of a product that reads codes."""
    image = conv(("NHWC", "HWIO", "NHWC"), strides=(2, 2))
    near = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    near = lax.pad(near, 0.0, ((0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 20 - x.shape[-1], 0)))
    h = jax.nn.relu(near + (image(p["a"], x) + p["b"]))
    return conv(("NHWC", "HWIO", "NHWC"))(p["c"], h) + h


RESIDUALS = {
    "dense": (
        dense_block,
        {"a": normal(0, 40, 40), "b": normal(1, 40), "c": normal(2, 40, 40), "d": normal(3, 40, 40), "e": normal(4, 40, 40)},
        heavy_tailed(5, 7, 40),
        [(MATMUL, ("add", "max"), True), (MATMUL, ("residual", "max"), True), (MATMUL, (), False), (MATMUL, ("residual",), False)],
    ),
    "image": (
        image_block,
        {"a": normal(0, 3, 3, 6, 20), "b": normal(1, 20), "c": normal(2, 1, 1, 20, 20)},
        heavy_tailed(3, 2, 8, 6, 6),
        [(CONV, ("add", "residual", "max"), True), (CONV, ("residual",), False)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RESIDUALS)
def test_a_residual_sum_is_in_the_call_that_makes_an_operand(name):
    fn, params, x, expected = RESIDUALS[name]
    plan, qstate, qparams = packed(fn, "w8,a8", params, x)
    run = lb.execute(fn, plan, implementation="cpu")
    found = calls(run, lb.prepare(plan, qparams), x)
    assert sorted(found) == sorted(expected)
    for data in (x, x.at[(1, *(2 for _ in x.shape[1:]))].set(jnp.nan)):
        np.testing.assert_array_equal(run(qparams, data), lb.simulate(fn, plan)(params, qstate, data))


@pytest.mark.parametrize("side", [(2, 2), (3, 3), (3, 1)])
def test_the_largest_of_windows_is_the_same_from_slices(side):
    """Beside numpy: zeros of both signs, infinities and NaN among them, windows that overlap or leave a rest."""
    x = (
        heavy_tailed(1, 2, 7, 8, 3)
        .at[0, 1, 1]
        .set(jnp.nan)
        .at[1, 2, :4, 1]
        .set(jnp.array([-0.0, 0.0, -jnp.inf, jnp.inf]))
    )
    fn = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, *side, 1), (1, 2, 2, 1), "VALID")  # noqa: E731
    (equation,) = jax.make_jaxpr(fn)(x).eqns
    got = windows.largest(equation, x)
    views = np.lib.stride_tricks.sliding_window_view(np.asarray(x), side, (1, 2))[:, ::2, ::2]
    np.testing.assert_array_equal(got, views.max((-2, -1)))
    np.testing.assert_array_equal(np.signbit(got), np.signbit(fn(x)))


def loop_model(p, x):
    def layer(h, w):
        return jax.nn.relu(h @ w["w"] + w["b"]), None

    return lax.scan(layer, x, p)[0]


def test_the_body_of_a_scan_over_layers_is_one_call():
    params = {"w": normal(0, 3, WIDTH, WIDTH) * 0.2, "b": normal(1, 3, WIDTH)}
    x = normal(2, 4, WIDTH)
    plan, qstate, qparams = packed(loop_model, "w8,a8", params, x)
    run = lb.execute(loop_model, plan, implementation="cpu")
    assert [(t, kinds) for t, kinds, _ in calls(run, lb.prepare(plan, qparams), x)] == [(MATMUL, ("add", "max"))]
    np.testing.assert_array_equal(run(qparams, x), lb.simulate(loop_model, plan)(params, qstate, x))


def test_the_gradient_is_that_of_the_operations_one_by_one():
    """Straight through rounding: of one dot, the gradient is that of the dot with the weight as served, where nothing clips."""
    params = {"w": normal(0, 16, 8), "b": normal(1, 8)}
    x = normal(2, 4, 16)
    fn = lambda p, x: jax.nn.relu(x @ p["w"] + p["b"])  # noqa: E731
    plan, _, qparams = packed(fn, "w8,a8/dynamic", params, x)
    run = lb.execute(fn, plan, implementation="cpu")
    got = jax.grad(lambda x: run(qparams, x).sum())(x)
    inside = np.asarray(run(qparams, x)) > 0
    want = inside @ np.asarray(qparams.params["w"].dequantize()).T.astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=2.0**-18, atol=2.0**-18)


def test_vmap_of_the_call_is_the_call():
    fn, params, x, _ = MODELS["x @ w"]
    plan, _, qparams = packed(fn, "w8,a8", params, x)
    run = lb.execute(fn, plan)
    many = jnp.stack([x, x + 1.0])
    np.testing.assert_array_equal(jax.vmap(lambda v: run(qparams, v))(many), jnp.stack([run(qparams, v) for v in many]))


def test_a_result_that_nothing_reads_does_no_harm():
    """A pooler whose result the caller drops: the call is made, of what is left the numbers are those of the reference."""

    def fn(p, x):
        h = jax.nn.relu(x @ p["w"])
        jnp.tanh(h @ p["pooler"])
        return h @ p["w"]

    params, x = {"w": normal(0, 16, 16), "pooler": normal(1, 16, 16)}, normal(2, 3, 16)
    plan = lb.bind(fn, {"**": "w8,a8"}, params, x)
    qparams = lb.pack(plan, params, lb.init(fn, plan, params, x))
    got = lb.execute(fn, plan)(qparams, x)
    np.testing.assert_array_equal(got, lb.execute(fn, plan, implementation="reference")(qparams, x))
