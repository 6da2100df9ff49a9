"""States, packed parameters and files are of one plan, and another plan refuses them."""

import dataclasses
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization, traverse_util

import lowbit as lb
from lowbit.core.qtensor import quantize_with
from lowbit.interpret.state import marked
from lowbit.packed.trees import QParams
from lowbit.plan import serial
from lowbit.quantizers.pact import pact
from lowbit.quantizers.rtn import rtn

R = np.random.default_rng(0)
X = jnp.asarray(R.normal(size=(4, 16)), jnp.float32)


def _array(*shape):
    return jnp.asarray(R.normal(size=shape), jnp.float32)


def mlp(p, x):
    return jnp.tanh(x @ p["a"]) @ p["b"] + p["c"]


def swapped(p, x):  # the same parameters, other operations
    return jnp.tanh(x @ p["b"].T) @ p["a"].T


def deeper(p, x):
    return mlp(p, x) @ p["d"]


def derived(p, x):
    return jnp.tanh(x @ (p["a"] * 2.0)) @ p["b"]


PARAMS = {"a": _array(16, 16), "b": _array(16, 16), "c": _array(16), "d": _array(16, 16)}
PLANS = {
    "w8a8": (mlp, {"**": "w8,a8"}, {}),
    "w8 alone": (mlp, {"**": "w8"}, {}),
    "w4a8": (mlp, {"**": "w4,a8"}, {}),
    "w4g8a8": (mlp, {"**": "w4/g8,a8"}, {}),
    "tensor": (mlp, {"**": "w8/tensor,a8"}, {}),
    "dynamic": (mlp, {"**": "w8,a8/dynamic"}, {}),
    "one layer": (mlp, {"a": "w8,a8"}, {}),
    "the other layer": (mlp, {"b": "w8,a8"}, {}),
    "lsq": (mlp, {"**": lb.lsq("w8,a8")}, {}),
    "other hyper-parameters": (mlp, {"**": dataclasses.replace(rtn("w8,a8"), input=pact("a8").input)}, {}),
    "swapped": (swapped, {"**": "w8,a8"}, {}),
    "deeper": (deeper, {"**": "w8,a8"}, {}),
    "derived": (derived, {"**": "w8,a8"}, {}),
    "integer": (mlp, {"**": "w8,a8"}, {"integer": True}),
    "nothing": (mlp, {}, {}),
}


@pytest.fixture(scope="module")
def made():
    found = {}
    for name, (fn, rules, options) in PLANS.items():
        plan = lb.bind(fn, rules, PARAMS, X, **options)
        qstate = lb.init(fn, plan, PARAMS, X)
        found[name] = fn, plan, qstate, lb.pack(plan, PARAMS, qstate)
    return found


def _refuses(call):
    try:
        call()
    except ValueError as error:
        return "another plan's" in str(error)
    return False


def test_every_pair_of_plans_is_refused_everywhere(made, tmp_path):
    for (mine, (fn, plan, _, _)), (theirs, (_, _, qstate, qparams)) in itertools.permutations(made.items(), 2):
        uses = {
            "simulate": lambda fn=fn, plan=plan, q=qstate: lb.simulate(fn, plan)(PARAMS, q, X),
            "train": lambda fn=fn, plan=plan, q=qstate: lb.simulate(fn, plan, train=True)(PARAMS, q, X, step=0),
            "jit": lambda fn=fn, plan=plan, q=qstate: jax.jit(lb.simulate(fn, plan))(PARAMS, q, X),
            "pack": lambda plan=plan, q=qstate: lb.pack(plan, PARAMS, q),
            "execute": lambda fn=fn, plan=plan, q=qparams: lb.execute(fn, plan)(q, X),
            "reference": lambda fn=fn, plan=plan, q=qparams: lb.execute(fn, plan, implementation="reference")(q, X),
            "explain": lambda fn=fn, plan=plan, q=qparams: lb.explain(fn, plan, q, X),
            "prepare": lambda plan=plan, q=qparams: lb.prepare(plan, q),
            "save": lambda plan=plan, q=qparams: lb.save(tmp_path / "m", plan, q),
            "export": lambda fn=fn, plan=plan, q=qparams: lb.export(fn, plan, q, (X,), tmp_path / "e"),
        }
        taken = [use for use, call in uses.items() if not _refuses(call)]
        assert not taken, (mine, theirs)
    assert not list(tmp_path.iterdir())


def test_halves_and_sites_of_two_plans_are_refused(made):
    fn, plan, mine, _ = made["w8a8"]
    _, _, other, _ = made["w4a8"]
    for mixed in (
        {**mine, "fixed": other["fixed"]},
        {**mine, "learn": other["learn"]},
        {**mine, "fixed": {**mine["fixed"], "b": other["fixed"]["b"]}},
    ):
        with pytest.raises(ValueError, match="another plan's"):
            lb.simulate(fn, plan)(PARAMS, mixed, X)
    for none in (None, PARAMS, {}, mine["fixed"], plan):
        with pytest.raises(TypeError, match="qstate must be"):
            lb.pack(plan, PARAMS, none)


def test_a_plan_bound_again_written_otherwise_or_read_back_is_the_same_plan(made):
    _, plan, qstate, qparams = made["w8a8"]
    again = [
        lb.bind(mlp, {"**": "w8,a8"}, PARAMS, _array(9, 16)),
        lb.bind(mlp, {"a": "w8,a8", "b": "w8,a8"}, PARAMS, X),
        lb.bind(lambda p, x: mlp(p, x) + 1.0, {"*": rtn("w8,a8")}, PARAMS, X),
        serial.from_json(serial.to_json(plan)),
        serial.from_json(serial.to_json(serial.from_json(serial.to_json(plan)))),
    ]
    assert {each.fingerprint for each in again} == {plan.fingerprint}
    want = lb.simulate(mlp, plan)(PARAMS, qstate, X)
    for each in again[:2]:
        np.testing.assert_array_equal(lb.simulate(mlp, each)(PARAMS, qstate, X), want)
    np.testing.assert_array_equal(lb.execute(mlp, again[3])(qparams, X), want)
    # Known values, the same on jax 0.10 and 0.12.
    assert {name: made[name][1].fingerprint for name in FINGERPRINTS} == FINGERPRINTS


FINGERPRINTS = {
    "w8a8": "ad83c815838c415f",
    "w4g8a8": "152c89d2848371fe",
    "lsq": "59561d655ebce052",
    "derived": "b3783ed09f3b9716",
    "integer": "297ae6e9f68e0323",
    "nothing": "e02df1a2921e8eba",
}


def test_the_fingerprint_goes_through_what_states_go_through(made):
    fn, plan, qstate, qparams = made["lsq"]
    run = lb.simulate(fn, plan)
    want = run(PARAMS, qstate, X)
    optimizer = optax.sgd(1e-3, momentum=0.9)

    @jax.jit
    def step(qstate, moments):
        def loss(learn):
            y, after = lb.simulate(fn, plan, train=True)(PARAMS, {**qstate, "learn": learn}, X, step=0)
            return jnp.mean(y**2), after["fixed"]

        grads, fixed = jax.grad(loss, has_aux=True)(qstate["learn"])
        updates, moments = optimizer.update(grads, moments, qstate["learn"])
        return {"learn": optax.apply_updates(qstate["learn"], updates), "fixed": fixed}, moments

    trained, _ = step(qstate, optimizer.init(qstate["learn"]))
    assert jax.tree.structure(trained) == jax.tree.structure(qstate)
    lb.pack(plan, PARAMS, trained)
    restored = serialization.from_bytes(qstate, serialization.to_bytes(qstate))
    bare = serialization.msgpack_restore(serialization.to_bytes(qstate))  # without a target
    both = jax.tree.map(lambda *x: jnp.stack(x), qstate, qstate)
    for state in (jax.tree.map(lambda x: x, qstate), restored, bare, jax.device_get(qstate)):
        np.testing.assert_array_equal(run(PARAMS, state, X), want)
    np.testing.assert_array_equal(jax.vmap(run, (None, 0, None))(PARAMS, both, X)[1], want)
    assert jax.tree.map(lambda x: x, qparams).fingerprint == plan.fingerprint


def test_a_state_without_a_fingerprint_says_what_to_do(made):
    fn, plan, qstate, _ = made["lsq"]
    lost = traverse_util.unflatten_dict(traverse_util.flatten_dict(qstate, keep_empty_nodes=False))
    with pytest.raises((ValueError, TypeError), match=r"qstate"):
        lb.simulate(fn, plan)(PARAMS, lost, X)
    bare = {
        part: {key: {r: x for r, x in roles.items() if "plan" not in r} for key, roles in sites.items()}
        for part, sites in qstate.items()
    }
    with pytest.raises(ValueError, match=r"state\.marked\(plan, qstate\)"):
        lb.simulate(fn, plan)(PARAMS, bare, X)
    np.testing.assert_array_equal(
        lb.simulate(fn, plan)(PARAMS, marked(plan, bare), X), lb.simulate(fn, plan)(PARAMS, qstate, X)
    )
    with pytest.raises(ValueError, match="another plan's"):
        marked(made["one layer"][1], bare)


def test_parameters_without_a_fingerprint_are_compared_weight_by_weight(made):
    fn, plan, _, qparams = made["w8a8"]
    bare = QParams(qparams.params, qparams.sites)
    np.testing.assert_array_equal(lb.execute(fn, plan)(bare, X), lb.execute(fn, plan)(qparams, X))
    for name in ("w8 alone", "w4a8", "w4g8a8", "tensor", "one layer", "deeper", "derived", "integer", "nothing"):
        other = made[name][3]
        with pytest.raises(ValueError, match="another plan's"):
            lb.execute(fn, plan)(QParams(other.params, other.sites), X)
    with pytest.raises(ValueError, match="no parameter 'a'"):
        lb.execute(fn, plan)(QParams({"b": qparams.params["b"]}, qparams.sites), X)


def test_an_exchanged_weight_is_named(made):
    with pytest.raises(ValueError, match=r"weight of 'a' is int4/channel/sym .* and int8/channel/sym"):
        lb.prepare(made["w8a8"][1], made["w4a8"][3])
    with pytest.raises(ValueError, match="has the input of 'b', the weight of 'b' that this plan has not"):
        lb.pack(made["one layer"][1], PARAMS, made["w8a8"][2])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["w8a8", "lsq", "w4g8a8", "integer", "derived"])
def test_a_state_that_is_not_finite_is_not_packed(made, name, bad):
    _, plan, qstate, _ = made[name]
    leaves, tree = jax.tree.flatten(qstate)
    for i, leaf in enumerate(leaves):
        spoiled = jnp.asarray(leaf).at[(0,) * leaf.ndim].set(bad)
        with pytest.raises(ValueError, match="NaN or infinity"):
            lb.pack(plan, PARAMS, jax.tree.unflatten(tree, [*leaves[:i], spoiled, *leaves[i + 1 :]]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -0.0, 2.0**-127, 2.0**-149])
def test_a_scale_that_is_none_is_neither_packed_saved_loaded_nor_exported(made, tmp_path, bad, monkeypatch):
    for name in ("w8a8", "integer", "w8 alone"):
        fn, plan, qstate, qparams = made[name]
        w = qparams.params["a"]
        scale = jnp.asarray(np.where(np.arange(16).reshape(w.scale.shape) == 3, np.float32(bad), w.scale))
        spoiled = [dataclasses.replace(qparams, params={**qparams.params, "a": dataclasses.replace(w, scale=scale)})]
        for path, roles in qparams.sites.items():
            for role, state in roles.items():
                if role == "scale":
                    changed = {**roles, "scale": jnp.full_like(state, bad)}
                elif isinstance(state, dict) and "scale" in state:
                    changed = {**roles, role: {**state, "scale": jnp.full_like(state["scale"], bad)}}
                else:
                    continue
                spoiled.append(dataclasses.replace(qparams, sites={**qparams.sites, path: changed}))
        assert len(spoiled) >= (1 if name == "w8 alone" else 3)
        for each in spoiled:
            with pytest.raises(ValueError, match="stands for no grid"):
                lb.save(tmp_path / "m", plan, each)
            with pytest.raises(ValueError, match="stands for no grid"):
                lb.export(fn, plan, each, (X,), tmp_path / "e")
    assert not list(tmp_path.iterdir())
    _, plan, qstate, qparams = made["w8a8"]
    smaller = jax.tree.map(lambda x: x, qstate)
    smaller["fixed"]["a"]["input"]["scale"] = jnp.full_like(smaller["fixed"]["a"]["input"]["scale"], bad)
    with pytest.raises(ValueError, match=r"stands for no grid|NaN or infinity"):
        lb.pack(plan, PARAMS, smaller)
    monkeypatch.setattr("lowbit.packed.files.checked", lambda q: q)  # a file that an older lowbit wrote
    w = qparams.params["a"]
    worse = dataclasses.replace(
        qparams, params={**qparams.params, "a": dataclasses.replace(w, scale=w.scale * np.float32(bad))}
    )
    lb.save(tmp_path / "m", plan, worse)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="stands for no grid"):
        lb.load(tmp_path / "m")


def test_a_scale_may_be_negative_and_as_small_as_a_normal_number(made, tmp_path):
    _, plan, _, qparams = made["w8 alone"]
    w = qparams.params["a"]
    for scale in (-w.scale, jnp.full_like(w.scale, 2.0**-126), jnp.full_like(w.scale, -(2.0**-126))):
        params = {**qparams.params, "a": dataclasses.replace(w, scale=scale)}
        lb.save(tmp_path / "m", plan, dataclasses.replace(qparams, params=params))
        np.testing.assert_array_equal(lb.load(tmp_path / "m")[1].params["a"].scale, scale)


def test_wrong_things_in_place_of_parameters(made):
    fn, plan, qstate, qparams = made["w8a8"]
    for call in (
        lambda: lb.pack(PARAMS, plan, qstate),
        lambda: lb.pack(plan, qparams, qstate),
        lambda: lb.prepare(qparams, plan),
        lambda: lb.execute(fn, plan)(PARAMS, X),
        lambda: lb.execute(fn, plan)(None, X),
        lambda: lb.explain(fn, qparams, plan, X),
    ):
        with pytest.raises(TypeError, match=r"plan|packed"):
            call()
    with pytest.raises(ValueError, match="params have no 'b'"):
        lb.pack(plan, {"a": PARAMS["a"]}, qstate)


def test_scales_that_were_cast_are_none():
    """As users call it: without the annotations that are checked in tests."""
    spec = rtn("w8").weight.spec
    for scale, zero in ((jnp.ones((1, 16), jnp.int32), None), (jnp.ones((1, 16)), jnp.zeros((1, 16), jnp.int8))):
        with pytest.raises(ValueError, match=r"must be floats of shape \(1, 16\), got int"):
            inspect.unwrap(quantize_with)(PARAMS["a"], spec, scale, zero, (16, 1))


@pytest.mark.parametrize("rule", ["w8,a8", lb.lsq("w4,a4")], ids=str)
def test_a_state_that_was_reshaped(rule):
    """Its plan is right and its tree is right: what the arrays are is said where they are used."""
    plan = lb.bind(mlp, {"**": rule}, PARAMS, X)
    qstate = lb.init(mlp, plan, PARAMS, X)
    changes = {
        r"of shape \(.*, 1, 1\)": lambda x: x[..., None, None],
        r"of shape \(0,\)": lambda x: x.reshape(-1)[:0],
        "must be floats of shape": lambda x: jnp.concatenate([x, x]),
    }
    for said, change in changes.items():
        odd = jax.tree.map(change, qstate)
        for call in (
            lambda odd=odd: lb.simulate(mlp, plan)(PARAMS, odd, X),
            lambda odd=odd: lb.pack(plan, PARAMS, odd),
        ):
            with pytest.raises(
                ValueError, match=rf"the (scale|zero) of values of shape .*{said}.*a state that was cast"
            ):
                call()
