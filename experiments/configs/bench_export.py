"""What it costs to export a transformer of 100 MB: seconds, and memory in multiples of the model.

Command::

    lowbit run experiments/configs/bench_export.py

Needs 2 minutes on 2 CPU cores and 2 GB of memory, and Linux. The 100 MB are float32 parameters, 25 million in 8 decoder
layers of width 512. For every rule it binds, packs, drops the float parameters, and exports the served and the universal
form, in a process of its own; ``export.json`` says how long the export took, and by how much memory rose above what was
held before it. Wanted: under a minute, under 3 times the 100 MB.
"""

import concurrent.futures
import dataclasses
import multiprocessing
from pathlib import Path
from typing import Any

from experiments.export_cost import FORMS, measured
from experiments.models import decoder
from lowbit.report.tables import Table, text
from lowbit.run.environment import environment
from lowbit.run.folder import write_json


@dataclasses.dataclass(frozen=True)
class Bench:
    """What is measured.

    Attributes:
        name: of the folder of results.
        rules: of every operation, one model each.
        layers, width, hidden, heads, context: see `decoder.Sizes`.
    """

    name: str = "bench_export"
    rules: tuple[str, ...] = ("w8,a8", "w4/g32,a8/dynamic")
    layers: int = 8
    width: int = 512
    hidden: int = 2048
    heads: int = 8
    context: int = 128


config = Bench()


def run(config: Bench, out: Path, *, fresh: bool = False) -> None:
    """Measures everything, prints the table, writes ``export.json`` into ``out``."""
    sizes, rows = decoder.Sizes(config.layers, config.width, config.hidden, config.heads, config.context), []
    for rule in config.rules:
        for form in FORMS:
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                rows.append(pool.submit(measured, sizes, rule, form).result())
    write_json(out / "export.json", {"config": dataclasses.asdict(config), **environment(), "exports": rows})
    print(text(table(rows)))
    print(f"\n{out / 'export.json'}")


def table(rows: list[dict[str, Any]]) -> Table:
    """Returns the exports of a run, a line each."""
    cells = [
        [
            r["rule"],
            r["form"],
            f"{r['seconds']:.1f}",
            f"{r['cpu_seconds']:.1f}",
            f"{r['memory_bytes'] / 1e6:.0f}",
            f"{r['memory_of_model']:.2f}",
        ]
        + [f"{r[name] / 1e6:.1f}" for name in ("model_bytes", "packed_bytes", "stored_bytes")]
        for r in rows
    ]
    columns = ["rule", "form", "seconds", "CPU s", "MB above", "of the model", "float MB", "packed MB", "stored MB"]
    return Table("export", columns, cells)
