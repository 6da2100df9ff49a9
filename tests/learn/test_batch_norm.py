"""Re-estimation: the right statistics, whatever was there before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.learn.batch_norm import reestimate
from tests.rewrites.models import linen_net, nnx_net

EPS = float(jnp.finfo(jnp.float32).eps)


@pytest.mark.parametrize("net", [linen_net, nnx_net])
def test_spoiled_statistics_are_recovered(net):
    """The mean over batches of what the quantized network's own norms measure; random streams stay where they were."""
    model = net()
    plan = lb.bind(model.fn, {"**": "w4,a4"}, model.params, model.state, model.x)
    qstate = lb.init(model.fn, plan, model.params, model.state, model.x)
    batches = [(model.x * (1.0 + i) + i,) for i in range(3)]
    spoiled = jax.tree.map(lambda x: 100.0 + x if jnp.issubdtype(x.dtype, jnp.floating) else x, model.state)
    done = []
    run = lb.simulate(model.train_fn, plan)
    after = reestimate(
        model.train_fn, plan, model.params, qstate, spoiled, batches, kwargs=model.kwargs, progress=done.append
    )
    assert done == [1, 2, 3]
    share = 1.0 - model.momentum
    states = [run(model.params, qstate, spoiled, *batch, **model.kwargs)[1] for batch in batches]
    paths = [keys for keys, _ in jax.tree_util.tree_flatten_with_path(spoiled)[0]]
    for keys, old, got, *new in zip(paths, *(jax.tree.leaves(s) for s in (spoiled, after, *states)), strict=True):
        if not jnp.issubdtype(old.dtype, jnp.floating):
            assert (got == old).all(), keys
            continue
        measured = np.mean([(np.float64(n) - model.momentum * np.float64(old)) / share for n in new], axis=0)
        # the reference undoes m * 100 + (1 - m) * batch, each rounded once: an error of eps * 200 / (1 - m) at most
        np.testing.assert_allclose(got, measured, atol=200 * EPS / share, rtol=4 * EPS / share)


def test_what_is_no_running_average_is_refused():
    fn = lambda p, s, x: (x @ p, {"seen": s["seen"] + 1.0})  # noqa: E731
    p, x, state = jnp.ones((2, 2)), jnp.ones((3, 2)), {"seen": jnp.zeros(())}
    plan = lb.bind(fn, {}, p, state, x)
    empty = {"learn": {}, "fixed": {}}
    with pytest.raises(ValueError, match="updates no running statistic"):
        reestimate(fn, plan, p, empty, state, [(x,)])
    with pytest.raises(ValueError, match="batches is empty"):
        reestimate(fn, plan, p, empty, state, [])
    with pytest.raises(TypeError, match=r"tuple of arguments \(x,\), got ArrayImpl"):
        reestimate(fn, plan, p, empty, state, [x])
    evaluate = lambda p, s, x: x @ p  # noqa: E731
    with pytest.raises(TypeError, match="must return"):
        reestimate(evaluate, lb.bind(evaluate, {}, p, state, x), p, empty, state, [(x,)])
