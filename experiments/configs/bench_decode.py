"""Time of a token: a 12-layer decoder in float32 and packed in 4 bits, `lowbit.execute` beside `jax.jit`, interleaved.

    lowbit run experiments/configs/bench_decode.py        under a minute, 2 GB of memory; close everything else

Weights are random: this measures time, and nothing about accuracy.
"""

import dataclasses
import datetime as dt
import json
from pathlib import Path

import jax

import lowbit as lb
from experiments.models import decoder
from lowbit.core import atomic
from lowbit_kernels import status
from lowbit_kernels.bench.__main__ import commit, device
from lowbit_kernels.bench.timing import interleave, ratio


@dataclasses.dataclass(frozen=True)
class Config:
    """What is timed.

    Attributes:
        name: of the folder of the results.
        rule: of every weight and its input; attention between computed operands stays float.
        layers, width, hidden, heads, context: see `decoder.Sizes`.
        seconds: of measuring.
    """

    name: str = "bench_decode"
    rule: str = "w4/g32,a8/dynamic/sym"
    layers: int = 12
    width: int = 1024
    hidden: int = 4096
    heads: int = 16
    context: int = 128
    seconds: float = 20.0


config = Config()


def run(config: Config, out: Path, *, fresh: bool = False) -> None:
    """Measures, prints a line, and writes `result.json` to `out`."""
    sizes = decoder.Sizes(config.layers, config.width, config.hidden, config.heads, config.context)
    key = jax.random.key(0)
    params = jax.jit(decoder.init, static_argnums=1)(key, sizes)
    cache = (sizes.layers, sizes.heads, sizes.context, sizes.width // sizes.heads)
    x, keys, values = (
        jax.random.normal(jax.random.fold_in(key, i), s) for i, s in enumerate([(1, sizes.width), cache, cache])
    )
    args = (x, keys, values)

    rows = lb.bind(decoder.decode, {}, params, *args).rows
    plan = lb.bind(decoder.decode, {row.base: config.rule for row in rows if row.weight is not None}, params, *args)
    qparams = lb.pack(plan, params, lb.init(decoder.decode, plan, params, *args))
    quantized, plain = lb.execute(decoder.decode, plan), jax.jit(decoder.decode)
    how = {line.split()[1] for line in lb.explain(decoder.decode, plan, qparams, *args).splitlines()}

    times = interleave(
        {
            "lowbit": lambda: jax.block_until_ready(quantized(qparams, *args)),
            "float32": lambda: jax.block_until_ready(plain(params, *args)),
        },
        seconds=config.seconds,
    )
    bytes_of = {"lowbit": qparams.nbytes, "float32": sum(leaf.nbytes for leaf in jax.tree.leaves(params))}
    line = {
        **dataclasses.asdict(config), "device": device(), "isa": status().isas[:1], "commit": commit(), "jax": jax.__version__,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "implementations": sorted(how),
        "bytes": bytes_of, "speedup": ratio(times["float32"], times["lowbit"]),
        "times": {n: {"min_ms": t.minimum, "median_ms": t.median, "rounds": len(t.rounds)} for n, t in times.items()},
    }  # fmt: skip
    atomic.write(out / "result.json", json.dumps(line, indent=1) + "\n")
    cells = [f"{n} {t.minimum:.2f}/{t.median:.2f} ms" for n, t in times.items()]
    print(
        f"decode, {config.layers} layers of {config.width}: {', '.join(cells)}; {line['speedup']:.2f}x the float32 model"
    )
