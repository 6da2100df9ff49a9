"""The table of measured times: what it finds again, what it does not, and the command that fills it."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.allocate import latency, timetable
from lowbit.allocate.candidates import candidates_of, decided
from lowbit.allocate.scores import Scores
from lowbit.allocate.timetable import Entry, Timetable
from lowbit.cli import main

ENTRY = Entry(operation="dot_general float32[1, 8] float32[8, 8]", quantizers=["float", "w4"], ms=0.5)


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """A table of its own, and a clock that counts: the n-th operation measured takes n milliseconds."""
    monkeypatch.setenv(timetable.VARIABLE, str(tmp_path / "times"))
    calls = []

    def clock(row, repeats):
        calls.append(row.path)
        return float(len(calls))

    monkeypatch.setattr(latency, "_milliseconds", clock)
    return calls


def rows_and_candidates(*rules):
    params = {"a": jnp.ones((8, 8)), "b": jnp.ones((8, 4))}
    plan = lb.bind(lambda p, x: x @ p["a"] @ p["b"], {"**": "w8"}, params, jnp.ones((2, 8)))
    return decided(plan), candidates_of(plan, rules)


def test_nothing_is_measured_twice_unless_asked(counted):
    rows, candidates = rows_and_candidates("w4", "w8")
    first = latency.measured(rows, candidates)
    assert first == {"a": {"w4": 1.0, "w8": 2.0}, "b": {"w4": 3.0, "w8": 4.0}}
    assert latency.measured(*rows_and_candidates("w8", "w4")) == first  # bound anew, in another order
    assert len(counted) == 4
    assert latency.measured(*rows_and_candidates("w8", "w3"))["a"] == {"w8": 2.0, "w3": 5.0}  # only what is missing
    assert latency.measured(rows, candidates, again=True)["a"] == {"w4": 7.0, "w8": 8.0}
    assert latency.measured(rows, candidates)["a"] == {"w4": 7.0, "w8": 8.0}


def test_another_instruction_set_is_another_table(counted, monkeypatch):
    rows, candidates = rows_and_candidates("w4")
    latency.measured(rows, candidates)
    monkeypatch.setenv("LOWBIT_KERNELS_ISA", "scalar")
    latency.measured(rows, candidates)
    assert len(counted) == 4
    assert len(list(timetable.folder().glob("*.json"))) == 2


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"entries": {}}', '{"machine": {}, "entries": {"x": {"ms": 1}}}', '{"entries": 3}']
)
def test_a_file_that_is_no_table_is_measured_over(counted, content):
    timetable.folder().mkdir(parents=True)
    Timetable().path.write_text(content)
    assert Timetable().lookup("x") is None
    Timetable().keep("x", ENTRY)
    assert Timetable().lookup("x") == 0.5


@pytest.mark.parametrize("ms", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_cannot_be_is_not_read(counted, ms):
    table = Timetable()
    table.keep("x", Entry(operation="dot_general", quantizers=["float"], ms=ms))
    table.keep("y", ENTRY)
    assert Timetable().lookup("x") is None
    assert Timetable().lookup("y") == 0.5


def test_two_writers_keep_what_both_measured(counted):
    ours, theirs = Timetable(), Timetable()  # both read before one wrote
    theirs.keep("theirs", ENTRY)
    ours.keep("ours", ENTRY)
    assert {Timetable().lookup(name) for name in ("ours", "theirs")} == {0.5}
    assert json.loads(ours.path.read_text())["machine"] == timetable.machine()


def test_a_folder_that_cannot_be_written_costs_nothing(counted, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(timetable.VARIABLE, str(tmp_path / "file" / "times"))
    assert latency.measured(*rows_and_candidates("w4"))["b"] == {"w4": 2.0}


MODEL = """
import jax.numpy as jnp

def build():
    return (lambda p, x: x @ p["a"] @ p["b"]), {"a": jnp.ones((8, 8)), "b": jnp.ones((8, 4))}

def batches():
    yield (jnp.ones((2, 8)),)
"""


def test_the_command_fills_the_table_that_a_budget_reads(counted, tmp_path, capsys):
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    asked = [
        "bench",
        "operations",
        f"{path}:build",
        "--data",
        f"{path}:batches",
        "--candidate",
        "w4",
        "--candidate",
        "w8",
    ]
    assert main(asked) == 0
    out = capsys.readouterr().out
    heads, lines = ["operation", "float", "w4", "w8"], [line.split() for line in out.splitlines()]
    assert heads in lines
    assert ["a", "1.0000", "2.0000", "3.0000"] in lines
    assert "fits" in out
    assert "6 times of this machine" in out
    scores = Scores(("a", "b"), ("w4", "w8"), ((0.0, 0.0), (0.0, 0.0)))
    plan = lb.bind(
        lambda p, x: x @ p["a"] @ p["b"], {"**": "w8"}, {"a": np.ones((8, 8)), "b": np.ones((8, 4))}, np.ones((2, 8))
    )
    (least,) = {point.cost for point in lb.pareto(plan, scores, unit="milliseconds", points=2).points}
    assert least == 2.0 + 5.0
    assert len(counted) == 6
    assert main(["bench", "operations", f"{path}:build"]) == 2
    assert "required: --data, --candidate" in capsys.readouterr().err
