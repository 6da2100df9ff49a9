"""Products that rewrites compute otherwise: which they are, and the function on arguments of another kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.rewrites.products import Altered, products, with_own
from lowbit.rewrites.traced import trace_model

W = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)), jnp.float32)
X = jnp.ones((2, 6))


def twice(product, equation, values, own):
    return product.placed(2.0 * product.multiplied(product.data(values), own["w"]))


def fn(p, s, x):
    y = x @ p["right"] + (p["left"].T @ x.T).T
    return y @ p["late"] if len(x) == 2 else y


def altered(wanted):
    params = {"right": W, "left": 2.0 * W.T, "late": W}
    found, other = products(trace_model(fn, params, {}, (X,), {}))
    assert not other
    here = tuple(p for p in found if p.path in wanted)
    own = {p.path: {"w": params[p.path] if p.inner == 0 else params[p.path].T} for p in here}
    return Altered(fn, "twice", "own", here, twice, ()), with_own(params, "own", own)


@pytest.mark.parametrize(("wanted", "want"), [(("right",), (2, 1, 1)), (("left",), (1, 2, 1)), (("right", "left", "late"), (2, 2, 2))])  # fmt: skip
def test_a_product_is_computed_otherwise_on_either_side(wanted, want):
    other, params = altered(wanted)
    right, left, late = want
    y = right * (X @ W) + left * (X @ (2.0 * W.T))
    np.testing.assert_allclose(other(params, {}, X), late * (y @ W), rtol=1e-5)


def test_other_arguments_are_refused():
    other, params = altered(("late",))
    with pytest.raises(ValueError, match="fewer products than were rewritten"):
        other(params, {}, X[:1])


@pytest.mark.parametrize(
    ("fn", "why"),
    [
        (lambda p, s, x: x @ p["w"] + p["w"][0], "reads it"),
        (lambda p, s, x: x @ p["w"] @ p["w"].T, "another over its columns"),
        (lambda p, s, x: jax.lax.scan(lambda c, _: (c @ p["w"], None), x, None, 3)[0], "scan"),
        (lambda p, s, x: x @ (2.0 * p["w"]), "mul"),
        (lambda p, s, x: (x @ p["w"], p["w"]), "it is a result"),
    ],
    ids=["another use", "both ways", "loop", "derived", "result"],
)
def test_a_weight_with_another_use_is_none(fn, why):
    found, other = products(trace_model(fn, {"w": W}, {}, (X,), {}))
    assert found == []
    assert why in other["w"]


def test_parameters_that_are_no_dictionary_keep_their_paths():
    def fn(p, s, x):
        return x @ p[0]

    (product,), _ = products(trace_model(fn, (W,), {}, (X,), {}))
    params = with_own((W,), "own", {product.path: {"w": W}})
    assert set(params) == {"params", "own"}
    np.testing.assert_allclose(
        Altered(fn, "twice", "own", (product,), twice, ())(params, {}, X), 2.0 * X @ W, rtol=1e-6
    )
    with pytest.raises(ValueError, match="hold 'own' already"):
        with_own({"own": W}, "own", {})
