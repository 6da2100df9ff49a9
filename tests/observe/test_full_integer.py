"""Observation and diagnosis of full-integer plans, against their integers and the float model written out in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from lowbit.core.moments import Cross, GuidedGram
from lowbit.core.spec import Tensor
from lowbit.core.statistics import MinMax
from lowbit.observe.besides import Captured
from tests.interpret.integer_models import WHOLE, token_transformer
from tests.values import heavy_tailed, normal

EPS = float(jnp.finfo(jnp.float32).eps)
ALL = {"**": {"input": (Captured(),), "output": (Captured(),)}}


def two_layers(p, x):
    return jax.nn.relu(x @ p["a"] + p["bias"]) @ p["b"]


TWO = {"a": normal(1, 16, 12), "bias": 2.0 * normal(2, 12), "b": normal(3, 12, 5)}
TWO_DATA = heavy_tailed(4, 7, 16)


def convolution(p, x):
    y = lax.conv_general_dilated(x, p["k"], (2, 1), ((1, 0), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.minimum(jax.nn.relu(y + p["bias"]), 6.0)


ONE = {"k": normal(5, 3, 2, 3, 4), "bias": normal(6, 4)}
ONE_DATA = heavy_tailed(7, 2, 5, 4, 3)


class Written:
    """A plan's integers in float64: grids and codes as they are stored, everything that is done with them written here."""

    def __init__(self, plan, qparams):
        self.plan, self.sites = plan, qparams.sites
        self.weights = {
            key: (np.asarray(q.unpacked_codes(), np.float64), np.asarray(q.scale_values, np.float64))
            for key, q in qparams.weights().items()
        }

    def grid(self, path):
        found, numbers = self.sites[path], self.plan.grids()[path].spec.format
        return float(found["scale"]), float(found["zero"]), numbers.low, numbers.high

    def codes(self, path, x):
        scale, zero, low, high = self.grid(path)
        steps = x / scale
        assert (
            np.min(np.abs(np.abs(steps - np.floor(steps)) - 0.5)) > 1e-5
        )  # no value that float32 could round elsewhere
        return np.clip(np.round(steps) + zero, low, high)

    def values(self, path, codes):
        scale, zero, _, _ = self.grid(path)
        return (codes - zero) * scale

    def outside(self, path, x):
        scale, zero, low, high = self.grid(path)
        return np.mean((x / scale + zero < low - 0.5) | (x / scale + zero > high + 0.5))

    def linear(self, key, given, path, codes, product, bias=None, low=-np.inf, high=np.inf):
        """The codes of ``product(integers, integers)``, the bias an integer, rescaled once to the grid at ``path``."""
        weight, scale = self.weights[key]
        given_scale, zero, _, _ = self.grid(given)
        unit = given_scale * scale.reshape(-1)
        total = product(codes - zero, weight)
        total = total if bias is None else total + np.round(np.asarray(bias, np.float64) / unit)
        return self.codes(path, np.clip(total * unit, low, high))


def decibels(right, got):
    return 10 * math.log10((right**2).sum() / ((right - got) ** 2).sum())


def _bound(fn, params, x, rules="w4,a8"):
    plan = lb.bind(fn, {"**": rules}, params, x, integer=True)
    qstate = lb.calibrate(fn, plan, params, [(0.6 * x,)])
    return plan, qstate, Written(plan, lb.pack(plan, params, qstate))


def _close(got, want):
    np.testing.assert_allclose(np.asarray(got), want, rtol=2 * EPS, atol=0)


@pytest.fixture(scope="module")
def two():
    return _bound(two_layers, TWO, TWO_DATA)


def test_two_layers_written_out(two):
    plan, qstate, written = two
    seen = lb.observe(two_layers, plan, TWO, [(TWO_DATA,)], ALL, qstate=qstate)
    found = lb.diagnose(two_layers, plan, TWO, qstate, [(TWO_DATA,)])
    x, w = np.asarray(TWO_DATA, np.float64), {k: np.asarray(v, np.float64) for k, v in TWO.items()}
    first, hidden = plan["a"].sites[0].key, plan["b"].sites[0].key
    assert (first, hidden) == ("input_0", "a")
    hidden_float = np.maximum(x @ w["a"] + w["bias"], 0)

    def layer_a(codes):
        return written.linear("a", first, "a", codes, np.matmul, w["bias"], low=0.0)

    def layer_b(codes):
        return written.linear("b", "a", "b", codes, np.matmul)

    codes = written.codes(first, x)
    made = layer_a(codes)
    left = layer_b(made)
    _close(seen["a"]["input"]["captured"][0], written.values(first, codes))
    _close(seen["a"]["output"]["captured"][0], written.values("a", made))
    _close(seen["b"]["input"]["captured"][0], written.values("a", made))
    _close(seen["b"]["output"]["captured"][0], written.values("b", left))
    alone = written.codes("a", hidden_float)
    a, b = found["a"], found["b"]
    want = {
        "weight": decibels(w["a"], written.weights["a"][0] * written.weights["a"][1]),
        "input": decibels(x, written.values(first, codes)),
        "output": decibels(hidden_float, written.values("a", made)),
        "clipped": written.outside(first, x),
    }
    assert {name: getattr(a, name) for name in want} == pytest.approx(want, rel=1e-4)
    assert (a.input_accumulated, a.output_accumulated) == (a.input, a.output)
    right = hidden_float @ w["b"]
    want = {
        "weight": decibels(w["b"], written.weights["b"][0] * written.weights["b"][1]),
        "input": decibels(hidden_float, written.values("a", alone)),
        "output": decibels(right, written.values("b", layer_b(alone))),
        "input_accumulated": decibels(hidden_float, written.values("a", made)),
        "output_accumulated": decibels(right, written.values("b", left)),
        "clipped": written.outside("a", hidden_float),
    }
    assert {name: getattr(b, name) for name in want} == pytest.approx(want, rel=1e-4)
    assert b.output_accumulated < b.output
    assert 0 < a.clipped < 1
    assert (a.levels, a.kernel) == (len(np.unique(written.weights["a"][0])), "cpu")


def _windows(x, kernel):
    """``convolution``'s sums, element by element."""
    padded = np.pad(x, ((0, 0), (1, 0), (1, 1), (0, 0)))
    rows, columns = kernel.shape[:2]
    out = np.zeros((len(x), (padded.shape[1] - rows) // 2 + 1, padded.shape[2] - columns + 1, kernel.shape[3]))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            window = padded[:, 2 * i : 2 * i + rows, j : j + columns]
            out[:, i, j] = np.tensordot(window, kernel, axes=((1, 2, 3), (0, 1, 2)))
    return out


def test_a_convolution_written_out():
    plan, qstate, written = _bound(convolution, ONE, ONE_DATA)
    seen = lb.observe(convolution, plan, ONE, [(ONE_DATA,)], ALL, qstate=qstate)["k"]
    found = lb.diagnose(convolution, plan, ONE, qstate, [(ONE_DATA,)])["k"]
    x, w = np.asarray(ONE_DATA, np.float64), {k: np.asarray(v, np.float64) for k, v in ONE.items()}
    codes = written.codes("input_0", x)
    made = written.linear("k", "input_0", "k", codes, _windows, w["bias"], low=0.0, high=6.0)
    right = np.clip(_windows(x, w["k"]) + w["bias"], 0, 6)
    _close(seen["input"]["captured"][0], written.values("input_0", codes))
    _close(seen["output"]["captured"][0], written.values("k", made))
    assert found.output == pytest.approx(decibels(right, written.values("k", made)), rel=1e-4)
    assert found.input == pytest.approx(decibels(x, written.values("input_0", codes)), rel=1e-4)


MODELS = {"residual_cnn": WHOLE["residual_cnn"], "lstm": WHOLE["lstm"], "tokens": token_transformer}


@pytest.mark.parametrize("name", MODELS)
def test_every_operation_of_whole_models_has_its_findings_in_loops_and_look_ups_too(name):
    model = MODELS[name]()
    plan = lb.bind(model.fn, {"**": "w8,a8"}, model.params, *model.args, integer=True)
    qstate = lb.init(model.fn, plan, model.params, *model.args)
    found = lb.diagnose(model.fn, plan, model.params, qstate, [model.args])
    for finding in found.findings:
        inputs, outputs = (finding.input, finding.input_accumulated), (finding.output, finding.output_accumulated)
        assert min(outputs) > 15.0, finding  # 8 bits
        is_lookup = plan[finding.path].primitive == "gather"
        assert math.isnan(finding.clipped) == is_lookup  # indices have no grid
        assert is_lookup or min(inputs) > 15.0, finding
        assert not math.isnan(finding.weight if finding.levels else 0.0)
    results = [row.path for row in plan if plan.steps[-1].path == row.path]
    if results:  # what the last operation leaves is what the plan serves
        served = lb.execute(model.fn, plan)(lb.pack(plan, model.params, qstate), *model.args)
        seen = lb.observe(model.fn, plan, model.params, [model.args], {"**": {"output": (Captured(),)}}, qstate=qstate)
        np.testing.assert_array_equal(seen[results[0]]["output"]["captured"][0], served)


def test_layers_of_a_scan_codes_of_a_solver_and_weights():
    params, x = {"w": normal(8, 3, 6, 6)}, normal(9, 4, 6)

    def fn(p, x):
        return lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, p["w"])[0]

    plan = lb.bind(fn, {"**": "w4,a8"}, params, x, integer=True)
    qstate = lb.init(fn, plan, params, x)
    nearest = lb.pack(plan, params, qstate).weights()["w"]
    codes = {"w": jnp.maximum(nearest.unpacked_codes(), 0)}
    wanted = {"**": {"weight": (MinMax(Tensor()),), "output": (MinMax(Tensor()),)}}
    before, after = (lb.observe(fn, plan, params, [(x,)], wanted, qstate=qstate, codes=c) for c in (None, codes))
    assert list(before) == [row.path for row in plan]
    for path in before:
        low, _ = before[path]["weight"]["minmax"]
        assert np.ravel(low)[0] == np.min(params["w"][0])  # of what is quantized, which codes do not change
        assert np.ravel(after[path]["output"]["minmax"][0])[0] != np.ravel(before[path]["output"]["minmax"][0])[0]
    assert len({finding.output for finding in lb.diagnose(fn, plan, params, qstate, [(x,)]).findings}) == 3


def test_rows_weighted_by_gradients_and_beside_other_parameters(two):
    plan, qstate, written = two
    other = {**TWO, "a": 1.5 * TWO["a"]}
    given = {"qstate": qstate, "loss": lambda y: jnp.sum(y**2) / 2, "beside": other}
    seen = lb.observe(two_layers, plan, TWO, [(TWO_DATA,)], {"b": {"input": (GuidedGram(), Cross())}}, **given)
    x, w = (jax.tree.map(lambda v: np.asarray(v, np.float64), tree) for tree in (TWO_DATA, other))
    hidden = np.maximum(x @ w["a"] + w["bias"], 0)
    slope = np.mean((hidden @ w["b"]) ** 2, axis=1)
    codes = written.linear("a", "input_0", "a", written.codes("input_0", x), np.matmul, w["bias"], low=0.0)
    rows = written.values("a", codes)
    want = {"guided_gram": (rows * slope[:, None]).T @ rows / len(x), "cross": rows.T @ hidden / len(x)}
    for name, value in want.items():
        got = seen["b"]["input"][name]
        np.testing.assert_allclose(got[0], value, rtol=0, atol=EPS * 16 * np.abs(value).max())


def test_a_nan_is_named_though_codes_are_finite(two):
    plan, qstate, _ = two
    batches = [(TWO_DATA,), (TWO_DATA.at[2, 3].set(jnp.nan),)]
    with pytest.raises(ValueError, match=r"the input of 'a' held NaN or infinity .* first in batch 1"):
        lb.observe(two_layers, plan, TWO, batches, ALL, qstate=qstate)
    with pytest.raises(ValueError, match=r"the input of 'a' held NaN or infinity .* first in batch 1"):
        lb.diagnose(two_layers, plan, TWO, qstate, batches)


def test_in_float_the_result_is_the_operation_s_own(two):
    plan, _, _ = two
    found = lb.observe(two_layers, plan, TWO, [(TWO_DATA,)], ALL)["a"]["output"]["captured"][0]
    _close(found, TWO_DATA @ TWO["a"])
