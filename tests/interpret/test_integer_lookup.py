"""Embeddings in full-integer plans: rows of a weight, picked by integers, on the result's grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.plan.serial import from_json, to_json
from tests.interpret.integer_models import token_transformer
from tests.values import normal

P = {"table": normal(0, 11, 8), "w": normal(1, 8, 4)}
IDS = jnp.array([[0, 3, 10], [-1, 5, 3]], jnp.int32)


def _served(fn, params, *args, rules="w8,a8", **options):
    plan = lb.bind(fn, {"**": rules}, params, *args, integer=True, **options)
    qstate = lb.init(fn, plan, params, *args)
    qparams = lb.pack(plan, params, qstate)
    got = lb.simulate(fn, plan)(params, qstate, *args)
    served = lb.execute(fn, plan, implementation="reference")(qparams, *args)
    jax.tree.map(np.testing.assert_array_equal, got, served)
    return got, fn(params, *args), plan, qparams


@pytest.mark.parametrize("rules", ["w8,a8", "w4/tensor,a8", "w8,aint16"])
def test_rows_are_rounded_once_more(rules):
    """Half a step of the weight's grid, and half of the result's."""

    def fn(p, ids):
        return jnp.take(p["table"], ids, axis=0)

    both = lambda p, ids: (fn(p, ids) @ p["w"], fn(p, ids))  # noqa: E731
    found, wanted, plan, qparams = _served(both, P, IDS, rules=rules)
    kinds = [step.kind for step in plan.steps]
    assert kinds[0] == "index"
    assert kinds.count("lookup") == 2
    assert set(kinds) == {"index", "lookup", "dot"}
    weight = qparams.weights()["table"]
    step = float(jnp.max(weight.scale_values)) + float(jnp.max(jnp.abs(wanted[1]))) / (32767 if "16" in rules else 127)
    assert float(jnp.max(jnp.abs(found[1] - wanted[1]))) <= 0.51 * step


def test_a_file_gives_the_rows_back(tmp_path):
    """Steps of indices have no grid, which the check of what is read took for a step that is not there."""

    def fn(p, ids):
        return jnp.take(p["table"], ids, axis=0) @ p["w"]

    got, _, plan, qparams = _served(fn, P, IDS)
    assert to_json(from_json(to_json(plan))) == to_json(plan)
    lb.save(tmp_path / "m.lowbit", plan, qparams)
    again, read = lb.load(tmp_path / "m.lowbit")
    np.testing.assert_array_equal(lb.execute(fn, again, implementation="reference")(read, IDS), got)


def test_an_index_out_of_range_takes_the_nearest_row():
    def fn(p, ids):
        return jnp.take(p["table"], ids, axis=0) @ p["w"]

    ids = jnp.array([10, 11, 500], jnp.int32)
    plan = lb.bind(fn, {"**": "w8,a8"}, P, ids, integer=True)
    qstate = lb.init(fn, plan, P, jnp.arange(3))
    got = lb.simulate(fn, plan)(P, qstate, ids)
    np.testing.assert_array_equal(got, lb.execute(fn, plan)(lb.pack(plan, P, qstate), ids))
    np.testing.assert_array_equal(got, np.broadcast_to(got[0], got.shape))


@pytest.mark.slow
def test_a_token_transformer_has_no_float_and_trains():
    case = token_transformer()
    got, want, plan, _ = _served(case.fn, case.params, *case.args)
    assert {"index", "lookup", "softmax", "norm"} <= {step.kind for step in plan.steps}
    assert float(jnp.max(jnp.abs(got - want))) < 0.08 * float(jnp.max(jnp.abs(want)))
    qstate = lb.init(case.fn, plan, case.params, *case.args)
    run = lb.simulate(case.fn, plan, train=True)
    grads = jax.grad(lambda p: jnp.mean(run(p, qstate, *case.args)[0] ** 2))(case.params)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(grads))
    rows = np.asarray(jnp.any(grads["Embed_0"]["embedding"] != 0, axis=1))
    assert set(np.flatnonzero(rows)) == set(np.unique(case.args[1]))


def test_integers_that_are_no_indices_are_refused():
    def one_hot(p, ids):
        return jax.nn.one_hot(ids, 8) @ p["w"]

    with pytest.raises(ValueError, match=r"cannot place convert_element_type .*"):
        lb.bind(one_hot, {"**": "w8,a8"}, P, IDS, integer=True)
    with pytest.raises(ValueError, match=r"an argument of dtype int8 has no grid; .* indices in int32"):
        lb.bind(lambda p, ids: p["table"][ids] @ p["w"], {"**": "w8,a8"}, P, IDS.astype(jnp.int8), integer=True)
    with pytest.raises(ValueError, match="has no grid: indices can only pick rows"):
        lb.bind(lambda p, ids: (p["table"][ids] @ p["w"], ids), {"**": "w8,a8"}, P, IDS, integer=True)
