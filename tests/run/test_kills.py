"""Runs and sweeps killed at random moments: they end with the same bits, nothing lost, nothing done twice.

`make test` kills five times, `make fuzz-runs` fifty; LOWBIT_KILLS sets the number, LOWBIT_KILLS_SEED the moments. A run is through
after a few kills, and later ones would find nothing to cut short: every fifth kill the next run begins, in a folder of its own.
"""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from lowbit import cli
from lowbit.run import sweep
from lowbit.run.folder import METRICS, read_metrics
from tests.run import tiny
from tests.run.test_engine import seal_of

KILLS = int(os.environ.get("LOWBIT_KILLS", "5"))
SEED = int(os.environ.get("LOWBIT_KILLS_SEED", "0"))
EACH = 5
"""Kills of one run."""
LATER = ("seconds", "latency", "commit", "dirty")
WITHOUT = ["--without", "latency", "--without", "grids"]
PIECES = ("float", "w8a8", "lsq_w4a4")


def work(words, compiled, log):
    """A worker: ``lowbit`` with these words, in a process forked from one that has imported everything."""
    with Path(log).open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        jax.config.update("jax_compilation_cache_dir", str(compiled))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        status = cli.main(words)
    sys.exit(status)


@pytest.fixture(scope="module")
def forks():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.run.test_kills", "lowbit.run.engine", "lowbit.run.report", "lowbit.cli.running"]
    )
    return context


def told(folder):
    """What the metrics say, but for times, in an order of its own: workers take turns."""
    lines = [{k: v for k, v in line.items() if k not in LATER} for line in read_metrics(folder)]
    return sorted(json.dumps(line, sort_keys=True) for line in lines)


def made(folder):
    """The bits of every piece, and the seal of all of a training's."""
    return [(folder / f"seed-0/{piece}/packed.safetensors").read_bytes() for piece in PIECES], seal_of(
        folder / "seed-0/lsq_w4a4"
    )


def alive(group):
    """Words of every process of a group that has not ended; one that ended and was not collected, as under a container's first
    process that collects none, is not among them."""
    words = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, _, its_group, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(its_group) == group and state != "Z":
                words.append((folder / "cmdline").read_text().replace("\0", " "))
    return words


class Finished:
    """Results as they were when first seen: a piece that is finished is not done again."""

    def __init__(self, folder):
        self.folder, self.seen = folder, {}

    def look(self):
        for path in self.folder.glob("**/result.json"):
            stat = path.stat()
            now = stat.st_ino, stat.st_mtime_ns
            assert self.seen.setdefault(path, now) == now, f"{path} was written twice"


def test_workers_killed_at_random(forks, tmp_path):
    compiled = tmp_path / "compiled"

    def worker(name):
        words = ["run", tiny.__file__, *WITHOUT, "--out", str(tmp_path / name)]
        process = forks.Process(target=work, args=(words, compiled, tmp_path / f"{name}.log"))
        process.start()
        return process

    start = time.monotonic()
    whole = worker("whole")
    whole.join(300)
    assert whole.exitcode == 0, (tmp_path / "whole.log").read_text()
    took, moments = time.monotonic() - start, random.Random(SEED)
    for name in (f"killed-{i}" for i in range(max(KILLS // EACH, 1))):
        finished, workers = Finished(tmp_path / name), []
        for _ in range(min(KILLS, EACH)):
            workers = [each for each in workers if each.is_alive()]
            workers += [worker(name) for _ in range(2 - len(workers))]
            time.sleep(moments.uniform(0, took / 2))
            moments.choice(workers).kill()
            finished.look()
        for each in [*workers, last := worker(name)]:
            each.join(300)
            assert each.exitcode in (0, -signal.SIGKILL), (tmp_path / f"{name}.log").read_text()
        assert last.exitcode == 0
        finished.look()
        assert told(tmp_path / name) == told(tmp_path / "whole")
        assert made(tmp_path / name) == made(tmp_path / "whole")
        lines = (tmp_path / name / METRICS).read_text().splitlines()
        assert len(lines) <= len(told(tmp_path / name)) + EACH  # a kill costs one line at most, of what it cut short


@pytest.mark.slow
def test_sweeps_killed_at_random(tmp_path):
    """The whole group of processes, or the sweep alone, whose runs then go on beside those of the next."""
    grid = ["--grid", "methods.lsq_w4a4.fit.lr=1e-2,3e-3"]

    def begun(name):
        command = [sys.executable, "-m", "lowbit.cli", "sweep", tiny.__file__, *grid, *WITHOUT]
        command += ["--jobs", "2", "--out", str(tmp_path / name)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)

    start = time.monotonic()
    assert begun("whole").wait(600) == 0
    took, moments = time.monotonic() - start, random.Random(SEED)
    for name in (f"killed-{i}" for i in range(max(KILLS // EACH, 1))):
        finished, groups = Finished(tmp_path / name), []
        for _ in range(min(KILLS, EACH)):
            running = begun(name)
            groups.append(running.pid)
            time.sleep(moments.uniform(0, took))
            (os.killpg if moments.random() < 0.5 else os.kill)(running.pid, signal.SIGKILL)
            running.wait()
            finished.look()
        assert begun(name).wait(600) == 0
        until = time.monotonic() + 600
        while left := [
            each for group in groups for each in alive(group)
        ]:  # what a killed sweep left finds everything done
            assert time.monotonic() < until, f"these do not end: {left}"
            time.sleep(0.1)
        finished.look()
        for point in sweep.points(["methods.lsq_w4a4.fit.lr=1e-2,3e-3"]):
            whole, killed = (tmp_path / each / point.name for each in ("whole", name))
            assert told(killed) == told(whole)
            assert made(killed) == made(whole)
