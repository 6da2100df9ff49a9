"""Weights that data picks: experts by index, in turn or all at once. They are quantized once, in the scales of their channels.

The truth is written in float64: `rounded` is a symmetric weight, or a dynamic input, on its grid.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from lowbit.packed import native
from tests.interpret.test_lookup import rounded, served
from tests.values import heavy_tailed, normal

EXPERTS = {"e": heavy_tailed(5, 4, 6, 10) * jnp.exp(normal(6, 4, 1, 10)), "b": normal(7, 4, 10)}
CHOSEN, TOKENS = jnp.array([1, 3, 0, 1, 2]), normal(8, 5, 6)


def _one_by_one(p, i, x):
    return lax.map(lambda ix: ix[1] @ p["e"][ix[0]] + p["b"][ix[0]], (i, x))


MIXTURES = {
    "vmap": lambda p, i, x: jax.vmap(lambda i, x: x @ p["e"][i] + p["b"][i])(i, x),
    "take": lambda p, i, x: jnp.einsum("td,tdo->to", x, jnp.take(p["e"], i, axis=0)) + p["b"][i],
    "index": lambda p, i, x: jnp.einsum("td,tdo->to", x, p["e"][i]) + p["b"][i],
    "left": lambda p, i, x: jax.vmap(lambda i, x: p["e"][i].T @ x + p["b"][i])(i, x),
    "scan": _one_by_one,
    "stack": lambda p, i, x: jnp.stack([x[t] @ p["e"][i[t]] + p["b"][i[t]] for t in range(len(i))]),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_picked_by_index_keep_the_scales_of_their_channels(name):
    """A second grid for all experts would be off by the ratio of the channels' ranges: hundreds of steps."""
    fn = MIXTURES[name]
    experts, bias, chosen = rounded(EXPERTS["e"], 1), rounded(EXPERTS["b"], 1), np.asarray(CHOSEN)
    ((want, got),), plan = served(fn, {"**": "w8"}, EXPERTS, (CHOSEN, TOKENS), (CHOSEN, TOKENS))
    assert {(row.base, row.primitive) for row in plan} == {("e", "dot_general"), ("b", "gather")}
    assert {row.weight.operand.contract for row in plan if row.weight is not None and row.base == "e"} == {(1,)}
    truth = np.einsum("td,tdo->to", np.asarray(TOKENS, np.float64), experts[chosen]) + bias[chosen]
    np.testing.assert_allclose(want, truth, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["w8,a8/dynamic", "w4/g3,a8/dynamic"])
def test_experts_multiply_integers(rule):
    fn = MIXTURES["index"]
    plan = lb.bind(fn, {"b": "keep", "**": rule}, EXPERTS, CHOSEN, TOKENS)
    qstate = lb.init(fn, plan, EXPERTS, CHOSEN, TOKENS)
    qparams = lb.pack(plan, EXPERTS, qstate)
    want = lb.simulate(fn, plan)(EXPERTS, qstate, CHOSEN, TOKENS)
    experts = np.asarray(qparams.weights()["e"].dequantize(), np.float64)
    x = rounded(TOKENS, 1)
    truth = np.einsum("td,tdo->to", x, experts[np.asarray(CHOSEN)]) + np.asarray(EXPERTS["b"])[np.asarray(CHOSEN)]
    np.testing.assert_allclose(want, truth, rtol=1e-4, atol=1e-4)
    for implementation in (None, "reference"):
        np.testing.assert_array_equal(
            want, lb.execute(fn, plan, implementation=implementation)(qparams, CHOSEN, TOKENS)
        )
    assert native.candidates(plan, qparams) == {}, "what data picks is in no kernel's order"
    assert "data picks a part of the weight" in lb.explain(fn, plan, qparams, CHOSEN, TOKENS)
    grads = jax.grad(lambda p: jnp.sum(lb.simulate(fn, plan)(p, qstate, CHOSEN[:2], TOKENS[:2])))(EXPERTS)
    assert set(np.flatnonzero(np.asarray(grads["e"]).any((1, 2)))) == {1, 3}


STACK = {"e": heavy_tailed(10, 4, 6, 6) * jnp.exp(normal(11, 4, 1, 6)) / 2}
ORDER, START = jnp.array([3, 1, 1, 0]), normal(12, 5, 6)


def _in_turn(order):
    def fn(p, i, x):
        return lax.scan(lambda x, e: (jnp.tanh(x @ e), None), x, order(p["e"], i))[0]

    return fn


def _nested(p, i, x):
    def outer(x, es):
        return lax.scan(lambda x, e: (jnp.tanh(x @ e), None), x, es)

    return lax.scan(outer, x, p["e"][i].reshape(2, 2, 6, 6))[0]


def _carried_along(p, i, x):
    """What is picked rides in the carry of a loop that leaves it as it is."""
    for j in i:
        x, _ = lax.fori_loop(0, 1, lambda _, c: (jnp.tanh(c[0] @ c[1]), c[1]), (x, p["e"][j]))
    return x


def _in_a_while(p, i, x):
    for j in i:
        done = lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, jnp.tanh(c[1] @ c[2]), c[2]), (0, x, p["e"][j]))
        x = done[1]
    return x


def _sharded(p, i, x):
    mesh = jax.make_mesh((1,), ("one",), axis_types=(jax.sharding.AxisType.Auto,))
    none = jax.sharding.PartitionSpec()
    turn = jax.shard_map(lambda x, e: jnp.tanh(x @ e), mesh=mesh, in_specs=(none, none), out_specs=none)
    return lax.scan(lambda x, e: (turn(x, e), None), x, p["e"][i])[0]


def _checkpointed(p, i, x):
    return lax.scan(jax.checkpoint(lambda x, e: (jnp.tanh(x @ e), None)), x, p["e"][i])[0]


IN_TURN = {
    "index": _in_turn(lambda e, i: e[i]),
    "take": _in_turn(lambda e, i: jnp.take(e, i, axis=0, mode="clip")),
    "transposed": lambda p, i, x: lax.scan(lambda x, e: (jnp.tanh(x @ e.T), None), x, jnp.swapaxes(p["e"], 1, 2)[i])[0],
    "vmapped": _in_turn(lambda e, i: jax.vmap(lambda i: lax.dynamic_index_in_dim(e, i, keepdims=False))(i)),
    "nested": _nested,
    "carry": _carried_along,
    "while": _in_a_while,
    "shard_map": _sharded,
    "checkpoint": _checkpointed,
}


@pytest.mark.parametrize("name", IN_TURN)
def test_what_is_picked_and_then_scanned_over_is_quantized_once(name):
    """In a grid of its own for all that was picked, W8A8 was off by a third."""
    fn = IN_TURN[name]
    for rule in ("w8", "w8,a8/dynamic"):
        ((want, got),), plan = served(fn, {"**": rule}, STACK, (ORDER, START), (ORDER, START))
        assert {(row.base, row.primitive) for row in plan} == {("e", "dot_general")}
        experts, x = rounded(STACK["e"], 1), np.asarray(START, np.float64)
        for i in np.asarray(ORDER):
            x = np.tanh((x if rule == "w8" else rounded(x, 1)) @ experts[i])
        np.testing.assert_allclose(got, x, atol=1e-5)
        np.testing.assert_allclose(want, got, atol=0 if rule != "w8" else 1e-6)


def test_layers_of_a_stack_that_data_picks_are_scanned_over():
    """The layers keep input scales of their own, as those of a stack that nothing picks do."""

    def fn(p, i, x):
        return lax.scan(lambda x, e: (jnp.tanh(x @ e), None), x, p["s"][:, i])[0]

    params = {"s": heavy_tailed(13, 3, 4, 6, 6) / 2}
    plan = lb.bind(fn, {"**": "w8,a8"}, params, jnp.int32(1), START)
    assert [(row.path, row.primitive) for row in plan] == [("s", "dot_general")]
    qstate = lb.calibrate(fn, plan, params, [(jnp.int32(i), START) for i in range(4)])
    qparams = lb.pack(plan, params, qstate)
    weights, ins = rounded(params["s"], 2), qparams.sites["s"]["input"]
    for i in range(4):
        x = np.asarray(START, np.float64)
        for layer in range(3):
            step, zero = (np.asarray(ins[k], np.float64)[layer] for k in ("scale", "zero"))
            x = np.tanh((np.clip(np.round(x / step) + zero, -128, 127) - zero) * step @ weights[layer, i])
        want = lb.simulate(fn, plan)(params, qstate, jnp.int32(i), START)
        np.testing.assert_allclose(want, x, atol=1e-5)
        np.testing.assert_array_equal(want, lb.execute(fn, plan)(qparams, jnp.int32(i), START))


def test_an_expert_that_something_else_reads_is_looked_up_first():
    def fn(p, i, x):
        e = p["e"][i]
        return x @ e, e.sum()

    plan = lb.bind(fn, {"**": "w8"}, EXPERTS, jnp.int32(1), TOKENS)
    assert [(row.path, row.primitive) for row in plan] == [("e", "gather"), ("e/dot_0", "dot_general")]


PARTS = {
    "w": heavy_tailed(14, 4, 6, 10),
    "a": normal(15, 4, 6, 2),
    "b": normal(16, 4, 2, 10),
    "s": 1 + EXPERTS["b"][0] ** 2,
}
ONE = jnp.int32(2)


def _half(p, i):
    """A loop carries what was picked."""
    return lax.fori_loop(0, 2, lambda _, c: (c[0], c[1] / 2 + c[0]), (p["w"][i], jnp.zeros_like(p["w"][i])))[1]


CHAINS = {  # what data picks and then computes with: in jax, and of rounded parameters in numpy
    "scaled before": (lambda p, i: (p["w"] * p["s"])[i], lambda w, s, r: r(w * s)[2]),
    "scaled after": (lambda p, i: p["w"][i] * p["s"], lambda w, s, r: r(w)[2] * s),
    "rolled": (lambda p, i: jnp.roll(p["w"][0], i, axis=0), lambda w, s, r: np.roll(r(w[0]), 2, axis=0)),
    "sorted": (lambda p, i: jnp.sort(p["w"][i], axis=0), lambda w, s, r: np.sort(r(w)[2], axis=0)),
    "cond": (lambda p, i: lax.cond(i > 1, lambda: p["w"][i], lambda: p["w"][0]), lambda w, s, r: r(w)[2]),
    "where": (lambda p, i: jnp.where(i > 1, p["w"][i], p["w"][i + 1]), lambda w, s, r: r(w)[2]),
    "carried": (_half, lambda w, s, r: 1.5 * r(w)[2]),
    "written": (
        lambda p, i: lax.dynamic_update_slice(p["w"][i], p["w"][i + 1][:2], (i, 0)),
        lambda w, s, r: np.concatenate([r(w)[2][:2], r(w)[3][:2], r(w)[2][4:]]),
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_what_is_picked_and_computed_with_is_rounded_in_its_table_alone(name):
    """With a second grid at the product, W8A8 was up to 1.8 % off, and both rows looked well."""
    made, chain = CHAINS[name]

    def fn(p, i, x):
        return x @ made(p, i)

    ((want, got),), plan = served(fn, {"**": "w8,a8"}, PARTS, (ONE, TOKENS), (ONE, TOKENS))
    *tables, product = plan
    assert {row.primitive for row in tables} == {"gather"}
    assert all(row.sites[0].spec is not None for row in tables)
    assert "rounded there" in product.rule
    weights = [np.asarray(PARTS[k], np.float64) for k in "ws"]
    truth = np.asarray(TOKENS, np.float64) @ chain(*weights, lambda x: rounded(x, tuple(range(1, x.ndim))))
    np.testing.assert_allclose(got, truth, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(want, got, rtol=1e-6, atol=1e-6)


def test_what_is_picked_is_an_operand_where_a_rule_says_so_or_its_table_stays_float():
    def fn(p, i, x):
        return x @ jnp.sort(p["w"][i], axis=0)

    for rules in ({"w/dot_0": "w8,a8", "**": "w8,a8"}, {"w": "keep", "**": "w8,a8"}):
        plan = lb.bind(fn, rules, PARTS, ONE, TOKENS)
        assert [str(site.spec and site.spec.format.name) for site in plan["w/dot_0"].sites] == ["int8", "int8"]
