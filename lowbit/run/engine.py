"""The engine: every method for every seed, measured, and a report of what was found.

A piece is one method for one seed. It is finished when its ``result.json`` is there, whole and written with the same key; the
key is of everything the piece depends on (`lowbit.run.identity`): so a run that was stopped goes on, a changed config redoes
what it changes and nothing else, and several workers in one folder share the work. A piece that fails is a row with its error.
"""

import contextlib
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jax

from . import report
from .experiment import Experiment, Method, Suite
from .floats import network
from .folder import TIMES, RunFolder
from .identity import joined
from .job import Job
from .keys import eval_key, key_of, name_of
from .pieces import Piece, check_rules, make_piece, measure_piece
from .results import Measured, Results
from .samples import arguments
from .screen import Screen, console


def run(
    config: Experiment,
    out: Path,
    *,
    fresh: bool = False,
    only: Sequence[str] = (),
    accept_stale: bool = False,
    is_worker: bool = False,
) -> Results:
    """Runs an experiment and returns what it found.

    Args:
        config: what to do.
        out: the folder, made if need be.
        fresh: empty the folder first instead of going on where an earlier run stopped.
        only: globs over names of methods, or of pieces such as ``seed-0/*``: the others are taken where they are finished,
            and not done.
        accept_stale: take pieces that another commit or other code of lowbit finished, which are done again otherwise.
        is_worker: do pieces, beside others who do, and report nothing.

    Raises:
        ImportError: if an optional package that an eval needs is missing, before anything is computed.
        OSError: if the data set cannot be had.
        ValueError: if a glob of ``only`` fits nothing, or rules do not fit the network.
    """
    check_only(config, only)
    chosen = _chosen(config, only)
    _require(config)
    folder = RunFolder(out, config, fresh=fresh, accept_stale=accept_stale)
    try:
        with compiled_kept(folder.path):
            return _run(_opened(config, folder, chosen), chosen, is_worker=is_worker)
    finally:
        folder.leave()


def run_suite(
    config: Suite,
    out: Path,
    *,
    fresh: bool = False,
    only: Sequence[str] = (),
    accept_stale: bool = False,
    is_worker: bool = False,
) -> list[Results]:
    """Runs every experiment of a suite, each in a folder of its name, then the report over all; the arguments are those of `run`.

    A glob of ``only`` may also be of an experiment's name, or have it before the piece: ``demo``, ``demo/*/w4a8``. Of an
    experiment of which nothing is chosen, what an earlier run left is taken, and no data are loaded where it left nothing.
    One whose data or network cannot be had is left out, and its name and reason are in ``folder.absent``.

    Raises:
        ImportError, OSError: as `run`; where no experiment's data can be had, what the first said.
    """
    check_only(config, only)
    chosen = {each.name: _chosen(each, only, each.name) for each in config.experiments}
    for each in config.experiments:
        if chosen[each.name]:
            _require(each)
    folder = RunFolder(out, config, fresh=fresh)
    results, first = [], None
    try:
        for each in config.experiments:
            place, pieces = folder.path / each.name, chosen[each.name]
            if not pieces and (is_worker or not (place / "config.json").is_file()):
                continue
            inner = RunFolder(place, each, accept_stale=accept_stale)
            try:
                try:
                    job = _opened(each, inner, pieces)
                except (OSError, ImportError) as error:
                    first = first or error
                    folder.absent[each.name] = " ".join(str(error).split()) or type(error).__name__
                    if not is_worker:
                        Screen(console(), 0).say(f"{each.name} is left out: {folder.absent[each.name]}", style="yellow")
                    continue
                with compiled_kept(folder.path):
                    results.append(_run(job, pieces, is_worker=is_worker))
            finally:
                inner.leave()
        if first is not None and not results:
            raise first
        if not is_worker:
            config.report(results, folder)
        return results
    finally:
        folder.leave()


@contextlib.contextmanager
def compiled_kept(path: Path) -> Iterator[None]:
    """A context in which compiled programs are kept in ``path/compiled``: pieces and workers have most of theirs in common.

    Where JAX was given a folder for them, it is that one.
    """
    wanted = {
        "jax_compilation_cache_dir": str(path / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    if before["jax_compilation_cache_dir"] is not None:
        yield
        return
    try:
        for name, value in wanted.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def _require(config: Experiment) -> None:
    for each in config.evals:
        if each.require is not None:
            each.require()


def _opened(config: Experiment, folder: RunFolder, chosen: Sequence[tuple[int, Method]]) -> Job:
    """The job: its data, and where a piece chosen is not done, the network of the first seed: files of both are there."""
    data = config.data()
    data = data._replace(train=data.train.first(config.train_samples), test=data.test.first(config.test_samples))
    job = Job(config, data, folder, Screen(console(), len(chosen)))
    if any(not _is_done(job, method, seed) for seed, method in chosen):
        network(job, config.seeds[0])
    return job


def _run(job: Job, chosen: Sequence[tuple[int, Method]], *, is_worker: bool) -> Results:
    """Does the pieces chosen, and reports what there is of all."""
    started, config = time.time(), job.experiment
    if not is_worker:
        _introduce(job)
    check_rules(job, [m for m in config.methods if any(m is each and not _is_done(job, m, s) for s, each in chosen)])
    with job.screen.shown():
        _work(job, chosen, since=started)
        reused = len(job.folder.reused)
        together = {} if is_worker else _together(job, is_done=not chosen)
    results = _results(job, together, since=started, minutes=(time.time() - started) / 60)
    job.pieces.clear()
    if is_worker:
        return results
    if reused:
        job.screen.say(
            f"{reused} of {len(chosen)} pieces were finished by an earlier run or another worker and taken as they are "
            "(--fresh does all again)",
            style="yellow",
        )
    if job.folder.accept_stale and job.folder.stale:
        said = f"another commit or other code of lowbit made {', '.join(job.folder.stale)}"
        job.screen.say(f"{said}: accepted (result.json says which commit)", style="yellow")
    if chosen:
        (config.report or report.standard)(results)
    return results


def _chosen(config: Experiment, only: Sequence[str], lead: str | None = None) -> list[tuple[int, Method]]:
    """Seeds and methods that globs fit; of a suite, also by the name of the experiment before them."""
    pieces = [(seed, method) for seed in config.seeds for method in config.rows]
    return [(seed, method) for seed, method in pieces if _is_chosen(name_of(method, seed), only, lead)]


def check_only(config: Experiment | Suite, only: Sequence[str]) -> None:
    """Raises ValueError for a glob that fits no piece of a config: what it asks for would be left out in silence."""
    has_names = isinstance(config, Suite)
    configs = config.experiments if isinstance(config, Suite) else (config,)
    for glob in only:
        if not any(_chosen(each, [glob], each.name if has_names else None) for each in configs):
            names = dict.fromkeys(method.name for each in configs for method in each.rows)
            more = f", in {', '.join(each.name for each in configs)}" if has_names else ""
            raise ValueError(f"--only {glob} fits no piece; there are {', '.join(names)}{more}")


def _is_chosen(name: str, only: Sequence[str], lead: str | None) -> bool:
    names = [name, name.partition("/")[2], *(() if lead is None else (lead, f"{lead}/{name}"))]
    return not only or any(fnmatch(each, glob) for each in names for glob in only)


def _is_done(job: Job, method: Method, seed: int) -> bool:
    return job.folder.finished(name_of(method, seed), key_of(job, method, seed)) is not None


def _introduce(job: Job) -> None:
    data, screen, folder = job.data, job.screen, job.folder
    sizes = f"{data.train.size} train, {data.test.size} test"
    screen.say(f"{job.experiment.name}: {data.name} from {data.source}; {sizes}")
    screen.say(f"into {folder.path}", style="dim")
    if folder.is_changed:
        screen.say("the config differs from the last run here: pieces that it changes are done again", style="yellow")


def _work(job: Job, pieces: Sequence[tuple[int, Method]], *, since: float) -> None:
    """Does what is not done; a piece that another worker is at is waited for, and done here where that worker dies."""
    waiting, done = list(pieces), 0
    while waiting:
        busy = []
        for seed, method in waiting:
            with job.folder.locked(name_of(method, seed), wait=False) as is_ours:
                if is_ours:
                    _do(job, method, seed, since=since)
                    done += 1
                    job.screen.piece(done)
                else:
                    busy.append((seed, method))
        if busy:
            with job.folder.locked(name_of(busy[0][1], busy[0][0])):  # until its worker is through with it, or dead
                pass
        waiting = busy


def _do(job: Job, method: Method, seed: int, *, since: float) -> None:
    name, key = name_of(method, seed), key_of(job, method, seed)
    if job.folder.finished(name, key) is not None or job.folder.failure(name, key, since=since) is not None:
        return
    if name in job.folder.stale:
        job.screen.say(
            f"{name} is of another commit or other code of lowbit: done again (--accept-stale takes it)", style="yellow"
        )
    if name in job.folder.damaged:
        job.screen.say(f"{name} is not what was written: done again", style="yellow")
    before = time.perf_counter()
    try:
        piece = make_piece(job, method, seed)
        if seed == job.experiment.seeds[0] and any(each.is_together for each in job.experiment.evals):
            job.pieces[method.name] = piece
        measurements = measure_piece(piece)
        for each in job.experiment.evals:
            if each.is_of(method.name) and not each.is_together:
                measurements = merged(measurements, each.measure(piece))
    except Exception as error:  # noqa: BLE001 - whatever a method of the user's raises: its row says it, the others go on
        lines = (" ".join(line.split()) for line in str(error).splitlines())
        text = f"{type(error).__name__}: {'; '.join(filter(None, lines)).replace(':;', ':')}"
        job.folder.fail(name, key, text)
        job.log(name, "error", seed=seed, method=method.name, error=text)
        job.screen.say(f"seed {seed}  {method.name:<12} failed: {text}", style="red")
        if not isinstance(error, ValueError):
            traceback.print_exc(file=sys.stderr)
        return
    measurements[TIMES] = round(time.perf_counter() - before, 2)
    job.log(
        name, "result", seed=seed, method=method.name, **measurements
    )  # before it is finished: see `lowbit.run.training.train`
    job.folder.finish(name, key, measurements)
    job.screen.say(_line(job, seed, method, measurements))


def _line(job: Job, seed: int, method: Method, measurements: Mapping[str, Any]) -> str:
    metric = job.experiment.metric
    said = (
        []
        if metric is None
        else [f"{where} {value:.{metric.digits}f}" for where, value in measurements["metric"].items()]
    )
    said += [f"{where} differs by {value['max']:.3g}" for where, value in measurements.get("difference", {}).items()]
    for column in () if metric else (column for each in job.experiment.evals for column in each.columns):
        if values := Measured(method.name, {seed: measurements}, {}).values(*column.of):
            said.append(f"{column.head} {column.text(values, [])}")
    return f"seed {seed}  {method.name:<12} {'  '.join(said)}   {measurements[TIMES]:.1f} s"


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts put together; what both hold is taken of the second.

    Example:
        >>> merged({"bytes": {"file": 3}}, {"bytes": {"export": 2}})
        {'bytes': {'file': 3, 'export': 2}}
    """
    whole = dict(one)
    for key, value in other.items():
        before = whole.get(key)
        whole[key] = merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return whole


def _together(job: Job, *, is_done: bool) -> dict[str, dict[str, Any]]:
    """What evals found of the finished pieces of the first seed, taken together, by method; or had found, and nothing is measured."""
    by_method: dict[str, dict[str, Any]] = {}
    seed = job.experiment.seeds[0]
    keys = {method.name: key_of(job, method, seed) for method in job.experiment.rows}
    there = [m for m in job.experiment.rows if job.folder.finished(name_of(m, seed), keys[m.name]) is not None]
    pieces: dict[str, Piece] = {}  # in the order of the rows, whoever made them
    for each in job.experiment.evals:
        if not each.is_together or not there:
            continue
        name, key = f"evals/{each.name}", joined([*(keys[m.name] for m in there), eval_key(each)])
        with job.folder.locked(name):
            values = job.folder.finished(name, key)
            if values is None and is_done:
                continue
            if values is None:
                job.screen.start(each.name)
                pieces = pieces or {m.name: job.pieces.get(m.name) or make_piece(job, m, seed) for m in there}
                values = dict(each.measure(pieces))
                for method, value in values.items():
                    job.log(f"seed-{seed}/{method}", each.name, **value)
                job.folder.finish(name, key, values)
        by_method = merged(by_method, values)
    return by_method


def _results(job: Job, together: Mapping[str, Any], *, since: float, minutes: float) -> Results:
    """What is in the folder."""
    asked, rows, first = job.experiment, [], job.experiment.seeds[0]
    for method in asked.rows:
        results, errors = {}, {}
        for seed in asked.seeds:
            name, key = name_of(method, seed), key_of(job, method, seed)
            if (result := job.folder.finished(name, key)) is not None:
                results[seed] = merged(result, together.get(method.name, {})) if seed == first else result
            elif (error := job.folder.failure(name, key, since=since)) is not None:
                errors[seed] = error
        rows.append(Measured(method.name, results, errors))
    guess = None
    if asked.baseline is not None and asked.metric is not None:
        name, call = asked.baseline
        guess = name, float(asked.metric.of(call(*arguments(job.data.test.inputs)), job.data.test.labels))
    return Results(asked, job.folder, tuple(rows), job.data.name, guess, minutes)
