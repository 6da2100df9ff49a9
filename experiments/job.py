"""The job: float training, then every method for every seed, measured, packed, exported, compiled and run.

A piece is one method for one seed. It is finished when its ``result.json`` is there, written with the same key; the key
covers everything the piece depends on (its part of the config, the seed, the data, the package versions), so that a job
that was stopped goes on, and a changed config redoes what it changes and nothing else.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowbit as lb
from experiments import edge
from experiments.config import FLOAT, Config, Method, Penalty, fingerprint, plain
from experiments.data.dataset import Dataset
from experiments.measure import difference, latencies, outputs
from experiments.models.model import Model
from experiments.progress import Screen, Training, console
from experiments.run_folder import TIMES, RunFolder
from experiments.summary import Finish, Row
from experiments.summary import finish as standard
from experiments.train import Loss, train
from lowbit.plan.rows import Plan
from lowbit.rewrites import batch_norm


class Trained(NamedTuple):
    """What a piece is packed from."""

    fn: Callable[..., Any]
    plan: Plan
    params: Any
    state: Any
    qstate: Any


def run(config: Config, out: Path, *, fresh: bool = False, finish: Finish = standard) -> Path:
    """Runs the job and returns its folder.

    Args:
        config: what to do.
        out: the folder, made if need be.
        fresh: empty the folder first instead of going on where an earlier run stopped.
        finish: draws and prints what was found, as `experiments.summary.finish` does.

    Raises:
        ImportError: if an optional package the config needs is missing, before anything is computed.
        DataError: if the data set cannot be had.
        ValueError: if rules do not fit the network.
    """
    started = time.perf_counter()
    if config.edge_images:
        edge.require()
    folder = RunFolder(out, config, fresh=fresh)
    terminal = console()
    data = config.data()
    data = data._replace(train=data.train.first(config.train_images), test=data.test.first(config.test_images))
    methods = (Method(FLOAT, {}), *config.methods)
    screen = Screen(terminal, len(methods) * len(config.seeds))
    screen.say(
        f"{config.name}: {data.name} from {data.source}; {len(data.train.labels)} train, {len(data.test.labels)} test"
    )
    screen.say(f"into {folder.path}", style="dim")
    if folder.is_changed:
        screen.say("the config differs from the last run here: pieces that it changes are done again", style="yellow")
    job = _Job(config, data, folder, screen)
    with screen.shown():
        results = _results(job, methods)
        times = _timed(job, methods)
    if folder.reused:
        names = f"{len(folder.reused)} of {len(methods) * len(config.seeds)} pieces"
        screen.say(
            f"{names} were finished by an earlier run and taken as they are (--fresh does all again)", style="yellow"
        )
    minutes = (time.perf_counter() - started) / 60
    rows = [Row(m.name, [results[m.name, s] for s in config.seeds], times.get(m.name, {})) for m in methods]
    first = {m.name: functools.partial(_trained, job, m, config.seeds[0]) for m in methods if m.rules}
    finish(config, folder, terminal, rows, first, _calibration(config, data), screen=screen, minutes=minutes)
    return folder.path


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    config: Config
    data: Dataset
    folder: RunFolder
    screen: Screen


def _results(job: _Job, methods: tuple[Method, ...]) -> dict[tuple[str, int], dict[str, Any]]:
    results = {}
    for seed in job.config.seeds:
        for method in methods:
            name = _name(method, seed)
            key = _key(job, method, seed)
            found = job.folder.finished(name, key)
            if found is None:
                before = time.perf_counter()
                found = _piece(job, method, seed)
                found[TIMES] = round(time.perf_counter() - before, 2)
                job.folder.finish(name, key, found)
                job.folder.log(name, "result", seed=seed, method=method.name, **found)
                job.screen.say(_line(seed, method, found))
            results[method.name, seed] = found
            job.screen.piece(len(results))
    return results


def _line(seed: int, method: Method, found: dict[str, Any]) -> str:
    accuracy = found["accuracy"]
    text = f"seed {seed}  {method.name:<12} {100 * accuracy['execute']:6.2f} %   simulate - execute {found['difference']['execute']['max']:.3g}"
    if "iree" in accuracy:
        text += f"   execute - IREE {found['difference']['iree']['max']:.3g}"
    return f"{text}   {found[TIMES]:.1f} s"


def _name(method: Method, seed: int) -> str:
    return f"seed-{seed}/{method.name}"


def _float_key(job: _Job, seed: int) -> str:
    config, versions = job.config, job.folder.environment["versions"]
    trained = (config.fit, len(job.data.train.labels)) if config.fit else ()
    return fingerprint(config.model, config.data, job.data.name, trained, seed, versions)


def _train_key(job: _Job, method: Method, seed: int) -> str:
    return fingerprint(_float_key(job, seed), method, job.config.calibration_images, len(job.data.train.labels))


def _key(job: _Job, method: Method, seed: int) -> str:
    config = job.config
    measured = (len(job.data.test.labels), config.test_batch, config.edge_images, config.edge_batch, config.predict)
    return fingerprint(_train_key(job, method, seed), *measured)


def _calibration(config: Config, data: Dataset) -> list[np.ndarray]:
    images = data.train.images[: config.calibration_images]
    size = min(len(images), 250)
    return [images[i : i + size] for i in range(0, len(images) - size + 1, size)]


@functools.lru_cache(maxsize=8)
def _float_model(job: _Job, seed: int) -> Model:
    """The float model of a seed, trained or read back."""
    config = job.config
    model = config.model(seed)
    if config.fit is None:
        return model
    here = f"seed-{seed}/{FLOAT}"
    return _fitted(job, model, Method(FLOAT, {}, config.fit), seed, here, _float_key(job, seed))


def _fitted(job: _Job, model: Model, method: Method, seed: int, name: str, key: str) -> Model:
    """The model after float training, or read back."""
    assert method.fit is not None
    tree, rest = train(
        _float_loss(model.fn, model.train_fn),
        {"params": model.params},
        {"state": model.state},
        job.data.train,
        method.fit,
        seed=seed,
        path=job.folder.piece(name) / "train.safetensors",
        key=key,
        watch=_watch(job, name),
        around=method.around,
        evaluate=lambda tree, rest: _accuracy(job, jax.jit(model.fn), tree["params"], rest["state"]),
    )
    return model._replace(params=tree["params"], state=rest["state"])


def _trained(job: _Job, method: Method, seed: int) -> Trained:
    """The method's model: its plan, calibrated, and trained where the method says so, or read back."""
    config = job.config
    model = _float_model(job, seed)
    name = _name(method, seed)
    if method.around is not None:
        model = _fitted(job, model, method, seed, name, _train_key(job, method, seed))
    batches = _calibration(config, job.data)
    fn, params = _served(method, model, batches[0])
    plan = lb.bind(fn, method.rules, params, model.state, jnp.asarray(batches[0]))
    bar = job.screen.start(f"{name} ranges", len(batches))
    key = jax.random.key(seed)
    qstate = lb.calibrate(fn, plan, params, [(model.state, x) for x in batches], key=key, progress=bar)
    if method.fit is None or method.around is not None:
        plan, qstate = lb.harden(plan, qstate)
        return Trained(fn, plan, params, model.state, qstate)
    tree, rest = train(
        _quantized_loss(model.fn, model.train_fn, plan, method.penalty, method.freeze_norms),
        {"params": model.params, "learn": qstate["learn"]},
        {"state": model.state, "fixed": qstate["fixed"]},
        job.data.train,
        method.fit,
        seed=seed,
        path=job.folder.piece(name) / "train.safetensors",
        key=_train_key(job, method, seed),
        watch=_watch(job, name),
    )
    fn, params = _served(method, model._replace(params=tree["params"], state=rest["state"]), batches[0])
    plan, qstate = lb.harden(plan, {"learn": tree["learn"], "fixed": rest["fixed"]})
    return Trained(fn, plan, params, rest["state"], qstate)


def _served(method: Method, model: Model, images: np.ndarray) -> tuple[Callable[..., Any], Any]:
    """The function that is quantized and its parameters: the model's, with batch norms folded where the method says so."""
    if method.freeze_norms is None:
        return model.fn, model.params
    fn, params, _ = batch_norm.fold(jax.ShapeDtypeStruct(images.shape, images.dtype))(
        model.fn, model.params, model.state
    )
    return fn, params


def _watch(job: _Job, name: str) -> Training:
    return Training(job.screen, name, lambda epoch, values: job.folder.log(name, "epoch", epoch=epoch, **values))


@functools.lru_cache(maxsize=8)
def _float_loss(fn: Callable[..., Any], train_fn: Callable[..., Any] | None) -> Loss:
    def loss(tree, rest, images, labels, key, step):
        if train_fn is None:
            logits, state = fn(tree["params"], rest["state"], images), rest["state"]
        else:
            logits, state = train_fn(tree["params"], rest["state"], images, rngs={"dropout": key})
        return _cross_entropy(logits, labels), {"state": state}

    return loss


@functools.lru_cache(maxsize=64)
def _quantized_loss(
    fn: Callable[..., Any],
    train_fn: Callable[..., Any] | None,
    plan: Plan,
    penalty: Penalty | None,
    freeze_norms: int | None,
) -> Loss:
    called = fn if train_fn is None else train_fn

    def loss(tree, rest, images, labels, key, step):
        qstate = {"learn": tree["learn"], "fixed": rest["fixed"]}
        run, params = called, tree["params"]
        given: dict[str, Any] = {} if train_fn is None else {"rngs": {"dropout": jax.random.fold_in(key, 1)}}
        if freeze_norms is not None:
            run, params, _ = batch_norm.fold(images, **given)(called, params, rest["state"])
            given |= {} if train_fn is None else {"frozen": step >= freeze_norms}
        simulated = lb.simulate(run, plan, train=True)
        y, after = simulated(params, qstate, rest["state"], images, key=key, step=step, **given)
        logits, state = (y, rest["state"]) if train_fn is None else y
        value = _cross_entropy(logits, labels)
        if penalty is not None:
            value = value + penalty(plan, tree["params"], qstate)
        return value, {"state": state, "fixed": after["fixed"]}

    return loss


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _accuracy(job: _Job, call: Callable[..., Any], *fixed: Any) -> float:
    return _score(job, outputs(lambda x: call(*fixed, x), job.data.test.images, job.config.test_batch))


def _score(job: _Job, found: np.ndarray) -> float:
    labels = job.data.test.labels[: len(found)]
    return float(np.mean(job.config.predict(found) == labels))


def _piece(job: _Job, method: Method, seed: int) -> dict[str, Any]:
    """Simulates, packs, executes from the file, exports, compiles and runs one method for one seed."""
    config, test = job.config, job.data.test.images
    here = job.folder.piece(_name(method, seed))
    fn, plan, params, state, qstate = _trained(job, method, seed)
    bar = job.screen.start(f"{_name(method, seed)} check", 3)
    simulated = outputs(lambda x: lb.simulate(fn, plan)(params, qstate, state, x), test, config.test_batch)
    qparams = lb.pack(plan, params, qstate)
    lb.save(here / "packed.safetensors", plan, qparams)
    plan, qparams = lb.load(here / "packed.safetensors")
    bar(1)
    executed = outputs(lambda x: lb.execute(fn, plan)(qparams, state, x), test, config.test_batch)
    result: dict[str, Any] = {
        "accuracy": {"simulate": _score(job, simulated), "execute": _score(job, executed)},
        "difference": {"execute": difference(simulated, executed)},
        "bits_per_weight": _bits(params, qparams),
        "bytes": {"file": (here / "packed.safetensors").stat().st_size},
        "rules": plain(method.rules),
    }
    bar(2)
    if config.edge_images:
        example = (state, jnp.asarray(test[: config.edge_batch]))
        bundle = lb.export(fn, plan, qparams, example, here / "export")
        target = edge.compiled(bundle.artifact, here / "model.vmfb")
        result["bytes"] |= {"export": bundle.stored_bytes, "vmfb": target.stat().st_size}
        count = min(config.edge_images, len(test))
        ran = outputs(edge.loaded(target), test[:count], config.edge_batch)
        result["accuracy"] |= {"iree": _score(job, ran), "execute_same_images": _score(job, executed[:count])}
        result["difference"]["iree"] = difference(executed[:count], ran)
    bar(3)
    return result


def _bits(params: Any, qparams: lb.QParams) -> float:
    """Stored bits per weight, scales included; of the float arrays where nothing is quantized."""
    if qparams.weights():
        return qparams.bits_per_weight
    leaves = jax.tree.leaves(params)
    return 8 * lb.nbytes(params) / sum(leaf.size for leaf in leaves)


def _timed(job: _Job, methods: tuple[Method, ...]) -> dict[str, dict[str, Any]]:
    """Latency of every method beside float, of the first seed: XLA on packed weights, and the compiled module."""
    config, seed = job.config, job.config.seeds[0]
    if not config.latency_rounds:
        return {}
    sets = {"xla": dict(_xla_calls(job, methods, seed))}
    if config.edge_images:
        x = job.data.test.images[: config.edge_batch]
        run = {m.name: edge.loaded(job.folder.path / _name(m, seed) / "model.vmfb") for m in methods}
        sets["iree"] = {name: functools.partial(call, x) for name, call in run.items()}
    found: dict[str, dict[str, Any]] = {method.name: {} for method in methods}
    for where, calls in sets.items():
        bar = job.screen.start(f"latency {where}", config.latency_rounds)
        for name, values in latencies(calls, config.latency_rounds, progress=bar).items():
            found[name][where] = values
    for name, values in found.items():
        job.folder.log(f"seed-{seed}/{name}", "latency", latency=values)
    return found


def _xla_calls(job: _Job, methods: tuple[Method, ...], seed: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    model = _float_model(job, seed)
    size = job.config.latency_batch
    x = jnp.asarray(np.resize(job.data.test.images, (size, *job.data.test.images.shape[1:])))
    yield FLOAT, functools.partial(jax.jit(model.fn), model.params, model.state, x)
    for method in methods[1:]:
        plan, qparams = lb.load(job.folder.path / _name(method, seed) / "packed.safetensors")
        fn, _ = _served(method, model, np.asarray(x))
        yield method.name, functools.partial(lb.execute(fn, plan), qparams, model.state, x)
