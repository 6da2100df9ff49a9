"""`svdquant` in float64: what is taken out is the largest singular values, and what is served is ``x^ Q(R) + (x^ A) B``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.recipes.svdquant import FittedPart, LowRankPart
from tests.recipes.thin import SIZE, case_of, network, parts, quantized


@pytest.fixture(scope="module")
def case():
    """Three input channels 40 times the others, and weights of one large direction beside small ones."""

    def weight(rng, inner, outer):
        return rng.normal(size=(inner, 1)) @ rng.normal(size=(1, outer)) + 0.3 * rng.normal(size=(inner, outer))

    return case_of(weight, lambda rng: lambda x: x * np.where(np.arange(SIZE) % 30 == 7, 40.0, 1.0))


def quantized_by(case, rules, **changes):
    return quantized("svdquant", LowRankPart(**changes), case, rules)


@pytest.fixture(scope="module")
def exact(case):
    """``A`` and ``B`` in float32, of rank 2: ``third`` stays in float."""
    return quantized_by(case, {"third": "keep", "**": "w8"}, rank=2, bits=100.0, dtype="float32")


NAMES = ("factors", "a", "b")


def test_what_is_rounded_is_the_smoothed_weight_without_its_largest_directions(case, exact):
    w = np.asarray(case[0]["first"]["w"], np.float64)
    q, factors, a, _ = parts(exact[0], "svdquant", "first/w", NAMES)
    left, sizes, right = np.linalg.svd(w / factors[:, None], full_matrices=False)
    np.testing.assert_allclose(a @ np.linalg.pinv(a), left[:, :2] @ left[:, :2].T, atol=1e-4)  # the same directions
    rest = left[:, 2:] * sizes[2:] @ right[2:]
    step = np.abs(rest).max(0) / 127
    assert np.abs(q - rest).max() < 4 * step.max()  # 8 bits: GPTQ moves an entry by a few steps at most
    assert np.sum(sizes[2:] ** 2) < 0.5 * np.sum(sizes**2)


def test_what_rounding_leaves_is_fitted_once_more(case, exact):
    """``B`` is the least squares fit to ``W^ - Q(R)`` in the norm of the inputs: nothing is left along ``A``."""
    params, batches = case
    q, factors, a, b = parts(exact[0], "svdquant", "first/w", NAMES)
    x = np.concatenate([np.asarray(x, np.float64) for (x,) in batches]) * factors
    h = x.T @ x / len(x)
    h += FittedPart().damping * np.mean(np.diag(h)) * np.eye(SIZE)
    off = np.asarray(params["first"]["w"], np.float64) / factors[:, None] - q
    want = np.linalg.solve(a.T @ h @ a, a.T @ h @ off)
    np.testing.assert_allclose(b, want, atol=1e-3 * np.abs(want).max())


def test_what_is_served_is_two_thin_products_beside_the_packed_one(case, exact):
    params, batches = case
    qparams, plan, report = exact
    x = np.asarray(batches[0][0], np.float64)
    (q1, t1, a1, b1), (q2, t2, a2, b2) = (parts(qparams, "svdquant", path, NAMES) for path in ("first/w", "second"))
    third, bias = (np.asarray(v, np.float64) for v in (params["third"], params["first"]["b"]))
    y = np.maximum(x * t1 @ q1 + x * t1 @ a1 @ b1 + bias, 0)
    want = y * t2 @ q2.T + y * t2 @ a2 @ b2 + x @ third
    got = np.asarray(lb.execute(report.fn, plan)(qparams, batches[0][0]), np.float64)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    assert "third" not in qparams.params["svdquant"]


def test_in_4_bits_on_both_sides_it_loses_less_than_gptq_and_lqer(case):
    """The paper's claim, on inputs that none has seen, at the bits of `lqer`."""
    params, batches = case
    lost = {}
    for name in ("gptq", "lqer", "svdquant"):
        qparams, plan, report = lb.quantize(network, params, {"**": "w4,a4"}, batches=batches[:1], recipe=name)
        off = np.asarray(
            lb.execute(report.fn, plan)(qparams, batches[1][0]) - network(params, batches[1][0]), np.float64
        )
        lost[name] = np.sum(off**2)
    assert lost["svdquant"] < 0.5 * min(lost["gptq"], lost["lqer"])
    assert qparams.params["svdquant"]["first/w"]["a"].dtype == jnp.bfloat16


def test_a_convolution_stays_and_is_named():
    def fn(p, s, x):
        y = jax.lax.conv_general_dilated(x, p["c"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y @ p["w"]

    rng = np.random.default_rng(1)
    params = {
        "c": jnp.asarray(rng.normal(size=(3, 3, 2, 4)), jnp.float32),
        "w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
    }
    x = jnp.asarray(rng.normal(size=(1, 5, 5, 2)), jnp.float32)
    other, new, _ = lb.chain(LowRankPart(), batches=[(x,)])(fn, params, {})
    want, got = np.asarray(fn(params, {}, x)), np.asarray(other(new, {}, x))
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    assert "c: left as it is" in str(other)
    assert "w -> rank 1" in str(other)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"bits": 0.0}, {"dtype": "int8"}, {"steps": 1}])
def test_bad_hyper_parameters_are_named(wrong):
    with pytest.raises(ValueError, match=r"(rank|steps) must be at least|dtype must be one of floats"):
        LowRankPart(**wrong)
    with pytest.raises(ValueError, match="has no batches"):
        LowRankPart()(lambda p, s, x: x, {}, {})
