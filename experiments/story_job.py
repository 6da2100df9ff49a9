"""The job of an edge story: every step from float to the device, measured.

For every seed: float training (or a pretrained net), then every method: ranges, or training with learned steps, packing,
`lowbit.execute`, an export that takes and gives integer codes, and the device. A piece, one method for one seed, is finished
when its ``result.json`` is there with the same key, as in `experiments.job`.
"""

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowbit as lb
from experiments import device, device_time, edge
from experiments.config import FLOAT, Method, fingerprint, plain
from experiments.measure import difference, latencies, outputs
from experiments.progress import Screen, console
from experiments.run_folder import TIMES, RunFolder
from experiments.story import Story
from experiments.story_model import Job, calibrated, float_key, float_model, train_key
from experiments.story_summary import finish
from experiments.summary import Row
from lowbit.export.bundle import read


def run(config: Story, out: Path, *, fresh: bool = False) -> Path:
    """Runs the story and returns its folder.

    Args:
        config: what to do.
        out: the folder, made if need be.
        fresh: empty the folder first instead of going on where an earlier run stopped.

    Raises:
        ImportError: if an optional package that the story needs is missing, before anything is computed.
        DataError: if the data set cannot be had.
        ValueError: if an operation of the network has no integer form, or nothing runs the device.
    """
    started = time.perf_counter()
    device.require(config.device)
    if config.latency_rounds:
        edge.require(without="latency_rounds=0")
    folder = RunFolder(out, config, fresh=fresh)
    terminal = console()
    data = config.data()
    methods = (Method(FLOAT, {}), *config.methods)
    screen = Screen(terminal, len(methods) * len(config.seeds))
    sizes = f"{len(data.train.labels)} train, {len(data.test.labels)} test"
    screen.say(f"{config.name}: {data.name} from {data.source}; {sizes}; device {config.device}")
    screen.say(f"into {folder.path}", style="dim")
    if folder.is_changed:
        screen.say("the config differs from the last run here: pieces that it changes are done again", style="yellow")
    job = Job(config, data, folder, screen)
    with screen.shown():
        results = dict(_results(job, methods))
        times = _timed(job, methods)
    if folder.reused:
        names = f"{len(folder.reused)} of {len(results)} pieces"
        screen.say(f"{names} were finished by an earlier run and taken as they are (--fresh does all again)", style="yellow")  # fmt: skip
    rows = [Row(m.name, [results[m.name, s] for s in config.seeds], times.get(m.name, {})) for m in methods]
    guess = None
    if config.baseline is not None:
        name, call = config.baseline
        guess = name, config.metric.of(call(data.test.images), data.test.labels)
    tested = config.device_samples or len(data.test.labels)
    minutes = (time.perf_counter() - started) / 60
    finish(config, folder, terminal, rows, guess, tested=min(tested, len(data.test.labels)), minutes=minutes)
    return folder.path


def _results(job: Job, methods: tuple[Method, ...]) -> Iterator[tuple[tuple[str, int], dict[str, Any]]]:
    done = 0
    for seed in job.story.seeds:
        for method in methods:
            name, key = f"seed-{seed}/{method.name}", _key(job, method, seed)
            found = job.folder.finished(name, key)
            if found is None:
                before = time.perf_counter()
                found = _float_piece(job, seed) if method.name == FLOAT else _piece(job, method, seed)
                found[TIMES] = round(time.perf_counter() - before, 2)
                job.folder.finish(name, key, found)
                job.folder.log(name, "result", seed=seed, method=method.name, **found)
                digits = job.story.metric.digits
                said = "  ".join(f"{where} {value:.{digits}f}" for where, value in found["metric"].items())
                job.screen.say(f"seed {seed}  {method.name:<12} {said}   {found[TIMES]:.1f} s")
            done += 1
            job.screen.piece(done)
            yield (method.name, seed), found


def _key(job: Job, method: Method, seed: int) -> str:
    if method.name == FLOAT:
        return float_key(job, seed)
    return fingerprint(train_key(job, method, seed), job.story.device, job.story.device_samples)


def _float_piece(job: Job, seed: int) -> dict[str, Any]:
    model, story = float_model(job, seed), job.story
    call = jax.jit(model.fn)
    found = outputs(lambda x: call(model.params, model.state, x), job.data.test.images, story.test_batch)
    return {"metric": {"execute": _measured(job, found)}, "bytes": {"weights": lb.nbytes(model.params)}}


def _measured(job: Job, found: np.ndarray) -> float:
    return job.story.metric.of(found, job.data.test.labels[: len(found)])


def _piece(job: Job, method: Method, seed: int) -> dict[str, Any]:
    """Packs one method for one seed, executes it from the file, exports it, and runs it on the device."""
    story, test, name = job.story, job.data.test.images, f"seed-{seed}/{method.name}"
    here, model = job.folder.piece(name), float_model(job, seed)
    plan, params, qstate = calibrated(job, method, seed, integer=True)
    lb.save(here / "packed.safetensors", plan, lb.pack(plan, params, qstate))
    plan, qparams = lb.load(here / "packed.safetensors")
    served = lb.execute(model.fn, plan)
    executed = outputs(lambda x: served(qparams, model.state, x), test, story.test_batch)
    some = test[: story.device_samples or len(test)]
    is_c = device.is_c(story.device)
    targets = (story.device, *(("c",) if is_c else ()), "iree")
    bundle = device.exported(model.fn, plan, qparams, model.state, some[:1], here / "export", targets)
    if not is_c:
        bundle = device.exported(model.fn, plan, qparams, model.state, some, here / "all", (story.device,))
    bar = job.screen.start(f"{name} {story.device}", len(some))
    ran = device.run(bundle, story.device, some, progress=bar)
    return {
        "metric": {
            "execute": _measured(job, executed),
            "execute_same_samples": _measured(job, executed[: len(some)]),
            "device": _measured(job, ran.outputs),
        },
        "difference": difference(executed[: len(some)], ran.outputs),
        "bytes": {"packed": (here / "packed.safetensors").stat().st_size, "weights": qparams.nbytes},
        "device": dict(ran.measured),
        "bits_per_weight": qparams.bits_per_weight,
        "rules": plain(method.rules),
    }


def _timed(job: Job, methods: tuple[Method, ...]) -> dict[str, dict[str, Any]]:
    """Time of one sample of the first seed on one core of this machine: IREE, the models in turn, and C; instructions."""
    story, seed = job.story, job.story.seeds[0]
    if not story.latency_rounds:
        return {}
    x, model, calls = job.data.test.images[:1], float_model(job, seed), {}
    found: dict[str, dict[str, Any]] = {method.name: {} for method in methods}
    bar = job.screen.start("time in C", len(methods))
    for done, method in enumerate(methods):
        here = job.folder.piece(f"seed-{seed}/{method.name}")
        if method.name == FLOAT:
            args = model.state, jnp.asarray(x)
            plan = lb.bind(model.fn, {}, model.params, *args)
            qparams = lb.pack(plan, model.params, lb.init(model.fn, plan, model.params, *args))
            bundle, given = lb.export(model.fn, plan, qparams, args, here / "export"), x
        else:
            bundle = read(here / "export")
            given = device.codes(x, bundle)
            if device.is_c(story.device):
                found[method.name]["c"] = device_time.microseconds(bundle, given)
            if story.device == "cortex-m4":
                found[method.name]["instructions"] = device_time.instructions(bundle, given)
        target = edge.compiled(bundle.artifact, here / "model.vmfb")
        calls[method.name] = functools.partial(edge.loaded(target), given)
        bar(done + 1)
    bar = job.screen.start("time in IREE", story.latency_rounds)
    for name, values in latencies(calls, story.latency_rounds, progress=bar).items():
        found[name]["iree"] = 1e3 * values["median"]
    return found
