"""`lowbit allocate` on a file outside the repository, and the pictures."""

import json

import numpy as np
import pytest

import lowbit as lb
from lowbit.allocate.pareto import Front, FrontPoint
from lowbit.allocate.scores import Scores
from lowbit.cli import main
from lowbit.report import allocation as pictures

MODEL = """
import jax, jax.numpy as jnp, numpy as np

def build():
    rng = np.random.default_rng(0)
    return fn, {name: jnp.asarray(rng.normal(size=(16, 16)) * scale, jnp.float32) for name, scale in (("a", 1.0), ("b", 0.01))}, None

def fn(params, x):
    return x @ params["a"] + x @ params["b"]

def batches():
    yield (np.random.default_rng(1).normal(size=(8, 16)).astype(np.float32),)
"""


@pytest.fixture
def given(tmp_path):
    path = tmp_path / "my_model.py"
    path.write_text(MODEL)
    return ["allocate", f"{path}:build", "--data", f"{path}:batches", "--candidate", "w4", "--candidate", "w8"]


def test_the_larger_weight_gets_the_bits(given, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*given, "--bits", "8.5", "--out", str(out), "--report"]) == 0
    assert json.loads((out / "rules.json").read_text()) == {"a": "w8", "b": "w4"}
    plan, qparams = lb.load(out / "packed.safetensors")
    assert qparams.bits_per_weight <= 8.5
    assert [row.weight.spec.format.bits for row in plan] == [8, 4]
    assert "optimality gap 0.0e+00" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 3
    for name in ("front.png", "bits.png", "scores.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((out / "front.json").read_text())["points"]) >= 3


def test_wrong_requests_are_one_line(given, tmp_path, capsys):
    assert main([*given, "--out", str(tmp_path / "out")]) == 2
    assert "budget needs a limit" in capsys.readouterr().err
    assert main([*given, "--bits", "2", "--out", str(tmp_path / "out")]) == 2
    assert "below the least possible" in capsys.readouterr().err
    assert main([*given, "--bits", "5", "--target", "toaster", "--out", str(tmp_path / "out")]) == 2
    assert "unknown target 'toaster'" in capsys.readouterr().err
    assert not (tmp_path / "out" / "scored").exists()  # said before anything is scored


def test_pictures_name_what_they_show():
    points = tuple(FrontPoint(float(c), s, 0.0, ("w4", "w8")) for c, s in ((10, 3.0), (20, 1.0)))
    svg = pictures.pareto_front(Front("bytes", ("a", "b"), points, (FrontPoint(15.0, 2.5, np.nan, ("w6", "w6")),)))
    assert all(word in svg for word in (">bytes<", ">w6<", ">uniform<"))
    svg = pictures.heat_map(Scores(("first", "last"), ("w4", "w8"), ((1.0, 0.1), (float("inf"), 0.0)), "mse"))
    assert all(word in svg for word in (">first<", ">last<", ">w8<"))
    assert ">measured<" in pictures.predicted_against_measured([1.0, 2.0], [1.1, 1.9])
    with pytest.raises(ValueError, match="must be of one length"):
        pictures.predicted_against_measured([1.0], [])
