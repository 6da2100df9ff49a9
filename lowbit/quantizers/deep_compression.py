"""Trained codebooks (Deep Compression): the levels that weights share are learned.

Reference: Han, Mao, Dally, Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman
Coding, ICLR 2016, https://arxiv.org/abs/1510.00149, section 3, Eqs. (2) and (3): clusters by k-means; the gradient of a level
``C_k`` is the sum of the gradients of the weights ``W_ij`` with index ``I_ij = k``.

Differs from the paper: levels are shared by a tensor and scaled per block, are whole 127ths of the largest, and one of them is
zero; a weight's gradient passes straight through to the weight too, whose index may change while training (the paper's are
fixed). Neither pruning nor entropy coding.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lowbit.core.extremes import at_least, at_most
from lowbit.core.gradients import inclusive, straight_through
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.quantizer import QState, Quantizer, Quantizers
from lowbit.core.ranges import Full
from lowbit.core.rounding import nearest_even
from lowbit.core.scales import check_positive, stored_scale
from lowbit.core.spec import Operand
from lowbit.formats.codebook import Codebook
from lowbit.formats.factory import learned, quantizers

TOP = 127.0
"""The level of the largest weight of a block: levels are whole numbers up to it, so that eight bits hold them while they are learned."""

SAMPLE = 1 << 16
"""Weights that the first levels are found from, about, evenly spaced."""

SWEEPS = 40
"""Of k-means."""


@dataclasses.dataclass(frozen=True)
class DeepCompression(Quantizer):
    """The nearest of ``2^bits`` learned levels, one of them zero, times the scale of a block.

    Attributes:
        bits: of an index. The spec is that of `int8` while levels are learned, and then has a codebook of them.
    """

    bits: int = 4

    def __post_init__(self):
        check_positive(self.spec, "a trained codebook")
        if not 1 <= self.bits <= 7:
            raise ValueError(f"a trained codebook has 1 to 7 bits, got {self.bits}")
        is_known = self.spec.format.name == "int8" or isinstance(self.spec.format, Codebook)
        if not self.spec.symmetric or self.spec.dynamic or not is_known:
            raise ValueError(f"levels are learned in int8 without zero points, by stored scales; got {self.spec.text}")

    @property
    def is_hard(self) -> bool:
        return isinstance(self.spec.format, Codebook)

    @property
    def is_nearest(self) -> bool:
        return self.is_hard  # the grid of int8 has levels that are not learned

    def init(self, operand: Operand, stats: Mapping[str, Any], key: Array) -> QState:
        x = stats["values"].astype(jnp.float32)
        blocks = self.spec.granularity.blocks(operand)
        scale, _ = Full().of_values(x, operand, self.spec)
        scale = stored_scale(scale, self.spec, operand)
        if self.is_hard:
            return {"learn": {}, "fixed": {"scale": scale}}
        cut = quantize_with(x, self.spec, scale, None, blocks, nearest=lambda x, low, high: x).codes.reshape(-1)
        return {
            "learn": {"levels": _means(cut[:: max(cut.size // SAMPLE, 1)], 2**self.bits)},
            "fixed": {"scale": scale},
        }

    def hardened(self, qstate: QState, operand: Operand) -> tuple[Quantizer, QState]:
        levels = np.unique(np.append(np.asarray(_whole(qstate["learn"]["levels"])), 0.0))
        if levels[-1] <= 0:  # a format has a positive level
            levels = np.append(levels, TOP)
        spec = dataclasses.replace(self.spec, format=Codebook(tuple(float(v) for v in levels)))
        return DeepCompression(spec, self.bits), {"learn": {}, "fixed": dict(qstate["fixed"])}

    def widths(self, qstate: QState) -> Float[Array, "..."]:
        return jnp.float32(self.bits)

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        blocks = self.spec.granularity.blocks(dataclasses.replace(operand, shape=tuple(x.shape)))
        scale = qstate["fixed"]["scale"]
        if self.is_hard:
            return quantize_with(x, self.spec, scale, None, blocks, nearest=inclusive(self.spec.format.nearest))
        learned = qstate["learn"]["levels"]
        levels = jnp.sort(jnp.append(straight_through(learned, _whole(learned)), np.float32(0.0)))

        def nearest(cut: Array, low: Array | float, high: Array | float) -> Array:
            del low, high  # the ends are learned
            fixed, place = lax.stop_gradient(levels), lax.stop_gradient(cut)
            index = jnp.searchsorted(0.5 * (fixed[1:] + fixed[:-1]), place)  # half way: the lower, as a format has it
            value = levels[index]  # Eq. (3): the gradient of a level is the sum of those of its weights
            through = at_most(at_least(cut, fixed[0]), fixed[-1])
            return jnp.where(jnp.isnan(place), place, value + (through - lax.stop_gradient(through)))

        return quantize_with(x, self.spec, scale, None, blocks, nearest=nearest)


def _whole(levels: Float[Array, " levels"]) -> Float[Array, " levels"]:
    """What levels are rounded to."""
    return nearest_even(jnp.clip(levels, -TOP, TOP))


def _means(values: Float[Array, " values"], count: int) -> Float[Array, " levels"]:
    """Returns ``count - 1`` levels and, beside them, zero, with a small squared error: k-means in one dimension, Eq. (2)."""
    ordered = jnp.sort(values)
    quantiles = (np.arange(count - 1) + 0.5) / (count - 1)
    by_rank = ordered[np.clip((quantiles * values.size).astype(int), 0, values.size - 1)]
    by_place = ordered[0] + (ordered[-1] - ordered[0]) * np.float32(quantiles)
    start = jnp.sort(0.5 * (by_rank + by_place))

    def sweep(levels: Array, _: None) -> tuple[Array, None]:
        whole = jnp.sort(jnp.append(levels, np.float32(0.0)))
        index = jnp.searchsorted(0.5 * (whole[1:] + whole[:-1]), values)
        total = jax.ops.segment_sum(values, index, count)
        size = jax.ops.segment_sum(jnp.ones_like(values), index, count)
        zero = jnp.argmin(jnp.abs(whole))
        moved = jnp.where(size > 0, total / jnp.maximum(size, 1.0), whole)
        rest = jnp.arange(count - 1)
        return moved[jnp.where(rest < zero, rest, rest + 1)], None  # zero stays where it is

    return lax.scan(sweep, start, length=SWEEPS)[0]


def deep_compression(text: str) -> Quantizers:
    """Returns the quantizer of weights with a trained codebook; `lowbit.harden` makes a format of it.

    Args:
        text: such as ``"w4/g32"``: the bits of an index, and who shares a scale.

    Raises:
        ValueError: for inputs, other formats, or affine specs.

    Example:
        >>> deep_compression("w4/g32").weight.text
        "deepcompression('int8/g32/sym', bits=4)"
    """
    return quantizers(
        text,
        "deep_compression",
        weight=lambda spec: DeepCompression(learned(spec, "deep_compression"), spec.format.bits),
    )
