"""Fractional widths (FracBits): between two whole numbers of bits, the sum of both grids.

Reference: Yang, Jin, FracBits: Mixed Precision Quantization via Fractional Bit-Widths, AAAI 2021, https://arxiv.org/abs/2007.02017,
section 3. ``lambda``: the width, a real number; ``Q_b``: the grid of ``b`` bits; ``t = lambda - floor(lambda)``:

    Q_lambda(x) = (1 - t) Q_floor(x) + t Q_ceil(x),   dQ_lambda/dlambda = Q_ceil(x) - Q_floor(x)

Differs from the paper: grids of one reach, each twice as fine as the one before, in place of DoReFa's and PACT's, and the reach is
learned as LSQ learns its step; a width begins a quarter of a bit off a whole one, where its gradient knows both sides; 2 to 8
bits (the paper lets kernels have none). Below 2 bits only the loss moves a width, above 8
only what bits cost, so that none is stuck beyond an end. The cost is `lowbit.learn.price`.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowbit.core.extremes import at_least, at_most
from lowbit.core.gradients import straight_through
from lowbit.core.quantizer import QState, Quantizer, Quantizers
from lowbit.core.rounding import nearest_even
from lowbit.core.spec import Operand
from lowbit.formats.factory import learned, quantizers
from lowbit.formats.widths import LEAST, MOST, Blended


@dataclasses.dataclass(frozen=True)
class FracBits(Blended):
    """A width that is a trained real number."""

    def first(self, shape: tuple[int, ...]) -> QState:
        first = (
            self.start - 0.25 if self.start > LEAST else LEAST + 0.25
        )  # two grids, and the nearest width is that of the rule
        return {"learn": {"bits": jnp.full(shape, np.float32(first))}, "fixed": {}}

    def widths(self, qstate: QState) -> Float[Array, "..."]:
        bits = qstate["learn"]["bits"]
        return straight_through(at_least(bits, float(LEAST)), _within(bits))

    def chosen(self, qstate: QState) -> Float[Array, "..."]:
        return nearest_even(_within(jax.lax.stop_gradient(qstate["learn"]["bits"])))

    def parts(self, qstate: QState) -> Sequence[tuple[Array, Array]]:
        bits = qstate["learn"]["bits"]
        bits = straight_through(at_most(bits, float(MOST)), _within(bits))
        below = at_most(jnp.floor(jax.lax.stop_gradient(bits)), float(MOST - 1))
        t = bits - below
        return (below, 1.0 - t), (below + 1.0, t)

    def limit(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> tuple[Quantizer, QState, int]:
        return self, {**qstate, "learn": {**qstate["learn"], "bits": self.chosen(qstate)}}, 0


def _within(bits: Array) -> Array:
    return at_most(at_least(bits, float(LEAST)), float(MOST))


def fracbits(text: str) -> Quantizers:
    """Returns quantizers with learned fractional widths.

    Args:
        text: such as ``"w6/channel"`` or ``"w6,a6/sym"``: the bits that training begins with, and who shares a width and a scale.
            Inputs are signed, or, as ``auint6/sym``, never negative.

    Raises:
        ValueError: for other formats, or affine specs.

    Example:
        >>> fracbits("w6,auint6/sym").weight.text
        "fracbits('int8/channel/sym', start=6)"
    """
    return quantizers(
        text, "fracbits",
        weight=lambda spec: FracBits(learned(spec, "fracbits"), spec.format.bits),
        input=lambda spec: FracBits(learned(spec, "fracbits", is_input=True), spec.format.bits),
    )  # fmt: skip
