"""Networks with batch norm and dropout train by QAT, then evaluate, pack and execute: in linen and in nnx, folded or not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lowbit as lb
from lowbit.learn.batch_norm import reestimate
from lowbit.learn.distill import logits_loss
from lowbit.learn.labels import decay_mask, with_step_optimizer
from lowbit.learn.schedule import delayed
from lowbit.rewrites.batch_norm import fold
from tests.rewrites.models import linen_net, nnx_net

STEPS, DELAY, FREEZE = 24, 4, 16


def _batches():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, (STEPS, 12))
    images = 0.5 * draw.standard_normal((STEPS, 12, 8, 8, 3)) + np.eye(3)[labels][:, :, None, None, :]
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32)


def _optimizer(tree):
    decay = optax.add_decayed_weights(1e-4, mask=lambda p: decay_mask({"params": p, "learn": {}})["params"])
    return with_step_optimizer(optax.chain(decay, optax.adam(1e-2)), optax.adam(1e-3))


def _untouched(fn, params, state):
    return fn, params, state


@pytest.mark.parametrize(
    ("net", "is_folded"),
    [
        pytest.param(linen_net, False, marks=pytest.mark.slow),
        pytest.param(linen_net, True, marks=pytest.mark.slow),
        pytest.param(nnx_net, False, marks=pytest.mark.slow),
        (nnx_net, True),
    ],
)
def test_a_network_trains_and_is_served(net, is_folded):
    """Delay, two learning rates, decay, distillation, freeze, re-estimation; then simulate and execute agree bit for bit."""
    model = net()
    rewrite = fold(model.x) if is_folded else _untouched
    rewrite_train = fold(model.x, **model.kwargs) if is_folded else _untouched
    images, labels = _batches()

    fn, params, state = rewrite(model.fn, model.params, model.state)
    plan = lb.bind(fn, {"**": delayed(lb.lsq("w4,a4"), DELAY)}, params, state, model.x)
    qstate = lb.init(fn, plan, params, state, images[0])
    tree = {"params": model.params, "learn": qstate["learn"]}
    optimizer = _optimizer(tree)

    def loss(tree, state, x, label, step):
        fn, params, state = rewrite_train(model.train_fn, tree["params"], state)
        more = {"frozen": step >= FREEZE} if is_folded else {}
        run = lb.simulate(fn, plan, train=True)
        now = {"learn": tree["learn"], "fixed": qstate["fixed"]}
        (y, state), _ = run(params, now, state, x, step=step, **model.kwargs, **more)
        teacher = 4.0 * jax.nn.one_hot(label, 3)
        return optax.softmax_cross_entropy_with_integer_labels(y, label).mean() + 0.1 * logits_loss(y, teacher), state

    @jax.jit
    def step(tree, state, moments, x, label, index):
        (value, state), gradients = jax.value_and_grad(loss, has_aux=True)(tree, state, x, label, index)
        with jax.numpy_dtype_promotion("standard"):  # optax promotes
            change, moments = optimizer.update(gradients, moments, tree)
            return optax.apply_updates(tree, change), state, moments, value

    state, moments, losses = model.state, optimizer.init(tree), []
    for i in range(STEPS):
        before = state
        tree, state, moments, value = step(tree, state, moments, images[i], labels[i], jnp.int32(i))
        losses.append(float(value))
    assert step._cache_size() == 1  # neither the delay nor the freeze compiles anew
    assert np.mean(losses[-4:]) < 0.6 * np.mean(losses[:2])
    stood = [bool((a == b).all()) for a, b in zip(*map(_vectors, (before, state)), strict=True)]
    assert all(stood) if is_folded else not any(stood)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), tree["learn"], qstate["learn"])
    assert all(jax.tree.leaves(moved))

    trained = {"learn": tree["learn"], "fixed": qstate["fixed"]}
    if not is_folded:
        state = reestimate(
            model.train_fn, plan, tree["params"], trained, state, [(x,) for x in images[:2]], kwargs=model.kwargs
        )
    fn, params, state = rewrite(model.fn, tree["params"], state)
    y = lb.simulate(fn, plan)(params, trained, state, images[0])
    served = lb.execute(fn, plan)(lb.pack(plan, params, trained), state, images[0])
    np.testing.assert_array_equal(y, served)
    assert np.mean(np.argmax(y, -1) == labels[0]) >= 0.75


def _vectors(tree):
    return [x for x in jax.tree.leaves(tree) if x.ndim == 1]
