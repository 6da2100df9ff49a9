"""The suite behind the table of mixed plans: pieces, resuming, gains against sums written out, ranks against scipy, the table."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments.mixed import Budgeted, Network, Subject, suite
from experiments.mixed_measures import Compared, gains, per_input, spearman
from experiments.mixed_table import markdown, report, wins
from lowbit.run import Dataset, Fit, Model, Split, engine, run_suite

RNG = np.random.default_rng(0)


SCALES = {"a": 1.0, "b": 0.02, "c": 1.0, "d": 0.02}
"""Of four layers: two are fifty times as loud as the others, and a uniform plan wastes bits on these."""


def data() -> Dataset:
    x = np.random.default_rng(2).normal(size=(192, 16)).astype(np.float32)
    labels = np.stack([np.zeros(128, np.int32), np.arange(128, dtype=np.int32)], axis=1)
    labels[120:, 1] = -1  # scored, and not compared
    return Dataset("normal", "made up", Split(x[:64], np.zeros(64, np.int32)), Split(x[64:], labels))


def four(p, s, x):
    return jnp.tanh(x @ p["a"] + x @ p["b"]) @ p["c"] + x @ p["d"]


def drawn(seed: int) -> Model:
    rng = np.random.default_rng(1)
    params = {k: jnp.asarray(rng.standard_t(4, size=(16, 16)) * s, jnp.float32) for k, s in SCALES.items()}
    return Model(four, params, {})


def same(y, before, classes):
    return y.argmax(-1) == before.argmax(-1)


NETWORK = Network(
    "small", "Small", Subject(data, drawn, same, 64, 32, 60, taught=Fit(1, 32, 1e-4, 1e-4)), "same class %", ("w2", "w4", "w8"),
    (Budgeted("w4", ("w4",)),), methods=("taylor kl", "hessian own"), measured=1, recipes=("rtn", "qat"), generations=2,
)  # fmt: skip


def summary_of(path):
    return json.loads((path / "summary.json").read_text())["networks"][0]


def test_a_run_compares_plans_and_goes_on(tmp_path, monkeypatch):
    folder, pieces = tmp_path / "run", []
    monkeypatch.setattr(
        engine, "measure_piece", lambda piece, true=engine.measure_piece: pieces.append(piece.name) or true(piece)
    )
    assert [each.failed for each in run_suite(suite("mixed", NETWORK), folder)] == [{}]
    small = summary_of(folder)
    mixed, uniform = small["plans"]["mixed as w4/rtn"], small["plans"]["uniform w4/rtn"]
    assert mixed["bits"] <= 6.0 + 1e-6
    assert uniform["bits"] == pytest.approx(4 + 32 / 16)
    assert small["inputs"] == 120
    pair, evolved, taught = small["pairs"]
    assert (evolved["mixed"], taught["mixed"]) == ("evolved as w4/rtn", "mixed as w4/qat")
    for each in small["pairs"]:
        one, other = small["plans"][each["mixed"]], small["plans"][each["uniform"]]
        assert each["dB"] == pytest.approx(one["dB"] - other["dB"], abs=1e-9)
        assert each["KL"] == pytest.approx(other["KL"] - one["KL"], abs=1e-12)
        assert each["dB_low"] <= each["dB"] <= each["dB_high"]
    assert wins(pair)  # the loud layers got the bits
    assert set(small["choices"]["mixed as w4"]) == set(SCALES)
    assert small["ranks"]["taylor kl"]["all"] > 0.5
    lines = {line["plan"]: line for line in small["predicted"]}
    assert set(lines) == {"mixed as w4", "evolved as w4", "uniform w2", "uniform w4", "uniform w8"}
    assert lines["uniform w8"]["measured"] == pytest.approx(lines["uniform w8"]["singles"], rel=1.0)

    # The mixed plan by hand, in float64: what was chosen, rounded to nearest per output, on the inputs that are compared.
    true = {k: np.asarray(w, np.float64) for k, w in drawn(0).params.items()}
    rounded = {}
    for k, word in small["choices"]["mixed as w4"].items():
        top = 2.0 ** (int(word[1:]) - 1) - 1
        scale = np.abs(true[k]).max(axis=0) / top
        rounded[k] = scale * np.clip(np.round(true[k] / scale), -top - 1, top)
    x = data().test.inputs[:120].astype(np.float64)
    before, after = ((np.tanh(x @ p["a"] + x @ p["b"]) @ p["c"] + x @ p["d"]) for p in (true, rounded))
    assert mixed["dB"] == pytest.approx(10 * np.log10(np.sum(before**2) / np.sum((after - before) ** 2)), abs=1e-3)

    text = markdown({"networks": [small]})
    assert f"| nearest | as w4: {mixed['bits']:.2f} |" in text
    assert "**wins**" in text.split("\n\n")[0]
    page = report({"networks": [small], "command": "lowbit run"}, tmp_path / "page")
    assert page.read_text().count("<svg") == 3
    assert len(list((tmp_path / "page").glob("*.png"))) == 3

    # Another score is of the float network alone; another budget is a plan of its own, and what is not asked for is not shown.
    pieces.clear()
    other = dataclasses.replace(NETWORK, methods=("taylor kl", "sqnr"), budgets=(Budgeted("w4", ("w8",)),))
    run_suite(suite("mixed", other), folder, only=["*/float", "mixed_as_w4-rtn"])
    assert pieces == ["seed-0/float"]
    fewer = summary_of(folder)
    assert set(fewer["ranks"]) == {"taylor kl", "sqnr"}
    assert fewer["ranks"]["taylor kl"] == small["ranks"]["taylor kl"]
    assert fewer["plans"] == {name: plan for name, plan in small["plans"].items() if name != "uniform w4/qat"}


def test_gains_are_of_sums_and_count_units_and_not_inputs():
    """Ten crops of a photograph, all alike: the interval over photographs is that of 12 numbers, the other narrower."""
    noise = np.repeat(RNG.uniform(1, 3, 12), 10)
    unit = np.repeat(np.arange(12), 10)
    worse = Compared(np.ones(120) * 50, noise * 4, noise * 0.2, unit)
    better = Compared(np.ones(120) * 50, noise, noise * 0.1, unit)
    found = gains(better, worse)
    assert found["dB"] == pytest.approx(10 * np.log10(4))
    assert found["dB_units_low"] == pytest.approx(found["dB_units_high"])  # a constant ratio has no spread
    assert found["KL"] == pytest.approx(0.1 * noise.mean())
    means = 0.1 * noise[::10]
    wide = 2 * 1.96 * means.std() / np.sqrt(12)
    assert found["KL_units_high"] - found["KL_units_low"] == pytest.approx(wide, rel=0.2)
    assert found["KL_high"] - found["KL_low"] == pytest.approx(wide / np.sqrt(10), rel=0.2)
    assert found["units"] == 12


def test_divergence_and_noise_are_written_out():
    before, after = RNG.normal(size=(5, 3, 4)), RNG.normal(size=(5, 3, 4))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (before, after))
    found = per_input(after, before, np.arange(5))
    np.testing.assert_allclose(found.kl, (p * np.log(p / q)).sum(-1).mean(-1))
    np.testing.assert_allclose(found.noise, ((after - before) ** 2).sum((1, 2)))
    assert found.decibels == pytest.approx(10 * np.log10((before**2).sum() / ((after - before) ** 2).sum()))


def test_ranks_are_scipy_s():
    a, b = RNG.integers(0, 6, 40).astype(float), RNG.normal(size=40)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b)[0])
    assert np.isnan(spearman(np.ones(4), np.arange(4)))
