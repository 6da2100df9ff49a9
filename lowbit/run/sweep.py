"""A config under every combination of some values: each point is a run of its own, by the command line.

A point's folder is called after its values. A point that is finished is looked at and left as it is; one that was killed goes
on where it was: all that is what `lowbit run` does with its folder anyway. Schedulers are the real ones: processes here, or
submitit's executors.
"""

import itertools
import logging
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .compare import read_run
from .folder import write_json


class Point(NamedTuple):
    """One combination.

    Attributes:
        name: of its folder.
        changes: ``KEY=VALUE`` texts, as ``lowbit run --set`` takes them.
    """

    name: str
    changes: tuple[str, ...]


def points(grid: Sequence[str]) -> list[Point]:
    """Returns all combinations of ``KEY=VALUE,VALUE,...`` texts; a value with commas of its own stands in brackets.

    Raises:
        ValueError: for a text of another form, or a key that is given twice.

    Example:
        >>> [point.name for point in points(["fit.lr=1e-3,3e-3", "seeds=[0,1],2"])]
        ['fit.lr=1e-3,seeds=0+1', 'fit.lr=1e-3,seeds=2', 'fit.lr=3e-3,seeds=0+1', 'fit.lr=3e-3,seeds=2']
    """
    axes = []
    for text in grid:
        key, sign, values = text.partition("=")
        choices = [value.strip() for value in _split(values)]
        if not sign or not key.strip() or not all(choices):
            raise ValueError(f"--grid {text}: write KEY=VALUE,VALUE, such as --grid fit.lr=1e-3,3e-3")
        axes.append([(key.strip(), value) for value in dict.fromkeys(choices)])
    keys = [axis[0][0] for axis in axes]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ValueError(f"--grid {twice} is given twice")
    return [
        Point(
            ",".join(f"{key}={value.strip('[]').replace(',', '+').replace('/', '_')}" for key, value in each),
            tuple(f"{key}={value.strip('[]')}" for key, value in each),
        )
        for each in itertools.product(*axes)
    ]


def _split(text: str) -> list[str]:
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def command(config: Path, point: Point, out: Path, words: Sequence[str] = ()) -> list[str]:
    """Returns the command of one point.

    Args:
        config: the config file.
        point: what is changed in it.
        out: the sweep's folder.
        words: further arguments of ``lowbit run``.
    """
    changes = [word for change in point.changes for word in ("--set", change)]
    return [sys.executable, "-m", "lowbit.cli", "run", str(config), "--out", str(out / point.name), *changes, *words]


def by_processes(commands: Mapping[str, Sequence[str]], jobs: int, logs: Path) -> dict[str, int]:
    """Runs commands, at most so many at a time, and returns their exit statuses by name; they end with this process's loop."""
    waiting, running, statuses = dict(commands), {}, {}
    logs.mkdir(parents=True, exist_ok=True)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = next(iter(waiting))
                with (logs / f"{name}.log").open("ab") as log:
                    running[name] = subprocess.Popen(waiting.pop(name), stdout=log, stderr=subprocess.STDOUT)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                statuses[name] = running.pop(name).returncode
            time.sleep(0.05)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return statuses


def by_submitit(
    commands: Mapping[str, Sequence[str]], cluster: str, logs: Path, parameters: Mapping[str, Any]
) -> dict[str, int]:
    """Runs commands as jobs of submitit and returns their exit statuses by name.

    Args:
        commands: by name.
        cluster: ``local`` or ``slurm``, as `submitit.AutoExecutor` takes it.
        logs: the folder of the executor's files.
        parameters: of ``AutoExecutor.update_parameters``, such as ``timeout_min``.

    Raises:
        ImportError: naming the extra, if submitit is not installed.
    """
    try:
        import submitit
    except ImportError as error:
        raise ImportError("sweeps by submitit need it: pip install 'lowbit[sweep]'") from error
    executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
    executor.update_parameters(**{"timeout_min": 24 * 60, **parameters})
    jobs = {
        name: executor.submit(submitit.helpers.CommandFunction(list(words), verbose=False))
        for name, words in commands.items()
    }
    statuses = {}
    for name, job in jobs.items():
        statuses[name] = 0 if job.exception() is None else 1
    return statuses


def by_ray(
    commands: Mapping[str, Sequence[str]], address: str, jobs: int, logs: Path, options: Mapping[str, Any]
) -> dict[str, int]:
    """Runs commands as tasks of Ray and returns their exit statuses by name.

    Args:
        commands: by name. Every node of a cluster must see the same interpreter and folders under the same paths.
        address: of a cluster, as `ray.init` takes it, such as ``auto``; ``local`` starts one here, which ends with this call.
        jobs: tasks at a time of one that is started here.
        logs: the folder of what the commands print.
        options: of every task, such as ``num_gpus``, as `ray.remote` takes them.

    Raises:
        ImportError: naming the extra, if Ray is not installed.
        ConnectionError: if there is no cluster at this address.
    """
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError as error:
        raise ImportError("sweeps by Ray need it: pip install 'lowbit[ray]'") from error

    def done(words: list[str], log: str) -> int:
        with open(log, "ab") as file:
            return subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, check=False).returncode

    logs.mkdir(parents=True, exist_ok=True)
    cores = jobs if address == "local" else None
    ray.init(address, num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        task = ray.remote(**{"num_cpus": 1, "max_retries": 0, **options})(done)
        running = {name: task.remote(list(words), str(logs / f"{name}.log")) for name, words in commands.items()}
        statuses = {}
        for name, result in running.items():
            try:
                statuses[name] = ray.get(result)
            except RayError:  # of the node that it was on: its run goes on with the next sweep
                statuses[name] = 1
        return statuses
    finally:
        ray.shutdown()


def summarized(out: Path, asked: Sequence[Point], statuses: Mapping[str, int]) -> dict[str, Any]:
    """Writes ``sweep.json``: by point its changes, exit status and rows; and returns it."""
    lines: dict[str, Any] = {}
    for point in asked:
        line: dict[str, Any] = {"changes": list(point.changes), "status": statuses.get(point.name)}
        if statuses.get(point.name) in (0, 1):
            try:
                line["rows"] = read_run(out / point.name)["rows"]
            except ValueError as error:
                line["error"] = str(error)
        lines[point.name] = line
    write_json(out / "sweep.json", lines)
    return lines
