"""Latency of `lowbit.execute` beside `jax.jit` by layout: transposed and vmapped weights, NCHW, groups, signals, attention.

    lowbit run experiments/configs/bench_layouts.py       three minutes; close everything else

Every pattern, rule and batch interleaved with float32; medians and minima. Weights are random: this measures time alone. The
last pattern is deep and narrow, where the cost of a call, not of arithmetic, decides.
"""

import dataclasses
import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import lowbit as lb
from lowbit.core import atomic
from lowbit_kernels import status
from lowbit_kernels.bench.__main__ import commit, device
from lowbit_kernels.bench.timing import interleave, ratio


@dataclasses.dataclass(frozen=True)
class Config:
    """What is timed.

    Attributes:
        name: of the folder of the results.
        rules: of every operation, each a column.
        batches: of the inputs.
        width: of dense layers; channels of convolutions are an eighth.
        seconds: of measuring, for each pattern and batch.
        only: parts of the names of patterns; none means all.
    """

    name: str = "bench_layouts"
    rules: tuple[str, ...] = ("w8,a8", "w4/g32", "w4,a8/dynamic")
    batches: tuple[int, ...] = (1, 16)
    width: int = 512
    seconds: float = 4.0
    only: tuple[str, ...] = ()


config = Config()

Pattern = tuple[Callable[..., Any], Any, Callable[[int], Any]]


def normal(key: int, *shape: int) -> jax.Array:
    """Random numbers whose sums over the first axis have variance one."""
    return jax.random.normal(jax.random.key(key), shape) / np.sqrt(shape[0])


def layers(apply: Callable[..., Any], params: Any, relu: bool = True) -> tuple[Callable[..., Any], Any]:  # noqa: FBT001, FBT002 (a table's column)
    """A chain of layers, and its parameters."""

    def fn(p: Any, x: Any) -> Any:
        for name in sorted(p):
            x = apply(p[name], x)
            x = jax.nn.relu(x) if relu else x
        return x

    return fn, params


def conv(x: Any, w: Any, numbers: tuple[str, str, str], groups: int = 1) -> Any:
    """A convolution without stride."""
    return lax.conv_general_dilated(
        x, w, (1,) * (x.ndim - 2), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


def attention(p: Any, x: Any) -> Any:
    """Four heads, without bias."""
    q, k, v = ((x @ p[n]).reshape(*x.shape[:2], 4, -1) for n in "qkv")
    return jax.nn.dot_product_attention(q, k, v).reshape(x.shape) @ p["o"]


def rnn(p: Any, x: Any) -> Any:
    """A scan over time."""

    def step(h: Any, v: Any) -> tuple[Any, Any]:
        h = jnp.tanh(v @ p["a"] + h @ p["b"])
        return h, h

    start = jnp.zeros((x.shape[0], p["b"].shape[0]))
    return lax.scan(step, start, x.swapaxes(0, 1))[0]


def over_layers(p: Any, x: Any) -> Any:
    """A scan over stacked weights."""
    return lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x, p["w"])[0]


def patterns(width: int) -> dict[str, Pattern]:
    """Every pattern: the function, its parameters, and inputs of a batch."""
    d, c, small = width, width // 8, width // 2
    dense = {f"l{i}": normal(i, d, d) for i in range(4)}
    rows = lambda b: normal(9, b, d)  # noqa: E731
    images = lambda b: normal(9, b, 16, 16, c)  # noqa: E731
    hwio = {f"c{i}": normal(i, 3, 3, c, c) * 0.1 for i in range(3)}
    oihw = {f"c{i}": normal(i, c, c, 3, 3) * 0.3 for i in range(3)}
    by_channel = {f"c{i}": normal(i, 3, 3, 1, c) for i in range(3)}
    grouped = {f"c{i}": normal(i, 3, 3, c // 4, c) * 0.3 for i in range(3)}
    signal = {f"c{i}": normal(i, 5, c, c) * 0.3 for i in range(3)}
    narrow = {f"l{i:02}": normal(i, d // 8, d // 8) for i in range(60)}
    nhwc = ("NHWC", "HWIO", "NHWC")
    return {
        "x @ w": (*layers(lambda w, x: x @ w, dense), rows),
        "w @ x, vmapped": (*layers(lambda w, x: jax.vmap(lambda v: w @ v)(x), dense), rows),
        "x @ w.T": (*layers(lambda w, x: x @ w.T, dense), rows),
        "scan over layers": (over_layers, {"w": normal(0, 4, d, d) * 0.1}, rows),
        "ensemble": (lambda p, x: jax.vmap(lambda w: x @ w)(p["w"]), {"w": normal(0, 4, d, d)}, rows),
        "conv NHWC HWIO": (*layers(lambda w, x: conv(x, w, nhwc), hwio), images),
        "conv NCHW OIHW": (
            *layers(lambda w, x: conv(x, w, ("NCHW", "OIHW", "NCHW")), oihw), lambda b: normal(9, b, c, 16, 16)
        ),
        "depthwise NHWC": (*layers(lambda w, x: conv(x, w, nhwc, c), by_channel), images),
        "grouped NHWC, 4 groups": (*layers(lambda w, x: conv(x, w, nhwc, 4), grouped), images),
        "conv1d NWC WIO": (
            *layers(lambda w, x: conv(x, w, ("NHC", "HIO", "NHC")), signal), lambda b: normal(9, b, 256, c)
        ),
        "attention, 128 tokens": (
            attention, {k: normal(i, small, small) for i, k in enumerate("qkvo")}, lambda b: normal(9, b, 128, small)
        ),
        "rnn scan, 64 steps": (
            rnn, {"a": normal(0, c, small), "b": normal(1, small, small)}, lambda b: normal(9, b, 64, c)
        ),
        "60 layers, an eighth as wide": (*layers(lambda w, x: x @ w, narrow), lambda b: normal(9, b, d // 8)),
    }  # fmt: skip


def run(config: Config, out: Path, *, fresh: bool = False) -> None:
    """Measures, prints a line for every pattern and batch, and writes `result.json` to `out` after each."""
    about = {
        **dataclasses.asdict(config), "device": device(), "isa": status().isas[:1], "commit": commit(), "jax": jax.__version__,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    for part in config.only:
        if not any(part in name for name in patterns(config.width)):
            raise ValueError(f"only: {part!r} is in no pattern's name; there are {', '.join(patterns(config.width))}")
    for name, (fn, params, make) in patterns(config.width).items():
        if config.only and not any(part in name for part in config.only):
            continue
        sample, plain, served, how = make(4), jax.jit(fn), {}, {}
        for rule in config.rules:
            plan = lb.bind(fn, {"**": rule}, params, sample)
            qparams = lb.pack(plan, params, lb.init(fn, plan, params, sample))
            served[rule] = lb.execute(fn, plan), qparams
            lines = lb.explain(fn, plan, qparams, sample).splitlines()
            how[rule] = sorted({line.split()[1] for line in lines})
        for batch in config.batches:
            x = make(batch)
            calls: dict[str, Callable[[], Any]] = {
                rule: lambda call=call, q=q, x=x: jax.block_until_ready(call(q, x))
                for rule, (call, q) in served.items()
            }
            calls["float32"] = lambda plain=plain, params=params, x=x: jax.block_until_ready(plain(params, x))
            times = interleave(calls, seconds=config.seconds)
            row = {
                "pattern": name, "batch": batch, "implementations": how,
                "over_float": {rule: ratio(times[rule], times["float32"]) for rule in served},
                "times": {n: {"min_ms": t.minimum, "median_ms": t.median, "rounds": len(t.rounds)} for n, t in times.items()},
            }  # fmt: skip
            rows.append(row)
            atomic.write(out / "result.json", json.dumps({**about, "rows": rows}, indent=1) + "\n")
            cells = ", ".join(
                f"{rule} {times[rule].median:.3f} ms {over:.2f}x" for rule, over in row["over_float"].items()
            )
            print(f"{name}, batch {batch}: float32 {times['float32'].median:.3f} ms; {cells}", flush=True)
