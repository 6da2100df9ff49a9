"""What the table of mixed plans says of a network: read from the pieces that are finished."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.mixed_evals import MEASURED, arrays_of
from experiments.mixed_measures import Compared, gains, ranks
from lowbit.run.allocating import ALLOCATED
from lowbit.run.environment import command
from lowbit.run.experiment import FLOAT
from lowbit.run.folder import TIMES, RunFolder, read_json, write_json
from lowbit.run.results import Results


def report(name: str, networks: Sequence[Any], found: Sequence[Results], folder: RunFolder) -> None:
    """Writes ``summary.json``: of every network the pieces of this config that are finished, and why others are not there."""
    by_name = {each.experiment.name: each for each in found}
    lines = [summary(network, by_name[network.name]) for network in networks if network.name in by_name]
    made = {key: folder.environment[key] for key in ("versions", "device")}
    content = {"config": name, "command": command(), "networks": lines, **made}
    content |= {"absent": dict(folder.absent)} if folder.absent else {}
    write_json(folder.path / "summary.json", content)


def summary(network: Any, found: Results) -> dict[str, Any]:
    """Returns what the table shows of a network: plans, gains with their intervals, and how well scores predict.

    Args:
        network: of `experiments.mixed.Network`.
        found: its finished pieces.
    """
    results = {row.name: row.results[0] for row in found.rows if 0 in row.results}
    cells = [cell for cell in network.cells if cell.method in results]
    place = {cell.name: found.folder.path / f"seed-0/{cell.method}" for cell in cells}
    compared = {name: arrays_of(path) for name, path in place.items()}
    chosen = {cell.plan: each for cell in cells if (each := read_json(place[cell.name] / ALLOCATED)) is not None}
    choices = {plan: each["choice"] for plan, each in sorted(chosen.items())}
    scores = next((each["scores"] for each in chosen.values()), None)
    tables = results.get(FLOAT, {}).get("sensitivities", {})
    plans = {cell.name: _said(found, cell.method, results[cell.method]) for cell in cells}
    described = {"name": network.name, "title": network.title, "right": network.right, "chosen": network.chosen}
    return described | {
        "inputs": len(next(iter(compared.values())).noise) if compared else 0,
        "scores": scores,
        "float": _said(found, FLOAT, results[FLOAT]) if FLOAT in results else None,
        "plans": dict(sorted(plans.items())),
        "pairs": _pairs(network, compared),
        "choices": choices,
        "ranks": _ranks(network, tables),
        "predicted": [] if scores is None or not tables else _predicted(network, plans, choices, scores, tables),
    }


def _said(found: Results, method: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a piece, with the commit that measured it."""
    numbers = {key: result[key] for key in ("dB", "KL", "bits", "right %", TIMES) if key in result}
    return numbers | found.folder.origins[f"seed-0/{method}"]


def _pairs(network: Any, compared: Mapping[str, Compared]) -> list[dict[str, Any]]:
    """Every mixed plan beside the uniform ones of its budget, by the same recipe."""
    pairs = []
    for budget in network.budgets:
        for recipe in network.recipes:
            for kind, rule in itertools.product(("mixed", "evolved"), budget.uniform):
                mixed, uniform = f"{kind} {budget.name}/{recipe}", f"uniform {rule.replace('/', ' ')}/{recipe}"
                if mixed in compared and uniform in compared:
                    pairs.append(
                        {"bits": budget.bits, "recipe": recipe, "mixed": mixed, "uniform": uniform, "rule": rule}
                        | gains(compared[mixed], compared[uniform])
                    )
    return pairs


def _ranks(network: Any, tables: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """How the scores of every method rank beside what single operations measured."""
    if not tables:
        return {}
    by_method = {method: tables[method]["scores"]["values"] for method in network.methods}
    return ranks(by_method, tables[MEASURED]["scores"]["values"])


def _predicted(
    network: Any,
    plans: Mapping[str, Mapping[str, Any]],
    choices: Mapping[str, Mapping[str, str]],
    scores: Mapping[str, Any],
    tables: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """For every plan rounded to nearest: what single measurements and the scores that chose add up to, and what it measured."""
    sums = {
        "singles": (tables[MEASURED]["scores"], 1.0),
        "scores": (scores, _per_input(network) / network.positions),
    }
    lines = []
    for name, result in plans.items():
        plan, _, recipe = name.partition("/")
        kind, _, word = plan.partition(" ")
        names = [candidate.replace("/", " ") for candidate in scores["candidates"]]
        if recipe != network.recipes[0] or (kind == "uniform" and word not in names):
            continue
        line: dict[str, Any] = {"plan": plan, "bits": result["bits"], "measured": result["KL"]}
        for title, (table, factor) in sums.items():
            values = np.asarray(table["values"], float)
            picked = [word if kind == "uniform" else choices[plan][path].replace("/", " ") for path in table["paths"]]
            line[title] = factor * float(sum(values[r, names.index(c)] for r, c in enumerate(picked)))
        lines.append(line)
    return sorted(lines, key=lambda line: line["bits"])


def _per_input(network: Any) -> float:
    """What turns a score into a divergence of one input: squared gradients of a drawn likelihood are twice it, over a batch."""
    return 0.5 / network.subject.batch if network.chosen.startswith(("taylor", "fisher")) else 1.0
