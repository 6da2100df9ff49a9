"""The table of losses, against float64 written out: alone, accumulated, clipped, levels, bits."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.core.spec import Tensor
from lowbit.core.statistics import MinMax
from tests.values import heavy_tailed, normal


def two_layers(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


PARAMS = {"a": normal(1, 16, 12), "b": normal(2, 12, 5)}
CALIBRATION, DATA = [(normal(3, 9, 16),)], [(heavy_tailed(4, 7, 16),), (heavy_tailed(5, 4, 16),)]


def decibels(right, got):
    return 10 * math.log10((right**2).sum() / ((right - got) ** 2).sum())


def test_the_table_is_what_it_says():
    plan = lb.bind(two_layers, {"**": "w4,a6"}, PARAMS, *DATA[0])
    qstate = lb.calibrate(two_layers, plan, PARAMS, CALIBRATION)
    found = lb.diagnose(two_layers, plan, PARAMS, qstate, DATA)
    qparams = lb.pack(plan, PARAMS, qstate)

    def on_grid(path, x):
        site, spec = qparams.sites[path]["input"], plan[path].sites[0].spec
        scale, zero = (np.asarray(site[name], np.float64).reshape(()) for name in ("scale", "zero"))
        steps = x / scale + zero
        outside = (steps < spec.format.low - 0.5) | (steps > spec.format.high + 0.5)
        return (np.clip(np.round(steps), spec.format.low, spec.format.high) - zero) * scale, outside.mean()

    x = np.concatenate([np.asarray(x, np.float64) for (x,) in DATA])
    w = {k: np.asarray(v, np.float64) for k, v in PARAMS.items()}
    q = {k: np.asarray(v.dequantize(), np.float64) for k, v in qparams.weights().items()}
    hidden = np.tanh(x @ w["a"])
    x_q, clipped = on_grid("a", x)
    hidden_q, _ = on_grid("b", hidden)
    after_q = np.tanh(x_q @ q["a"])
    arriving_q, _ = on_grid("b", after_q)
    a, b = found["a"], found["b"]
    close = {"rel": 1e-4}  # decibels of sums in float32
    assert a.weight == pytest.approx(decibels(w["a"], q["a"]), **close)
    assert a.input == pytest.approx(decibels(x, x_q), **close)
    assert a.output == pytest.approx(decibels(x @ w["a"], x_q @ q["a"]), **close)
    assert a.output_accumulated == pytest.approx(a.output, **close)
    assert b.output == pytest.approx(decibels(hidden @ w["b"], hidden_q @ q["b"]), **close)
    assert b.input_accumulated == pytest.approx(decibels(hidden, arriving_q), rel=1e-3)
    assert b.output_accumulated == pytest.approx(decibels(hidden @ w["b"], arriving_q @ q["b"]), rel=1e-3)
    assert b.output_accumulated < b.output - 1.0
    assert a.clipped == pytest.approx(clipped)
    assert 0 < clipped < 1
    assert a.levels == len(np.unique(np.asarray(qparams.params["a"].unpacked_codes())))
    assert a.bits == qparams.params["a"].bits_per_element
    assert a.kernel
    assert str(found).splitlines()[1].startswith("a ")
    assert [line["path"] for line in json.loads(found.json())] == ["a", "b"]


def test_a_layer_on_one_level_is_a_warning():
    params = {**PARAMS, "b": jnp.zeros((12, 5))}
    plan = lb.bind(two_layers, {"**": "w4,a8"}, params, *DATA[0])
    qstate = lb.calibrate(two_layers, plan, params, DATA)
    with pytest.warns(UserWarning, match="b: every weight of a matrix has the same level"):
        found = lb.diagnose(two_layers, plan, params, qstate, DATA)
    assert math.isnan(found["b"].weight)
    assert json.loads(found.json())[1]["weight"] is None


@pytest.mark.parametrize("rule", ["w4,a6", "w4,a8/dynamic"])
def test_more_axes_of_examples_say_the_same(rule):
    plan = lb.bind(two_layers, {"**": rule}, PARAMS, *DATA[0])
    qstate = lb.calibrate(two_layers, plan, PARAMS, CALIBRATION)
    x = heavy_tailed(6, 8, 16)
    flat, deep = (lb.diagnose(two_layers, plan, PARAMS, qstate, [(each,)]) for each in (x, x.reshape(2, 4, 16)))
    for a, b in zip(flat.findings, deep.findings, strict=True):
        for name, value in dataclasses.asdict(a).items():  # decibels of sums in float32, in another order
            other = getattr(b, name)
            assert other == (pytest.approx(value, rel=1e-4, nan_ok=True) if isinstance(value, float) else value), name


def test_codes_of_a_solver_are_what_is_diagnosed_and_observed():
    plan = lb.bind(two_layers, {"**": "w4,a6"}, PARAMS, *DATA[0])
    qstate = lb.calibrate(two_layers, plan, PARAMS, CALIBRATION)
    nearest = lb.pack(plan, PARAMS, qstate).weights()
    codes = {key: jnp.maximum(q.unpacked_codes(), 0) for key, q in nearest.items()}
    found = lb.diagnose(two_layers, plan, PARAMS, qstate, DATA, codes=codes)
    for key, w in PARAMS.items():
        q = np.asarray(codes[key], np.float64) * np.asarray(nearest[key].scale_values, np.float64)
        assert found[key].weight == pytest.approx(decibels(np.asarray(w, np.float64), q), rel=1e-4)
        assert found[key].levels == len(np.unique(codes[key]))
    packed = lb.pack(plan, PARAMS, qstate, codes)
    arriving = [np.asarray(lb.execute(two_layers, plan)(packed, x)) for (x,) in DATA]
    seen = lb.observe(
        two_layers, plan, PARAMS, DATA, {"b": {"output": (MinMax(Tensor()),)}}, qstate=qstate, codes=codes
    )
    low, high = (np.asarray(x).item() for x in jax.tree.leaves(seen["b"]["output"]["minmax"]))
    assert (low, high) == (min(y.min() for y in arriving), max(y.max() for y in arriving))
    with pytest.raises(ValueError, match="give its qstate="):
        lb.observe(two_layers, plan, PARAMS, DATA, {"b": {"output": (MinMax(Tensor()),)}}, codes=codes)
