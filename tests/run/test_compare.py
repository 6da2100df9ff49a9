"""Runs beside each other, and combinations of values as runs of their own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lowbit import cli
from lowbit.run import compare, sweep
from tests.run import tiny

ROWS = {"float": {"values": [90.0, 91.0]}, "w4": {"values": [80.0, 82.0]}}


def written(folder, rows, **asked):
    folder.mkdir(parents=True)
    summary = {"metric": "accuracy %", "rows": rows, "commit": "c", "versions": {"jax": "1"}}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.json").write_text(
        json.dumps({"fit": {"lr": 0.1}, "methods": [{"name": "w4", "bits": 4}]} | asked)
    )
    return folder


def test_two_runs(tmp_path, capsys):
    one = written(tmp_path / "one", ROWS)
    other = written(tmp_path / "other", {"float": ROWS["float"], "w4": {"values": [84.0, 82.0]}}, fit={"lr": 0.2})
    asked, rows = compare.diff(one, other)
    assert asked.rows == [["fit.lr", "0.1", "0.2"]]
    assert [[row[0], row[-1]] for row in rows.rows] == [["float", "same"], ["w4", "+2.000"]]
    assert cli.main(["diff", str(one), str(other)]) == 1
    assert "82.000" not in capsys.readouterr().out.splitlines()[0]
    assert cli.main(["diff", str(one), str(one)]) == 0
    assert cli.main(["report", str(one), str(other)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == ["w4", "81.000", "±", "1.414", "83.000", "±", "1.414"]
    assert cli.main(["report", str(tmp_path)]) == 2
    failed = written(tmp_path / "failed", {"w4": {"errors": {"0": "ValueError: why"}}})
    assert cli.main(["diff", str(failed), str(failed)]) == 0
    assert cli.main(["diff", str(failed), str(written(tmp_path / "none", {}))]) == 1


def test_methods_go_by_their_names():
    one = {"methods": [{"name": "a", "x": 1}, {"name": "b", "x": 2}]}
    other = {"methods": [{"name": "b", "x": 3}, {"name": "a", "x": 1}, {"name": "c"}]}
    assert compare.changes(one, other) == [("methods.b.x", "2", "3"), ("methods.c", "-", "{'name': 'c'}")]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["fit.lr"], "write KEY=VALUE"),
        (["a=1,"], "write KEY=VALUE"),
        (["a=1", "a=2"], "given twice"),
        (["=1"], "write KEY"),
    ],
)
def test_wrong_grids(grid, message):
    with pytest.raises(ValueError, match=message):
        sweep.points(grid)


def test_as_many_processes_as_asked(tmp_path):
    code = "import sys, time, pathlib; pathlib.Path(sys.argv[1]).touch(); time.sleep(0.2); sys.exit(int(sys.argv[2]))"
    commands = {
        name: [sys.executable, "-c", code, str(tmp_path / name), status]
        for name, status in zip("abc", "010", strict=True)
    }
    assert sweep.by_processes(commands, 2, tmp_path / "logs") == {"a": 0, "b": 1, "c": 0}
    assert all((tmp_path / name).exists() for name in "abc")


def test_submitits_own_executor(tmp_path):
    code = "import sys, pathlib; pathlib.Path(sys.argv[1]).touch(); sys.exit(int(sys.argv[2]))"
    commands = {
        name: [sys.executable, "-c", code, str(tmp_path / name), status]
        for name, status in zip("ab", "01", strict=True)
    }
    assert sweep.by_submitit(commands, "local", tmp_path / "logs", {"timeout_min": 5}) == {"a": 0, "b": 1}
    assert all((tmp_path / name).exists() for name in "ab")


RAY = """
import json, pathlib, sys
from lowbit.run import sweep
commands = {name: [sys.executable, "-c", "import sys; print(sys.argv[1]); sys.exit(int(sys.argv[2]))", name, status]
            for name, status in zip("abc", "010", strict=True)}
print(json.dumps(sweep.by_ray(commands, "local", 2, pathlib.Path(sys.argv[1]), {})))
"""


@pytest.mark.slow
def test_a_local_ray_of_two_workers(tmp_path):
    """In a process of its own: Ray leaves threads and handles behind."""
    done = subprocess.run([sys.executable, "-c", RAY, str(tmp_path / "logs")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"a": 0, "b": 1, "c": 0}
    assert [(tmp_path / f"logs/{name}.log").read_text() for name in "abc"] == ["a\n", "b\n", "c\n"]


def test_schedulers_are_named_once(capsys):
    asked = ["sweep", tiny.__file__, "--grid", "fit.lr=1e-2"]
    assert cli.main([*asked, "--ray", "local", "--submitit", "local"]) == 2
    assert "give one of them" in capsys.readouterr().err
    assert cli.main([*asked, "--ray", "local", "--ray-set", "gpus"]) == 2
    assert "num_gpus=1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was(tmp_path):
    """Two points, one killed after its float training: the second sweep ends with the same bits as one that was not killed."""
    words = [
        "sweep",
        tiny.__file__,
        "--grid",
        "methods.lsq_w4a4.fit.lr=1e-2,3e-3",
        "--without",
        "latency",
        "--without",
        "grids",
    ]

    def swept(*more):
        """A process of its own: submitit keeps the streams that it finds when it is imported, and a test's are closed."""
        command = [sys.executable, "-m", "lowbit.cli", *words, "--out", *more]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "2 runs into" in swept(str(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    point = tmp_path / "killed/methods.lsq_w4a4.fit.lr=1e-2"
    for name in ("seed-0/lsq_w4a4", "seed-0/w8a8"):
        shutil.rmtree(point / name)
    before = (point / "seed-0/float/result.json").stat().st_mtime_ns
    swept(str(tmp_path / "killed"), "--submitit", "local")
    assert (point / "seed-0/float/result.json").stat().st_mtime_ns == before
    for name in ("float", "w8a8", "lsq_w4a4"):
        paths = [tmp_path / f"{run}/{point.name}/seed-0/{name}/packed.safetensors" for run in ("whole", "killed")]
        assert paths[0].read_bytes() == paths[1].read_bytes()
    found = json.loads((tmp_path / "killed/sweep.json").read_text())
    assert [line["status"] for line in found.values()] == [0, 0]
    assert set(found[point.name]["rows"]) == {"float", "w8a8", "lsq_w4a4"}


def test_a_sweep_is_checked_before_it_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", tiny.__file__, "--grid", "fit.lr=1e-2", "--grid", "fit.foo=1,2"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "lowbit: --set fit.foo: no field fit.foo; nearest: fit.epochs, fit.batch, fit.lr, fit.step_lr, fit.step_decay, fit.devices"
    ]
    assert cli.main(["sweep", tiny.__file__, "--grid", "fit.lr=fast"]) == 2
    assert cli.main(["sweep", tiny.__file__, "--grid", "fit.lr=1e-2", "--without", "iree"]) == 2
    assert cli.main(["sweep", tiny.__file__, "--grid", "fit.lr=1e-2", "--only", "w3"]) == 2
    assert cli.main(["report", "nowhere"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [len(said), said[-2], said[-1]] == [
        4,
        "lowbit: --only w3 fits no piece; there are float, w8a8, lsq_w4a4",
        "lowbit: nowhere is no folder: give that of a run that ended, such as runs/demo",
    ]
    assert list(tmp_path.iterdir()) == []


def test_what_a_failed_point_says_is_shown(tmp_path, capsys):
    """The data of this one are missing, which is known only when it runs."""
    text = (
        Path(tiny.__file__)
        .read_text()
        .replace("    rng =", '    raise OSError("no bumps: pip install bumps")\n    rng =', 1)
    )
    (tmp_path / "missing.py").write_text(text)
    assert cli.main(["sweep", str(tmp_path / "missing.py"), "--grid", "seeds=0", "--out", str(tmp_path / "out")]) == 1
    assert "seeds=0 failed: lowbit: no bumps: pip install bumps (" in capsys.readouterr().out


def test_runs_of_an_earlier_lowbit_are_refused(tmp_path):
    """As they were before values by seed were kept under that name."""
    rows = {"float": {"accuracy": [88.17, 87.53], "mean": 87.85, "spread": 0.45}}
    written(tmp_path / "old", rows)
    written(tmp_path / "new", ROWS)
    with pytest.raises(ValueError, match=r"old is of an earlier lowbit.*run its config again"):
        compare.report([tmp_path / "new", tmp_path / "old"])
    written(tmp_path / "timed", {"float": {"measured": {"bits_per_weight": {"mean": 32.0}}}})
    assert compare.report([tmp_path / "timed"]).rows == [["float", "-"]]


def test_what_only_one_run_was_asked_is_cut_short():
    evals = [{"name": "latency", "measure": {"batches": list(range(50))}}]
    (line,) = compare.changes({"evals": evals}, {"evals": []})
    assert line[0] == "evals.latency"
    assert line[1].endswith("...")
    assert len(line[1]) == 60
    assert line[2] == "-"
    assert compare.changes({"evals": []}, {"evals": evals}) == [(line[0], "-", line[1])]
