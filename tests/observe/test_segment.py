"""Blocks of a model: the same numbers as the model's, in float and quantized, layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.observe.segment import segment
from lowbit.plan.serial import from_json, to_json
from tests.interpret.zoo import CASES
from tests.program.nets import carried, gated, mobile
from tests.values import normal


def _layer(inputs, i):
    return [x[i] for x in inputs]


def test_a_residual_block_is_what_numpy_says():
    params = {k: normal(i, 6, 6) for i, k in enumerate("abcd")} | {"bias": normal(9, 6)}
    x = normal(10, 4, 6)

    def fn(p, x):
        x = jnp.sin(x @ p["a"])
        x = jax.nn.relu(x + jnp.tanh(x @ p["b"]) @ p["c"] + p["bias"])
        return x @ p["d"]

    plan = lb.bind(fn, {}, params, x)
    block = segment(fn, plan, "b", "c")
    inputs, out = block.capture(params, x)
    assert block.paths == ("b", "c")
    assert set(block.params(params)) == {"b", "c", "bias"}
    p = {k: np.asarray(v, np.float64) for k, v in params.items()}
    (h,) = inputs
    want = np.sin(np.asarray(x, np.float64) @ p["a"])
    np.testing.assert_allclose(h, want, atol=1e-5)
    want = np.maximum(want + np.tanh(want @ p["b"]) @ p["c"] + p["bias"], 0)
    np.testing.assert_allclose(out, want, atol=1e-4)
    np.testing.assert_array_equal(jax.jit(block.fn)(block.params(params), *inputs), out)


def test_blocks_one_after_the_other_are_the_model():
    case = mobile()
    plan = lb.bind(case.fn, {}, case.params, *case.args)
    ends = [("stem/w", "stem/w"), ("up/w", "up/w"), ("deep/w", "down/w"), ("head/w", "head/w")]
    blocks = [segment(case.fn, plan, *pair) for pair in ends]
    captured = [block.capture(case.params, *case.args) for block in blocks]
    np.testing.assert_array_equal(captured[0][0][0], case.args[0])
    np.testing.assert_array_equal(captured[1][0][0], captured[0][1])
    assert len(captured[2][0]) == 2  # the stream, and what is added to it
    y = case.args[0]
    y = blocks[0].fn(blocks[0].params(case.params), y)
    h = blocks[1].fn(blocks[1].params(case.params), y)
    known = {h.shape: h, y.shape: y}
    y = blocks[2].fn(blocks[2].params(case.params), *(known[x.shape] for x in captured[2][0]))
    y = blocks[3].fn(blocks[3].params(case.params), y)
    np.testing.assert_allclose(y, jax.jit(case.fn)(case.params, *case.args), rtol=1e-5, atol=1e-5)


def _scanned():
    case = CASES["scanned_remat"]()
    return case, "layers/MultiHeadDotProductAttention_0/query/kernel", "layers/down/kernel"


def _gated():
    return gated(), "layers/q", "layers/down"


@pytest.mark.parametrize("made", [_scanned, _gated])
def test_every_layer_of_a_scan(made):
    case, first, last = made()
    plan = lb.bind(case.fn, {}, case.params, *case.args)
    block = segment(case.fn, plan, first, last)
    assert len(block.paths) >= 8
    inputs, out = block.capture(case.params, *case.args)
    (length,) = block.stack
    run = jax.jit(block.fn)
    for i in range(length):
        got = run(block.params(case.params, (i,)), *_layer(inputs, i))
        np.testing.assert_allclose(got, out[i], atol=1e-5 * np.abs(out[i]).max())
    stream = next(k for k, x in enumerate(inputs) if x.shape == out.shape)
    np.testing.assert_array_equal(inputs[stream][1:], out[:-1])  # a layer's result is the next one's stream


def test_a_quantized_block_is_the_quantized_model_s():
    case = carried()
    plan = lb.bind(case.fn, {"**": "w4,a8"}, case.params, *case.args)
    qstate = lb.calibrate(case.fn, plan, case.params, [case.args])
    block = segment(case.fn, plan, "up", "down")
    inputs, out = block.capture(case.params, *case.args, qstate=qstate)
    quantized = lb.simulate(block.fn, block.plan)
    for i in range(3):
        got = quantized(block.params(case.params, (i,)), block.state(qstate, (i,)), *_layer(inputs, i))
        np.testing.assert_array_equal(got, out[i])
    floats, _ = block.capture(case.params, *case.args)
    assert np.abs(np.asarray(floats[0] - inputs[0])).max() > 1e-3  # what precedes is quantized


def test_a_block_learns_by_gradients_of_its_parameters():
    case = mobile()
    plan = lb.bind(case.fn, {"**": "w3"}, case.params, *case.args)
    qstate = lb.calibrate(case.fn, plan, case.params, [case.args])
    block = segment(case.fn, plan, "deep/w", "down/w")
    inputs, out = block.capture(case.params, *case.args)
    run, state, params = lb.simulate(block.fn, block.plan), block.state(qstate), block.params(case.params)

    @jax.jit
    def step(params):
        loss, slope = jax.value_and_grad(lambda p: jnp.mean((run(p, state, *inputs) - out) ** 2))(params)
        return loss, jax.tree.map(lambda p, g: p - 0.02 * g, params, slope)

    losses = []
    for _ in range(30):
        loss, params = step(params)
        losses.append(float(loss))
    assert min(losses) < 0.8 * losses[0]


def test_another_batch_size_needs_arguments():
    case = mobile()
    plan = lb.bind(case.fn, {}, case.params, *case.args)
    block = segment(case.fn, plan, "up/w", "down/w")
    (x,) = case.args
    inputs, _ = block.capture(case.params, jnp.concatenate([x, x, x]))
    with pytest.raises(ValueError, match="give segment"):
        block.fn(block.params(case.params), *inputs)
    other = segment(case.fn, plan, "up/w", "down/w", args=(jnp.zeros((6, *x.shape[1:])),))
    inputs, out = other.capture(case.params, jnp.concatenate([x, x, x]))
    np.testing.assert_allclose(other.fn(other.params(case.params), *inputs), out, rtol=1e-5, atol=1e-5)


def test_what_is_no_block_is_said():
    case, first, _ = _gated()
    plan = lb.bind(case.fn, {}, case.params, *case.args)
    with pytest.raises(ValueError, match="nearest paths are"):
        segment(case.fn, plan, "layers/x", "head")
    with pytest.raises(ValueError, match="different loops"):
        segment(case.fn, plan, first, "head")
    with pytest.raises(ValueError, match="comes before"):
        segment(case.fn, plan, "layers/down", "layers/q")
    with pytest.raises(ValueError, match="bind again"):
        segment(case.fn, from_json(to_json(plan)), "head", "head")
    block = segment(case.fn, plan, first, "layers/down")
    with pytest.raises(ValueError, match="layer must have 1"):
        block.params(case.params)


W = {"w": normal(1, 3, 4, 4), "v": normal(2, 4, 4), "gain": normal(3, 3, 4, 4)}


def _computed(p, x):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["w"] * p["gain"])[0] @ p["v"]


def _branch(p, x):
    return jax.lax.cond(x.sum() > 0, lambda x: x @ p["v"], lambda x: x, x) @ p["gain"][0]


def _own_derivative(p, x):
    @jax.custom_vjp
    def inside(x, w):
        return x @ w

    inside.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
    return inside(x, p["v"]) @ p["gain"][0]


def _whole_and_by_layer(p, x):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w) + p["w"].sum(), None), x, p["w"])[0] @ p["v"]


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (_computed, "a scan is over parameters computed before it"),
        (_branch, "a branch or a while loop"),
        (_own_derivative, "a call whose own derivative is kept"),
        (_whole_and_by_layer, "read both whole and by layer"),
    ],
)
def test_what_lies_beyond_its_limits_is_said(fn, says):
    x = normal(4, 2, 4)
    plan = lb.bind(fn, {}, W, x)
    path = plan.rows[0].path
    with pytest.raises(ValueError, match=says):
        segment(fn, plan, path, path)


def test_a_full_integer_plan_has_no_segments():
    x = normal(4, 2, 4)
    fn = lambda p, x: jnp.tanh(x @ p["v"]) @ p["v"]  # noqa: E731
    plan = lb.bind(fn, {"**": "w8,a8"}, {"v": W["v"]}, x, integer=True)
    with pytest.raises(ValueError, match="bind the same rules without integer=True"):
        segment(fn, plan, "v@0", "v@1")
