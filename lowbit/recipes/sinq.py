"""SINQ: a second scale, one for every input of a weight, so that rows and columns are equally spread before they are rounded.

Reference: Müller, Bich, Boretti, Chen, Liu, Cavigelli, SINQ: Sinkhorn-Normalized Quantization for Calibration-Free Low-Precision LLM
Weights, 2025, https://arxiv.org/abs/2509.22944: ``W = diag(t) Q diag(s)``, with ``t`` and ``s`` of a Sinkhorn-like iteration that evens out the
standard deviations of rows and columns, stopped where their imbalance ``max(std) / min(std)`` is least; then nearest.

Served exactly: ``s`` is the scale that the plan knows. ``t`` goes into what makes the inputs where a parameter alone makes them
(`lowbit.program.pairs`); elsewhere inputs of a matrix product are multiplied by it, which is a parameter of the rewritten function; what is
left (a convolution of the model's inputs, weights in loops without a pair) keeps one scale, and the rewrite says so.

Differs from the paper: rows and columns take turns, where the paper moves both at once by clipped factors; ``t`` has a geometric mean
of one; ``s`` is searched by squared error; scales are those of the rule, symmetric too.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from lowbit.interpret.bind import bind
from lowbit.plan.rows import Row
from lowbit.program.evaluate import again
from lowbit.rewrites.given import Given
from lowbit.rewrites.products import Altered, Product, products, with_own
from lowbit.rewrites.scaling import Model

from .recipe import Recipe
from .rtn import Nearest

ROOT = "sinq"


@dataclasses.dataclass(frozen=True)
class Sinq(Given):
    """The rewrite.

    Attributes:
        iterations: of evening out columns, then rows.
    """

    iterations: int = 16

    def __post_init__(self):
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")

    def __call__(self, fn: Callable[..., Any], params: Any, state: Any) -> tuple[Altered, Any, Any]:
        model = Model(fn, params, state, self.batches, "sinq")
        rows = {
            row.weight.key: row
            for row in bind(fn, {"**": "keep"}, params, state, *model.args).rows
            if row.weight is not None and row.weight.kind == "leaf" and row.primitive != "gather"
        }
        taken: set[str] = set()
        for pair in model.pairs.found:
            ends = [(end, rows[path]) for end in pair.takers if (path := model.paths[end.leaf]) in rows]
            names = f"{model.names(pair.makers)} -> {model.names(pair.takers)}"
            if not ends:
                continue
            weights = [np.asarray(row.matrix.matrices(model.values(end.leaf))) for end, row in ends]
            channels = [_by_row(row, end.channels) for end, row in ends]
            t, first, last = balanced(weights, channels, pair.size, self.iterations)
            model.scale(pair, t)
            taken |= {row.weight.key for _, row in ends if row.weight is not None}
            model.say(f"{names}: {pair.size} channels, imbalance {first:.3g} -> {last:.3g}")
        matmuls, others = products(model.traced)
        own, here = {}, []
        for product in matmuls:
            if product.path in taken or product.path not in rows:
                continue
            here.append(product)
            if product.path not in own:
                weight = np.asarray(rows[product.path].matrix.matrices(model.values(product.leaf)))
                size = weight.shape[1]
                t, first, last = balanced([weight], [np.arange(size)[None]], size, self.iterations)
                model.factors[product.leaf] = model.factors.get(product.leaf, 1.0) / _along(t, product.inner)
                own[product.path] = t.astype(np.float32)
                model.say(f"{product.path}: its inputs times {size} factors -> imbalance {first:.3g} -> {last:.3g}")
        for path in rows:
            if path not in taken and path not in own:
                model.say(
                    f"{path}: left as it is: {others.get(path, 'no parameter makes its inputs, and it is no matrix product')}"
                )
        scaled, params, state = model.done()
        params = with_own(params, ROOT, own) if own else params
        return Altered(scaled.fn, "sinq", ROOT, tuple(here), multiplied, scaled.lines), params, state


def multiplied(product: Product, equation: Any, values: list[Any], own: Any) -> Any:
    """Returns the product with inputs times their factors."""
    values[1 - product.side] = product.scaled(product.data(values), own)
    return again(equation, values)[0]


def balanced(
    weights: list[np.ndarray], channels: list[np.ndarray], size: int, iterations: int
) -> tuple[Float[np.ndarray, " size"], float, float]:
    """Returns factors of channels by Sinkhorn's iteration, and the imbalance before and after; float64.

    Args:
        weights: ``[matrix, in, out]`` each, which read the same channels.
        channels: of every row, ``[matrix, in]``; -1 of rows that are none.
        size: how many channels there are.
        iterations: at most.
    """
    t, s = np.ones(size), [np.ones((w.shape[0], 1, w.shape[2])) for w in weights]
    best, first, least = t, 0.0, np.inf
    for step in range(iterations + 1):
        now = [w / _rows(t, c) / n for w, c, n in zip(weights, channels, s, strict=True)]
        columns = [x.std(axis=1, keepdims=True) for x in now]
        spread = np.concatenate([*(c.reshape(-1) for c in columns), _deviation(now, channels, size)])
        imbalance = float(spread.max() / spread[spread > 0].min()) if (spread > 0).any() else 1.0
        first = imbalance if step == 0 else first
        if imbalance < least:
            best, least = t, imbalance
        s = [n * np.where(c > 0, c, 1.0) for n, c in zip(s, columns, strict=True)]
        now = [x / np.where(c > 0, c, 1.0) for x, c in zip(now, columns, strict=True)]
        rows = _deviation(now, channels, size)
        t = t * np.where(rows > 0, rows, 1.0)
    return best / np.exp(np.mean(np.log(best))), first, least


def _deviation(weights: list[np.ndarray], channels: list[np.ndarray], size: int) -> np.ndarray:
    """The standard deviation of what every channel is multiplied by."""
    sums = np.zeros((3, size + 1))
    for w, c in zip(weights, channels, strict=True):
        for i, x in enumerate((np.ones_like(w), w, w**2)):
            np.add.at(sums[i], c, x.sum(axis=2))
    count, total, squares = sums[:, :-1]
    mean = total / np.maximum(count, 1)
    variance = squares / np.maximum(count, 1) - mean**2
    return np.sqrt(np.where(variance * count > 1e-12 * squares, variance, 0.0))


def _by_row(row: Row, channels: np.ndarray) -> np.ndarray:
    """The channel of every row of a weight, ``[matrix, in]``."""
    view = row.matrix
    return np.asarray(view.matrices(np.broadcast_to(channels, view.shape)))[:, :, 0]


def _rows(t: np.ndarray, channels: np.ndarray) -> np.ndarray:
    return np.append(t, 1.0)[channels][:, :, None]


def _along(t: np.ndarray, axis: int) -> np.ndarray:
    return t[:, None] if axis == 0 else t[None]


def recipe() -> Recipe:
    """Returns the recipe ``sinq``."""
    return Recipe("sinq", Nearest(value="ones"), rewrite=Sinq())
