"""One operation alone, and a model moved by a little: every model of the zoo, and numbers written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from lowbit.interpret.trace import trace
from lowbit.interpret.walk import Walk
from lowbit.observe.perturbed import perturbed, zeros
from lowbit.observe.replay import replay
from lowbit.plan.serial import from_json, to_json
from tests.interpret.zoo import CASES
from tests.values import heavy_tailed, normal

OWN_GRADIENT = {"own_gradient": "body"}
EPS = float(jnp.finfo(jnp.float32).eps)


def _plan(case):
    return lb.bind(case.fn, {}, case.params, *case.args)


def _floats(tree):
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


@pytest.mark.parametrize("name", CASES)
def test_every_operation_replayed_alone_is_the_model(name):
    case = CASES[name]()
    plan = _plan(case)

    def through_replay(params, *args):
        traced = trace(case.fn, params, args, {})

        def at(op, values, state):
            return replay(plan[op.path], values[0], values[1]), state

        walk = Walk(traced.inventory, at, frozenset(row.path for row in plan))
        return jax.tree.unflatten(traced.out_tree, walk.run(traced.leaves, {})[0])

    want, got = jax.jit(case.fn)(case.params, *case.args), jax.jit(through_replay)(case.params, *case.args)
    for a, b in zip(_floats(want), _floats(got), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", CASES)
def test_a_leaf_s_delta_is_another_leaf_and_zeros_at_every_result_change_nothing(name):
    case = CASES[name]()
    plan = _plan(case)
    leaves = {site.key for row in plan for site in row.sites if site.kind == "leaf"}
    weights = zeros(case.fn, plan, case.params, *case.args, roles=("weight",))
    outputs = zeros(case.fn, plan, case.params, *case.args, roles=("output",))
    assert set(outputs) == {row.path for row in plan}
    moved = {k: 0.25 * jnp.sign(heavy_tailed(7, *v["weight"].shape)) for k, v in weights.items() if k in leaves}
    deltas = {k: dict(roles) for k, roles in outputs.items()}
    for k, delta in moved.items():
        deltas.setdefault(k, {})["weight"] = delta
    traced = trace(case.fn, case.params, case.args, {})
    values = [
        leaf + moved[path].astype(leaf.dtype) if path in moved else leaf
        for path, leaf in zip(traced.paths, jax.tree.leaves(case.params), strict=True)
    ]
    other = jax.tree.unflatten(jax.tree.structure(case.params), values)
    run = perturbed(case.fn, plan, custom_vjp=OWN_GRADIENT.get(name, "raise"))
    want, got = jax.jit(case.fn)(other, *case.args), run(case.params, deltas, *case.args)
    narrow = any(roles["output"].dtype == jnp.bfloat16 for roles in outputs.values())
    for a, b in zip(_floats(want), _floats(got), strict=True):
        # XLA keeps a sum of bfloat16 in float32 where nothing reads it between: half a step of the result. Of float32, it
        # rounds a product and its sum once or twice as it fuses them, which differs with the processor: some steps of the
        # largest entry.
        bound = 0.5 * float(jnp.finfo(jnp.bfloat16).eps) * np.abs(a) if narrow else 16 * EPS * np.abs(a).max(initial=0)
        assert np.all(np.abs(a - b) <= bound)


def test_derivatives_by_results_and_inputs_written_out():
    a, b, x = (np.asarray(v, np.float64) for v in (normal(0, 5, 4), normal(1, 4, 3), normal(2, 6, 5)))
    params, args = {"a": jnp.float32(a), "b": jnp.float32(b)}, jnp.float32(x)

    def fn(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    plan = lb.bind(fn, {}, params, args)
    run = perturbed(fn, plan)
    deltas = zeros(fn, plan, params, args, roles=("input", "output"))
    got = jax.jit(jax.grad(lambda d: jnp.sum(run(params, d, args) ** 2) / 2))(deltas)
    hidden = np.tanh(x @ a)
    y = hidden @ b
    by_hidden = y @ b.T
    by_a = by_hidden * (1 - hidden**2)
    want = {"b": {"output": y, "input": by_hidden}, "a": {"output": by_a, "input": by_a @ a.T}}
    for path, roles in want.items():
        for role, value in roles.items():
            np.testing.assert_allclose(got[path][role], value, rtol=0, atol=2e-5 * np.abs(value).max())


def test_layers_of_a_scan_have_deltas_of_their_own():
    params, x = {"w": normal(3, 3, 5, 5)}, normal(4, 2, 5)

    def fn(p, x):
        return lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, p["w"])[0]

    plan = lb.bind(fn, {}, params, x)
    delta = np.asarray(heavy_tailed(5, 3, 2, 5), np.float64)
    c, w = np.asarray(x, np.float64), np.asarray(params["w"], np.float64)
    for i in range(3):
        c = np.tanh(c @ w[i] + delta[i])
    got = perturbed(fn, plan)(params, {"w": {"output": jnp.float32(delta)}}, x)
    np.testing.assert_allclose(got, c, rtol=0, atol=1e-5)


def test_a_derived_weight_and_one_reading_of_a_shared_leaf():
    params, x = {"w": normal(6, 4, 4), "v": normal(7, 4, 4)}, normal(8, 3, 4)

    def fn(p, x):
        return jnp.sin(x @ p["w"]) @ p["w"].T + x @ (p["v"] * 2.0)

    plan = lb.bind(fn, {}, params, x)
    d = np.asarray(heavy_tailed(9, 4, 4), np.float64)
    w, v, n = (np.asarray(z, np.float64) for z in (params["w"], params["v"], x))
    want = np.sin(n @ w) @ (w.T + d) + n @ (2.0 * v - d)
    got = perturbed(fn, plan)(params, {"w@1": {"weight": jnp.float32(d)}, "v": {"weight": -jnp.float32(d)}}, x)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_many_settings_are_one_compilation():
    traces = []
    params, x = {"a": normal(10, 6, 6), "b": normal(11, 6, 6)}, normal(12, 3, 6)

    def fn(p, x):
        traces.append(1)
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    plan = lb.bind(fn, {}, params, x)
    run = perturbed(fn, plan)
    before = len(traces)
    settings = {k: {"weight": jnp.stack([heavy_tailed((i, j), 6, 6) for i in range(20)])} for j, k in enumerate("ab")}
    together = jax.jit(jax.vmap(lambda d: run(params, d, x)))(settings)
    for i in range(20):
        a, b = (np.asarray(params[k], np.float64) + np.asarray(settings[k]["weight"][i]) for k in "ab")
        want = np.maximum(np.asarray(x) @ a, 0) @ b
        np.testing.assert_allclose(together[i], want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert len(traces) - before == 1


def test_wrong_calls_are_named():
    params, x = {"a": normal(13, 6, 6)}, normal(14, 3, 6)

    def fn(p, x):
        return x @ p["a"]

    plan = lb.bind(fn, {}, params, x)
    run = perturbed(fn, plan)
    with pytest.raises(ValueError, match="nearest paths are a"):
        run(params, {"aa": {"weight": jnp.ones((6, 6))}}, x)
    with pytest.raises(ValueError, match="may have input, output, weight, got 'bias'"):
        run(params, {"a": {"bias": jnp.ones(6)}}, x)
    with pytest.raises(ValueError, match=r"must have the shape \(3, 6\)"):
        run(params, {"a": {"output": jnp.ones((2, 6))}}, x)
    with pytest.raises(ValueError, match="must broadcast"):
        run(params, {"a": {"weight": jnp.ones((2, 6, 6))}}, x)
    with pytest.raises(TypeError, match="deltas must be"):
        run(params, [1], x)
    with pytest.raises(ValueError, match="custom_vjp"):
        perturbed(fn, plan, custom_vjp="no")
    with pytest.raises(ValueError, match="bind again"):
        replay(from_json(to_json(plan))["a"], x, params["a"])
    with pytest.raises(ValueError, match="left must have 2 axes"):
        replay(plan["a"], x[0], params["a"])
