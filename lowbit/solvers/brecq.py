"""Block reconstruction: the rounding of all weights of a block is learned together, on what the block makes of its inputs.

Reference: Li et al., BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction, ICLR 2021,
https://arxiv.org/abs/2102.05426, Eq. (10) with unit weights and Algorithm 1; Wei et al., QDrop: Randomly Dropping Quantization for
Extremely Low-bit Post-Training Quantization, ICLR 2022, https://arxiv.org/abs/2203.05740, section 4.3: of quantized inputs, and of
what comes into the block, a random part of the entries is as in the float model.

``L = sum_out |block(x; Q) - out|^2 / |out|^2``, ``out`` of the float model.

Differs from the papers: a weight is ``s round(clip(P))``, its gradient passed straight through to its place ``P``, where the papers
anneal AdaRound's soft ``h(V)`` for thousands of steps: 200 from GPTQ's levels left three of four blocks of ResNet-8 in 4 bits worse than
they were, 100 of these one. Whole calibration batches; scales, input steps and biases move too.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.core import blocks
from lowbit.core.gradients import straight_through
from lowbit.core.rounding import rounded_product


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Hyper-parameters.

    Attributes:
        steps: of Adam for every block; each sees one calibration batch.
        rates: of the places of weights, in steps of their grid: a block is learned with each, and what loses least on held-out
            batches is kept. With 0 levels stay. All rates fall in a line to a twentieth.
        scale_rate: of the logarithms of weight scales; 0: they stay.
        step_rate: of the logarithms of input steps; 0: they stay.
        bias_rate: of biases, in units of their mean magnitude; 0: they stay.
        slack: how far from the level that the solver before chose an entry may start, towards its float value, in steps.
        drop: the share of entries that are as in the float model, where inputs of operations are quantized.
        most: operations in a block, where layers follow each other in a row.
        held: bytes of calibration data and of what a block makes of it that are held at a time; batches beyond are left out.
        seed: of the order of batches and of what is dropped.
    """

    steps: int = 300
    rates: tuple[float, ...] = (0.002, 0.0)
    scale_rate: float = 1e-3
    step_rate: float = 1e-3
    bias_rate: float = 3e-3
    slack: float = 0.4
    drop: float = 0.5
    most: int = 3
    held: int = 1 << 31
    seed: int = 0

    def __post_init__(self):
        rates = (*self.rates, self.scale_rate, self.step_rate, self.bias_rate)
        if not self.rates or self.steps < 1 or self.most < 1 or self.held < 1 or min(rates) < 0:
            raise ValueError(f"a reconstruction needs steps, most and held >= 1, rates >= 0, got {self}")
        if not (0 <= self.slack < 0.5 and 0 <= self.drop < 1):
            raise ValueError(f"a reconstruction needs slack in [0, 0.5) and drop in [0, 1), got {self}")


@dataclasses.dataclass(frozen=True)
class Rounding:
    """One weight that is learned, in leaf coordinates.

    Attributes:
        start: where every entry is at the start, in steps of the grid and without the zero point; float32.
        low: the lowest level, without the zero point; it broadcasts against the weight.
        high: the highest.
        scale: as it is stored.
        parts: elements per scale along every axis.
        is_free: whether scales may move.
    """

    start: Float[Array, "..."]
    low: Float[Array, "..."]
    high: Float[Array, "..."]
    scale: Float[Array, "..."]
    parts: tuple[int, ...]
    is_free: bool

    def levels(self, place: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns the level of every entry; the gradient passes straight through, within the range."""
        inside = jnp.clip(place, self.low, self.high)
        return straight_through(inside, jnp.round(inside))

    def values(self, place: Float[Array, "..."], scale: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns the weight on the grid."""
        return rounded_product(self.levels(place), full(scale, self.start.shape, self.parts))


jax.tree_util.register_dataclass(Rounding, ["start", "low", "high", "scale"], ["parts", "is_free"])


def rounding(
    weight: Float[Array, "..."],
    levels: Float[Array, "..."],
    scale: Float[Array, "..."],
    bounds: tuple[Array, Array],
    parts: tuple[int, ...],
    slack: float,
    *,
    is_free: bool,
) -> Rounding:
    """Returns what is learned of a weight: entries start at the float weight, or where what the solver before chose ends.

    Args:
        weight: float.
        levels: what the solver before chose, without the zero point.
        scale: of them, in leaf coordinates.
        bounds: lowest and highest level, without the zero point; they broadcast against the weight.
        parts: elements per scale along every axis.
        slack: see `Reconstruction`.
        is_free: whether scales may move.
    """
    place = weight.astype(jnp.float32) / full(scale, weight.shape, parts)
    start = levels + jnp.clip(place - levels, -slack, slack)
    return Rounding(start, bounds[0], bounds[1], scale, parts, is_free)


def full(scale: Float[Array, "..."], shape: Sequence[int], parts: Sequence[int]) -> Float[Array, "..."]:
    """Returns a scale for every element."""
    ones = blocks.split(jnp.ones(tuple(shape), jnp.float32), parts)
    return blocks.join(ones * blocks.spread(scale, shape, parts), shape, parts)


_OWN = 1 << 16
"""Streams of random numbers from here on are of what comes into the block, those below of the inputs of its operations."""
Learned = dict[str, list[Array]]
"""``rounding`` variables and log multiples of ``scale`` by weight, of ``step`` by input, ``bias`` in units of its mean magnitude."""


class Block:
    """One block as something to train. Not a pytree; its functions are pure.

    Args:
        run: ``(weights, input steps' multiples, biases, inputs, mask) -> outs``; ``mask(i, quantized, float)`` mixes the input of
            the i-th operation.
        method: hyper-parameters.
    """

    def __init__(self, run: Callable[..., list[Array]], method: Reconstruction):
        self.run, self.method = run, method
        rates = {
            "scale": method.scale_rate, "step": method.step_rate, "bias": method.bias_rate,
        }  # fmt: skip
        import optax  # here, not above: importing lowbit imports no optimizer

        self.optimizer = optax.adam(lambda count: jnp.maximum(0.05, 1.0 - count / method.steps))
        self.rates = rates

    def begin(self, weights: Sequence[Rounding], steps: int, biases: Sequence[Array]) -> tuple[Learned, Any]:
        """Returns what is learned at its start, and the optimizer's state."""
        learned = {
            "rounding": [w.start for w in weights],
            "scale": [jnp.zeros_like(w.scale) for w in weights],
            "step": [jnp.zeros(()) for _ in range(steps)],
            "bias": [jnp.zeros_like(b) for b in biases],
        }
        with jax.numpy_dtype_promotion("standard"):
            return learned, self.optimizer.init(learned)

    def model(
        self, learned: Learned, weights: Sequence[Rounding], biases: Sequence[Array]
    ) -> tuple[list[Array], list[Array], list[Array]]:
        """Returns weights on their grids, multiples of input steps, and biases."""
        weights_now = [
            w.values(v, w.scale * jnp.exp(u) if w.is_free else w.scale)
            for w, v, u in zip(weights, learned["rounding"], learned["scale"], strict=True)
        ]
        moved = [b + d * jnp.mean(jnp.abs(b)) for b, d in zip(biases, learned["bias"], strict=True)]
        return weights_now, [jnp.exp(t) for t in learned["step"]], moved

    def step(
        self, state: tuple[Learned, Any], weights: Sequence[Rounding], biases: Sequence[Array], rest: Any,
        data: tuple[list[Array], list[Array], list[Array]], unit: Array, rate: Array, key: Array,
    ) -> tuple[tuple[Learned, Any], Array]:  # fmt: skip
        """Returns the state after one step of Adam, and the block's error over that at the start.

        Args:
            state: learned values and the optimizer's state.
            weights: what is learned of them.
            biases: float.
            rest: what ``run`` takes besides.
            data: inputs as what precedes leaves them, inputs and results of the float model.
            unit: of the error.
            rate: of the places of weights.
            key: of what is dropped.
        """
        method = self.method
        inputs, floats, outs = data
        drop = jnp.float32(method.drop)
        is_mixed = bool(state[0]["step"]) and method.drop > 0

        def mixed(i: int, x: Array, other: Array) -> Array:
            if not is_mixed or not jnp.issubdtype(x.dtype, jnp.floating):
                return x
            return jnp.where(jax.random.bernoulli(jax.random.fold_in(key, i), drop, x.shape), other, x)

        given = [mixed(_OWN + i, x, f) for i, (x, f) in enumerate(zip(inputs, floats, strict=True))]

        def loss(learned: Learned) -> tuple[Array, Array]:
            weights_now, steps, moved = self.model(learned, weights, biases)
            lost = error(self.run(weights_now, steps, moved, rest, given, mixed), outs) / unit
            return lost, lost

        learned, inner = state
        slopes, lost = jax.grad(loss, has_aux=True)(learned)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its step counts with floats
            updated: Any = self.optimizer.update(slopes, inner)
        updates, inner = updated
        rates = {**self.rates, "rounding": rate}
        learned = {
            name: [x + jnp.float32(rates[name]) * d for x, d in zip(learned[name], updates[name], strict=True)]
            for name in learned
        }
        return (learned, inner), lost


def error(outs: Sequence[Array], right: Sequence[Array]) -> Float[Array, ""]:
    """Returns the squared error of results, each divided by the power of what it should be; float32."""
    lost = jnp.float32(0)
    for y, x in zip(outs, right, strict=True):
        if jnp.issubdtype(x.dtype, jnp.floating):
            wide = x.astype(jnp.float32)
            lost += jnp.sum(jnp.square(y.astype(jnp.float32) - wide)) / jnp.maximum(jnp.sum(jnp.square(wide)), 1e-30)
    return lost
