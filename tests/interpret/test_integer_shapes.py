"""Full-integer plans where shapes matter: one grid behind reshapes, constants of a program for many samples."""

import jax.numpy as jnp
import numpy as np

import lowbit as lb
from tests.values import normal

W = {"a": normal(0, 8, 6) * 0.5, "b": normal(1, 8, 3) * 0.5}
X = normal(2, 2, 5, 8)


def test_one_grid_holds_values_of_several_ranks():
    """Heads of a detector: reshaped, then concatenated; the grid's scale has the rank of its first value."""

    def fn(p, x):
        return jnp.concatenate([(x @ p["a"]).reshape(2, -1), (x @ p["b"]).reshape(2, -1)], 1)

    plan = lb.bind(fn, {"**": "w8,a8"}, W, X, integer=True)
    assert [step.kind for step in plan.steps] == ["input", "dot", "move", "dot", "move", "concatenate"]
    qstate = lb.calibrate(fn, plan, W, [(X,)])
    want = lb.simulate(fn, plan)(W, qstate, X)
    np.testing.assert_array_equal(want, lb.execute(fn, plan)(lb.pack(plan, W, qstate), X))
    assert float(jnp.max(jnp.abs(want - fn(W, X)))) < 0.03 * float(jnp.max(jnp.abs(want)))
    trained, _ = lb.simulate(fn, plan, train=True)(W, qstate, X)
    np.testing.assert_array_equal(trained, want)


def test_constants_do_not_grow_with_the_batch(tmp_path):
    """Multipliers and shifts are per channel; spread over the accumulator's shape they would be stored at it."""

    def fn(p, x):
        return x @ p["a"]

    sizes = []
    for batch in (1, 64):
        x = jnp.tile(normal(3, 1, 5, 8), (batch, 1, 1))
        plan = lb.bind(fn, {"**": "w8,a8"}, W, x, integer=True)
        qparams = lb.pack(plan, W, lb.init(fn, plan, W, x))
        bundle = lb.export(fn, plan, qparams, (x,), tmp_path / str(batch), integer_io=True)
        sizes.append(bundle.manifest["constant_bytes"])
    assert max(sizes) < 1000
    assert abs(sizes[0] - sizes[1]) < 32  # constants of one value, of which there may be one or two more
