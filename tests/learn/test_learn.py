"""Schedules, labels, distillation, PARQ, oscillations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lowbit.core.spec import Operand
from lowbit.learn.distill import feature_loss, logits_loss
from lowbit.learn.labels import decay_mask, step_labels, with_step_optimizer
from lowbit.learn.oscillation import dampening_loss, freeze, observe, watch
from lowbit.learn.parq import inverse_slope, parq, proximal
from lowbit.learn.schedule import bits_at, delayed, gradual
from lowbit.quantizers.lsq import lsq
from lowbit.quantizers.rtn import rtn
from tests.values import heavy_tailed, normal

KEY = jax.random.key(0)
X = heavy_tailed(0, 40, 3, freedom=3.0)
OPERAND = Operand((40, 3), contract=(0,))


@pytest.mark.parametrize("wrap", [lambda q: delayed(q, 5), lambda q: gradual(q, 2, 5)], ids=["delayed", "gradual"])
def test_schedules(wrap):
    """Float before, quantized to the last bit from the end on, half way between; served as the inner quantizer always."""
    inner = lsq("w3")
    q = wrap(inner).weight
    state = q.init(OPERAND, {"values": X}, KEY)
    served = inner.weight.fake(state, X, OPERAND)

    @jax.jit
    def train(x, step):
        return q.train(state, x, OPERAND, key=KEY, step=step).dequantize()

    np.testing.assert_allclose(train(X, jnp.int32(0)), X, rtol=3e-7)
    np.testing.assert_array_equal(train(X, jnp.int32(5)), served)
    np.testing.assert_array_equal(q.fake(state, X, OPERAND), served)
    np.testing.assert_allclose(jax.grad(lambda x: train(x, jnp.int32(0)).sum())(X), np.ones_like(X), rtol=1e-6)
    limit, limit_state, step = q.limit(state, X, OPERAND)
    np.testing.assert_array_equal(
        limit.train(limit_state, X, OPERAND, key=KEY, step=jnp.int32(step)).dequantize(), served
    )
    with pytest.raises(ValueError, match="needs step="):
        q.train(state, X, OPERAND, key=KEY, step=None)


def test_schedule_inputs():
    with pytest.raises(ValueError, match="got -1"):
        delayed(lsq("w4"), -1)
    with pytest.raises(ValueError, match="got 5 and 5"):
        gradual(lsq("w4"), 5, 5)
    with pytest.raises(ValueError, match="one at step 0"):
        bits_at(3, {1: 4})


def test_steps_get_their_own_optimizer():
    tree = {"params": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, "learn": {"w": {"step": jnp.ones((1, 1))}}}
    assert step_labels(tree)["learn"]["w"]["step"] == "learn"
    decay = optax.add_decayed_weights(1.0, mask=lambda p: decay_mask({"params": p, "learn": {}})["params"])
    decayed = optax.chain(decay, optax.sgd(0.1))
    optimizer = with_step_optimizer(decayed, optax.sgd(0.01))
    zeros = jax.tree.map(jnp.zeros_like, tree)
    updates, _ = optimizer.update(zeros, optimizer.init(tree), tree)
    assert float(updates["params"]["w"][0, 0]) < 0
    assert not np.asarray(updates["params"]["b"]).any()
    assert not np.asarray(updates["learn"]["w"]["step"]).any()
    with pytest.raises(ValueError, match=r"got .'steps'."):
        step_labels({"steps": 1})


def test_distillation():
    """Zero where equal, positive elsewhere; T**2 keeps gradients of one size; nothing reaches the teacher."""
    student, teacher = normal(0, 5, 7), normal(1, 5, 7)
    assert float(logits_loss(student, teacher)) > 0
    grads = [jax.grad(lambda s, t=t: logits_loss(s * 0.01, teacher * 0.01, temperature=t))(student) for t in (1.0, 8.0)]
    np.testing.assert_allclose(*(np.asarray(g) for g in grads), rtol=0.05, atol=1e-7)
    assert not np.asarray(jax.grad(lambda t: logits_loss(student, t))(teacher)).any()
    big = {"a": student, "b": student * 1e3}
    np.testing.assert_allclose(feature_loss(jax.tree.map(lambda x: 0.9 * x, big), big), 0.01, rtol=1e-4)
    with pytest.raises(ValueError, match="differ in shape"):
        logits_loss(student, teacher[:2])
    with pytest.raises(ValueError, match="same features"):
        feature_loss({"a": student}, {"b": student})
    with pytest.raises(ValueError, match="positive, got 0"):
        logits_loss(student, teacher, temperature=0.0)


def test_parq_map():
    """rho 1 changes nothing in range, rho 0 rounds, between it is monotone and keeps the middles."""
    q = rtn("w4").weight
    scale = q.init(OPERAND, {"values": X}, KEY)["fixed"]["scale"]
    np.testing.assert_array_equal(proximal(X, q, 1.0), X)
    np.testing.assert_array_equal(proximal(X, q, 0.0), q.fake({"learn": {}, "fixed": {"scale": scale}}, X, OPERAND))
    half = proximal(X, q, 0.5)
    order = np.argsort(np.asarray(X[:, 0]))
    assert (np.diff(np.asarray(half)[order, 0]) >= -1e-6).all()
    assert float(inverse_slope(0, start=3, end=9)) == 1.0
    assert float(inverse_slope(9, start=3, end=9)) == 0.0


def test_parq_ends_on_the_grid():
    """Least squares with correlated inputs: on the grid at the end, with at most 0.7 of the loss of rounding the optimum."""
    a = normal(0, 64, 16) + 1.0
    goal = normal(2, 16, 32)
    q = rtn("w3/narrow").weight
    operand = Operand((16, 32), contract=(0,))

    def loss(w):
        return jnp.sum(jnp.mean(jnp.square(a @ (w - goal)), 0))

    def rate(count):  # cosine decay; optax's own promotes int32 to float32
        return 0.005 * (1.0 + jnp.cos(np.pi / 500 * jnp.minimum(count, 500).astype(jnp.float32)))

    optimizer = parq(optax.sgd(rate), q, start=10, end=500)

    @jax.jit
    def train(w):
        def step(carry, _):
            w, state = carry
            updates, state = optimizer.update(jax.grad(loss)(w), state, w)
            return (optax.apply_updates(w, updates), state), None

        return jax.lax.scan(step, (w, optimizer.init(w)), length=510)[0]

    w, state = train(goal)
    on_grid = q.fake(q.init(operand, {"values": state.latent}, KEY), state.latent, operand)
    np.testing.assert_allclose(w, on_grid, atol=1e-6)
    plain = q.fake(q.init(operand, {"values": goal}, KEY), goal, operand)
    assert float(loss(w)) <= 0.7 * float(loss(plain))
    with pytest.raises(ValueError, match="start < end"):
        parq(optax.sgd(0.1), q, start=5, end=5)
    with pytest.raises(ValueError, match="symmetric integer"):
        parq(optax.sgd(0.1), rtn("wnf4").weight, start=0, end=5)


def test_a_weight_is_held_at_its_mean_not_where_it_is():
    """Levels 0 1 0 1 0, momentum 1/2: means 0 1/2 1/4 5/8, then the frequency passes: 5/8 is level 1, the weight is at 0."""
    q = rtn("w4").weight
    operand = Operand((2, 1), contract=(0,))
    state = q.init(operand, {"values": jnp.array([[0.0], [7.0]])}, KEY)
    watched = watch(q.quantize(state, jnp.array([[0.0], [7.0]]), operand))
    for level in (1.0, 0.0, 1.0, 0.0):
        now = q.quantize(state, jnp.array([[level], [7.0]]), operand)
        watched = observe(watched, now, momentum=0.5, threshold=0.8)
    assert watched.frozen[:, 0].tolist() == [True, False]
    assert float(now.codes[0, 0]) == 0.0
    assert freeze(jnp.array([[0.1], [7.0]]), watched, now)[:, 0].tolist() == [1.0, 7.0]


def test_oscillation():
    """A weight that flips at every step is frozen at its mean level; the others move on."""
    q = rtn("w4").weight
    w = jnp.array([[0.0], [1.0], [7.0]])
    operand = Operand((3, 1), contract=(0,))
    state = q.init(operand, {"values": w}, KEY)

    def at(w):
        return q.quantize(state, w, operand)

    watched = watch(at(w))
    for i in range(30):
        w = jnp.array([[0.4 + 0.2 * (i % 2)], [1.0 + 0.1 * i], [7.0]])
        watched = observe(watched, at(w), momentum=0.1, threshold=0.5)
    assert watched.frozen[:, 0].tolist() == [True, False, False]
    held = freeze(w, watched, at(w))
    assert float(held[0, 0]) in (0.0, 1.0)
    np.testing.assert_array_equal(held[1:], w[1:])
    grad = jax.grad(lambda w: dampening_loss(w, at(w)))(w)
    np.testing.assert_allclose(grad[:, 0], 2 * (np.asarray(w) - np.round(np.asarray(w)))[:, 0] * [1, 1, 0], atol=1e-5)
    with pytest.raises(ValueError, match="got 0"):
        observe(watched, at(w), momentum=0.0)
