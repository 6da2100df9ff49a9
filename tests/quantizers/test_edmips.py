"""EdMIPS: the mixture and its gradients in float64, the temperature, the expected price, and what is served."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.core.spec import Operand
from lowbit.learn.price import price
from lowbit.quantizers.edmips import edmips
from tests.quantizers.learned import INPUT, PARAMS, G, X, close, grid, model

AMONG, LOGITS = (2, 4, 8), np.array([[[0.5, -0.25, 1.0]], [[-1.0, 0.75, 0.25]]])


def state_of(logits, temperature, reach=9.0):
    shape = (2, 1)
    return {
        "learn": {"logits": jnp.float32(logits), "reach": jnp.full(shape, np.float32(reach))},
        "fixed": {"temperature": jnp.full(shape, np.float32(temperature))},
    }


def test_values_and_gradients_are_the_papers():
    """``sum_b p_b Q_b`` with ``p = softmax(theta / T)``: by theta ``p_b (Q_b - sum p Q) / T``."""
    quantizer: Any = edmips("w4", among=AMONG).weight
    operand, start = Operand(X.shape, contract=(1,)), state_of(LOGITS, 0.5)

    @jax.jit
    def run(logits):
        state = {**start, "learn": {**start["learn"], "logits": logits}}
        return quantizer.train(state, jnp.asarray(X), operand, key=None, step=None).dequantize()

    value, pull = jax.vjp(run, start["learn"]["logits"])
    (to_logits,) = pull(jnp.asarray(G, jnp.float32))
    p = np.exp(LOGITS / 0.5)
    p = p / p.sum(-1, keepdims=True)
    grids = np.stack([grid(X.astype(np.float64), np.full((2, 1), 9.0), np.array(float(b)))[0] for b in AMONG], -1)
    want = (p * grids).sum(-1)
    close(value, want, 4 * np.abs(grids).max(-1))
    slope = (G[..., None] * p * (grids - want[..., None]) / 0.5).sum(1, keepdims=True)
    close(to_logits, slope, 16 * (np.abs(G)[..., None] * np.abs(grids)).sum(1, keepdims=True))


def test_the_heaviest_is_served_and_the_mixture_ends_there():
    """What is served has the bits of the largest logit; as the temperature falls, training computes with the same grid."""
    quantizer: Any = edmips("w4", among=AMONG).weight
    operand = Operand(X.shape, contract=(1,))
    served = quantizer.fake(state_of(LOGITS, 5.0), jnp.asarray(X), operand)
    want = [grid(X[i].astype(np.float64), np.array(9.0), np.array(b))[0] for i, b in enumerate((8.0, 4.0))]
    np.testing.assert_allclose(served, want, rtol=2**-22)
    gaps = [
        float(
            jnp.abs(
                quantizer.train(state_of(LOGITS, t), jnp.asarray(X), operand, key=None, step=None).dequantize() - served
            ).max()
        )
        for t in (5.0, 0.5, 0.02)
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-4


def test_the_temperature_falls_while_training_and_ends():
    plan = lb.bind(model, {"**": edmips("w4,a4/sym", temperature=2.0, decay=0.1)}, PARAMS, INPUT)
    state = lb.calibrate(model, plan, PARAMS, [(INPUT,)])
    run = lb.simulate(model, plan, train=True)
    seen = []
    for step in range(4):
        seen.append(
            {float(t.max()) for path, t in jax.tree.leaves_with_path(state["fixed"]) if path[-1].key == "temperature"}
        )
        _, state = run(PARAMS, state, INPUT, key=jax.random.key(step), step=jnp.int32(step))
    assert all(len(each) == 1 for each in seen)  # weights and inputs alike
    np.testing.assert_allclose([each.pop() for each in seen], [2.0, 0.2, 0.02, 0.01], rtol=1e-6)


def test_a_dearer_bit_leaves_fewer_and_the_expected_price_is_its_sum():
    plan = lb.bind(model, {"a": edmips("w8/channel"), "b": edmips("w8/tensor,a8/sym")}, PARAMS, INPUT)
    state = lb.calibrate(model, plan, PARAMS, [(INPUT,)])
    right, run = model(PARAMS, INPUT), lb.simulate(model, plan, train=True)

    def shares(leaf):
        p = np.exp(np.asarray(leaf["logits"], np.float64) / 5.0)
        return (p / p.sum(-1, keepdims=True)) @ np.array([2.0, 3, 4, 6, 8])

    bits = {key: shares(state["learn"][key]["weight"]).mean() for key in ("a", "b")}
    sizes = {key: w.size for key, w in PARAMS.items()}
    want = sum(bits[key] * sizes[key] for key in bits) / sum(sizes.values())
    assert float(price(plan, state)) == pytest.approx(want, rel=1e-6)
    row = INPUT.shape[0]
    bops = (
        row * sizes["a"] * bits["a"] * 32 + row * sizes["b"] * bits["b"] * shares(state["learn"]["b"]["input"]).mean()
    )
    assert float(price(plan, state, unit="bops")) == pytest.approx(bops, rel=1e-6)
    scales = {key: float(np.asarray(state["learn"][key]["weight"]["reach"]).size) for key in bits}
    stored = sum(bits[key] * sizes[key] / 8 + 4 * scales[key] for key in bits)
    assert float(price(plan, state, unit="bytes")) == pytest.approx(stored, rel=1e-6)

    @jax.jit
    def slope(learn, beta):
        def loss(learn):
            now = {**state, "learn": learn}
            y, _ = run(PARAMS, now, INPUT, key=jax.random.key(0), step=jnp.int32(0))
            return jnp.mean((y - right) ** 2) + beta * price(plan, now)

        return jax.grad(loss)(learn)

    means = []
    for beta in (0.0, 10.0):
        learn = state["learn"]
        for _ in range(10):
            learn = jax.tree.map(lambda v, g: v - jnp.sign(g) * 0.3, learn, slope(learn, beta))
        hard, its_state = lb.harden(plan, {**state, "learn": learn})
        means.append(float(price(hard, its_state)))
        qparams = lb.pack(hard, PARAMS, its_state)
        served = lb.simulate(model, hard)(PARAMS, its_state, INPUT)
        np.testing.assert_allclose(lb.execute(model, hard)(qparams, INPUT), served, rtol=1e-5, atol=1e-5)
    assert means[1] < means[0] - 2.0


@pytest.mark.parametrize("text", ["a8", "wnf4", "w5", "w4/affine", "w4/g32/dq"])
def test_what_has_no_learned_form_is_refused(text):
    with pytest.raises(ValueError, match=r"edmips|EdMIPS"):
        edmips(text)


def test_widths_that_are_none_are_refused():
    for wrong in ((4,), (4, 2), (1, 4), (4, 9)):
        with pytest.raises(ValueError, match="among"):
            edmips("w4", among=wrong)
    with pytest.raises(ValueError, match="temperature"):
        edmips("w4", temperature=0.0)
    plan = lb.bind(model, {"**": edmips("w4")}, PARAMS, INPUT)
    with pytest.raises(ValueError, match="unit must be one of"):
        price(plan, lb.init(model, plan, PARAMS, INPUT), unit="seconds")
    plan = lb.bind(model, {}, PARAMS, INPUT)
    with pytest.raises(ValueError, match="no quantized weight"):
        price(plan, lb.init(model, plan, PARAMS, INPUT))
