"""What a method may change in the one training loop: the decay of what is learned, the optimizer, a penalty."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lowbit as lb
from lowbit.run import Fit, Method, cross_entropy
from lowbit.run.losses import quantized_loss
from lowbit.run.training import optimizer

TREE = {"params": {"w": jnp.array([2.0, -3.0])}, "learn": {"clip": jnp.array([4.0])}}


def first_step(fit: Fit, around=None):
    zero = jax.tree.map(jnp.zeros_like, TREE)
    chosen = optimizer(fit, 10, around)
    with jax.numpy_dtype_promotion("standard"):
        change, _ = chosen.update(zero, chosen.init(TREE), TREE)
    return jax.tree.map(lambda x: x.tolist(), change)


def test_only_decay_moves_what_has_no_gradient():
    assert first_step(Fit()) == {"params": {"w": [0.0, 0.0]}, "learn": {"clip": [0.0]}}
    change = first_step(Fit(step_lr=0.01, step_decay=0.1))
    assert change["params"] == {"w": [0.0, 0.0]}
    # Adam's first step is the learning rate; its 1 - 0.999 in float32 is off by 2**-24 / 0.001 relatively
    np.testing.assert_allclose(change["learn"]["clip"], -0.01, rtol=2.0**-24 / 0.001)


def test_around_is_given_the_optimizer_and_the_steps():
    seen = []

    def around(adam, steps):
        seen.append(steps)
        return optax.chain(adam, optax.add_decayed_weights(0.5))

    change = first_step(Fit(step_decay=0.0), around)
    assert seen == [10]
    assert change == {"params": {"w": [1.0, -1.5]}, "learn": {"clip": [0.0]}}


def test_a_penalty_is_added_to_the_loss():
    def fn(params, state, x):
        return x @ params["w"]

    def penalty(plan, params, qstate):
        assert [row.path for row in plan.quantized] == ["w"]
        return 3.0 * jnp.sum(jnp.square(params["w"]))

    params = {"w": jnp.array([[1.0, -0.5], [0.25, 0.75]])}
    x, labels = jnp.array([[1.0, 2.0], [3.0, -1.0]]), jnp.array([0, 1])
    plan = lb.bind(fn, {"**": "w4"}, params, {}, x)
    qstate = lb.init(fn, plan, params, {}, x)
    tree, rest = {"params": params, "learn": qstate["learn"]}, {"state": {}, "fixed": qstate["fixed"]}
    arguments = (tree, rest, x, labels, jax.random.key(0), jnp.int32(0))
    plain, _ = quantized_loss(fn, None, plan, cross_entropy, None, None)(*arguments)
    both, _ = quantized_loss(fn, None, plan, cross_entropy, penalty, None)(*arguments)
    assert float(plain) == float(cross_entropy(lb.simulate(fn, plan)(params, qstate, {}, x), labels))
    assert float(both) == float(plain + jnp.float32(3.0 * 1.875))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fit": None, "rounding": "gemmlowp_double"}, "set integer=True"),
        ({"recipe": "gptq"}, "a recipe does all"),
        ({"rewrites": lambda x: ()}, "give one of them"),
        ({"fit": None, "penalty": lambda *a: jnp.zeros(())}, "give it a fit"),
        ({"fit": None, "around": lambda adam, steps: adam}, "give it a fit"),
        ({"penalty": lambda *a: jnp.zeros(()), "around": lambda adam, steps: adam}, "give one of them"),
    ],
)
def test_method_checks(change, message):
    with pytest.raises(ValueError, match=message):
        Method(**{"name": "m", "rules": {"**": "w4"}, "fit": Fit(), **change})
