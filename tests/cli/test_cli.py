import dataclasses
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from experiments.configs import demo
from lowbit import cli
from lowbit.cli.running import check
from tests.run import tiny

DEMO = "experiments/configs/demo.py"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    """Where its paths are meant from, whatever folder the tests were started in."""
    monkeypatch.chdir(Path(__file__).resolve().parents[2])


def failed(capsys, *words: str) -> str:
    """The one line that a wrong request gets."""
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert "run" in out
    assert "show" in out
    assert cli.main([]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bla"], "invalid choice: 'bla'"),
        (["run"], "required: CONFIG.py"),
        (["run", "--sett"], "see lowbit"),
        (["run", "nowhere/dmo.py"], "does not exist"),
        (["run", "experiments/configs/dmo.py"], "did you mean experiments/configs/demo.py"),
        (["run", "experiments/configs"], "is a folder"),
        (["run", "pyproject.toml"], "is not a Python file"),
        (["run", DEMO, "--set", "seeds"], "write KEY=VALUE"),
        (["run", DEMO, "--set", "sed=1"], "no field sed; nearest: seeds"),
        (["run", DEMO, "--set", "fit.epoch=1"], "no field fit.epoch; nearest: fit.epochs"),
        (["run", DEMO, "--set", "fit.epochs=1.5"], "must be a whole number, such as 4"),
        (["run", DEMO, "--set", "fit.lr=fast"], "must be a number"),
        (["run", DEMO, "--set", "seeds=0,x"], "must be a whole number"),
        (["run", DEMO, "--set", "seeds=1,1"], "seeds must be distinct"),
        (["run", DEMO, "--without", "iri"], "it has iree, latency, iree_latency, grids"),
        (["run", DEMO, "--set", "methods.lsq.fit.lr=1"], "nearest: methods.lsq_w4a4"),
        (["run", DEMO, "--set", "methods.w8a8=1"], "name a field of it"),
        (["run", DEMO, "--set", "data=x"], "cannot be set from the command line"),
        (["run", DEMO, "--set", "fit.epochs.x=1"], "there is nothing called x"),
        (["show", "nowhere.safetensors"], "does not exist"),
        (["show", "tests"], "is a folder"),
        (["show", "pyproject.toml"], "pyproject.toml"),
    ],
)
def test_wrong_words(capsys, words, message):
    assert message in failed(capsys, *words)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("config = (", r"line 1: '(' was never closed"),
        ("import no_such_thing", "needs no_such_thing: pip install no_such_thing"),
        ("import experiments.no_such_thing", "there is no such file"),
        ("x = 1", "does not set config"),
        ("config = 1", "config must be a lowbit.run.Experiment or Suite, got 1 (int)"),
        ("\nraise KeyError('k')", "line 2: KeyError: 'k'"),
        (
            "from lowbit.run import Experiment\nExperiment('x', None, None, None, (), seeds=())",
            "line 2: ValueError: seeds must be distinct",
        ),
    ],
)
def test_wrong_configs(capsys, tmp_path, source, message):
    path = tmp_path / "odd.py"
    path.write_text(source)
    assert message in failed(capsys, "run", str(path))


def test_errors_of_the_job_are_one_line(capsys, tmp_path):
    path = tmp_path / "job.py"
    path.write_text(
        textwrap.dedent("""
        from tests.run.tiny import config
        def run(config, out, *, fresh):
            raise FileNotFoundError(2, "No such file", "data.gz")
        """)
    )
    assert failed(capsys, "run", str(path)) == "lowbit: data.gz: No such file\n"


def test_rules_that_match_nothing_are_one_line_before_anything_is_trained(capsys, tmp_path):
    path = tmp_path / "job.py"
    path.write_text(
        textwrap.dedent("""
        import dataclasses
        from lowbit.run import Method
        from tests.run import tiny
        config = dataclasses.replace(tiny.config, methods=(Method("m", {"hed/*": "w8"}),))
        """)
    )
    assert cli.main(["run", str(path), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "m: " in err
    assert "hed/*" in err
    assert not list((tmp_path / "out").rglob("train"))  # said before anything is trained


def test_a_failed_piece_is_a_status(capsys, tmp_path):
    path = tmp_path / "job.py"
    path.write_text(
        textwrap.dedent("""
        import dataclasses
        from lowbit.run import Method
        from tests.run import tiny
        def wrong(x):
            raise ValueError("no such rewrite")
        methods = (Method("m", {"**": "w8"}, rewrites=wrong),)
        config = dataclasses.replace(tiny.config, methods=methods, fit=None, evals=())
        """)
    )
    assert cli.main(["run", str(path), "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert "seed-0/m failed: ValueError: no such rewrite" in out
    assert err == ""


@dataclasses.dataclass(frozen=True)
class Uniform:
    """A config with a field that begins empty."""

    rules: tuple[str, ...] = ()


def test_changes_are_typed():
    config = cli.changed(demo.config, ["seeds=3", "fit.lr=1", "methods.lsq_w4a4.fit.epochs=7", "name=other"])
    assert config.seeds == (3,)
    assert config.fit.lr == 1.0
    assert isinstance(config.fit.lr, float)
    assert config.methods[3].fit.epochs == 7
    assert config.name == "other"
    assert demo.config == dataclasses.replace(demo.config)
    assert cli.changed(demo.config, ["seeds=(0, 1)"]).seeds == (0, 1)
    assert cli.changed(demo.config, ["train_samples=600"]).train_samples == 600  # None until it is set
    some = cli.changed(Uniform(), ["rules=w2,w8"])
    assert some.rules == ("w2", "w8")  # no items until they are set
    assert cli.changed(some, ["rules="]).rules == ()
    with pytest.raises(cli.UsageError, match="--set seeds=: "):
        cli.changed(demo.config, ["seeds="])


def test_the_engine_s_own_run_in_a_config_is_no_run_of_its_own(tmp_path):
    path = tmp_path / "all.py"
    path.write_text("from lowbit.run import *\nfrom tests.run.tiny import config\n")
    check(path, [["fit.epochs=1"]], ["grids"])  # evals are left out of an Experiment alone
    with pytest.raises(cli.UsageError, match="--without speed: tiny has no such eval"):
        check(path, [[]], ["speed"])


def test_run_and_show(capsys, tmp_path):
    words = [
        "run",
        tiny.__file__,
        "--out",
        str(tmp_path),
        "--set",
        "methods.lsq_w4a4.fit.epochs=1",
        "--set",
        "fit.epochs=1",
        "--without",
        "grids",
    ]
    assert cli.main(words) == 0
    assert "lsq_w4a4" in capsys.readouterr().out
    assert cli.main(["show", str(tmp_path / "seed-0/lsq_w4a4/packed.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "a/w" in out
    assert "bits each, scales included" in out


def test_help_needs_no_plots():
    code = "import sys; from lowbit import cli; cli.parser(); print([m for m in ('matplotlib', 'rich', 'iree') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
