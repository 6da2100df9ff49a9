"""Full-integer plans of models with masks that are data, in jax's own spellings, and with movements of the last years."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from tests.values import normal

W = {"q": normal(0, 8, 8) * 0.5, "k": normal(1, 8, 8) * 0.5, "o": normal(2, 8, 8) * 0.5}
X = normal(3, 2, 6, 8)
MASK = jnp.arange(6) < jnp.array([[6], [4]])


def _served(fn, *args):
    """The plan, and a function of arguments that is simulated and executed: the results must agree to the last bit."""
    plan = lb.bind(fn, {"**": "w8,a8"}, W, *args, integer=True)
    qstate = lb.init(fn, plan, W, *args)
    qparams = lb.pack(plan, W, qstate)
    simulated, executed = lb.simulate(fn, plan), lb.execute(fn, plan, implementation="reference")

    def run(*args):
        y = executed(qparams, *args)
        np.testing.assert_array_equal(simulated(W, qstate, *args), y)
        return y

    return plan, run


def _attention(p, x, mask):
    q, k = ((x @ p[name]).reshape(2, 6, 2, 4) for name in "qk")
    return jax.nn.dot_product_attention(q, k, k, mask=mask[:, None, None, :]).reshape(2, 6, 8) @ p["o"]


def _added(p, x, mask):
    q, k = ((x @ p[name]).reshape(2, 6, 2, 4) for name in "qk")
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / 2 + (1.0 - mask[:, None, None].astype(jnp.float32)) * -1e9
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), k).reshape(2, 6, 8) @ p["o"]


@pytest.mark.parametrize(("fn", "dtype"), [(_attention, jnp.bool_), (_added, jnp.int32)])
def test_a_mask_that_is_data_masks(fn, dtype):
    mask = MASK.astype(dtype)
    plan, run = _served(fn, X, mask)
    assert "softmax" in [step.kind for step in plan.steps]
    y, want = run(X, mask), fn(W, X, mask)
    assert float(jnp.max(jnp.abs(y - want))) <= 0.04 * float(jnp.max(jnp.abs(want)))
    other = X.at[1, 4:].multiply(-0.5)  # what is masked decides nothing where it is not
    np.testing.assert_array_equal(run(other, mask)[1, :4], y[1, :4])
    assert bool(jnp.any(run(other, jnp.ones_like(mask))[1, :4] != y[1, :4]))


def test_a_mask_of_heads_that_is_constant_integers_is_a_factor():
    """Bert's models multiply every head's weights by ones, as integers, in a product that sums nothing."""
    heads = np.array([1, 0], np.int32)

    def fn(p, x, mask=heads):
        q, k = ((x @ p[name]).reshape(2, 6, 2, 4) for name in "qk")
        weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
        numbers = ((), ()), ((0,), (1,))  # as jnp.einsum("...hqk,h->...hqk") writes it
        masked = lax.dot_general(jnp.asarray(mask), weights, numbers, preferred_element_type=jnp.float32)
        return jnp.einsum("hbts,bshd->bthd", masked, k).reshape(2, 6, 8) @ p["o"]

    plan, run = _served(fn, X)
    y, want = run(X), np.asarray(fn(W, X))
    assert [row.rule for row in plan if not row.is_quantized] == ["**: w8,a8: not for int32"]
    assert np.abs(y - want).max() <= 0.04 * np.abs(want).max()
    assert np.abs(np.asarray(fn(W, X, heads * 0 + 1)) - want).max() > 0.2 * np.abs(want).max()  # the mask is seen


def test_stack_unstack_tile_and_cumulated_sums_have_an_integer_form():
    def fn(p, x):
        a, b, c = jnp.unstack(x @ p["q"], axis=1)[:3]
        turned = jnp.stack([a - b, lax.cummax(b, axis=1)], 1).reshape(2, 2, 8)
        return jnp.cumsum(jnp.tile(turned, (1, 2, 1)), 1) @ p["o"] + (c @ p["k"])[:, None]

    plan, run = _served(fn, X)
    want = fn(W, X)
    assert float(jnp.max(jnp.abs(run(X) - want))) <= 0.03 * float(jnp.max(jnp.abs(want)))
    assert {row.primitive for row in plan} == {"dot_general"}
