"""SmoothQuant: outliers of activations move into the weights that read them.

Reference: Xiao, Lin, Seznec, Wu, Demouth, Han, SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models, ICML 2023, https://arxiv.org/abs/2211.10438, Eq. (4): ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)``; inputs are
divided by ``s`` and rows of the weight multiplied. ``X_j``: input channel ``j``; ``W_j``: that row of all weights that read it.

The division is folded into what makes the channels: the gain and bias of a norm, or the columns of the weight before. So the
executed graph is the one it was, with int8 x int8 products, and costs nothing.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from lowbit.program.pairs import Pair

from .given import Given
from .scaling import Model, Place, Scaled, by_channel, kept_axes, reads

SMALLEST = 1e-5
"""Ranges count as at least this, as in the authors' code."""


@dataclasses.dataclass(frozen=True)
class Smooth(Given):
    """The rewrite.

    Attributes:
        alpha: how much of the difference moves: 0 none of the input's range, 1 all of it.
        makers: which kinds of makers take factors: ``gain``, ``weight``, ``table``.
    """

    alpha: float = 0.5
    makers: tuple[str, ...] = ("gain", "weight", "table")

    def __post_init__(self):
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha!r}")
        if not set(self.makers) <= {"gain", "weight", "table"}:
            raise ValueError(f"makers may hold 'gain', 'weight' and 'table', got {self.makers!r}")

    def __call__(self, fn: Callable[..., Any], params: Any, state: Any) -> tuple[Scaled, Any, Any]:
        model = Model(fn, params, state, self.batches, "smooth")
        chosen = [p for p in model.pairs.found if all(end.kind in self.makers for end in p.makers)]
        statistics = model.measure(wanted(chosen))
        for pair in chosen:
            inputs = largest_inputs(pair, statistics)
            rows = np.max([end.largest(model.magnitudes(end.leaf), pair.size) for end in pair.takers], axis=0)
            is_live = inputs > 0
            s = np.maximum(inputs, SMALLEST) ** self.alpha / np.maximum(rows, SMALLEST) ** (1 - self.alpha)  # Eq. (4)
            s = np.where(is_live, np.maximum(s, SMALLEST), 1.0)
            model.scale(pair, 1.0 / s)
            model.say(
                f"{model.names(pair.makers)} -> {model.names(pair.takers)}: {pair.size} channels divided by {s.min():.3g} to {s.max():.3g}"
            )
        model.say_blocked()
        return model.done()


def wanted(pairs: list[Pair]) -> dict[Place, tuple[int, ...]]:
    """Returns the places that takers read, and the axes along which their channels differ."""
    return {reads(end): kept_axes(end) for pair in pairs for end in pair.takers}


def largest_inputs(pair: Pair, found: dict[Place, dict[str, np.ndarray]]) -> np.ndarray:
    """Returns the largest magnitude of every channel of a pair, of all that reads it."""
    inputs = [by_channel(end, found[reads(end)]["largest"], pair.size, np.maximum) for end in pair.takers]
    return np.max(inputs, axis=0)


def smooth(alpha: float = 0.5, *, makers: tuple[str, ...] = ("gain", "weight", "table"), batches: Any = None) -> Smooth:
    """Returns the rewrite that moves the ranges of activations into the weights that read them.

    Args:
        alpha: in [0, 1]. At 0.5 the ranges of inputs and weights are equal by channel.
        makers: which kinds of makers take factors: ``("gain",)`` is the paper's, after norms alone.
        batches: what ranges are measured on. None: those of `lowbit.chain`.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"g": jnp.ones(2), "w": jnp.array([[1.0], [4.0]])}
        >>> fn = lambda p, s, x: (jnp.tanh(x) * p["g"]) @ p["w"]
        >>> _, params, _ = smooth(batches=[(jnp.full((1, 2), 20.0),)])(fn, params, {})
        >>> params["g"].tolist(), params["w"].tolist()
        ([1.0, 2.0], [[1.0], [2.0]])
    """
    return Smooth(alpha, makers, batches=batches)
