"""An edge story from float to a compiled program: the same numbers at each step, one table, one summary."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from experiments.configs import edge_ecg, edge_thermostat
from experiments.data import ecg5000, mnist1d, temperature
from lowbit.export.reading import read_bundle
from lowbit.run import ACCURACY, Dataset, Experiment, Fit, Method, Model, cross_entropy, device, run
from lowbit.run.evals import device_time
from lowbit.run.evals.device import codes, require
from lowbit.run.evals.device import run as run_on
from tests.run import tiny


def on_signals(params, state, x):
    return tiny.dense(params, state, x[:, :, 0])


def build(seed: int) -> Model:
    return Model(on_signals, tiny.drawn(seed, 40, 10), {})


def few() -> Dataset:
    data = mnist1d.load()
    return data._replace(train=data.train.first(600), test=data.test.first(120))


def first_class(x: np.ndarray) -> np.ndarray:
    return np.repeat(np.eye(1, 10), len(x), axis=0)


FIT = Fit(epochs=12, batch=50, lr=5e-3, step_lr=1e-3)
STORY = Experiment(
    name="tiny",
    data=few,
    model=build,
    metric=ACCURACY,
    loss=cross_entropy,
    fit=FIT,
    methods=(
        Method("w8a8", {"**": "w8,a8"}, integer=True),
        Method("lsq_w4a4", {"**": lb.lsq("w4,a4")}, FIT, integer=True),
    ),
    baseline=("first class", first_class),
    evals=(device("c", samples=100),),
    seeds=(0,),
    calibration_samples=200,
    calibration_batch=100,
)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    results = run(STORY, tmp_path_factory.mktemp("story"))
    assert results.failed == {}
    return results.folder.path


def test_the_device_gives_what_execute_gives(first):
    summary = json.loads((first / "summary.json").read_text())
    assert set(summary["rows"]) == {"float", "w8a8", "lsq_w4a4"}
    for name in ("w8a8", "lsq_w4a4"):
        found = json.loads((first / f"seed-0/{name}/result.json").read_text())["result"]
        assert found["difference"]["device"] == {"max": 0.0, "share": 0.0}
        assert found["metric"]["device"] == found["metric"]["execute_same_samples"]
        assert found["metric"]["device"] > 2 * summary["baseline"]["value"]
        assert 0 < found["device"]["flash_bytes"] < 20_000
    flash = {
        name: row["measured"]["device"]["flash_bytes"]["mean"]
        for name, row in summary["rows"].items()
        if name != "float"
    }
    assert flash["lsq_w4a4"] < flash["w8a8"]
    assert {"commit", "dirty", "versions", "command", "metric"} <= set(summary)
    text = (first / "table.txt").read_text()
    assert "on c" in text
    assert "first class" in text
    assert "<table>" in (first / "report.html").read_text()


def test_a_second_run_reuses_pieces(first, capsys):
    run(STORY, first)
    assert "3 of 3 pieces" in capsys.readouterr().out


def test_a_compiler_of_the_whole_batch_gives_the_same(first):
    bundle, x = read_bundle(first / "seed-0/w8a8/export"), few().test.inputs[:1]
    np.testing.assert_array_equal(run_on(bundle, "xla", x).outputs, run_on(bundle, "c", x).outputs)


def test_time_in_c_is_measured(first):
    bundle = read_bundle(first / "seed-0/w8a8/export")
    x = codes(few().test.inputs[:1], bundle)
    assert x.dtype == np.int8
    assert 0 < device_time.microseconds(bundle, x) < 1e5


def test_codes_stay_within_a_narrow_grid(first):
    bundle = read_bundle(first / "seed-0/lsq_w4a4/export")
    x = codes(100 * few().test.inputs[:8], bundle)
    assert (x.min(), x.max()) == (-8, 7)


@pytest.mark.parametrize("story", [edge_thermostat.config, edge_ecg.config], ids=lambda story: story.name)
def test_networks_that_are_trained_are_full_integer(story):
    model = story.model(0)
    length = {"edge_thermostat": temperature.CONTEXT, "edge_ecg": ecg5000.SAMPLES}[story.name]
    for method in story.methods:
        plan = lb.bind(model.fn, method.rules, model.params, model.state, jnp.zeros((1, length, 1)), integer=True)
        assert plan.is_full_integer
        assert len(plan.quantized) == 5


def test_an_unknown_device_is_named():
    with pytest.raises(ValueError, match="no device 'toaster': models can be run on xla"):
        require("toaster")
