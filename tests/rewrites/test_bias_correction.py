"""Bias correction: means of the quantized model are those of the float one, operation by operation; the closed form of a mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import lowbit as lb
from lowbit.core.paths import flatten
from lowbit.rewrites.bias_correction import analytic_correction, bias_correction, clipped_normal_mean
from tests.program.nets import mobile
from tests.values import heavy_tailed, normal


def _nearest(w, bits=3):
    """Symmetric, by output channel, written out."""
    w = np.asarray(w, np.float64)
    scale = np.abs(w).max(tuple(range(w.ndim - 1))) / (2 ** (bits - 1) - 1)
    return np.clip(np.rint(w / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale


def test_a_dense_network_s_means_in_float64():
    params = {
        "a": {"w": heavy_tailed(0, 8, 6), "b": normal(1, 6)},
        "c": {"w": heavy_tailed(2, 6, 5), "b": normal(3, 5)},
    }
    batches = [(jnp.abs(normal(4 + i, 32, 8)),) for i in range(3)]

    def fn(p, x):
        return jax.nn.relu(x @ p["a"]["w"] + p["a"]["b"]) @ p["c"]["w"] - p["c"]["b"]

    plan = lb.bind(fn, {"**": "w3"}, params, *batches[0])
    qstate = lb.calibrate(fn, plan, params, batches)
    new, report = bias_correction(fn, plan, params, qstate, batches)
    assert [path for path, _, _ in report.moved] == ["a/w", "c/w"]
    x = np.concatenate([np.asarray(b[0], np.float64) for b in batches])
    p = {k: {n: np.asarray(v, np.float64) for n, v in d.items()} for k, d in params.items()}
    q = {k: {"w": _nearest(d["w"]), "b": np.asarray(new[k]["b"], np.float64)} for k, d in params.items()}
    first, first_q = x @ p["a"]["w"] + p["a"]["b"], x @ q["a"]["w"] + q["a"]["b"]
    second = np.maximum(first, 0) @ p["c"]["w"] - p["c"]["b"]
    second_q = np.maximum(first_q, 0) @ q["c"]["w"] - q["c"]["b"]
    np.testing.assert_allclose(first_q.mean(0), first.mean(0), atol=1e-5 * np.abs(first).max())
    np.testing.assert_allclose(second_q.mean(0), second.mean(0), atol=1e-5 * np.abs(second).max())
    before = np.maximum(x @ q["a"]["w"] + p["a"]["b"], 0) @ q["c"]["w"] - p["c"]["b"]
    assert np.abs(before.mean(0) - second.mean(0)).max() > 1e-2
    np.testing.assert_array_equal(new["a"]["w"], params["a"]["w"])  # weights are left alone


def test_convolutions_with_inputs_quantized_and_a_solver_s_weights():
    case = mobile()
    batches = [(jnp.abs(normal(i, 4, 8, 8, 3)),) for i in range(2)]
    plan = lb.bind(case.fn, {"head/w": "w4,a6", "**": "w4"}, case.params, *batches[0])
    qstate = lb.calibrate(case.fn, plan, case.params, batches)
    rounded = jax.tree.map(lambda x: jnp.asarray(_nearest(x, 4), jnp.float32) if x.ndim > 1 else x, case.params)
    new, report = bias_correction(case.fn, plan, case.params, qstate, batches, rounded=rounded)
    assert {path for path, _, _ in report.moved} == {"stem/w", "up/w", "deep/w", "down/w", "head/w"}
    assert not report.left
    want = np.mean([np.asarray(case.fn(case.params, *b), np.float64) for b in batches], (0, 1))
    run = lb.simulate(case.fn, plan)
    off = [
        np.abs(np.mean([np.asarray(run(p, qstate, *b), np.float64) for b in batches], (0, 1)) - want).max()
        for p in (case.params, new)
    ]
    assert off[1] < 1e-5 * np.abs(want).max()
    assert off[0] > 100 * off[1]
    for path, a, b in zip(flatten(new)[0], jax.tree.leaves(new), jax.tree.leaves(rounded), strict=True):
        if path.endswith("/w"):
            np.testing.assert_array_equal(a, b)
    together, _ = bias_correction(case.fn, plan, case.params, qstate, batches, is_sequential=False)
    assert (
        np.abs(np.asarray(together["head"]["b"] - new["head"]["b"])).max() > 1e-4
    )  # it does not see the others' corrections


def test_operations_without_a_bias_are_said():
    params, x = {"a": normal(0, 4, 4), "b": normal(1, 4, 4), "c": normal(2, 4)}, normal(3, 8, 4)

    def fn(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"] + p["c"]

    plan = lb.bind(fn, {"**": "w3"}, params, x)
    qstate = lb.calibrate(fn, plan, params, [(x,)])
    _, report = bias_correction(fn, plan, params, qstate, [(x,)])
    assert [path for path, _, _ in report.moved] == ["b"]
    assert report.left == (("a", "no parameter is added along its output channels"),)
    assert "a: left as it is" in str(report)
    with pytest.raises(ValueError, match="batches is empty"):
        bias_correction(fn, plan, params, qstate, [])


@pytest.mark.parametrize(("low", "high"), [(0.0, np.inf), (0.0, 6.0), (-np.inf, 1.0), (-1.0, 1.0)])
def test_the_mean_of_a_clipped_normal_is_its_integral(low, high):
    for mean, deviation in ((0.0, 1.0), (2.0, 0.5), (-3.0, 2.0), (5.5, 3.0)):
        density = stats.norm(mean, deviation).pdf
        ends = mean - 12 * deviation, mean + 12 * deviation
        want, _ = integrate.quad(lambda x, density=density: np.clip(x, low, high) * density(x), *ends)
        got = clipped_normal_mean(jnp.float32(mean), jnp.float32(deviation), low, high)
        np.testing.assert_allclose(got, want, atol=2e-5)
    np.testing.assert_array_equal(clipped_normal_mean(jnp.array([-9.0, 0.5]), jnp.zeros(2), -1.0, 1.0), [-1.0, 0.5])


def test_the_analytic_correction_is_the_empirical_one_of_one_layer():
    w, x = heavy_tailed(0, 8, 6), jnp.abs(normal(1, 256, 8))
    rounded = jnp.asarray(_nearest(w), jnp.float32)
    got = analytic_correction(w, rounded, x.mean(0))
    x64 = np.asarray(x, np.float64)
    want = (x64 @ np.asarray(w, np.float64)).mean(0) - (x64 @ np.asarray(rounded, np.float64)).mean(0)
    np.testing.assert_allclose(got, want, atol=1e-5)
    with pytest.raises(ValueError, match="low must be below high"):
        clipped_normal_mean(jnp.float32(0), jnp.float32(1), 1.0, 1.0)
