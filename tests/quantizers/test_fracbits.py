"""FracBits: its equations in float64, its price, inputs, and what it becomes when hardened."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.core.spec import Operand
from lowbit.learn.price import price
from lowbit.quantizers.fracbits import fracbits
from tests.quantizers.learned import INPUT, PARAMS, G, X, close, grid, model


def test_values_and_gradients_are_the_papers():
    """``Q_lambda = (1 - t) Q_floor + t Q_ceil``; its derivative by lambda is their difference, by the reach LSQ's of both."""
    quantizer: Any = fracbits("w6").weight
    bits, reach = np.array([[2.75], [5.25]]), np.array([[7.5], [4.5]])
    operand = Operand(X.shape, contract=(1,))
    learn = {"bits": jnp.float32(bits), "reach": jnp.float32(reach)}

    @jax.jit
    def run(learn, x):
        state = {"learn": learn, "fixed": {}}
        return quantizer.train(state, x, operand, key=None, step=None).dequantize()

    value, pull = jax.vjp(run, learn, jnp.asarray(X))
    to_learn, to_x = pull(jnp.asarray(G, jnp.float32))
    wide, below = X.astype(np.float64), np.floor(bits)
    t = bits - below
    (low, low_slope), (high, high_slope) = grid(wide, reach, below), grid(wide, reach, below + 1)
    want = (1 - t) * low + t * high
    close(value, want, np.abs(wide))
    pulled = (G * (high - low)).sum(1, keepdims=True)
    close(to_learn["bits"], pulled, (np.abs(G) * (np.abs(high) + np.abs(low))).sum(1, keepdims=True))
    scaled = 1 / np.sqrt(X.shape[1])  # LSQ's gradient scale, of the values that share a reach
    slope = (G * ((1 - t) * low_slope + t * high_slope)).sum(1, keepdims=True) * scaled
    close(to_learn["reach"], slope, 8 * np.abs(G * wide / reach).sum(1, keepdims=True))
    inside = lambda b: (wide > -reach) & (wide < reach * (1 - 2.0 ** (1 - b)))  # noqa: E731
    close(to_x, G * ((1 - t) * inside(below) + t * inside(below + 1)), np.abs(G))


def test_no_width_is_stuck_beyond_an_end():
    """Below 2 bits what bits cost pulls no more, and the loss still does; above 8 the other way round."""
    quantizer: Any = fracbits("w6").weight
    operand = Operand(X.shape, contract=(1,))

    def both(bits):
        state = {"learn": {"bits": bits, "reach": jnp.full((2, 1), 10.3)}, "fixed": {}}
        fake = quantizer.train(state, jnp.asarray(X), operand, key=None, step=None).dequantize()
        return jnp.sum(fake * jnp.asarray(G, jnp.float32)), jnp.sum(quantizer.widths(state))

    for bits, by_loss, by_cost, width in ((1.0, True, False, 2.0), (9.5, False, True, 8.0)):
        slopes = jax.jacrev(both)(jnp.full((2, 1), bits))
        assert bool(np.all(np.asarray(slopes[0]) != 0)) is by_loss
        assert bool(np.all(np.asarray(slopes[1]) != 0)) is by_cost
        assert float(both(jnp.full((2, 1), bits))[1]) == 2 * width


def moved(path: Any, value: Any, slope: Any) -> Any:
    """A step against the sign of a gradient: 0.3 of widths, 0.01 of the rest."""
    return value - jnp.sign(slope) * (0.3 if path[-1].key == "bits" else 0.01)


def training(rules: Any, x: Any):
    """The plan, and from a price of bits to the state after a few steps on the squared error and that."""
    plan = lb.bind(model, rules, PARAMS, x)
    state = lb.calibrate(model, plan, PARAMS, [(x,)])
    right, run = model(PARAMS, x), lb.simulate(model, plan, train=True)

    @jax.jit
    def slope(learn, beta):
        def loss(learn):
            now = {**state, "learn": learn}
            y, _ = run(PARAMS, now, x, key=jax.random.key(0), step=jnp.int32(0))
            return jnp.mean((y - right) ** 2) + beta * price(plan, now, unit="bops") / 1e4

        return jax.grad(loss)(learn)

    def trained(beta: float):
        learn = state["learn"]
        for _ in range(12):
            grads = slope(learn, beta)
            learn = jax.tree.map_with_path(moved, learn, grads)
        return {**state, "learn": learn}

    return plan, trained


@pytest.mark.parametrize("signed", [True, False])
def test_widths_of_weights_and_inputs_follow_their_price_and_are_packed(signed, tmp_path):
    """Hardened, values are the same to the last bit; packed and read back, inputs need no code of the quantizer."""
    x = INPUT if signed else jnp.abs(INPUT)
    rules = {"a": fracbits("w6/channel,a6/sym" if signed else "w6/channel,auint6/sym"), "b": fracbits("w6/g4,a6/sym")}
    plan, trained = training(rules, x)
    cheap, dear = (float(price(plan, trained(beta), unit="bops")) for beta in (1e-6, 1e3))
    assert dear < 0.6 * cheap
    state = trained(0.1)
    with pytest.raises(ValueError, match=r"learned widths .* lowbit\.harden"):
        lb.pack(plan, PARAMS, state)
    hard, its_state = lb.harden(plan, state)
    served = lb.simulate(model, hard)(PARAMS, its_state, x)
    np.testing.assert_array_equal(served, lb.simulate(model, plan)(PARAMS, state, x))
    for row in hard.rows:
        for site in row.sites:
            bits = np.round(np.clip(np.asarray(state["learn"][row.path][site.role]["bits"]), 2, 8))
            assert site.spec is not None
            assert (
                site.spec.format.name
                == ("" if signed or site.is_weight or row.path == "b" else "u") + f"int{int(bits.max())}"
            )
    qparams = lb.pack(hard, PARAMS, its_state)
    lb.save(tmp_path / "m", hard, qparams)
    again, its_params = lb.load(tmp_path / "m")
    np.testing.assert_array_equal(lb.execute(model, again)(its_params, x), lb.execute(model, hard)(qparams, x))
    np.testing.assert_allclose(lb.execute(model, hard)(qparams, x), served, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "text", ["a8", "wnf4", "wint16", "wuint4", "w4/affine", "w4/narrow", "w4/g32/dq", "w1", "a6/sym/dynamic"]
)
def test_what_has_no_learned_form_is_refused(text):
    with pytest.raises(ValueError, match=r"fracbits|FracBits"):
        fracbits(text)
