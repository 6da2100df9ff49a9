"""`lqer` in float64: what is left is the singular values that are dropped, and what is served is ``x Q + (x A) B``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.recipes.lqer import LowRank, LowRankRemainder
from tests.program.nets import NETS
from tests.recipes.thin import SIZE, case_of, network, parts, quantized


@pytest.fixture(scope="module")
def case():
    def mixed(rng):
        by = rng.normal(size=(SIZE, SIZE)) * np.geomspace(3, 0.05, SIZE)
        return lambda x: x @ by

    return case_of(lambda rng, inner, outer: rng.standard_t(5, size=(inner, outer)), mixed)


def quantized_by(case, rules, **changes):
    return quantized("lqer", LowRank(**changes), case, rules)


@pytest.fixture(scope="module")
def exact(case):
    """``A`` and ``B`` in float32, of rank 6: ``third`` stays in float."""
    return quantized_by(case, {"third": "keep", "**": "w3"}, rank=6, bits=100.0, dtype="float32")


def test_what_is_left_is_the_singular_values_that_are_dropped(case, exact):
    """``tr((E - AB)^T H (E - AB)) = sum of sigma_i^2, i > 6`` of ``S E``, ``S^T S = H`` by Cholesky, for the first layer."""
    params, batches = case
    q, a, b = parts(exact[0], "low_rank", "first/w", "ab")
    x = np.concatenate([np.asarray(x, np.float64) for (x,) in batches])
    h = x.T @ x / len(x)
    h += LowRankRemainder().damping * np.mean(np.diag(h)) * np.eye(SIZE)
    off = np.asarray(params["first"]["w"], np.float64) - q
    sizes = np.linalg.svd(np.linalg.cholesky(h).T @ off, compute_uv=False)
    left = off - a @ b
    assert np.trace(left.T @ h @ left) == pytest.approx(np.sum(sizes[6:] ** 2), rel=1e-4)
    assert np.sum(sizes[6:] ** 2) < 0.8 * np.sum(sizes**2)
    assert np.linalg.matrix_rank(a @ b) == 6


def test_what_is_served_is_two_thin_products_beside_the_packed_one(case, exact):
    params, batches = case
    qparams, plan, report = exact
    x = np.asarray(batches[0][0], np.float64)
    (q1, a1, b1), (q2, a2, b2) = (parts(qparams, "low_rank", path, "ab") for path in ("first/w", "second"))
    third, bias = (np.asarray(v, np.float64) for v in (params["third"], params["first"]["b"]))
    y = np.maximum(x @ q1 + x @ a1 @ b1 + bias, 0)
    want = y @ q2.T + y @ a2 @ b2 + x @ third
    got = np.asarray(lb.execute(report.fn, plan)(qparams, batches[0][0]), np.float64)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_the_report_is_of_the_whole_and_counts_its_bits(case, exact):
    params, batches = case
    qparams, _, report = exact
    lines = {line.path: line for line in report.lines}
    q, a, b = parts(qparams, "low_rank", "first/w", "ab")
    w = np.asarray(params["first"]["w"], np.float64)
    x = np.concatenate([np.asarray(x, np.float64) for (x,) in batches])
    lost = np.sum((x @ (w - q - a @ b)) ** 2)
    assert lines["first/w"].output_db == pytest.approx(10 * np.log10(np.sum((x @ w) ** 2) / lost), abs=1e-2)
    sizes = {"first/w": (SIZE, 48), "second": (48, 32)}
    thin = sum(32 * 6 * (k + n) for k, n in sizes.values())
    whole = sum(3 * k * n + 32 * n for k, n in sizes.values())
    assert report.bits_per_weight == pytest.approx((thin + whole) / sum(k * n for k, n in sizes.values()))
    assert "low_rank/third/a" not in lines  # nothing for what stays in float
    assert lines["low_rank/first/w/a"].notes == ("stays in float: low_rank/**: keep",)


def test_by_default_it_loses_less_than_gptq_on_unseen_inputs_with_integer_inputs_too(case):
    params, batches = case
    unseen, few = batches[1][0], batches[:1]
    for rules in ("w3", "w3,a8"):
        lost = {}
        for name in ("gptq", "lqer"):
            qparams, plan, report = lb.quantize(network, params, {"**": rules}, batches=few, recipe=name)
            off = np.asarray(lb.execute(report.fn, plan)(qparams, unseen) - network(params, unseen), np.float64)
            lost[name] = np.sum(off**2)
        assert lost["lqer"] < 0.95 * lost["gptq"]
        assert qparams.params["low_rank"]["first/w"]["a"].dtype == jnp.bfloat16
        assert report.bits_per_weight < 3 + 32 / 32 + 0.75  # half a bit, or one rank


def test_a_run_that_was_stopped_goes_on(case, tmp_path):
    params, batches = case
    runs = [
        lb.quantize(network, params, {"**": "w3"}, batches=batches, recipe="lqer", cache=tmp_path) for _ in range(2)
    ]
    jax.tree.map(np.testing.assert_array_equal, runs[0][0], runs[1][0])
    assert [line.notes for line in runs[0][2].lines] == [line.notes for line in runs[1][2].lines]


@pytest.mark.parametrize("model", ["mobile6", "gated"])
def test_the_function_is_the_same_and_what_is_left_is_said(model):
    case = NETS[model]()
    fn = lambda p, s, *args: case.fn(p, *args)  # noqa: E731 (the shape that a rewrite takes)
    other, params, state = lb.chain(LowRank(), batches=[case.args])(fn, case.params, {})
    want, got = np.asarray(case.fn(case.params, *case.args)), np.asarray(other(params, state, *case.args))
    np.testing.assert_allclose(got, want, atol=1e-6 * np.abs(want).max())
    if model == "mobile6":
        assert "left as it is" in str(other)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"bits": 0.0}, {"dtype": "int8"}])
def test_bad_hyper_parameters_are_named(wrong):
    with pytest.raises(ValueError, match=r"rank must be at least 1|dtype must be one of floats"):
        LowRank(**wrong)
    with pytest.raises(ValueError, match="has no batches"):
        LowRank()(lambda p, s, x: x, {}, {})
