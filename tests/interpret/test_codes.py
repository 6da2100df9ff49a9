"""Codes that a solver chose, through pack, execute and full-integer plans, against arithmetic written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
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
