"""Arguments with another number of axes than a plan was bound with: the same numbers on every route, or one error on all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from tests.values import normal

P = {"w": normal(0, 8, 6), "b": normal(1, 6), "v": normal(2, 4, 6)}
X = normal(3, 6, 8)
SHAPES = [(1, 2, 3, 8), (8,)]


def dense(p, x):
    return jax.nn.relu(x @ p["w"] + p["b"]) @ p["v"].T


def left(p, x):
    """einsum puts the weight on the left of a matrix and on the right of what has more axes."""
    return jnp.einsum("oi,...i->...o", p["v"], jnp.tanh(x @ p["w"]))


def _shaped(shape):
    return X[0] if shape == (8,) else X.reshape(shape)


@pytest.mark.parametrize(
    ("fn", "rule", "bound"),
    [(left, "w8,a8", (6, 8)), (dense, "w4/g4,a8/dynamic", (8,)), (left, "w4", (6, 8))],
)
def test_every_route_takes_any_number_of_axes(fn, rule, bound):
    """Row by row the numbers of the shape that it was bound with: integers to the last bit, floats summed in any order."""
    plan = lb.bind(fn, {"**": rule}, P, _shaped(bound))
    qstate = lb.init(fn, plan, P, X)
    qparams = lb.pack(plan, P, qstate)
    want = np.asarray(lb.simulate(fn, plan)(P, qstate, X))
    near = np.asarray(fn(P, X), np.float64)
    assert np.abs(want - near).max() < (0.05 if rule == "w8,a8" else 0.5) * np.abs(near).max()
    equal = np.testing.assert_array_equal if "a8" in rule else lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-5)
    for shape in SHAPES:
        x = _shaped(shape)
        results = [lb.execute(fn, plan, implementation=name)(qparams, x) for name in (None, "reference")]
        _, after = lb.simulate(fn, plan, train=True)(P, qstate, x, key=jax.random.key(0), step=0)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, qstate)
        for got in (lb.simulate(fn, plan)(P, qstate, x), *results):
            assert got.shape == (*shape[:-1], 4)
            equal(np.asarray(got).reshape(-1, 4), want[:1] if shape == (8,) else want)


def test_calibration_takes_batches_of_any_number_of_axes():
    plan = lb.bind(dense, {"**": "w8,a8"}, P, X)
    whole = lb.calibrate(dense, plan, P, [(X,)])
    parts = lb.calibrate(dense, plan, P, [(X[:2].reshape(1, 2, 8),), (X[2:5],), (X[5],)])
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)


def test_full_integer_plans_say_the_same_on_every_route():
    plan = lb.bind(dense, {"**": "w8,a8"}, P, X, integer=True)
    qstate = lb.init(dense, plan, P, X)
    qparams = lb.pack(plan, P, qstate)
    other, said = X.reshape(2, 3, 8), set()
    routes = [
        lambda: lb.simulate(dense, plan)(P, qstate, other),
        lambda: lb.execute(dense, plan)(qparams, other),
        lambda: lb.execute(dense, plan, implementation="reference")(qparams, other),
        lambda: lb.init(dense, plan, P, other),
        lambda: lb.explain(dense, plan, qparams, other),
    ]
    for route in routes:
        with pytest.raises(ValueError, match="input_0 has 3 axes in this call and 2 in the plan") as error:
            route()
        said.add(str(error.value))
    assert len(said) == 1
