"""What is simulated is what is executed, for every model and rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from tests.interpret.zoo import CASES

INTEGER = {"w8,a8": "w8,a8", "w2/affine,a4": "w2/affine,a4", "dynamic": "w4/g4,a8/dynamic"}


def _serve(case, rules):
    plan = lb.bind(case.fn, rules, case.params, *case.args)
    *first, last = case.args
    flipped = (*first, -last) if jnp.issubdtype(last.dtype, jnp.floating) else case.args  # takes the other branch
    qstate = lb.calibrate(case.fn, plan, case.params, [case.args, flipped])
    y = lb.simulate(case.fn, plan, custom_vjp="body")(case.params, qstate, *case.args)
    return plan, y, lb.pack(plan, case.params, qstate)


def _float_leaves(tree):
    return [np.asarray(x, np.float32) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


@pytest.mark.parametrize("rule", INTEGER)
@pytest.mark.parametrize("name", CASES)
def test_simulate_equals_execute(name, rule):
    case = CASES[name]()
    plan, y, qparams = _serve(case, {"**": INTEGER[rule]})
    # Batch norm in training sums in float, in an order that XLA chooses by what surrounds it: its new statistics agree
    # within the bound of a float sum. Serving is evaluation: there every bit is the same.
    is_training = name.endswith("train")
    eps = float(jnp.finfo(jnp.float32).eps)
    for implementation in ("carried", "reference") if is_training else (None, "reference"):
        z = lb.execute(case.fn, plan, implementation=implementation)(qparams, *case.args)
        for a, b in zip(_float_leaves(y), _float_leaves(z), strict=True):
            atol = 8 * eps * np.sqrt(64.0) * max(1.0, float(np.max(np.abs(a)))) if is_training else 0.0  # 64 summands
            np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["mlp", "attention", "scanned_remat", "tied_embedding", "half_precision"])
def test_weight_only_is_within_the_float_bound_per_operation(name):
    """Float sums are free in their order: with one quantized operation, the error is c eps sqrt(K) of |x| |w|."""
    case = CASES[name]()
    everything = lb.bind(case.fn, {}, case.params, *case.args)
    first = next(row.path for row in everything if row.weight is not None and row.primitive == "dot_general")
    plan, y, qparams = _serve(case, {first: "w4/g4"})
    for implementation in (None, "carried"):
        z = lb.execute(case.fn, plan, implementation=implementation)(qparams, *case.args)
        for a, b in zip(_float_leaves(y), _float_leaves(z), strict=True):
            eps = 2.0**-8 if name == "half_precision" else float(jnp.finfo(jnp.float32).eps)
            bound = 64 * eps * max(1.0, float(np.max(np.abs(a))))  # K <= 16 here; the operations after it amplify
            assert float(np.max(np.abs(a - b))) <= bound
