"""What is known of a training while it runs: numbers by epoch against float64, warnings, a callback per step, writers."""

import dataclasses
import math
import struct
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.run import run, tensorboard
from lowbit.run.folder import read_metrics
from lowbit.run.screen import Training
from lowbit.run.trajectory import collapsed, trajectory
from lowbit.run.writers import numbers
from tests.run import tiny
from tests.values import heavy_tailed


def test_signal_over_noise_and_levels_written_out():
    params = {
        "a": {"w": heavy_tailed(0, 20, 24), "b": jnp.zeros(24)},
        "c": {"w": heavy_tailed(1, 24, 5), "b": jnp.zeros(5)},
    }
    x = heavy_tailed(2, 8, 20)
    plan = lb.bind(tiny.dense, {"a/*": lb.lsq("w3,a4"), "c/*": "keep"}, params, {}, x)
    qstate = lb.init(tiny.dense, plan, params, {}, x)
    found = trajectory(plan)(params, qstate)
    w, step = (np.asarray(v, np.float64) for v in (params["a"]["w"], qstate["learn"]["a/w"]["weight"]["step"]))
    codes = np.clip(np.rint(w / step.reshape(1, -1)), -4, 3)
    off = codes * step.reshape(1, -1) - w
    assert found["weight_db"] == {"a/w": pytest.approx(10 * np.log10(np.sum(w**2) / np.sum(off**2)), abs=1e-3)}
    assert found["levels"] == {"a/w": np.ptp(codes) + 1}
    assert found["learned"]["a/w/weight/step"] == pytest.approx(np.mean(step), rel=1e-5)
    flat = {**params, "a": {**params["a"], "w": jnp.full((20, 24), 1e-9)}}
    assert trajectory(plan)(flat, qstate)["levels"] == {"a/w": 1.0}


def test_what_goes_wrong_is_said_once():
    fine = {"loss": 1.0, "weight_db": {"w": 20.0, "v": 9.0}, "levels": {"w": 16.0, "v": 4.0}}
    one = {**fine, "levels": {"w": 1.0, "v": 4.0}}
    noisy = {**fine, "weight_db": {"w": 20.0, "v": 1.5}}
    assert collapsed(None, fine) == []
    assert collapsed(fine, one) == ["w has collapsed to one level"]
    assert collapsed(None, noisy) == ["v is mostly noise on its grid: 1.5 dB"]
    assert collapsed(one, one) == collapsed(noisy, noisy) == []
    assert collapsed(fine, {**fine, "loss": 3.5}) == ["the loss went from 1 to 3.5: a lower step_lr or lr may hold it"]

    said = []

    class Screen:
        def say(self, line, style=""):
            said.append(line)

    screen: Any = Screen()
    watch = Training(screen, "seed-0/m", lambda epoch, values: None)
    for epoch, values in enumerate((fine, one, one)):
        watch.epoch(epoch, values)
    assert said == ["seed-0/m, epoch 2: w has collapsed to one level"]


def test_a_run_tells_its_watch_and_its_writers(tmp_path, capsys):
    steps, lines = [], []

    def broken(folder, line):
        raise OSError("no network")

    def kept(folder, line):
        lines.append((folder, line))

    def watch(piece, done, loss):
        assert isinstance(loss, jax.Array)
        steps.append((piece, done))

    config = dataclasses.replace(tiny.config, evals=(), writers=(broken, kept, tensorboard), watch=watch)
    assert run(config, tmp_path).failed == {}
    assert capsys.readouterr().out.count("broken writes no more: OSError: no network") == 1
    logged = read_metrics(tmp_path)
    assert [line for _, line in lines] == logged
    assert {folder for folder, _ in lines} == {tmp_path}
    batches = len(tiny.bumps().train.labels) // tiny.FIT.batch
    assert steps == [(f"seed-0/{m}", i + 1) for m in ("float", "lsq_w4a4") for i in range(2 * batches)]
    last = logged[-2]
    assert last["kind"] == "epoch"
    assert last["piece"] == "seed-0/lsq_w4a4"
    assert {"metric", "loss", "weight_db", "levels", "learned"} <= set(last)
    simulated = next(line for line in logged if line["kind"] == "result" and line["method"] == "lsq_w4a4")
    assert last["metric"] == simulated["metric"]["simulate"]
    events = scalars(tmp_path / "tensorboard/seed-0/lsq_w4a4")
    assert events["epoch/loss"] == {
        line["epoch"]: pytest.approx(line["loss"])
        for line in logged
        if line["piece"].endswith("a4") and "epoch" in line
    }
    assert set(events["epoch/weight_db/a/w"]) == {0, 1}
    page = (tmp_path / "report.html").read_text()
    for part in ("Learning curves", "Layers", "Files", "prefers-color-scheme: dark", f"{last['weight_db']['a/w']:.1f}"):
        assert part in page


def scalars(folder: Path):
    """TensorBoard's own file format: a length, its checksum, an event, its checksum."""
    from tensorboardX.proto import event_pb2

    messages: Any = event_pb2

    found = {}
    (file,) = folder.iterdir()
    content = file.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = messages.Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_numbers_of_a_line():
    line = {
        "piece": "p",
        "kind": "result",
        "epoch": 3,
        "a": {"b": 1, "c": {"d": 2.5}},
        "text": "x",
        "ok": True,
        "seed": 0,
    }
    assert dict(numbers(line)) == {"a/b": 1.0, "a/c/d": 2.5}
    assert math.isnan(dict(numbers({"loss": math.nan}))["loss"])
