"""The job end to end on made-up images: what it writes, that it goes on after a kill, that it repeats itself."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import lowbit as lb
from experiments import train
from experiments.checkpoint import load_tree, save_tree
from experiments.config import Config, Method, fingerprint, plain
from tests.experiments import tiny

LATER = ("seconds", "latency", "commit", "dirty")


def numbers(folder):
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in LATER} for line in lines if line["kind"] != "latency"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    return tiny.run(tiny.config, folder)


def test_writes_the_run_folder(first):
    config = json.loads((first / "config.json").read_text())
    assert config["methods"][1]["rules"]["**"]["weight"] == "lsq('int4/channel/sym', start='auto')"
    assert {"seeds", "versions", "commit", "dirty", "device"} <= set(json.loads((first / "run.json").read_text()))
    page = (first / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "<script" not in page
    for name in ("float", "w8a8", "lsq_w4a4"):
        plan, qparams = lb.load(first / f"seed-0/{name}/packed.safetensors")
        assert len(plan) == 5
        assert (0.0 < qparams.bits_per_weight < 4.5) == (name == "lsq_w4a4")
        assert bool(qparams.weights()) == (name != "float")
    results = [line for line in numbers(first) if line["kind"] == "result"]
    assert [line["method"] for line in results] == ["float", "w8a8", "lsq_w4a4"]
    assert all(line["difference"]["execute"]["max"] == 0 for line in results)
    assert results[0]["accuracy"]["execute"] > 0.5
    summary = json.loads((first / "summary.json").read_text())
    assert {name: row["accuracy"] for name, row in summary["rows"].items()} == {
        line["method"]: [round(100 * line["accuracy"]["execute"], 3)] for line in results
    }
    assert {"commit", "dirty", "versions", "device", "seeds", "minutes"} <= set(summary)
    printed = (first / "table.txt").read_text().splitlines()
    assert [line[0] for line in summary["table"]] == ["method", *(line.split()[0] for line in printed[2:])]
    assert {len(line) for line in summary["table"]} == {6}  # all that the table has, but for the time of a call
    assert all(cell in printed[3] for cell in summary["table"][2])
    assert "<svg" in (first / "accuracy.svg").read_text()


def test_again_it_gives_the_same_bits_a_kill_between(first, tmp_path, monkeypatch):
    """Two pieces are done anew from start to end, the third goes on in the middle of its training."""
    steps = []
    made = train.stepper

    def dying(*args):
        step = made(*args)

        def counted(*carry):
            steps.append(1)
            if len(steps) == 22:  # the second epoch of the second training
                raise KeyboardInterrupt
            return step(*carry)

        return counted

    monkeypatch.setattr(train, "stepper", dying)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tiny.config, tmp_path)
    assert not (tmp_path / "seed-0/lsq_w4a4/result.json").exists()
    tiny.run(tiny.config, tmp_path)
    assert len(steps) == 22 + 6  # one epoch was left
    assert numbers(tmp_path) == numbers(first)
    ours, theirs = (load_file(f / "seed-0/lsq_w4a4/train.safetensors") for f in (tmp_path, first))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    for name in ("float", "w8a8", "lsq_w4a4"):
        path = f"seed-0/{name}/packed.safetensors"
        assert (tmp_path / path).read_bytes() == (first / path).read_bytes()


@pytest.mark.slow
def test_a_changed_method_redoes_only_itself(first, capsys):
    _, lsq = tiny.config.methods
    changed = dataclasses.replace(tiny.config, methods=(Method("w8a8", {"**": "w8/tensor,a8"}), lsq))
    before = (first / "seed-0/lsq_w4a4/result.json").stat().st_mtime_ns
    tiny.run(changed, first)
    printed = capsys.readouterr().out
    assert "the config differs" in printed
    assert "2 of 3 pieces" in printed
    assert (first / "seed-0/lsq_w4a4/result.json").stat().st_mtime_ns == before
    tiny.run(tiny.config, first)  # as it was, for the other tests


def test_checkpoint_refuses_what_does_not_fit(tmp_path):
    tree = {"a": np.arange(3.0, dtype=np.float32)}
    save_tree(tmp_path / "x", tree, key="k")
    assert np.array_equal(load_tree(tmp_path / "x", tree, key="k")["a"], tree["a"])
    assert load_tree(tmp_path / "x", tree, key="other") is None
    assert load_tree(tmp_path / "x", {"a": np.zeros(4, np.float32)}, key="k") is None
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-2])
    assert load_tree(tmp_path / "x", tree, key="k") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": ()}, "seeds must be distinct"),
        ({"seeds": (1, 1)}, "seeds must be distinct"),
        ({"test_batch": 0}, "test_batch must be at least 1"),
        ({"name": "a/b"}, "names become folders"),
        ({"methods": (Method("float", {}),)}, "'float' is taken twice"),
        ({"fit": train.Fit(epochs=0)}, "fit: epochs and batch"),
    ],
)
def test_config_checks(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny.config, **change)


def test_fingerprint_follows_rules():
    def of(text):
        return fingerprint(Method("m", {"**": lb.lsq(text)}))

    assert of("w4,a4") == of("w4,a4") != of("w4/tensor,a4")
    assert isinstance(tiny.config, Config)
    assert plain(tiny.config)["data"].endswith(":stripes")
