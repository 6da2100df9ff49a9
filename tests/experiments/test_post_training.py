"""The job behind the table of post-training methods: pieces, resuming, intervals, and what the table says of what is missing."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import post_training
from experiments.post_training import Network, Plan, PostTraining, Subject, interval, run
from experiments.post_training_table import markdown
from lowbit.run import Model


def subject() -> Subject:
    rng = np.random.default_rng(0)
    params = {k: jnp.asarray(rng.standard_t(4, size=(12, 12)), jnp.float32) for k in ("first", "second")}
    x = rng.normal(size=(256, 12)).astype(np.float32)

    def fn(p, s, x):
        return jax.nn.relu(x @ p["first"]) @ p["second"]

    def score(outputs, before):
        return {"dB": float(10 * np.log10(np.sum(before**2) / np.sum((outputs - before) ** 2 + 1e-30)))}

    return Subject(Model(fn, params, {}), [(x[:128],)], [(x[128:],)], score)


def missing() -> Subject:
    raise AssertionError("a network that is not asked for is not loaded")


CONFIG = PostTraining(
    "post_training",
    (
        Network("small", "Small", subject, "dB", 1, (Plan("W4", {"**": "w4"}, 100.0, ("rtn", "gptq")),)),
        Network("other", "Other", missing, "dB", 1, (Plan("W3", {"**": "w3"}, 5.0, ("rtn",)),)),
    ),
    only=("small",),
)


def test_a_run_scores_executes_and_goes_on(tmp_path, monkeypatch):
    folder = run(CONFIG, tmp_path / "run")
    found = json.loads((folder / "summary.json").read_text())
    small, other = found["networks"]
    got = small["plans"][0]["recipes"]
    assert got["gptq"]["score"] > got["rtn"]["score"] + 1
    assert got["rtn"]["bits_per_weight"] == pytest.approx(4 + 32 / 12)
    assert other["float"] is None
    assert other["plans"][0]["recipes"] == {}
    report = json.loads((folder / "small" / "W4" / "gptq" / "report.json").read_text())
    assert [line["path"] for line in report["operations"]] == ["first", "second"]

    # Everything is there: a second run loads nothing, and gives the same numbers.
    with monkeypatch.context() as patched:
        patched.setattr(post_training, "_piece", None)
        second = json.loads((run(CONFIG, tmp_path / "run") / "summary.json").read_text())
    assert second["networks"][0]["plans"] == small["plans"]

    # Other data, another piece.
    changed = dataclasses.replace(CONFIG, networks=(dataclasses.replace(CONFIG.networks[0], subject=missing),))
    with pytest.raises(AssertionError, match="not asked for"):
        run(changed, tmp_path / "run")

    text = markdown(found)
    assert "| Small, dB, float 300.0 | W4 | 6.67 |" in text.replace(
        f"float {small['float']['score']:.1f}", "float 300.0"
    )
    assert "| Other, dB | W3 | - | not measured | - | - | - | - | 5 |" in text
    assert "*" not in text.split("\n\n")[0]  # a bar of 100 dB is reached by nobody


def test_intervals_count_units_and_not_samples():
    """Ten crops of a photograph, all alike, are one observation: the interval is that of 20 numbers, by its normal law."""
    rng = np.random.default_rng(1)
    values = np.repeat((rng.uniform(size=20) < 0.7).astype(float), 10)
    low, high = interval(values, np.repeat(np.arange(20), 10))
    deviation = np.sqrt(values.mean() * (1 - values.mean()) / 20)
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def test_a_network_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="there is no 'samll'; there are small, other"):
        dataclasses.replace(CONFIG, only=("samll",))
