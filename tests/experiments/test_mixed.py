"""The job behind the table of mixed plans: pieces, resuming, gains against sums written out, ranks against scipy, the table."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments.mixed import Budgeted, Mixed, Network, Subject, known, run
from experiments.mixed_measures import Compared, gains, per_input, spearman
from experiments.mixed_summary import summary
from experiments.mixed_table import markdown, report, wins
from lowbit.run import Model
from lowbit.run.folder import RunFolder

RNG = np.random.default_rng(0)


def subject() -> Subject:
    """Four layers, two of them a hundred times as loud as the others: a uniform plan wastes bits on these."""
    scales = {"a": 1.0, "b": 0.02, "c": 1.0, "d": 0.02}
    rng = np.random.default_rng(1)
    params = {k: jnp.asarray(rng.standard_t(4, size=(16, 16)) * s, jnp.float32) for k, s in scales.items()}
    x = rng.normal(size=(192, 16)).astype(np.float32)

    def fn(p, s, x):
        return jnp.tanh(x @ p["a"] + x @ p["b"]) @ p["c"] + x @ p["d"]

    def right(y, before):
        return y.argmax(-1) == before.argmax(-1)

    inputs = [(x[64:128],), (x[128:],)]
    return Subject(Model(fn, params, {}), [(x[:32],), (x[32:64],)], inputs, np.arange(128), inputs, right)


def mixed_of(network: Network, path):
    """What the summary of a config of this network says of a folder in which nothing more is done."""
    found = known(RunFolder(path, Mixed("mixed", (network,)), accept_stale=True), network)
    return summary(path / network.name, network, found)


def missing() -> Subject:
    raise AssertionError("a network whose pieces are finished is not loaded")


NETWORK = Network(
    "small", "Small", subject, "same class %", ("w2", "w4", "w8"), (Budgeted("w4", ("w4",)),),
    methods=("taylor kl", "hessian own", "sqnr"), measured=1, recipes=("rtn",), generations=2,
)  # fmt: skip
CONFIG = Mixed("mixed", (NETWORK,))


def test_a_run_compares_plans_and_goes_on(tmp_path, capsys):
    folder = run(CONFIG, tmp_path / "run")
    found = json.loads((folder / "summary.json").read_text())
    (small,) = found["networks"]
    mixed, uniform = small["plans"]["mixed as w4/rtn"], small["plans"]["uniform w4/rtn"]
    assert mixed["bits"] <= 6.0 + 1e-6
    assert uniform["bits"] == pytest.approx(4 + 32 / 16)
    pair, evolved = small["pairs"]
    assert evolved["mixed"] == "evolved as w4/rtn"
    assert pair["dB"] == pytest.approx(mixed["dB"] - uniform["dB"], abs=1e-9)
    assert pair["KL"] == pytest.approx(uniform["KL"] - mixed["KL"], abs=1e-12)
    assert pair["dB_low"] <= pair["dB"] <= pair["dB_high"]
    assert wins(pair)  # the loud layers got the bits
    assert set(small["choices"]["mixed as w4"]) == {"a", "b", "c", "d"}
    assert small["ranks"]["taylor kl"]["all"] > 0.5
    lines = {line["plan"]: line for line in small["predicted"]}
    assert set(lines) == {"mixed as w4", "evolved as w4", "uniform w2", "uniform w4", "uniform w8"}
    assert lines["uniform w8"]["measured"] == pytest.approx(lines["uniform w8"]["singles"], rel=1.0)

    again = dataclasses.replace(CONFIG, networks=(dataclasses.replace(NETWORK, subject=missing),))
    second = json.loads((run(again, tmp_path / "run") / "summary.json").read_text())
    assert second["networks"] == found["networks"]
    # Another config in the folder: what it does not ask for, or asks for otherwise, is none of its plans.
    fewer = dataclasses.replace(NETWORK, subject=missing, candidates=("w2", "w4"), budgets=(Budgeted("w4", ("w8",)),))
    mended = mixed_of(fewer, tmp_path / "run")
    assert mended is not None
    assert set(mended["plans"]) == {"uniform w2/rtn", "uniform w4/rtn", "uniform w8/rtn"}
    assert mended["scores"] is None
    assert {"choice/mixed_as_w4", "mixed_as_w4/rtn", "measured", "scores/sqnr"} <= set(mended["stale"])

    text = markdown(found)
    assert f"| nearest | as w4: {mixed['bits']:.2f} |" in text
    assert "**wins**" in text.split("\n\n")[0]
    assert report(found, tmp_path / "page").read_text().count("<svg") == 3
    assert len(list((tmp_path / "page").glob("*.png"))) == 3


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
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert np.isnan(spearman(np.ones(4), np.arange(4)))
