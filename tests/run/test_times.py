"""Times in turns, peers, costs of exports, and experiments without labels."""

import dataclasses
import importlib.util
import json
import time

import numpy as np
import pytest

import lowbit as lb
from lowbit.run import Method, Suite, beside_float, export_cost, latency, peers, run, run_suite, times, unlabelled
from lowbit.run.evals.export_cost import measured
from lowbit.run.measure import interleaved, kept, ratio
from tests.run import tiny

ALONE = dataclasses.replace(
    tiny.config,
    name="alone",
    metric=None,
    methods=(Method("w8a8", {"**": "w8,a8"}), Method("whole", {"**": "w8,a8"}, integer=True)),
    evals=(beside_float(), latency(batches=(1, 3), seconds=0, rest=0)),
)


def test_turns_are_counted_and_timed():
    calls = {"a": 0, "b": 0}

    def call(name, seconds):
        def waits():
            calls[name] += 1
            time.sleep(seconds)

        return waits

    found = interleaved({"a": call("a", 0.02), "b": call("b", 0.04)}, seconds=0, least=3, most=3, rest=0)
    assert calls == {"a": 5 + 3 * 2, "b": 5 + 3 * 2}  # warm, then one that is not timed and one that is
    assert kept(found["a"])["rounds"] == 3
    assert 20 <= found["a"].minimum <= found["a"].median
    assert 40 <= found["b"].minimum
    assert ratio(found["b"], found["a"]) == np.median(np.divide(found["b"].rounds, found["a"].rounds))


def test_what_is_slow_is_warmed_twice():
    calls = []
    interleaved({"a": lambda: time.sleep(1.01) or calls.append(1)}, seconds=0, least=1, most=1, rest=0)
    assert len(calls) == 2 + 2


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    def missing():
        raise OSError("the photographs are not installed: pip install them")

    def unneeded():
        raise AssertionError("nothing of this one is asked for")

    suite = Suite(
        "several",
        (
            dataclasses.replace(ALONE, name="absent", data=missing),
            ALONE,
            dataclasses.replace(ALONE, name="unneeded", data=unneeded),
        ),
        times({"alone": "a dense network"}),
    )
    out = tmp_path_factory.mktemp("several")
    found = run_suite(suite, out, only=["absent", "alone/*"])
    assert [each.experiment.name for each in found] == ["alone"]
    assert found[0].failed == {}
    return out, found[0]


def test_outputs_are_compared_with_those_of_float(alone):
    out, results = alone
    x = tiny.bumps().test.inputs
    float_plan, float_params = lb.load(out / "alone/seed-0/float/packed.safetensors")
    wanted = np.asarray(lb.execute(tiny.dense, float_plan)(float_params, {}, x), np.float64)
    for row in results.rows[1:]:
        plan, qparams = lb.load(out / f"alone/seed-0/{row.name}/packed.safetensors")
        got = np.asarray(lb.execute(tiny.dense, plan)(qparams, {}, x), np.float64)
        decibels = 10 * np.log10(np.sum(wanted**2) / np.sum((got - wanted) ** 2))
        assert row.values("beside_float", "sqnr_db")[0] == pytest.approx(decibels, abs=2e-3)
        assert row.values("beside_float", "agreement") == [100 * np.mean(got.argmax(1) == wanted.argmax(1))]
        assert row.values("difference", "execute", "max") == [0]
    assert "beside_float" not in results.rows[0].results[0]


def test_without_a_metric_there_is_no_column_of_one(alone):
    out, results = alone
    assert all("metric" not in row.results[0] for row in results.rows)
    heads = (out / "alone/table.txt").read_text().splitlines()[0].split("  ")
    assert [head.strip() for head in heads if head.strip()] == [
        "method", "bits/w", "file", "sim-exec", "SQNR dB", "agree %", "XLA ms b1", "XLA ms b3",
    ]  # fmt: skip
    assert json.loads((out / "alone/summary.json").read_text())["metric"] is None
    with pytest.raises(ValueError, match="baseline: a guess is measured by the metric"):
        dataclasses.replace(ALONE, baseline=("none", np.zeros_like))


def test_a_suite_reports_times_and_names_what_is_left_out(alone):
    out, _ = alone
    found = json.loads((out / "times.json").read_text())
    assert found["absent"] == {"absent": "the photographs are not installed: pip install them"}
    assert [(line["network"], line["batch"]) for line in found["rows"]] == [
        ("a dense network", 1),
        ("a dense network", 3),
    ]
    for line in found["rows"]:
        assert set(line["times"]) == {"float", "w8a8", "whole"}
        assert all(0 < each["min_ms"] <= each["median_ms"] for each in line["times"].values())
        assert set(line["over_float"]) == {"w8a8", "whole"}
        assert set(line["implementations"]) == {"w8a8", "whole"}
        assert line["load_average"] >= 0
    assert {"commit", "device", "versions", "isa", "date"} <= set(found)
    assert "not installed" in (out / "report.html").read_text()
    assert not (out / "unneeded").exists()


def test_a_suite_of_which_nothing_is_there_fails(tmp_path):
    def missing(seed):
        raise ImportError("reading weights needs h5py: pip install 'lowbit[pretrained]'")

    suite = Suite("none", (dataclasses.replace(ALONE, model=missing),), times())
    with pytest.raises(ImportError, match="needs h5py"):
        run_suite(suite, tmp_path)
    with pytest.raises(ValueError, match=r"there are float, w8a8, whole"):
        run_suite(suite, tmp_path, only=["other/*"])


def test_samples_without_labels():
    inputs = np.arange(12, dtype=np.float32).reshape(6, 2)
    data = unlabelled("numbers", inputs, calibrated=2)
    assert data.train.size == 2
    assert data.test.size == 6
    np.testing.assert_array_equal(data.train.inputs, inputs[:2])


def test_what_cannot_be_asked_for():
    with pytest.raises(ValueError, match="there is no 'tvm'; there are onnxruntime, openvino"):
        peers("tvm")
    with pytest.raises(ValueError, match="there is no form 'c'"):
        export_cost("c")


def test_a_peer_that_is_missing_is_named(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("onnx", "openvino") else found(name))
    config = dataclasses.replace(ALONE, evals=(peers("openvino"),))
    with pytest.raises(ImportError, match="needs onnx and openvino: pip install onnx openvino, or leave it out with"):
        run(config, tmp_path)


def test_the_cost_of_an_export(alone, tmp_path):
    """Measured here, and refused where a process of its own could not make the model again."""
    out, _ = alone
    x = tiny.bumps().test.inputs[:1]
    file = out / "alone/seed-0/w8a8/packed.safetensors"
    found = measured(tiny.build, 0, file, x, "served", is_folded=False, is_integer=False)
    assert found["model_bytes"] == 4 * (20 * 24 + 24 + 24 * 5 + 5)
    assert found["seconds"] >= 0
    assert 0 < found["packed_bytes"] < found["model_bytes"]
    config = dataclasses.replace(
        ALONE,
        model=lambda seed: tiny.build(seed),
        methods=(ALONE.methods[0], Method("rewritten", {"**": "w8"}, rewrites=lambda x: ())),
        evals=(export_cost("served"),),
    )
    assert (
        "give test_the_cost_of_an_export.<locals>.<lambda> one in a module"
        in (results := run(config, tmp_path)).failed["seed-0/w8a8"]
    )
    assert "rewrites the function" in results.rows[2].results[0]["export_cost"]["left_out"]
