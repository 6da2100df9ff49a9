"""What the table of mixed plans says of a network: read from the pieces that are finished."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.mixed_measures import Compared, gains, ranks
from lowbit.run.experiment import FLOAT


def stale(folder: Path, found: Mapping[str, Any]) -> list[str]:
    """Returns names of finished pieces in a network's folder that are none of those ``found``: of another config."""
    known = {name.replace(" ", "_") for name in found}
    names = (str(path.parent.relative_to(folder)) for path in sorted(folder.rglob("result.json")))
    return [name for name in names if name not in known]


def summary(folder: Path, network: Any, found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns what the table shows of a network: plans, gains with their intervals, and how well scores predict.

    Args:
        folder: of its pieces.
        network: of `experiments.mixed.Network`.
        found: results of its finished pieces, by name: of those that the config at hand asks for.

    Returns:
        JSON data, or None where no piece is finished.
    """
    if FLOAT not in found:
        return None
    compared: dict[str, Compared] = {}
    for name in found:
        path = folder / name.replace(" ", "_") / "compared.npz"
        if path.is_file():
            with np.load(path) as data:
                compared[name] = Compared(**data)
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
    plans = {name: {k: v for k, v in found[name].items() if k != "rules"} for name in compared}
    said = {"name": network.name, "title": network.title, "right": network.right, "chosen": network.chosen}
    counts = {"inputs": len(next(iter(compared.values())).noise) if compared else 0}
    choices = {name.removeprefix("choice/"): found[name]["choice"] for name in found if name.startswith("choice/")}
    chosen = found.get(f"scores/{network.chosen}", {}).get("scores")
    return said | counts | {
        "scores": chosen,
        "float": found.get(FLOAT), "plans": plans, "pairs": pairs, "choices": choices, "ranks": ranks(found, network.methods),
        "predicted": _predicted(network, found, choices),
    } | ({"stale": others} if (others := stale(folder, found)) else {})  # fmt: skip


def _predicted(
    network: Any, found: Mapping[str, Any], choices: Mapping[str, Mapping[str, str]]
) -> list[dict[str, Any]]:
    """For every plan rounded to nearest: what single measurements and the scores that chose add up to, and what it measured."""
    if "measured" not in found:
        return []
    tables = {
        "singles": (found["measured"]["scores"], 1.0),
        "scores": (
            found[f"scores/{network.chosen}"]["scores"],
            _per_input(found[f"scores/{network.chosen}"], network.chosen) / network.positions,
        ),
    }
    made = []
    for name, result in found.items():
        plan, _, recipe = name.partition("/")
        if recipe != network.recipes[0] or "KL" not in result:
            continue
        kind, _, word = plan.partition(" ")
        line: dict[str, Any] = {"plan": plan, "bits": result["bits"], "measured": result["KL"]}
        for title, (table, factor) in tables.items():
            values, names = np.asarray(table["values"], float), [name.replace("/", " ") for name in table["candidates"]]
            if kind == "uniform" and word not in names:
                break
            picked = (
                [word] * len(values)
                if kind == "uniform"
                else [choices[plan][path].replace("/", " ") for path in table["paths"]]
            )
            line[title] = factor * float(sum(values[r, names.index(c)] for r, c in enumerate(picked)))
        else:
            made.append(line)
    return sorted(made, key=lambda line: line["bits"])


def _per_input(found: Mapping[str, Any], method: str) -> float:
    """What turns a score into a divergence of one input: squared gradients of a drawn likelihood are twice it, over a batch."""
    return 0.5 / found["batch"] if method.startswith(("taylor", "fisher")) else 1.0
