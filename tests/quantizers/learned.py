"""Learned widths and levels: values and gradients on two rows in float64, and a small model that is trained with them."""

import jax
import jax.numpy as jnp
import numpy as np

import lowbit as lb
from lowbit.core.spec import Operand
from lowbit.learn.harden import widths
from tests.values import normal

X = np.stack([row := np.linspace(-10.3, 9.9, 57, dtype=np.float32), -row * 0.7])


G = np.random.default_rng(0).normal(size=X.shape)


def pulled(quantizer, learn, fixed):
    """The value of ``fake(X)``, and the gradients of ``sum(G * fake(X))`` by ``X`` and by what is learned."""
    operand = Operand(X.shape, contract=(1,))

    @jax.jit
    def run(learn, x):
        return quantizer.fake({"learn": learn, "fixed": fixed}, x, operand)

    value, pull = jax.vjp(run, learn, jnp.asarray(X))
    return (np.asarray(value, np.float64), *pull(jnp.asarray(G, jnp.float32)))


def close(got, want, terms):
    """Equal up to the rounding of a sum whose magnitudes add up to ``terms``."""
    assert (np.abs(np.asarray(got, np.float64) - want) <= 16 * 2.0**-24 * (np.abs(want) + terms)).all()


def model(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


PARAMS, INPUT = {"a": normal(1, 32, 12), "b": normal(2, 12, 6)}, normal(3, 9, 32)


def trained(rules, beta):
    """The plan and its state after a few steps on the squared error plus ``beta`` times the mean width."""
    plan = lb.bind(model, rules, PARAMS, INPUT)
    state = lb.init(model, plan, PARAMS, INPUT)
    right, counts = model(PARAMS, INPUT), {key: w.size for key, w in PARAMS.items()}

    @jax.jit
    def slope(learn):
        now = {**state, "learn": learn}
        bits = widths(plan, now)
        mean = sum(counts[key] * bits[key] for key in bits) / sum(counts.values())
        return jnp.mean((lb.simulate(model, plan)(PARAMS, now, INPUT) - right) ** 2) + beta * mean

    step = jax.jit(lambda learn: jax.tree.map(lambda v, g: v - jnp.sign(g) * 0.3, learn, jax.grad(slope)(learn)))
    learn = state["learn"]
    for _ in range(12):
        learn = step(learn)
    return plan, {**state, "learn": learn}


def grid(x: np.ndarray, reach: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``Q_b(x)`` of signed integers and ``dQ_b/dreach`` of a learned step (LSQ, Eqs. 2 and 3), in float64."""
    step, top = reach * 2.0 ** (1 - bits), 2.0 ** (bits - 1)
    place = x / step
    level = np.clip(np.round(place), -top, top - 1)
    slope = np.where((place > -top) & (place < top - 1), level - place, level)
    return level * step, slope * 2.0 ** (1 - bits)
