"""What is simulated is what is executed, for every model and rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.packed.bits import unpack
from tests.interpret.zoo import CASES
from tests.kernels.cases import float_bound
from tests.values import heavy_tailed, normal

MIXED = ("w2/affine,a4", "w4/g4,a8/dynamic")


def _rules(name, rule):
    """One rule for all operations, or several in turn: of a weight that operations share, the same. Models begin with each in turn."""
    if rule != "mixed":
        return {"**": rule}
    case = CASES[name]()
    rows = lb.bind(case.fn, {}, case.params, *case.args)
    bases = list(dict.fromkeys(row.base for row in rows))
    first = list(CASES).index(name)
    return {row.path: MIXED[(first + bases.index(row.base)) % len(MIXED)] for row in rows}


def _serve(case, rules):
    plan = lb.bind(case.fn, rules, case.params, *case.args)
    *first, last = case.args
    flipped = (*first, -last) if jnp.issubdtype(last.dtype, jnp.floating) else case.args  # takes the other branch
    qstate = lb.calibrate(case.fn, plan, case.params, [case.args, flipped])
    y = lb.simulate(case.fn, plan, custom_vjp="body")(case.params, qstate, *case.args)
    return plan, y, lb.pack(plan, case.params, qstate)


def _float_leaves(tree):
    return [np.asarray(x, np.float32) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


@pytest.mark.parametrize("rule", ["w8,a8", "mixed"])
@pytest.mark.parametrize("name", CASES)
def test_simulate_equals_execute(name, rule):
    case = CASES[name]()
    plan, y, qparams = _serve(case, _rules(name, rule))
    # Batch norm in training sums in float, in an order that XLA chooses by what surrounds it: its new statistics agree
    # within the bound of a float sum. Serving is evaluation: there every bit is the same.
    is_training = name.endswith("train")
    eps = float(jnp.finfo(jnp.float32).eps)
    first = "carried" if is_training else None
    for implementation in (first, "reference") if rule == "w8,a8" else (first,):  # other rules: tests/kernels
        z = lb.execute(case.fn, plan, implementation=implementation)(qparams, *case.args)
        for a, b in zip(_float_leaves(y), _float_leaves(z), strict=True):
            atol = 8 * eps * np.sqrt(64.0) * max(1.0, float(np.max(np.abs(a)))) if is_training else 0.0  # 64 summands
            np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("rule", ["w4/g32", "w8", "w3/affine", "wnf4/g64", "wfp8_e4m3", "w4/g50,afp8_e4m3/dynamic"])
def test_float_accumulation_is_within_the_bound_of_its_sum(rule):
    """One operation, equal inputs: float sums are free in their order, so the bound is that of any order."""
    params, x = {"w": heavy_tailed(0, 700, 24, freedom=3.0)}, heavy_tailed(1, 9, 700, freedom=3.0)
    fn = lambda p, x: x @ p["w"]  # noqa: E731
    plan = lb.bind(fn, {"**": rule}, params, x)
    qstate = lb.init(fn, plan, params, x)
    want, qparams = lb.simulate(fn, plan)(params, qstate, x), lb.pack(plan, params, qstate)
    bound = 2 * float_bound(x, unpack(qparams.params["w"]).dequantize())  # either side is that far from the exact sum
    if "," in rule:
        bound *= 1 + 2.0**-4  # |x| rounded to e4m3: three mantissa bits
    found = [lb.execute(fn, plan, implementation=how)(qparams, x) for how in (None, "carried", "reference")]
    for y in found:
        assert (np.abs(np.asarray(want, np.float64) - np.asarray(y, np.float64)) <= bound).all()
    assert float(jnp.max(jnp.abs(want - fn(params, x)))) > float(np.max(bound))  # the bound tells rounding from none


@pytest.mark.parametrize("name", ["attention", "scanned_remat", "tied_embedding", "half_precision", "linen_conv_eval"])
def test_weight_only_models_are_served(name):
    """The first weight alone in 4 bits: what differs is a float sum of at most 80 products, and what comes after it."""
    case = CASES[name]()
    first = next(row.base for row in lb.bind(case.fn, {}, case.params, *case.args) if row.weight is not None)
    plan, y, qparams = _serve(case, {f"{first}*": "w4/g4"})
    for implementation in (None, "carried"):
        z = lb.execute(case.fn, plan, implementation=implementation)(qparams, *case.args)
        for a, b in zip(_float_leaves(y), _float_leaves(z), strict=True):
            eps = 2.0**-8 if name == "half_precision" else float(jnp.finfo(jnp.float32).eps)
            assert float(np.max(np.abs(a - b))) <= 64 * eps * max(1.0, float(np.max(np.abs(a))))


@pytest.mark.parametrize("rule", ["w8,a8", "w8,a8/dynamic"])
def test_a_bfloat16_input_is_rounded_as_it_is_stored(rule):
    """XLA keeps more of gelu than bfloat16 holds where a loop quantizes it; a kernel reads what is stored."""

    def fn(p, x):
        return jax.nn.gelu(x @ p["w"]) @ p["v"]

    p = {"w": normal(0, 8, 16).astype(jnp.bfloat16), "v": normal(1, 16, 4).astype(jnp.bfloat16)}
    x = normal(2, 200, 8).astype(jnp.bfloat16)
    plan = lb.bind(fn, {"**": rule}, p, x)
    qstate = lb.calibrate(fn, plan, p, [(x,)])
    want, qparams = lb.simulate(fn, plan)(p, qstate, x), lb.pack(plan, p, qstate)
    for route in (None, "carried", "reference"):
        got = lb.execute(fn, plan, implementation=route)(qparams, x)
        np.testing.assert_array_equal(got.astype(jnp.float32), want.astype(jnp.float32))
