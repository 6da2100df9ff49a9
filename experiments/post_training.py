"""What the tables of post-training methods are made of: networks x plans x recipes, as a suite of the engine, and its summary.

A method is one recipe on one plan. Every number is of `lowbit.execute` on packed parameters read back from their file, on data
that no calibration has seen.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lowbit.run import Dataset, Experiment, Method, Model, Suite, scores
from lowbit.run.environment import command
from lowbit.run.evals.scores import Scoring
from lowbit.run.experiment import FLOAT
from lowbit.run.folder import TIMES, RunFolder, write_json
from lowbit.run.results import Results


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
class Subject:
    """A network with its data.

    Attributes:
        data: training samples calibrate, test samples are scored.
        model: returns it, batch norms folded.
        score: of outputs beside float's and labels: one of its numbers is the table's, ``low`` and ``high`` bound it where a
            bootstrap says so.
        calibration: samples of a batch.
        test: samples of a call.
    """

    data: Callable[[], Dataset]
    model: Callable[[int], Model]
    score: Scoring
    calibration: int
    test: int


@dataclasses.dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        name: of its folder.
        title: what the table calls it.
        subject: the network and its data.
        metric: what is scored.
        digits: of the metric in the table.
        plans: of it.
    """

    name: str
    title: str
    subject: Subject
    metric: str
    digits: int
    plans: tuple[Plan, ...]


def suite(name: str, *networks: Network) -> Suite:
    """Returns the suite whose report is ``summary.json`` of all networks, in the order of the table."""
    return Suite(name, tuple(map(experiment, networks)), functools.partial(report, name, networks))


def experiment(network: Network) -> Experiment:
    """Returns every recipe on every plan of a network, recipe by recipe."""
    subject, order = network.subject, dict.fromkeys(recipe for plan in network.plans for recipe in plan.recipes)
    return Experiment(
        name=network.name,
        data=subject.data,
        model=subject.model,
        metric=None,
        methods=tuple(
            Method(method_name(plan, recipe), dict(plan.rules), recipe=recipe)
            for recipe in order
            for plan in network.plans
            if recipe in plan.recipes
        ),
        seeds=(0,),
        evals=(scores(subject.score, network.metric, digits=network.digits),),
        calibration_samples=_ALL,
        calibration_batch=subject.calibration,
        test_batch=subject.test,
    )


_ALL = 1 << 30


def method_name(plan: Plan, recipe: str) -> str:
    """Returns the name of a method, which is its folder's.

    Example:
        >>> method_name(Plan("W8 per tensor", {}), "auto")
        'W8_per_tensor-auto'
    """
    return f"{re.sub('[^A-Za-z0-9]+', '_', plan.name).strip('_')}-{recipe}"


def report(name: str, networks: Sequence[Network], found: Sequence[Results], folder: RunFolder) -> None:
    """Writes ``summary.json``: of every network and plan the pieces of this config that are finished, and why others are not there."""
    by_name = {each.experiment.name: each for each in found}
    made = {key: folder.environment[key] for key in ("versions", "device")}
    lines = [summary(network, by_name.get(network.name)) for network in networks]
    content = {"config": name, "command": command(), "networks": lines, **made}
    content |= {"absent": dict(folder.absent)} if folder.absent else {}
    write_json(folder.path / "summary.json", content)


def summary(network: Network, found: Results | None) -> dict[str, Any]:
    """Returns one network's lines: its plans, and by recipe what was found, with the commit that found it."""
    pieces = {} if found is None else {row.name: _piece(network, found, row.name) for row in found.rows if row.results}
    plans = [
        {
            "name": plan.name,
            "rules": dict(plan.rules),
            "bar": plan.bar,
            "asked": plan.recipes,
            "tried": plan.tried,
            "recipes": {r: pieces[n] for r in plan.recipes if (n := method_name(plan, r)) in pieces},
        }
        for plan in network.plans
    ]
    described = {"name": network.name, "title": network.title, "metric": network.metric, "digits": network.digits}
    return {**described, "float": pieces.get(FLOAT), "plans": plans}


def _piece(network: Network, found: Results, name: str) -> dict[str, Any]:
    """What is kept of a piece."""
    (seed,) = found.experiment.seeds
    result = next(row for row in found.rows if row.name == name).results[seed]
    numbers = result["scores"]
    said: dict[str, Any] = {"score": numbers[network.metric], "numbers": numbers, TIMES: round(result[TIMES], 1)}
    if recipe := result.get("recipe"):
        said |= {"recipe": recipe["text"], "solve_seconds": recipe[TIMES]}
        said["bits_per_weight"] = result["bits_per_weight"]
    return said | found.folder.origins[f"seed-{seed}/{name}"]


def merged(before: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns results with the pieces of a summary in place of theirs; networks, plans, bars and words are the summary's.

    Args:
        before: results, as this returns them.
        summary: of a run of the same config, which may have made some of its pieces.

    Example:
        >>> plan = {"name": "W4", "asked": ["rtn", "gptq"], "bar": 1.0}
        >>> made = lambda recipes: {
        ...     "networks": [{"name": "net", "float": None, "plans": [{**plan, "recipes": recipes}]}]
        ... }
        >>> whole = merged(made({"rtn": 1, "gptq": 2, "gone": 3}), made({"gptq": 4}))
        >>> whole["networks"][0]["plans"][0]["recipes"]
        {'rtn': 1, 'gptq': 4}
    """
    pieces = {(n["name"], p["name"]): p["recipes"] for n in before["networks"] for p in n["plans"]}
    floats = {n["name"]: n["float"] for n in before["networks"]}
    networks = []
    for network in summary["networks"]:
        plans = []
        for plan in network["plans"]:
            known = {**pieces.get((network["name"], plan["name"]), {}), **plan["recipes"]}
            plans.append({**plan, "recipes": {name: known[name] for name in plan["asked"] if name in known}})
        networks.append({**network, "float": network["float"] or floats.get(network["name"]), "plans": plans})
    return {**summary, "networks": networks}


def taken_in(result: Path, arguments: Sequence[str]) -> Sequence[str]:
    """Merges the summary behind ``--merge``, the first of arguments, into a file of results, and returns the other arguments.

    Args:
        result: the file.
        arguments: of a command line.
    """
    if arguments[:1] != ["--merge"]:
        return arguments
    before, summary = (json.loads(path.read_text()) for path in (result, Path(arguments[1])))
    write_json(result, merged(before, summary))
    return arguments[2:]
