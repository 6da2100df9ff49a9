"""`sinq` in float64: rows and columns are evened out, and what is served is the second scale times the inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.recipes.sinq import Sinq
from tests.program.nets import NETS


def network(p, x):
    return jax.nn.relu(x @ p["first"]["w"] + p["first"]["b"]) @ p["second"].T


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    drawn = {
        "first": {"w": rng.standard_t(5, size=(24, 16)) * np.geomspace(0.2, 3, 24)[:, None], "b": rng.normal(size=16)},
        "second": rng.standard_t(5, size=(8, 16)) * np.geomspace(3, 0.2, 16),
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), drawn)
    return params, jnp.asarray(rng.normal(size=(128, 24)), jnp.float32)


def imbalance(w):
    spread = np.concatenate([w.std(axis=0), w.std(axis=1)])
    return spread.max() / spread.min()


def evened(w):
    """The weight divided by the deviations of its columns: what nearest rounds on a scale of every output."""
    return w / w.std(axis=0)


def test_rows_and_columns_are_evened_out(case):
    params, x = case
    _, new, _ = lb.chain(Sinq(), batches=[(x,)])(lambda p, s, x: network(p, x), params, {})
    for before, after in (("first", new["first"]["w"]), ("second", new["second"].T)):
        old = params["first"]["w"] if before == "first" else params["second"].T
        old, now = np.asarray(old, np.float64), np.asarray(after, np.float64)
        assert imbalance(evened(old)) > 4
        assert imbalance(evened(now)) < 1.1
        t = old / now  # a factor of every row times one of every column
        np.testing.assert_allclose(t, np.broadcast_to(t[:, :1], t.shape) * (t[0] / t[0, 0]), rtol=1e-5)


def test_what_is_served_is_the_second_scale_times_the_inputs(case):
    """``relu((x t) Q_1 + b') Q_2`` in float64 from the packed parameters, the second ``t`` in the first layer's outputs."""
    params, x = case
    qparams, plan, report = lb.quantize(network, params, {"**": "w4"}, batches=[(x,)], recipe="sinq")
    assert [line.path for line in report.lines] == ["first/w", "second"]
    weights = {k: np.asarray(v.dequantize(), np.float64) for k, v in qparams.weights().items()}
    t, b = (np.asarray(v, np.float64) for v in (qparams.params["sinq"]["first/w"], qparams.params["first"]["b"]))
    assert np.exp(np.mean(np.log(t))) == pytest.approx(1.0)
    want = np.maximum((np.asarray(x, np.float64) * t) @ weights["first/w"] + b, 0) @ weights["second"].T
    got = np.asarray(lb.execute(report.fn, plan)(qparams, x), np.float64)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    said = str(report.fn)
    assert "first/w -> second: 16 channels, imbalance" in said
    assert "first/w: its inputs times 24 factors -> imbalance" in said


def test_rows_of_many_sizes_lose_less(case):
    """Weights whose rows differ in size fifteen times, each row with inputs that make up for it."""
    params, x = case
    x = x / np.geomspace(0.2, 3, 24).astype(np.float32)
    lost = {}
    for name in ("rtn", "sinq"):
        qparams, plan, report = lb.quantize(network, params, {"**": "w4"}, batches=[(x,)], recipe=name)
        off = np.asarray(lb.execute(report.fn, plan)(qparams, x) - network(params, x), np.float64)
        lost[name] = np.sum(off**2)
    assert lost["sinq"] < 0.2 * lost["rtn"]  # 0.10


@pytest.mark.parametrize("model", ["mobile6", "gated", "repeated"])
def test_the_function_is_the_same_and_what_is_left_is_said(model):
    case = NETS[model]()
    fn = lambda p, s, *args: case.fn(p, *args)  # noqa: E731 (the shape that a rewrite takes)
    other, params, state = lb.chain(Sinq(), batches=[case.args])(fn, case.params, {})
    want, got = np.asarray(case.fn(case.params, *case.args)), np.asarray(other(params, state, *case.args))
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    if model == "mobile6":
        assert "left as it is: no parameter makes its inputs, and it is no matrix product" in str(other)


def test_bad_calls_are_named(case):
    params, x = case
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        Sinq(iterations=0)
    fn = lambda p, s, x: network(p["net"], x)  # noqa: E731 (the shape that a rewrite takes)
    with pytest.raises(ValueError, match="params hold 'sinq' already"):
        lb.chain(Sinq(), batches=[(x,)])(fn, {"net": params, "sinq": jnp.zeros(1)}, {})
