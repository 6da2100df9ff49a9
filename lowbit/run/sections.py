"""Parts of a run's page besides its table: learning curves, values by seed, layers, files."""

import math
from collections.abc import Sequence
from typing import Any

import lowbit as lb
from lowbit.report import figures, page, tables

from .experiment import FLOAT
from .folder import read_metrics
from .results import Results

CURVES = (
    "Every training of the run; of several seeds the first is the thicker line. A quantized model's metric is that of the "
    "simulated model on some of the test inputs, the table's that of the packed one on all."
)
LAYERS = (
    "Of the first seed, as the packed file has them; a click on a head sorts. weight dB: signal over noise of the trained weight "
    "on its grid after the last epoch; levels: from the lowest that it reaches to the highest."
)


def curves(results: Results) -> list[str]:
    """Returns the section of learning curves; none where nothing was trained in this folder."""
    points: dict[str, list[tuple[float, float]]] = {}
    for line in _epochs(results):
        if "loss" in line:
            points.setdefault(line["piece"], []).append((line["loss"], line.get("metric", math.nan)))
    if not points:
        return []
    drawn = [figures.Curve(name.split("/")[-1], *zip(*values, strict=True)) for name, values in points.items()]
    metric = results.experiment.metric
    drawing = figures.learning_curves(drawn, "metric" if metric is None else metric.name)
    return [page.figure("Learning curves", drawing, caption=CURVES)]


def _epochs(results: Results) -> list[dict[str, Any]]:
    """The epochs that the config at hand trains: those of an earlier one, longer or of other seeds, stay in the file."""
    config = results.experiment
    fits = {FLOAT: config.fit} | {method.name: method.fit for method in config.methods}
    asked = {f"seed-{seed}/{name}": fit.epochs for name, fit in fits.items() if fit for seed in config.seeds}
    lines = read_metrics(results.folder.path)
    return [line for line in lines if line["kind"] == "epoch" and line["epoch"] < asked.get(line["piece"], 0)]


def by_seed(results: Results) -> list[str]:
    """Returns the section of the metric by seed; none for one seed."""
    config, metric = results.experiment, results.experiment.metric
    if len(config.seeds) < 2 or metric is None:
        return []
    lines = [
        [row.name, *(f"{row.results[s]['metric']['execute']:.{metric.digits}f}" if s in row.results else "-" for s in config.seeds)]
        for row in results.rows
    ]  # fmt: skip
    content = tables.Table("seeds", ["method", *(f"seed {seed}" for seed in config.seeds)], lines)
    return [page.section("Values per seed", page.table(content, is_sortable=True))]


def layers(results: Results) -> list[str]:
    """Returns the section of every operation of every method."""
    config, path = results.experiment, results.folder.path
    last = {line["piece"]: line for line in _epochs(results)}
    lines = []
    for row in results.rows:
        piece = f"seed-{config.seeds[0]}/{row.name}"
        file = path / piece / "packed.safetensors"
        if row.name == FLOAT or config.seeds[0] not in row.results or not file.is_file():
            continue
        plan, qparams = lb.load(file)
        weights, seen = qparams.weights(), last.get(piece, {})
        for each in plan.rows:
            weight, inputs = each.weight, next((site for site in each.sites if not site.is_weight), None)
            packed = None if weight is None else weights.get(weight.key)
            lines.append([
                row.name, each.path,
                *("-" if site is None or site.spec is None else site.spec.text for site in (weight, inputs)),
                *(("-", "-") if packed is None else (f"{math.prod(packed.shape):,}", f"{packed.bits_per_element:.2f}")),
                *_of(seen, "" if weight is None else weight.key),
            ])  # fmt: skip
    heads = ["method", "operation", "weight", "input", "weights", "bits", "weight dB", "levels"]
    content = tables.Table("layers", heads, lines)
    return [page.section("Layers", page.table(content, LAYERS, is_sortable=True))] if lines else []


def _of(seen: dict[str, dict[str, float]], key: str) -> Sequence[str]:
    decibels, levels = seen.get("weight_db", {}).get(key), seen.get("levels", {}).get(key)
    return "-" if decibels is None else f"{decibels:.1f}", "-" if levels is None else f"{levels:.0f}"


def files(results: Results) -> list[str]:
    """Returns the section of links to what else the folder has."""
    path, config = results.folder.path, results.experiment
    wanted = ["table.txt", "summary.json", "metrics.jsonl", "run.json"]
    wanted += [f"seed-{config.seeds[0]}/{row.name}/packed.safetensors" for row in results.rows]
    return [page.section("Files", page.links([(name, name) for name in wanted if (path / name).is_file()]))]
