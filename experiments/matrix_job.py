"""The job of the matrix: every plan of every model exported for every target that takes it, and verified.

A piece is one plan of one model; it is finished when its ``result.json`` is there with the same key. What a target refuses
is asked of the table of targets, or said by the form that cannot be written; nothing of it is written here.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowbit as lb
from experiments.config import FLOAT, fingerprint, plain
from experiments.matrix import Case, Matrix, Variant
from experiments.matrix_table import finish
from experiments.measure import outputs
from experiments.progress import Screen, console
from experiments.run_folder import TIMES, RunFolder
from experiments.story_model import Job, calibrated, float_key, float_model, train_key
from lowbit.export import installed
from lowbit.export.bundle import Bundle
from lowbit.export.runners import runners
from lowbit.export.verify import Row, verify
from lowbit.plan.rows import Plan
from lowbit.targets.refusals import check
from lowbit.targets.table import TARGETS

REFUSED = "refused"
"""The status of a target that cannot hold a plan; the others are those of `lowbit.export.verify.Row`."""


def run(config: Matrix, out: Path, *, fresh: bool = False) -> Path:
    """Runs the matrix and returns its folder.

    Args:
        config: what to do.
        out: the folder, made if need be.
        fresh: empty the folder first instead of going on where an earlier run stopped.

    Raises:
        DataError: if a data set cannot be had.
        ValueError: if rules do not fit a network.
    """
    started = time.perf_counter()
    folder = RunFolder(out, config, fresh=fresh)
    terminal = console()
    screen = Screen(terminal, sum(1 + len(case.variants) for case in config.cases))
    screen.say(f"{config.name}: {len(config.cases)} models, {len(runners())} targets, into {folder.path}")
    results, reused, count = [], 0, itertools.count(1)
    with screen.shown():
        for case in config.cases:
            job = Job(case.story, case.story.data(), RunFolder(folder.path / case.name, case.story), screen)
            results.append(_case(job, case, config.seeds[0], done=lambda: screen.piece(next(count))))
            reused += len(job.folder.reused)
    if reused:
        screen.say(f"{reused} pieces were finished by an earlier run and taken as they are (--fresh does all again)", style="yellow")  # fmt: skip
    minutes = (time.perf_counter() - started) / 60
    finish(config, folder, terminal, results, list(runners()), _tools(), minutes=minutes)
    return folder.path


def _case(job: Job, case: Case, seed: int, *, done: Callable[[], None]) -> dict[str, Any]:
    """Every plan of a model, and the float model."""
    found = []
    for name, variant in ((FLOAT, None), *((variant.name, variant) for variant in case.variants)):
        key = float_key(job, seed) if variant is None else _key(job, case, variant, seed)
        result = job.folder.finished(f"seed-{seed}/{name}", key)
        if result is None:
            before = time.perf_counter()
            result = _float(job, seed) if variant is None else _piece(job, case, variant, seed)
            result[TIMES] = round(time.perf_counter() - before, 1)
            result |= {what: job.folder.environment[what] for what in ("commit", "dirty")}
            job.folder.finish(f"seed-{seed}/{name}", key, result)
        said = _said(result.get("targets", {}))
        job.screen.say(f"{case.name} {name:<12} {result['metric']:7.2f}   {said}   {result[TIMES]:.1f} s")
        found.append({"name": name, **result})
        done()
    metric = case.story.metric
    return {
        "name": case.name, "title": case.title, "data": job.data.name, "metric": metric.name, "digits": metric.digits,
        "batch": case.batch, "float": found[0], "plans": found[1:],
    }  # fmt: skip


def _said(targets: Mapping[str, Mapping[str, Any]]) -> str:
    statuses = [row["status"] for row in targets.values()]
    return ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))


def _key(job: Job, case: Case, variant: Variant, seed: int) -> str:
    return fingerprint(
        train_key(job, variant.method, seed), variant, case.batch, plain(list(TARGETS.values())), _tools()
    )


def _tools() -> dict[str, str]:
    """By target, its tool, or what is missing of it."""
    targets = (TARGETS[name] for name in runners())
    return {t.name: f"without {needed}" if (needed := installed.missing(t)) else installed.version(t) for t in targets}


def _float(job: Job, seed: int) -> dict[str, Any]:
    model, test = float_model(job, seed), job.data.test
    call = jax.jit(model.fn)
    found = outputs(lambda x: call(model.params, model.state, x), test.images, job.story.test_batch)
    return {"metric": job.story.metric.of(found, test.labels), "weights": _count(model.params)}


def _count(params: Any) -> int:
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))


def _piece(job: Job, case: Case, variant: Variant, seed: int) -> dict[str, Any]:
    """Packs one plan, executes it on the test set, and runs it on every target that takes it."""
    story, test, model = job.story, job.data.test, float_model(job, seed)
    options = {"integer": True, "rounding": variant.rounding} if variant.is_integer else {}
    plan, params, qstate = calibrated(job, variant.method, seed, **options)
    qparams = lb.pack(plan, params, qstate)
    served = lb.execute(model.fn, plan)
    found = outputs(lambda x: served(qparams, model.state, x), test.images, story.test_batch)
    args = model.state, jnp.asarray(test.images[: case.batch])
    place = job.folder.piece(f"seed-{seed}/{variant.name}") / "export"

    def export(targets: Sequence[str]) -> Bundle:
        return lb.export(model.fn, plan, qparams, args, place, integer_io=variant.is_integer, targets=targets)

    rows, names = _asked(plan)
    job.screen.start(f"{case.name} {variant.name} export")
    bundle, refusals = _exported(export, names)
    rows |= {name: {"status": REFUSED, "detail": reason} for name, reason in refusals.items()}
    job.screen.start(f"{case.name} {variant.name} verify")
    rows |= {row.target: _kept(row) for row in verify(bundle.path, run_code=True).rows}
    return {
        "metric": story.metric.of(found, test.labels),
        "bits_per_weight": qparams.bits_per_weight,
        "rules": plain(variant.method.rules),
        "is_integer": variant.is_integer,
        "rounding": variant.rounding if variant.is_integer else None,
        "targets": {name: rows[name] for name in runners()},
    }


def _asked(plan: Plan) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The targets that are not installed, or refuse a plan by the table of targets; and the others."""
    rows: dict[str, dict[str, Any]] = {}
    names = []
    for name in runners():
        target = TARGETS[name]
        try:
            check(plan, [target])
        except ValueError as error:
            rows[name] = {"status": REFUSED, "detail": str(error)}
            continue
        if needed := installed.missing(target):
            rows[name] = {"status": "not run", "detail": f"{needed} is not installed: {target.install}"}
        else:
            names.append(name)
    return rows, names


def _exported(export: Callable[[Sequence[str]], Bundle], names: Sequence[str]) -> tuple[Bundle, dict[str, str]]:
    """The bundle for the targets whose forms can hold the model, and by target what the others say."""
    try:
        return export(names), {}
    except ValueError:
        found: dict[str, str] = {}
    for form in dict.fromkeys(TARGETS[name].form for name in names):
        takers = [name for name in names if TARGETS[name].form == form]
        try:
            export(takers)
        except ValueError as error:
            found |= dict.fromkeys(takers, str(error))
    return export([name for name in names if name not in found]), found


def _kept(row: Row) -> dict[str, Any]:
    """A row of the certificate as it is kept: without what was not found."""
    names = ("difference", "unit", "share", "rounding", "bytes", "bits_per_weight", "detail")
    fields = {name: getattr(row, name) for name in names} | {"measured": dict(row.measured)}
    return {"status": row.status} | {name: value for name, value in fields.items() if value not in (None, "", {})}
