"""What the table of post-training methods is made of, and the job that fills it: networks x plans x recipes.

A piece is one recipe on one plan of one network; it is finished when its ``result.json`` is there with the same key, so a
stopped run goes on. Every number is of `lowbit.execute` on packed parameters, on data that no calibration has seen.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import lowbit as lb
from lowbit.core import atomic
from lowbit.recipes.lookup import named
from lowbit.run import Model
from lowbit.run.environment import command
from lowbit.run.experiment import FLOAT
from lowbit.run.folder import TIMES, RunFolder, write_json
from lowbit.run.identity import fingerprint
from lowbit.run.screen import console


class Subject(NamedTuple):
    """A network with its data.

    Attributes:
        model: batch norms folded.
        batches: argument tuples for calibration.
        inputs: argument tuples that are scored.
        score: ``(outputs, outputs of float) -> numbers``: the first is the table's, ``low`` and ``high`` bound it where a
            bootstrap says so.
    """

    model: Model
    batches: Sequence[tuple[Any, ...]]
    inputs: Sequence[tuple[Any, ...]]
    score: Callable[[np.ndarray, np.ndarray], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """One plan of a network.

    Attributes:
        name: what the table calls it.
        rules: as `lowbit.bind` takes them.
        bar: what the best recipe should reach, or None.
        recipes: that are run on it.
        tried: what was tried where the bar is missed, for a reader of the table.
    """

    name: str
    rules: Mapping[str, str]
    bar: float | None = None
    recipes: tuple[str, ...] = ("rtn", "auto", "gptq")
    tried: str = ""


@dataclasses.dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        name: of its folder.
        title: what the table calls it.
        subject: loads it.
        metric: what is scored.
        digits: of the metric in the table.
        plans: of it.
    """

    name: str
    title: str
    subject: Callable[[], Subject]
    metric: str
    digits: int
    plans: tuple[Plan, ...]


@dataclasses.dataclass(frozen=True)
class PostTraining:
    """All of them.

    Attributes:
        name: of the run's folder.
        networks: in the order of the table.
        only: names of networks to run, or none for all; the table is of what is there.
        seeds: not used: nothing is drawn.
    """

    name: str
    networks: tuple[Network, ...]
    only: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self):
        check_only(self.only, [network.name for network in self.networks])


def check_only(only: Sequence[str], names: Sequence[str]) -> None:
    """Raises ValueError where a name that is asked for is none there is: nothing would be done, in silence."""
    if unknown := [name for name in only if name not in names]:
        raise ValueError(f"only: there is no {unknown[0]!r}; there are {', '.join(names)}")


def run(config: PostTraining, out: Path, *, fresh: bool = False) -> Path:
    """Runs what is not finished, writes ``summary.json``, and returns the folder.

    Raises:
        DataError: if a network or its data is not installed.
    """
    folder = RunFolder(out, config, fresh=fresh, accept_stale=True)  # hours of them: known by rules and recipe alone
    with compiled_kept(folder.path / "compiled"):
        return _run(config, folder)


def _run(config: PostTraining, folder: RunFolder) -> Path:
    terminal = console()
    networks = []
    for network in config.networks:
        subject: Subject | None = None
        pieces: dict[str, Any] = {}
        for plan, recipe in _pieces(network):
            name = f"{network.name}/{plan.name}/{recipe}".replace(" ", "_")
            key = _key(network, plan, recipe)
            result = folder.finished(name, key)
            if result is None and (not config.only or network.name in config.only):
                subject = network.subject() if subject is None else subject
                result = _piece(folder, name, subject, plan, recipe)
                folder.finish(name, key, result)
            if result is None:
                continue
            terminal.print(f"{name:<56} {result['score']:8.3f}  {result[TIMES]:.0f} s", highlight=False)
            pieces.setdefault(plan.name, {})[recipe] = result
        networks.append(_summary(network, pieces))
    made = {key: folder.environment[key] for key in ("versions", "device")}
    found = {"config": config.name, "command": command(), "networks": networks}
    write_json(folder.path / "summary.json", found | made)
    return folder.path


@contextlib.contextmanager
def compiled_kept(path: Path) -> Iterator[None]:
    """A context in which compiled programs are kept in a folder: the pieces of a network have most of theirs in common."""
    wanted = {
        "jax_compilation_cache_dir": str(path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    try:
        for name, value in wanted.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def _key(network: Network, plan: Plan, recipe: str) -> str:
    """What a piece is known by: rules, the recipe's text, the code that loads data and that picks; hours are kept over other changes."""
    if recipe == FLOAT:
        return fingerprint(FLOAT, network.metric, network.subject)
    found = named(recipe)
    return fingerprint(dict(plan.rules), str(found), found.pick, network.metric, network.subject)


def _pieces(network: Network) -> list[tuple[Plan, str]]:
    whole = Plan(FLOAT, {})
    order = list(dict.fromkeys(recipe for plan in network.plans for recipe in plan.recipes))
    asked = [(plan, recipe) for recipe in order for plan in network.plans if recipe in plan.recipes]
    return [(whole, FLOAT), *asked]


def _piece(folder: RunFolder, name: str, subject: Subject, plan: Plan, recipe: str) -> dict[str, Any]:
    started = time.perf_counter()
    fn, params, state, _ = subject.model
    path = folder.piece(f"{name.split('/')[0]}/{FLOAT}/{FLOAT}") / "outputs.npy"
    if recipe == FLOAT:
        call = jax.jit(fn)
        outputs = np.concatenate([np.asarray(call(params, state, *given)) for given in subject.inputs])
        with atomic.replacing(path) as part:
            np.save(part, outputs)
        said: dict[str, Any] = {}
    else:
        kept = folder.piece(name) / "solved"
        qparams, bound, report = lb.quantize(
            fn, params, plan.rules, state=state, batches=subject.batches, recipe=recipe, cache=kept
        )
        spent = time.perf_counter() - started
        call = lb.execute(report.fn, bound)
        qparams = lb.prepare(bound, qparams)
        outputs = np.concatenate([np.asarray(call(qparams, report.state, *given)) for given in subject.inputs])
        atomic.write_file(folder.piece(name) / "report.json", report.to_json())
        said = {"bits_per_weight": report.bits_per_weight, "recipe": report.recipe, "solve_seconds": round(spent, 1)}
    numbers = subject.score(outputs, np.load(path))
    first = next(iter(numbers))
    return {
        "score": numbers[first],
        "numbers": numbers,
        **said,
        TIMES: round(time.perf_counter() - started, 1),
        **{what: folder.environment[what] for what in ("commit", "dirty")},
    }


def _summary(network: Network, pieces: Mapping[str, Any]) -> dict[str, Any]:
    plans = [
        {
            "name": plan.name,
            "rules": dict(plan.rules),
            "bar": plan.bar,
            "asked": plan.recipes,
            "tried": plan.tried,
            "recipes": pieces.get(plan.name, {}),
        }
        for plan in network.plans
    ]
    before = pieces.get(FLOAT, {}).get(FLOAT)
    described = {"name": network.name, "title": network.title, "metric": network.metric, "digits": network.digits}
    return {**described, "float": before, "plans": plans}


def interval(values: np.ndarray, unit: np.ndarray, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % interval of the mean of ``values`` by a bootstrap over units (photographs, sentences).

    Args:
        values: one per sample.
        unit: the unit of every sample, from 0.
        draws: of the bootstrap.
        seed: of the draws.
    """
    sums, counts = np.bincount(unit, weights=values), np.bincount(unit)
    drawn = np.random.default_rng(seed).integers(0, len(counts), size=(draws, len(counts)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
