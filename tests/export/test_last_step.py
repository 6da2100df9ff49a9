"""What one step of the last operations' inputs makes: the tolerance of targets that round otherwise."""

import jax
import numpy as np
import pytest

import lowbit as lb
from lowbit.export.last_step import last_steps
from lowbit.export.verify import compared
from lowbit.interpret.trace import trace

from . import cases

P = {"a": cases.normal(0, 8, 6), "b": cases.normal(1, 6, 3), "c": cases.normal(2, 3)}
X = cases.normal(3, 4, 8)


def _steps(fn, rules="w8,a8"):
    plan, qparams = cases.packed(fn, {"**": rules}, P, X)
    return last_steps(plan, trace(fn, qparams.params, (X,), {}), qparams), qparams


def _norm(qparams, name):
    """The input's step times the largest L1 norm of a channel of the weight."""
    weight = np.abs(np.asarray(qparams.weights()[name.partition("@")[0]].dequantize(), np.float64)).sum(0).max()
    return weight * float(qparams.sites[name]["input"]["scale"].reshape(()))


def _layers(p, x):
    return jax.nn.relu(x @ p["a"]) @ p["b"] + p["c"]


def test_the_last_layer_says_what_a_step_makes():
    found, qparams = _steps(_layers)
    assert found == [pytest.approx(_norm(qparams, "b"))]
    found, qparams = _steps(lambda p, x: (jax.nn.relu(2.0 * (x @ p["a"]) - x[:, :6])[::2], x @ p["a"] @ p["b"], x[0]))
    assert found[0] == pytest.approx(2.0 * _norm(qparams, "a@0"))
    assert found[2] == 0.0


@pytest.mark.parametrize("rules", ["w8,a8", "w8", "w8,a8/dynamic"])
def test_what_is_not_known_is_not_guessed(rules):
    fn = (lambda p, x: jax.nn.softmax(x @ p["a"])) if rules == "w8,a8" else _layers
    assert _steps(fn, rules)[0] == [None]


def test_the_manifest_has_it_and_a_flipped_code_passes(tmp_path):
    plan, qparams = cases.packed(_layers, {"**": "w8,a8"}, P, X)
    bundle = lb.export(_layers, plan, qparams, (X,), tmp_path / "m", targets=["xla-universal"])
    (limit,) = bundle.manifest["conditioning"]
    assert limit == pytest.approx(_norm(qparams, "b"))
    _, wanted = bundle.vectors()
    weight = np.asarray(qparams.weights()["b"].dequantize())
    step = float(qparams.sites["b"]["input"]["scale"].reshape(()))
    flipped = [
        wanted[0] + (step * np.sign(weight[:, :1]) * weight).sum(0).astype(np.float32)
    ]  # every code of a channel
    assert compared(bundle.manifest, flipped, wanted, steps=1)["status"] == "close"
    assert compared(bundle.manifest, flipped, wanted)["status"] == "differs"
    assert compared(bundle.manifest, [wanted[0] + np.float32(1.01 * limit)], wanted, steps=1)["status"] == "differs"
