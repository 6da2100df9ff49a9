"""The folder of a run: after a kill never blocked, never half; several workers lose nothing; what is read back is checked."""

import contextlib
import json
import random
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from lowbit import cli
from lowbit.core import atomic
from lowbit.core.kept import opened, sealed
from lowbit.run.folder import METRICS, RunFolder, read_metrics
from lowbit.run.states import State
from tests.core.test_atomic import Stopped, stopped_at
from tests.run import tiny


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    """A run's environment without a look at git."""
    monkeypatch.setattr("lowbit.run.folder.environment", dict)


def test_a_kill_before_the_first_file_blocks_nothing(tmp_path):
    out = tmp_path / "run"
    (out / ".config.json.0123456789abcdef.part").mkdir(parents=True)
    RunFolder(out, tiny.config, fresh=True)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "run.json"]


def test_emptied_or_as_it_was(tmp_path, monkeypatch):
    out = tmp_path / "run"
    seen = set()
    for step in (*range(0, 40, 3), 10**6):
        folder = RunFolder(out, tiny.config)
        folder.finish("seed-0/m", "key", {"x": 1})
        del folder
        with stopped_at(monkeypatch, step), contextlib.suppress(Stopped):
            RunFolder(out, tiny.config, fresh=True)
        found = RunFolder(out, tiny.config).finished("seed-0/m", "key")
        assert found in ({"x": 1}, None)
        seen.add(found is None)
        assert json.loads((out / "config.json").read_text())["name"] == tiny.config.name
        RunFolder(out, tiny.config, fresh=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert seen == {True, False}


def test_a_folder_with_a_worker_in_it_is_not_emptied(tmp_path, capsys):
    worker = RunFolder(tmp_path / "run", tiny.config)
    with pytest.raises(FileExistsError, match="another worker is in it"):
        RunFolder(tmp_path / "run", tiny.config, fresh=True)
    words = ["run", tiny.__file__, "--out", str(tmp_path / "run"), "--jobs", "2", "--fresh"]
    assert cli.main(words) == 2
    assert "another worker is in it" in capsys.readouterr().err
    assert (tmp_path / "run/config.json").is_file()
    worker.leave()
    RunFolder(tmp_path / "run", tiny.config, fresh=True)


def test_metrics_of_several_workers_are_all_there(tmp_path):
    def work(number):
        folder = RunFolder(tmp_path, tiny.config)  # a handle of its own, as another process has
        for epoch in range(60):
            folder.log(f"seed-{number}/m", "epoch", epoch=epoch, loss=1.0)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert len(read_metrics(tmp_path)) == 120


def test_a_line_cut_short_costs_that_line_alone(tmp_path):
    folder = RunFolder(tmp_path, tiny.config)
    folder.log("a", "epoch", epoch=0, loss=1.0)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"piece": "a", "kind": "ep')
    folder.log("a", "epoch", epoch=1, loss=2.0)
    folder.log("a", "epoch", epoch=0, loss=3.0)
    assert [(line["epoch"], line["loss"]) for line in read_metrics(tmp_path)] == [(0, 3.0), (1, 2.0)]


LOCK = """
import fcntl, os, sys, time
handle = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(handle, fcntl.LOCK_EX)
print("mine", flush=True)
time.sleep(60)
"""


def test_a_lock_dies_with_its_owner(tmp_path):
    folder = RunFolder(tmp_path, tiny.config)
    with folder.locked("seed-0/m") as is_ours:
        assert is_ours
        with folder.locked("seed-0/m", wait=False) as again:
            assert not again
    command = [sys.executable, "-c", LOCK, str(tmp_path / "seed-0/.m.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "mine\n"
        with folder.locked("seed-0/m", wait=False) as is_ours:
            assert not is_ours
        other.kill()
        with folder.locked("seed-0/m") as is_ours:
            assert is_ours


def test_a_result_is_read_back_whole(tmp_path):
    folder = RunFolder(tmp_path, tiny.config)
    folder.piece("seed-0/m").joinpath("file").write_bytes(b"1234")
    folder.finish("seed-0/m", "key", {"x": 1.5})
    assert folder.finished("seed-0/m", "key") == {"x": 1.5}
    assert folder.finished("seed-0/m", "other") is None
    path = tmp_path / "seed-0/m/result.json"
    good = path.read_text()
    path.write_text(good.replace("1.5", "1.25"))
    assert folder.finished("seed-0/m", "key") is None
    path.write_text(good)
    (tmp_path / "seed-0/m/file").write_bytes(b"1235")
    assert folder.finished("seed-0/m", "key") is None
    assert folder.damaged == ["seed-0/m"]


def test_failures_are_of_their_run(tmp_path):
    folder = RunFolder(tmp_path, tiny.config)
    folder.fail("seed-0/m", "key", "ValueError: why")
    assert folder.failure("seed-0/m", "key", since=0.0) == "ValueError: why"
    assert folder.failure("seed-0/m", "key", since=1e12) is None
    assert folder.finished("seed-0/m", "key") is None


def test_no_flipped_bit_of_a_state_is_believed(tmp_path):
    """A bit that Orbax needs makes the state none; one of what it does not read (times, names) changes nothing.

    In a process of its own: where Orbax cannot read one array it leaves the readers of others unfinished, and these complain
    whenever Python finds them, which would be in another test.
    """
    code = "import pathlib, sys; from tests.run.test_folder import flip_states; flip_states(pathlib.Path(sys.argv[1]))"
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]


def flip_states(tmp_path):
    tree = {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.arange(40, dtype=np.int8)}
    state = State(tmp_path / "state", "k")
    state.save(tree, 2)
    state.save(tree, 3)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["3"]
    found, epochs = state.load(tree)
    assert epochs == 3
    assert all(np.array_equal(found[name], tree[name]) for name in tree)
    assert State(tmp_path / "state", "other").load(tree) is None
    assert state.load({"a": np.zeros(4, np.float32), "b": tree["b"]}) is None
    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    places = [(path, bit) for path in files for bit in range(8 * path.stat().st_size)]
    refused = 0
    for path, bit in random.Random(0).sample(places, 60):
        good = path.read_bytes()
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        again = state.load(tree)
        path.write_bytes(good)
        refused += again is None
        assert again is None or (again[1] == 3 and all(np.array_equal(again[0][name], tree[name]) for name in tree))
    assert refused > 10
    for path in files:
        if path.stat().st_size and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:-1])
    assert state.load(tree) is None


def test_every_flipped_bit_of_what_is_sealed_is_refused(tmp_path):
    content = sealed({"a": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.arange(40, dtype=np.int8)}, "a note")
    assert opened(content)[1] == "a note"
    for place in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        assert opened(bytes(flipped)) is None, place
    for cut in (0, 7, len(content) // 2, len(content) - 1):
        assert opened(content[:cut]) is None
    assert opened(content + b"\0") is None


def test_states_of_other_commits_and_keys_of_random_numbers(tmp_path):
    tree = {"key": jax.random.key(3), "w": np.ones(2, np.float32)}
    State(tmp_path / "s", "k", "one").save(tree, 2)
    again, epochs = State(tmp_path / "s", "k", "one").load(tree)
    assert epochs == 2
    assert (jax.random.key_data(again["key"]) == jax.random.key_data(tree["key"])).all()
    assert State(tmp_path / "s", "k", "two").load(tree) is None
    assert State(tmp_path / "s", "k", "two", accept_stale=True).load(tree) is not None


def test_sealed_is_a_plain_safetensors_file(tmp_path):
    from safetensors.numpy import load

    arrays = {"x": np.eye(3, dtype=np.float16)}
    content = sealed(arrays, "a note")
    assert np.array_equal(load(content)["x"], arrays["x"])
    assert opened(content)[1] == "a note"
    atomic.write_file(tmp_path / "f", content)
