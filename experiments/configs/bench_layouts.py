"""Latency of `lowbit.execute` beside `jax.jit` by layout: transposed and vmapped weights, NCHW, groups, signals, attention.

    lowbit run experiments/configs/bench_layouts.py       three minutes; close everything else
    lowbit run experiments/configs/bench_layouts.py --only 'conv*'       some of the patterns

Every pattern, rule and batch interleaved with float32; medians and minima. Weights are random: this measures time alone. The
last pattern is deep and narrow, where the cost of a call, not of arithmetic, decides. ``cp runs/bench_layouts/times.json
experiments/results/bench_layouts.json``.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowbit.run import Dataset, Experiment, Method, Model, Suite, latency, times, unlabelled

WIDTH = 512
"""Of dense layers; channels of convolutions are an eighth."""
METHODS = (
    Method("w8a8", {"**": "w8,a8"}),
    Method("w4_g32", {"**": "w4/g32"}),
    Method("w4a8_dynamic", {"**": "w4,a8/dynamic"}),
)


class Pattern(NamedTuple):
    """One layout.

    Attributes:
        title: of its rows.
        fn: ``fn(params, x)``.
        params: makes the parameters.
        shape: of an input.
    """

    title: str
    fn: Callable[..., Any]
    params: Callable[[], Any]
    shape: tuple[int, ...]


def normal(key: int, *shape: int) -> jax.Array:
    """Random numbers whose sums over the first axis have variance one."""
    return jax.random.normal(jax.random.key(key), shape) / np.sqrt(shape[0])


def layers(apply: Callable[..., Any]) -> Callable[..., Any]:
    """A chain of layers, a relu after each."""

    def fn(p: Any, x: Any) -> Any:
        for name in sorted(p):
            x = jax.nn.relu(apply(p[name], x))
        return x

    return fn


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


def drawn(count: int, *shape: int, scale: float = 1.0) -> dict[str, jax.Array]:
    """Parameters of a chain."""
    return {f"l{i:02}": normal(i, *shape) * scale for i in range(count)}


_D, _C, _HALF = WIDTH, WIDTH // 8, WIDTH // 2
_NHWC = ("NHWC", "HWIO", "NHWC")
_DENSE = functools.partial(drawn, 4, _D, _D)

PATTERNS = {
    "x_w": Pattern("x @ w", layers(lambda w, x: x @ w), _DENSE, (_D,)),
    "w_x_vmapped": Pattern("w @ x, vmapped", layers(lambda w, x: jax.vmap(lambda v: w @ v)(x)), _DENSE, (_D,)),
    "x_wt": Pattern("x @ w.T", layers(lambda w, x: x @ w.T), _DENSE, (_D,)),
    "scan_over_layers": Pattern("scan over layers", over_layers, lambda: {"w": normal(0, 4, _D, _D) * 0.1}, (_D,)),
    "ensemble": Pattern(
        "ensemble", lambda p, x: jax.vmap(lambda w: x @ w)(p["w"]), lambda: {"w": normal(0, 4, _D, _D)}, (_D,)
    ),
    "conv_nhwc_hwio": Pattern(
        "conv NHWC HWIO", layers(lambda w, x: conv(x, w, _NHWC)), lambda: drawn(3, 3, 3, _C, _C, scale=0.1), (16, 16, _C)
    ),
    "conv_nchw_oihw": Pattern(
        "conv NCHW OIHW",
        layers(lambda w, x: conv(x, w, ("NCHW", "OIHW", "NCHW"))),
        lambda: drawn(3, _C, _C, 3, 3, scale=0.3),
        (_C, 16, 16),
    ),
    "depthwise_nhwc": Pattern(
        "depthwise NHWC", layers(lambda w, x: conv(x, w, _NHWC, _C)), lambda: drawn(3, 3, 3, 1, _C), (16, 16, _C)
    ),
    "grouped_nhwc": Pattern(
        "grouped NHWC, 4 groups",
        layers(lambda w, x: conv(x, w, _NHWC, 4)),
        lambda: drawn(3, 3, 3, _C // 4, _C, scale=0.3),
        (16, 16, _C),
    ),
    "conv1d_nwc_wio": Pattern(
        "conv1d NWC WIO",
        layers(lambda w, x: conv(x, w, ("NHC", "HIO", "NHC"))),
        lambda: drawn(3, 5, _C, _C, scale=0.3),
        (256, _C),
    ),
    "attention_128": Pattern(
        "attention, 128 tokens",
        attention,
        lambda: {k: normal(i, _HALF, _HALF) for i, k in enumerate("qkvo")},
        (128, _HALF),
    ),
    "rnn_scan_64": Pattern(
        "rnn scan, 64 steps", rnn, lambda: {"a": normal(0, _C, _HALF), "b": normal(1, _HALF, _HALF)}, (64, _C)
    ),
    "layers_60": Pattern(
        "60 layers, an eighth as wide", layers(lambda w, x: x @ w), lambda: drawn(60, _C, _C), (_C,)
    ),
}  # fmt: skip


def data(name: str) -> Dataset:
    """Random inputs of a pattern."""
    return unlabelled(name, np.asarray(normal(9, 16, *PATTERNS[name].shape)), calibrated=4)


def network(name: str, seed: int) -> Model:
    """A pattern as the engine takes it."""
    pattern = PATTERNS[name]
    return Model(lambda params, state, x: pattern.fn(params, x), pattern.params(), {})


def _experiment(name: str) -> Experiment:
    return Experiment(
        name=name,
        data=functools.partial(data, name),
        model=functools.partial(network, name),
        metric=None,
        methods=METHODS,
        seeds=(0,),
        evals=(latency(batches=(1, 16), seconds=3.5),),
    )


config = Suite(
    name="bench_layouts",
    experiments=tuple(map(_experiment, PATTERNS)),
    report=times({name: pattern.title for name, pattern in PATTERNS.items()}),
)
