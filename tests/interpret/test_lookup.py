"""Rows of a parameter that data picks: a look-up, however it is spelled, of one row or of many.

The truth is written here in float64: a weight of 8 bits has a step of ``max |w| / 127`` per channel, and rounds to even.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from lowbit.interpret.lookup import lookup
from tests.values import heavy_tailed, normal

TABLE = heavy_tailed(0, 11, 6)
CUBE = heavy_tailed(1, 4, 5, 6)


def rounded(x, axes, bits=8):
    """A symmetric weight on its grid, in float64; ``axes`` share a step."""
    x = np.asarray(x, np.float64)
    most = 2 ** (bits - 1) - 1
    step = (np.abs(x).max(axes, keepdims=True).astype(np.float32) * np.float32(1 / most)).astype(np.float64)
    return np.clip(np.round(x / step), -most - 1, most) * step


def served(fn, rules, params, bound, *calls):
    """What a plan bound on one call makes of others: ``[(simulated, executed)]``, and the plan."""
    plan = lb.bind(fn, rules, params, *bound)
    qstate = lb.init(fn, plan, params, *bound)
    qparams = lb.pack(plan, params, qstate)
    found = []
    for args in calls:
        want = lb.simulate(fn, plan)(params, qstate, *args)
        found.append((np.asarray(want), np.asarray(lb.execute(fn, plan)(qparams, *args))))
    return found, plan


def _vmapped(p, i):
    return jax.vmap(lambda i: p["t"][i])(i)


def _index_in_dim(p, i):
    return jax.vmap(lambda i: lax.dynamic_index_in_dim(p["t"], i, keepdims=False))(i)


def _slices(p, i):
    return jax.vmap(lambda i: lax.dynamic_slice(p["t"], (i, 0), (1, 6))[0])(i)


def _carried(p, i):
    return lax.map(lambda i: p["t"][i], i)


def _moved(p, i):
    return p["t"].T[::-1].T[i]


def _gathered(mode, p, i):
    numbers = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))
    return lax.gather(p["t"], i[:, None], numbers, (1, 6), mode=mode)


SPELLINGS = {
    "index": lambda p, i: p["t"][i],
    "take": lambda p, i: jnp.take(p["t"], i, axis=0),
    "clip": lambda p, i: jnp.take(p["t"], i, axis=0, mode="clip"),
    "vmap": _vmapped,
    "index_in_dim": _index_in_dim,
    "slices": _slices,
    "scan": _carried,
    "moved": _moved,
    "promised": functools.partial(_gathered, "promise_in_bounds"),
    "gather": functools.partial(_gathered, "clip"),
    "one by one": lambda p, i: jnp.stack([p["t"][j] for j in i]),
    "in a jit": lambda p, i: jax.jit(lambda t, i: t[i])(p["t"], i),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_a_look_up(name):
    fn = SPELLINGS[name]
    index = jnp.array([3, 0, 10, 7])
    rows = rounded(TABLE, 1)
    rows = rows[:, ::-1] if name == "moved" else rows
    ((want, got),), plan = served(fn, {"**": "w8"}, {"t": TABLE}, (jnp.array([1, 2, 5, 5]),), (index,))
    assert {(row.base, row.primitive, row.weight.kind) for row in plan} == {("t", "gather", "leaf")}
    np.testing.assert_allclose(got, rows[np.asarray(index)], rtol=1e-6)
    np.testing.assert_array_equal(want, got)


@pytest.mark.parametrize("bound", [(), (1,), (5,), (2, 3)])
def test_one_row_and_many_have_one_plan(bound):
    def fn(p, tokens, at):
        h = p["t"][tokens] + p["position"][at]
        return jnp.tanh(h.reshape(-1, 6) @ p["w"]) @ p["t"].T

    params = {"t": TABLE, "position": normal(2, 7, 6), "w": normal(3, 6, 6)}
    shapes = [(), (1,), (5,), (2, 3)]
    calls = [
        (jnp.arange(np.prod(s, dtype=int)).reshape(s) % 11, jnp.arange(np.prod(s, dtype=int)).reshape(s))
        for s in shapes
    ]
    of = dict(zip(shapes, calls, strict=True))
    found, plan = served(fn, {"**": "w8"}, params, of[bound], *calls)
    assert plan == lb.bind(fn, {"**": "w8"}, params, *of[(5,)])
    assert [row.path for row in plan] == ["t@0", "position", "w", "t@1"]
    table, position, w = rounded(TABLE, 1), rounded(params["position"], 1), rounded(params["w"], 0)
    for (tokens, at), (want, got) in zip(calls, found, strict=True):
        h = (table[np.asarray(tokens)] + position[np.asarray(at)]).reshape(-1, 6)
        truth = np.tanh(h @ w) @ table.T
        np.testing.assert_allclose(want, truth, atol=1e-5)
        np.testing.assert_allclose(got, truth, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "fill", "outside"),
    [("fill", None, np.nan), ("fill", 0.0, 0.0), ("fill", 7.5, 7.5), ("clip", None, "last")],
)
def test_an_index_out_of_range_is_what_the_mode_says(mode, fill, outside):
    def fn(p, i):
        return p["t"].at[i].get(mode=mode, fill_value=fill)

    rows = rounded(TABLE, 1)
    for index in (jnp.array([2, 40]), jnp.array(40)):
        ((want, got),), _ = served(fn, {"**": "w4/g2,a8"}, {"t": TABLE}, (index,), (index,))
        np.testing.assert_array_equal(want, got)
        np.testing.assert_allclose(np.isnan(got), np.isnan(np.asarray(fn({"t": TABLE}, index))))
        ((want, got),), _ = served(fn, {"**": "w8"}, {"t": TABLE}, (index,), (index,))
        np.testing.assert_array_equal(want, got)
        last = got[-1] if got.ndim == 2 else got
        truth = rows[-1] if outside == "last" else np.full(6, outside)
        np.testing.assert_allclose(last, truth, rtol=1e-6)
        if got.ndim == 2:
            np.testing.assert_allclose(got[0], rows[2], rtol=1e-6)


VECTOR = heavy_tailed(4, 11)
ELEMENTS = {
    "index": lambda p, i: p["t"][i],
    "vmap": lambda p, i: jax.vmap(lambda i: lax.dynamic_index_in_dim(p["t"], i, keepdims=False))(i),
    "slices": lambda p, i: lax.map(lambda i: lax.dynamic_slice(p["t"], (i,), (1,))[0], i),
}


@pytest.mark.parametrize("name", ELEMENTS)
def test_elements_of_a_vector_share_one_scale(name):
    """Biases of tokens or of distances. Each had a scale of its own, and that of a negative one was a block of zeros'."""
    fn, index = ELEMENTS[name], jnp.array([3, 0, 10, 7])
    assert (VECTOR < 0).any()
    for rule, right in (("w8", rounded(VECTOR, 0)), ("w4/g4", None)):
        ((want, got),), plan = served(fn, {"**": rule}, {"t": VECTOR}, (jnp.array([1, 2, 5, 5]),), (index,))
        np.testing.assert_array_equal(want, got)
        assert plan["t"].weight.operand.contract == (0,)
        if right is None:
            padded = np.concatenate([np.asarray(VECTOR, np.float64), [0.0]]).reshape(3, 4)
            right = rounded(padded, 1, bits=4).reshape(-1)
        np.testing.assert_allclose(got, right[np.asarray(index)], rtol=1e-6)


def _any_lookup(rng):
    """A random look-up in ``CUBE``, ``(function of the table and indices, indices)``: windows, batches, any order of axes."""
    sizes = [int(rng.integers(1, n + 1)) for n in CUBE.shape]
    if rng.random() < 0.4:
        starts = [jnp.int32(rng.integers(n + 1)) for n in CUBE.shape]
        return lambda t, *at: lax.dynamic_slice(t, at, sizes), starts
    batched = [0] if rng.random() < 0.3 else []
    count = (4,) if batched else tuple(rng.integers(1, 4, rng.integers(0, 3)))
    named = [int(a) for a in rng.permutation([a for a in range(3) if a not in batched])[: rng.integers(1, 3)]]
    collapsed = [a for a in range(3) if a in named and rng.random() < 0.6]
    for a in (*batched, *collapsed):
        sizes[a] = 1
    rank = len(count) + 3 - len(batched) - len(collapsed)
    numbers = lax.GatherDimensionNumbers(
        offset_dims=tuple(sorted(int(i) for i in rng.permutation(rank)[: rank - len(count)])),
        collapsed_slice_dims=tuple(collapsed),
        start_index_map=tuple(named),
        operand_batching_dims=tuple(batched),
        start_indices_batching_dims=(0,) if batched else (),
    )
    high = [max(CUBE.shape[a] - sizes[a], 0) + 2 for a in named]
    index = jnp.asarray(rng.integers(-1, high, (*count, len(named))), jnp.int32)
    mode, fill = [("clip", None), ("fill", None), ("fill", 2.5), ("fill", 0.0)][rng.integers(4)]
    return lambda t, i: lax.gather(t, i, numbers, sizes, mode=mode, fill_value=fill), [index]


@pytest.mark.parametrize("rule", ["w4/tensor", "w3", "w4/g2", "w8/affine", "wnf4/g4", "w4/t3x2"])
def test_scales_follow_any_look_up(rule):
    """The elements are those of the whole table on its grid; with double-quantized scales, zero points, groups, tiles."""
    take = lambda p, i: p["t"][i]  # noqa: E731
    plan = lb.bind(take, {"**": rule}, {"t": CUBE}, jnp.int32(0))
    table = lb.pack(plan, {"t": CUBE}, lb.init(take, plan, {"t": CUBE}, jnp.int32(0))).params["t"]
    whole, rng = table.dequantize(), np.random.default_rng(0)
    shapes = set()
    for _ in range(10):
        fn, indices = _any_lookup(rng)
        eqn = jax.make_jaxpr(fn)(whole, *indices).eqns[-1]
        want = fn(whole, *indices)
        np.testing.assert_array_equal(lookup(eqn, table, indices), want)
        shapes.add(want.shape)
    assert len(shapes) > 5


def test_tables_picked_per_example_and_elements_along_an_axis():
    def tables(p, i):
        return jax.vmap(lambda t, i: t[i])(p["t"], i)

    def elements(p, i):
        return jnp.take_along_axis(p["t"], i, axis=1)

    index = jnp.array([2, 0, 4, 4])
    ((_, got),), plan = served(tables, {"**": "w8"}, {"t": CUBE}, (index,), (index,))
    np.testing.assert_allclose(got, rounded(CUBE, 2)[np.arange(4), np.asarray(index)], rtol=1e-6)
    assert plan.rows[0].weight.operand.contract == (2,)
    index = jnp.array([[2], [0], [5], [4]] * 2 + [[1]] * 3)
    ((_, got),), _ = served(elements, {"**": "w8"}, {"t": TABLE}, (index,), (index,))
    np.testing.assert_allclose(got, np.take_along_axis(rounded(TABLE, 1), np.asarray(index), 1), rtol=1e-6)


def test_a_one_hot_product_stays_a_product():
    plan = lb.bind(lambda p, i: jax.nn.one_hot(i, 11) @ p["t"], {"**": "w8"}, {"t": TABLE}, jnp.array([1, 2]))
    assert [(row.path, row.primitive) for row in plan] == [("t", "dot_general")]


def test_a_table_computed_from_parameters_is_a_derived_weight():
    def fn(p, i):
        return (p["t"] * p["scale"])[i]

    params = {"t": TABLE, "scale": normal(4, 6)}
    for index in (jnp.array([4, 1]), jnp.array(4)):
        ((want, got),), plan = served(fn, {"**": "w8"}, params, (index,), (index,))
        assert [(row.path, row.weight.kind) for row in plan] == [("t", "derived")]
        assert set(plan.dropped) == {"t", "scale"}
        table = rounded(np.asarray(TABLE, np.float32) * np.asarray(params["scale"], np.float32), 1)
        np.testing.assert_allclose(got, table[np.asarray(index)], rtol=1e-6)
        np.testing.assert_array_equal(want, got)


def test_of_no_index_a_tied_table_is_still_the_second_of_its_operations():
    """jax looks nothing up where nothing is asked for; what does not depend on it keeps its name, and its input's range."""

    def fn(p, i, x):
        scores = p["t"][i] @ p["t"].T
        return scores, x @ p["t"].T

    some, x = jnp.array([1, 4]), normal(3, 2, 6)
    plan = lb.bind(fn, {"**": "w8/tensor,a8"}, {"t": TABLE}, some, x)
    qstate = lb.init(fn, plan, {"t": TABLE}, some, x)
    assert [row.path for row in plan] == ["t@0", "t@1", "t@2"]
    qparams = lb.pack(plan, {"t": TABLE}, qstate)
    for run in (
        lambda i: lb.simulate(fn, plan)({"t": TABLE}, qstate, i, x),
        lambda i: lb.execute(fn, plan)(qparams, i, x),
        lambda i: lb.execute(fn, plan, implementation="reference")(qparams, i, x),
    ):
        empty, other = run(jnp.zeros(0, jnp.int32))
        assert empty.shape == (0, 11)
        assert np.abs(other - run(some)[1]).max() < 0.05 * np.abs(other).max()


def test_gradients_reach_the_rows_that_were_picked():
    def fn(p, i):
        return p["t"][i]

    plan = lb.bind(fn, {"**": "w8"}, {"t": TABLE}, jnp.int32(0))
    qstate = lb.init(fn, plan, {"t": TABLE}, jnp.int32(0))
    run = lb.simulate(fn, plan)
    found = jax.grad(lambda p: jnp.sum(run(p, qstate, jnp.int32(4))))({"t": TABLE})["t"]
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(found).any(1)), [4])


def test_rows_that_meet_data_are_no_weights():
    """Factors of users and items: what is looked up is an input of the product, for one user and for many."""

    def fn(p, u, i):
        return jax.vmap(lambda u, i: p["u"][u] @ p["v"][i])(u, i)

    params = {"u": TABLE, "v": normal(9, 7, 6)}
    plan = lb.bind(fn, {"**": "w8"}, params, jnp.array([1, 2]), jnp.array([3, 4]))
    assert [(row.path, row.primitive) for row in plan] == [
        ("u", "gather"), ("v", "gather"), ("dot_0", "dot_general"),
    ]  # fmt: skip
