"""Full-integer plans where shapes matter: one grid behind reshapes, constants of a program for many samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

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


def _joined_ranks(p, x):
    blocks = jnp.einsum("bghk,kn->bghn", x.reshape(2, 5, 1, 8), p["a"])
    return jnp.concatenate([x @ p["a"], blocks.reshape(2, 5, 6)], 1)


def _joined_sums(p, x):
    y = x @ p["a"]
    return jnp.stack([jnp.broadcast_to(y.sum(), (6,)), y.sum((0, 1))])


@pytest.mark.parametrize("fn", [_joined_ranks, _joined_sums])
def test_spans_of_values_of_several_ranks_are_measured_together(fn):
    """Blocks of attention, joined; and a sum of everything, which has no axis."""
    plan = lb.bind(fn, {"**": "w8,a8"}, W, X, integer=True)
    qstate = lb.init(fn, plan, W, X)
    want = lb.simulate(fn, plan)(W, qstate, X)
    np.testing.assert_array_equal(want, lb.execute(fn, plan)(lb.pack(plan, W, qstate), X))
    assert float(jnp.max(jnp.abs(want - fn(W, X)))) < 0.03 * float(jnp.max(jnp.abs(want)))
    trained, after = lb.simulate(fn, plan, train=True)(W, qstate, X)
    np.testing.assert_array_equal(trained, want)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, qstate)


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


def test_a_kernel_that_is_computed_has_a_zero_point_of_its_own():
    """A convolution of two activations, padded, both far from zero in the mean: the reference is what is exported."""

    def fn(p, z, x):
        kernel = (z @ p["w"] + 1.0).reshape(3, 3, 2, 1)
        return lax.conv_general_dilated(x, kernel, (1, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    params, z, x = {"w": normal(0, 8, 18) * 0.3}, normal(1, 8), normal(2, 2, 5, 6, 2) + 0.7
    plan = lb.bind(fn, {"**": "w8,a8"}, params, z, x, integer=True)
    qstate = lb.init(fn, plan, params, z, x)
    qparams = lb.pack(plan, params, qstate)
    want = np.asarray(lb.simulate(fn, plan)(params, qstate, z, x))
    for implementation in ("carried", "reference"):
        got = np.asarray(lb.execute(fn, plan, implementation=implementation)(qparams, z, x))
        np.testing.assert_array_equal(got, want)
    kernel = (np.asarray(z, np.float64) @ np.asarray(params["w"], np.float64) + 1).reshape(3, 3, 2)
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (0, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, :, ::2]
    truth = np.einsum("nhwcij,ijc->nhw", windows, kernel)[..., None]
    assert np.abs(want - truth).max() < 0.03 * np.abs(truth).max()
