"""The folder of a run after a kill: never blocked, never half."""

import contextlib
import json

from experiments.run_folder import RunFolder
from tests.core.test_atomic import Stopped, stopped_at
from tests.experiments import tiny


def test_a_kill_before_the_first_file_blocks_nothing(tmp_path):
    out = tmp_path / "run"
    (out / ".config.json.0123456789abcdef.part").mkdir(parents=True)
    RunFolder(out, tiny.config, fresh=True)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "run.json"]


def test_emptied_or_as_it_was(tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr("experiments.run_folder.environment", dict)
    seen = set()
    for step in (*range(0, 40, 3), 10**6):
        folder = RunFolder(out, tiny.config)
        folder.finish("seed-0/m", "key", {"x": 1})
        with stopped_at(monkeypatch, step), contextlib.suppress(Stopped):
            RunFolder(out, tiny.config, fresh=True)
        found = RunFolder(out, tiny.config).finished("seed-0/m", "key")
        assert found in ({"x": 1}, None)
        seen.add(found is None)
        assert json.loads((out / "config.json").read_text())["name"] == tiny.config.name
        RunFolder(out, tiny.config, fresh=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert seen == {True, False}
