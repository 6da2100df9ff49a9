"""Latency of whole networks in `lowbit.execute` beside `jax.jit`: the demo's, in 8 and 4 bits and in integers alone.

    lowbit run experiments/configs/bench_networks.py       two minutes; close everything else

Every rule and batch interleaved with float32; medians and minima. Weights are random: this measures time alone.
"""

import dataclasses
import datetime as dt
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import lowbit as lb
from experiments.models import small_conv
from lowbit.core import atomic
from lowbit_kernels import status
from lowbit_kernels.bench.__main__ import commit, device
from lowbit_kernels.bench.timing import interleave, ratio


@dataclasses.dataclass(frozen=True)
class Config:
    """What is timed.

    Attributes:
        name: of the folder of the results.
        rules: of every operation, each a column; "integer " before one is a full-integer plan.
        batches: of the inputs.
        seconds: of measuring, for each batch.
    """

    name: str = "bench_networks"
    rules: tuple[str, ...] = ("w8,a8", "w4,a8", "integer w8,a8")
    batches: tuple[int, ...] = (1, 16, 100, 500)
    seconds: float = 15.0


config = Config()


def run(config: Config, out: Path, *, fresh: bool = False) -> None:
    """Measures, prints a line for every batch, and writes `result.json` to `out` after each."""
    about = {
        **dataclasses.asdict(config), "network": "small_conv", "device": device(), "isa": status().isas[:1], "commit": commit(),
        "jax": jax.__version__, "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    model = small_conv.build(0)
    given, plain = (model.params, model.state), jax.jit(model.fn)
    sample = jax.random.uniform(jax.random.key(1), (4, 28, 28, 1))
    served: dict[str, Any] = {}
    how: dict[str, list[str]] = {}
    for rule in config.rules:
        text = rule.removeprefix("integer ")
        plan = lb.bind(model.fn, {"**": text}, *given, sample, integer=text != rule)
        qparams = lb.pack(plan, model.params, lb.init(model.fn, plan, *given, sample))
        served[rule] = lb.execute(model.fn, plan), qparams
        lines = lb.explain(model.fn, plan, qparams, model.state, sample).splitlines()
        how[rule] = sorted({line.split()[1] for line in lines[: len(plan.quantized)]})
    rows: list[dict[str, Any]] = []
    for batch in config.batches:
        x = jax.random.uniform(jax.random.key(2), (batch, 28, 28, 1))
        calls: dict[str, Callable[[], Any]] = {
            rule: lambda call=call, q=q, x=x: jax.block_until_ready(call(q, model.state, x))
            for rule, (call, q) in served.items()
        }
        calls["float32"] = lambda x=x: jax.block_until_ready(plain(*given, x))
        before = os.getloadavg()[0]
        times = interleave(calls, seconds=config.seconds)
        rows.append({
            "batch": batch, "implementations": how, "load_average": round(max(before, os.getloadavg()[0]), 1),
            "over_float": {rule: ratio(times[rule], times["float32"]) for rule in served},
            "times": {n: {"min_ms": t.minimum, "median_ms": t.median, "rounds": len(t.rounds)} for n, t in times.items()},
        })  # fmt: skip
        atomic.write(out / "result.json", json.dumps({**about, "rows": rows}, indent=1) + "\n")
        cells = [
            f"{n} {t.minimum:.3f}/{t.median:.3f} ms ({t.minimum / times['float32'].minimum:.2f}x of float32's least)"
            for n, t in times.items()
        ]
        print(f"batch {batch}: {', '.join(cells)}", flush=True)
