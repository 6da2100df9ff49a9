"""`lax.ragged_dot`: rows meet the matrix of their group. The truth is written here in float64, row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from tests.values import heavy_tailed, normal

SIZES = jnp.array([2, 0, 3], jnp.int32)
"""Of seven rows: an empty group, and two rows behind the last."""
P = {"w": heavy_tailed(0, 3, 8, 6) * jnp.array([1.0, 10.0, 0.1])[:, None, None], "v": normal(1, 6, 4)}
X = normal(2, 7, 8)


def plain(p, x, sizes):
    return lax.ragged_dot(x, p["w"], sizes)


def turned(p, x, sizes):
    """The contraction first, groups last: as another layout of the same leaf."""
    numbers = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (1,), (2,))
    return lax.ragged_dot_general(x.T, jnp.transpose(p["w"], (1, 2, 0)), sizes, numbers)


def _rounded(x, axis):
    x = np.asarray(x, np.float64)
    step = (np.abs(x).max(axis, keepdims=True).astype(np.float32) * np.float32(1 / 127)).astype(np.float64)
    return np.round(x / step) * step


def _truth(x, w):
    out, row = np.zeros((len(x), w.shape[2])), 0
    for group, size in enumerate(np.asarray(SIZES)):
        out[row : row + size] = np.asarray(x, np.float64)[row : row + size] @ w[group]
        row += size
    return out


def _served(fn, rule, params, *args):
    plan = lb.bind(fn, {"**": rule}, params, *args)
    qstate = lb.init(fn, plan, params, *args)
    qparams = lb.pack(plan, params, qstate)
    want = np.asarray(lb.simulate(fn, plan)(params, qstate, *args))
    for implementation in (None, "carried", "reference"):
        got = np.asarray(lb.execute(fn, plan, implementation=implementation)(qparams, *args))
        if all(row.is_integer for row in plan):
            np.testing.assert_array_equal(got, want)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    return want, plan


@pytest.mark.parametrize("fn", [plain, turned])
@pytest.mark.parametrize("rule", ["w8,a8/dynamic", "w8"])
def test_every_group_has_the_scales_of_its_channels(fn, rule):
    """One grid for all groups would be off by a hundred steps: their ranges differ so much."""
    got, plan = _served(fn, rule, P, X, SIZES)
    assert [(row.path, row.primitive, row.source.split(":")[0]) for row in plan] == [
        ("w", "dot_general", "test_ragged.py")
    ]
    assert plan["w"].weight.operand.shape == (3, 8, 6)
    x = _rounded(X, 1) if "a8" in rule else np.asarray(X, np.float64)
    truth = _truth(x, _rounded(P["w"], 1))
    np.testing.assert_allclose(got, truth, rtol=1e-4, atol=1e-4)
    assert not got[5:].any()


def test_examples_with_groups_and_matrices_of_their_own():
    """Under ``vmap`` jax wants a matrix for each: the second example's have half the values, and one group more of its rows."""
    params = {"w": jnp.stack([P["w"], P["w"] * 0.5])}
    sizes = jnp.stack([SIZES, SIZES])

    def fn(p, x, sizes):
        return jax.vmap(lax.ragged_dot)(x, p["w"], sizes)

    got, _ = _served(fn, "w8,a8/dynamic", params, jnp.stack([X, X]), sizes)
    truth = _truth(_rounded(X, 1), _rounded(P["w"], 1))
    np.testing.assert_allclose(got, [truth, truth * 0.5], rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_groups_that_have_rows():
    plan = lb.bind(plain, {"**": "w8,a8"}, P, X, SIZES)
    qstate = lb.init(plain, plan, P, X, SIZES)
    run = lb.simulate(plain, plan)
    found = jax.grad(lambda p: jnp.sum(run(p, qstate, X, SIZES) ** 2))(P)["w"]
    float_ = jax.grad(lambda p: jnp.sum(plain(p, X, SIZES) ** 2))(P)["w"]
    assert np.asarray(found).any((1, 2)).tolist() == [True, False, True]
    scale = np.abs(float_).max((1, 2), keepdims=True) + 1e-9
    assert (np.abs(found - float_) / scale).max() < 0.1


def test_stacked_layers_of_groups_and_a_layer_that_is_kept():
    """A scan over two layers; the head is kept, and computes what it did before: the same equation."""
    params = {"layers": jnp.stack([P["w"][:, :, :1] * jnp.ones(8), P["w"][:, :, 1:2] * jnp.ones(8)]), "head": P["w"]}

    def fn(p, x, sizes):
        h = lax.scan(lambda h, w: (jnp.tanh(lax.ragged_dot(h, w, sizes)), None), x, p["layers"])[0]
        return h, lax.ragged_dot(h, p["head"], sizes)

    plan = lb.bind(fn, {"head": "keep", "**": "w8,a8"}, params, X, SIZES)
    assert [(row.path, row.stack, row.is_quantized) for row in plan] == [
        ("layers", (2, 3), True),
        ("head", (3,), False),
    ]
    qstate = lb.init(fn, plan, params, X, SIZES)
    hidden, want = lb.simulate(fn, plan)(params, qstate, X, SIZES)
    served, got = lb.execute(fn, plan)(lb.pack(plan, params, qstate), X, SIZES)
    np.testing.assert_array_equal(hidden, served)
    # A kept sum of eight floats: XLA rounds its products as it fuses them, in each program anew.
    experts = np.repeat(np.arange(len(SIZES)), SIZES)
    size = np.zeros(want.shape)  # rows behind the last group are zeros
    size[: len(experts)] = np.einsum("mk,mkn->mn", *map(np.abs, (hidden[: len(experts)], params["head"][experts])))
    assert np.all(np.abs(want - got) <= 8 * np.finfo(np.float32).eps * size)
    near = np.asarray(fn(params, X, SIZES)[1])
    assert np.abs(want - near).max() < 0.05 * np.abs(near).max()
    assert "ragged_dot_general" in str(
        jax.make_jaxpr(lambda p, x: lb.simulate(fn, plan)(p, qstate, x, SIZES))(params, X)
    )


def test_full_integer_plans_write_the_groups_out_and_forms_that_are_not_read_are_named(tmp_path):
    def fn(p, x, sizes):
        return jax.nn.relu(plain(p, x, sizes)) @ p["v"]

    params = {**P, "w": heavy_tailed(0, 3, 8, 6)}
    plan = lb.bind(fn, {"**": "w8,a8"}, params, X, SIZES, integer=True)
    qstate = lb.init(fn, plan, params, X, SIZES)
    got = np.asarray(lb.simulate(fn, plan)(params, qstate, X, SIZES))
    np.testing.assert_array_equal(got, lb.execute(fn, plan)(lb.pack(plan, params, qstate), X, SIZES))
    truth = np.maximum(_truth(X, np.asarray(params["w"], np.float64)), 0) @ np.asarray(params["v"], np.float64)
    assert np.abs(got - truth).max() < 0.03 * np.abs(truth).max()

    def along_the_contraction(p, x, sizes):
        numbers = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ())
        return lax.ragged_dot_general(x, p["rows"], sizes, numbers), x @ p["v2"]

    params = {"rows": normal(3, 7, 6), "v2": normal(4, 8, 4)}
    plan = lb.bind(along_the_contraction, {"**": "w8,a8"}, params, X, SIZES)
    assert plan.unseen[0][0] == "ragged_dot_general"
    assert [leaf.path for leaf in plan.uncovered] == ["rows"]
    with pytest.raises(ValueError, match=r"cannot place ragged_dot_general \(test_ragged.py:\d+\)"):
        lb.bind(along_the_contraction, {"**": "w8,a8"}, params, X, SIZES, integer=True)
