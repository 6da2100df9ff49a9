"""The matrix: what runs is verified, what is refused or missing says why, and the table holds all of it."""

import dataclasses
import functools
import json

import pytest

from experiments import matrix_table
from lowbit.export import installed
from lowbit.run import Method, Suite, run_suite, verify

from .test_device import STORY

TARGETS = ("xla", "iree-vmvx", "c", "c-aarch64")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    missing = installed.missing
    patch.setattr(installed, "missing", lambda t: "a compiler" if t.name == "c-aarch64" else missing(t))
    methods = (
        Method("w8a8", {"**": "w8,a8"}, integer=True),
        Method("w2a8", {"**": "w2,a8"}, integer=True, rounding="gemmlowp_double"),
        Method("w4", {"**": "w4"}),
    )
    story = dataclasses.replace(STORY, methods=methods, evals=(verify(TARGETS, batch=8),), baseline=None)
    config = Suite("tiny", (story,), functools.partial(matrix_table.report, {"tiny": "tiny net"}))
    out = tmp_path_factory.mktemp("matrix")
    for _ in range(2):  # the second takes the pieces of the first
        run_suite(config, out)
    patch.undo()
    return out


@pytest.mark.slow
def test_every_plan_meets_every_target(folder):
    found = json.loads((folder / "summary.json").read_text())
    assert found["targets"] == list(TARGETS)
    (model,) = found["models"]
    plans = {plan["name"]: plan for plan in model["plans"]}
    statuses = {name: [plan["targets"][target]["status"] for target in TARGETS] for name, plan in plans.items()}
    assert statuses == {
        "w8a8": ["exact", "exact", "exact", "not run"],
        "w2a8": ["exact", "refused", "exact", "not run"],
        "w4": ["close", "refused", "refused", "refused"],
    }
    assert (
        "iree-vmvx cannot take the weight of a/w (dense layer): got int2"
        in plans["w2a8"]["targets"]["iree-vmvx"]["detail"]
    )
    assert "c cannot take the input of a/w (dense layer): got float" in plans["w4"]["targets"]["c"]["detail"]
    assert "a compiler is not installed: apt install" in plans["w8a8"]["targets"]["c-aarch64"]["detail"]
    assert plans["w2a8"]["targets"]["c"]["bits_per_weight"] == 2.0
    assert abs(model["float"]["metric"] - plans["w8a8"]["metric"]) < 5
    assert {"commit", "dirty", "versions", "tools", "command"} <= set(found)


@pytest.mark.slow
def test_the_table_has_a_row_per_plan(folder):
    found = json.loads((folder / "summary.json").read_text())
    lines = matrix_table.markdown(found).splitlines()
    assert lines[0] == "| model | plan | right % (float) | bits/w | xla | iree-vmvx | c | c-aarch64 |"
    assert [line.split(" | ")[-1] for line in lines[2:5]] == ["not run |", "not run |", "- |"]
    assert lines[3].startswith("|  | w2a8 | ")  # the model is said once
    text = (folder / "table.txt").read_text()
    assert "c cannot take the input of a/w" in text
    assert "<table>" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"status": "exact"}, "exact"),
        ({"status": "close", "unit": "steps", "difference": 1.0, "share": 0.0316}, "1 step, 3.2 %"),
        ({"status": "close", "unit": "absolute", "difference": 3.1e-6, "share": 0.9}, "3e-06"),
        ({"status": "differs", "unit": "steps", "difference": 5.0, "share": 0.5}, "differs: 5 steps, 50 %"),
        ({"status": "reported", "measured": {"npu_operators": 3.0, "cpu_operators": 1.0}}, "75 % on NPU"),
        ({"status": "refused", "detail": "why"}, "-"),
        ({"status": "inflated"}, "inflated"),
    ],
)
def test_cells(row, said):
    assert matrix_table.cell(row) == said


def test_targets_that_did_the_same_share_a_column():
    exact, other = {"status": "exact"}, {"status": "refused"}
    plans = [{"targets": {"a": exact, "b": b, "c": exact}} for b in (other, exact)]
    found = {"targets": ["a", "b", "c"], "models": [{"plans": plans}]}
    assert matrix_table.grouped(found) == [("a", "c"), ("b",)]
