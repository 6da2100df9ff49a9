"""Codes that a solver chose, through pack, execute and full-integer plans, against arithmetic written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.interpret.codes import marked_codes
from tests.values import normal


def model(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]


X = normal(5, 6, 16)
PARAMS = {"a": normal(6, 16, 8), "b": normal(7, 8, 5)}


def shifted(plan, params, qstate):
    """Other codes than the nearest: a third of them one up, where there is room."""
    q = lb.pack(plan, params, qstate)
    found = {}
    for key, weight in q.weights().items():
        codes = np.asarray(weight.unpacked_codes()).astype(np.int32)
        high = int(weight.spec.format.high)
        found[key] = jnp.asarray(
            np.where(np.arange(codes.size).reshape(codes.shape) % 3 == 0, np.minimum(codes + 1, high), codes)
        )
    return found


@pytest.mark.parametrize("rule", ["w4,a8", "w4/g4,a8", "w4/affine,a8", "w8"])
def test_given_codes_are_what_is_packed_and_executed(rule):
    plan = lb.bind(model, {"**": rule}, PARAMS, X)
    qstate = lb.init(model, plan, PARAMS, X)
    codes = shifted(plan, PARAMS, qstate)
    nearest, given = lb.pack(plan, PARAMS, qstate), lb.pack(plan, PARAMS, qstate, codes=codes)
    for key, weight in given.weights().items():
        np.testing.assert_array_equal(np.asarray(weight.unpacked_codes()), np.asarray(codes[key]))
        np.testing.assert_array_equal(np.asarray(weight.scale_values), np.asarray(nearest.weights()[key].scale_values))
    served = {i: lb.execute(model, plan, implementation=i)(given, X) for i in ("reference", None)}
    if rule != "w8":
        np.testing.assert_array_equal(*served.values())
    assert np.abs(np.asarray(served[None]) - np.asarray(lb.execute(model, plan)(nearest, X))).max() > 1e-3


def test_a_weight_of_given_codes_is_their_levels_times_its_scales():
    """Weight-only, so that the result is that of float64 arithmetic within float32's."""
    plan = lb.bind(model, {"**": "w4"}, PARAMS, X)
    qstate = lb.init(model, plan, PARAMS, X)
    codes = shifted(plan, PARAMS, qstate)
    given = lb.pack(plan, PARAMS, qstate, codes=codes)
    scales = {key: np.asarray(weight.scale_values, np.float64) for key, weight in given.weights().items()}
    a, b = (np.asarray(codes[key], np.float64) * scales[key] for key in ("a", "b"))
    hidden = np.maximum(np.asarray(X, np.float64) @ a, 0)
    magnitude = (np.abs(np.asarray(X, np.float64)) @ np.abs(a)) @ np.abs(b)
    error = np.abs(np.asarray(lb.execute(model, plan)(given, X), np.float64) - hidden @ b)
    assert (error <= 8 * 2.0**-24 * np.sqrt(16 + 8) * magnitude).all()


def test_codes_that_do_not_belong_are_refused():
    plan, other = (lb.bind(model, {"**": rule}, PARAMS, X) for rule in ("w4,a8", "w8,a8"))
    qstate = lb.init(model, plan, PARAMS, X)
    codes = shifted(plan, PARAMS, qstate)
    packed = lb.pack(plan, PARAMS, qstate, codes=marked_codes(plan, codes))
    jax.tree.map(np.testing.assert_array_equal, packed.params, lb.pack(plan, PARAMS, qstate, codes=codes).params)
    for wrong, error, says in (
        (marked_codes(other, codes), ValueError, "codes are another plan's"),
        (codes | {"a": codes["a"].at[0, 0].set(8)}, ValueError, r"codes\['a'\]: 8 is no code of int4"),
        (codes | {"a": codes["a"].T}, ValueError, r"codes\['a'\] must have the weight's shape \(16, 8\)"),
        (codes | {"a": codes["a"].astype(jnp.float32)}, TypeError, r"codes\['a'\] must be an array of integers"),
        (codes | {"c": codes["a"]}, ValueError, r"codes\['c'\]: the plan quantizes no such weight"),
    ):
        with pytest.raises(error, match=says):
            lb.pack(plan, PARAMS, qstate, codes=wrong)


def shared_and_derived(params, x):
    x = jax.nn.relu(x @ params["a"])
    x = jax.nn.relu(x @ (params["b"] * params["gain"]))
    return x @ params["a"] + params["bias"]


def layers(params, x):
    def layer(x, p):
        return jax.nn.relu(x @ (p["w"] * p["gain"])) + x, None

    return jax.lax.scan(layer, x, {"w": params["w"], "gain": params["gain"]})[0] @ params["head"]


SQUARE = {"a": normal(8, 8, 8), "b": normal(9, 8, 8), "gain": jnp.abs(normal(10, 8)), "bias": normal(11, 8)}
STACKED = {"w": normal(12, 3, 8, 8), "gain": jnp.abs(normal(13, 3, 8)), "head": normal(14, 8, 5)}


@pytest.mark.parametrize(
    ("fn", "params", "rule", "integer"),
    [
        (shared_and_derived, SQUARE, "w4,a8", False),
        (shared_and_derived, SQUARE, "w4,a8", True),
        (layers, STACKED, "w4/g4,a8", False),
    ],
    ids=["ordinary", "full-integer", "scan"],
)
def test_simulate_of_codes_is_execute_of_them(fn, params, rule, integer):
    x = normal(15, 6, 8)
    plan = lb.bind(fn, {"**": rule}, params, x, integer=integer)
    qstate = lb.init(fn, plan, params, x)
    codes = shifted(plan, params, qstate)
    assert set(codes) == {row.weight.key for row in plan}
    served = lb.execute(fn, plan, implementation="reference")(lb.pack(plan, params, qstate, codes), x)
    simulated = lb.simulate(fn, plan, codes=codes)(params, qstate, x)
    np.testing.assert_array_equal(np.asarray(simulated), np.asarray(served))
    assert np.abs(np.asarray(simulated - lb.simulate(fn, plan)(params, qstate, x))).max() > 1e-3


def test_gradients_of_codes_pass_straight_through_and_other_codes_compile_nothing():
    traces = 0

    def counted(params, x):
        nonlocal traces
        traces += 1
        return x @ params["a"]

    params = {"a": PARAMS["a"]}
    plan = lb.bind(counted, {"**": lb.lsq("w4")}, params, X)
    qstate = lb.init(counted, plan, params, X)
    codes = shifted(plan, params, qstate)

    def total(params, learn, codes):
        return jnp.sum(lb.simulate(counted, plan, codes=codes)(params, {**qstate, "learn": learn}, X))

    slopes = jax.grad(total, (0, 1))(params, qstate["learn"], codes)
    sums = np.asarray(X, np.float64).sum(0)
    place = np.asarray(params["a"] / qstate["learn"]["a"]["weight"]["step"])
    inside = (place > -8) & (place < 7)
    np.testing.assert_allclose(np.asarray(slopes[0]["a"])[inside], np.outer(sums, np.ones(8))[inside], rtol=1e-5)
    step = np.asarray(slopes[1]["a"]["weight"]["step"], np.float64).reshape(-1)
    exact = sums @ (np.asarray(codes["a"]) - place * inside)
    np.testing.assert_allclose(step, exact / np.sqrt(16 * 7), rtol=1e-3, atol=1e-3)  # LSQ's gradient scale
    total(params, qstate["learn"], codes)
    before = traces
    total(params, qstate["learn"], {"a": jnp.maximum(codes["a"] - 1, -8)})
    assert traces == before
    with pytest.raises(ValueError, match="train=True rounds anew"):
        lb.simulate(counted, plan, train=True, codes=codes)
    with pytest.raises(ValueError, match=r"codes\['c'\]"):
        lb.simulate(counted, plan, codes={"c": codes["a"]})
