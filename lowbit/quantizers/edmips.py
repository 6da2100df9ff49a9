"""A softmax mixture of widths (EdMIPS): all grids at once, weighted; the heaviest is served.

Reference: Cai, Vasconcelos, Rethinking Differentiable Search for Mixed-Precision Neural Networks, CVPR 2020,
https://arxiv.org/abs/2004.05795: ``x_q = sum_b p_b Q_b(x)``, ``p = softmax(theta / T)``, and the expected cost ``sum_b p_b cost_b``.
The temperature ``T`` falls as in Wu, Wang, Zhang, Tian, Vajda, Keutzer, Mixed Precision Quantization of ConvNets via Differentiable
Neural Architecture Search (DNAS), 2018, https://arxiv.org/abs/1812.00090, section 4, whose samples are left out.

Differs from the papers: grids of one reach, each twice as fine as the one before, and the reach is learned as LSQ learns its step.
The cost is `lowbit.learn.price`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowbit.core.extremes import at_least
from lowbit.core.quantizer import QState, Quantizer, Quantizers
from lowbit.core.spec import Operand
from lowbit.formats.factory import learned, quantizers
from lowbit.formats.widths import LEAST, MOST, Blended

_COLDEST = 1e-2


@dataclasses.dataclass(frozen=True)
class EdMIPS(Blended):
    """Logits of widths, per tensor, channel or group.

    Attributes:
        start: bits whose logit begins above the others.
        among: the widths, ascending.
        temperature: that training begins with.
        decay: what it is multiplied by after every step.
    """

    among: tuple[int, ...] = (2, 3, 4, 6, 8)
    temperature: float = 5.0
    decay: float = 0.998

    def __post_init__(self):
        super().__post_init__()
        ascending = tuple(sorted(set(self.among)))
        if len(ascending) < 2 or self.among != ascending or not LEAST <= ascending[0] <= ascending[-1] <= MOST:
            raise ValueError(f"among must be two or more widths of {LEAST} to {MOST} bits, ascending, got {self.among}")
        if self.start not in self.among:
            raise ValueError(f"EdMIPS begins with one of {self.among} bits, got {self.start}")
        if not self.temperature >= _COLDEST or not 0.0 < self.decay <= 1.0:
            raise ValueError(
                f"temperature must be {_COLDEST} or more and decay in (0, 1], got {self.temperature} and {self.decay}"
            )

    def first(self, shape: tuple[int, ...]) -> QState:
        above = np.array([float(bits == self.start) for bits in self.among], np.float32)
        logits = jnp.broadcast_to(jnp.asarray(above), (*shape, len(self.among)))
        return {"learn": {"logits": logits}, "fixed": {"temperature": jnp.full(shape, np.float32(self.temperature))}}

    def update(self, qstate: QState, stats: Mapping[str, Any]) -> QState:
        cooler = at_least(qstate["fixed"]["temperature"] * np.float32(self.decay), _COLDEST)
        return {**qstate, "fixed": {**qstate["fixed"], "temperature": cooler}}

    def _shares(self, qstate: QState) -> Array:
        return jax.nn.softmax(qstate["learn"]["logits"] / qstate["fixed"]["temperature"][..., None], axis=-1)

    def widths(self, qstate: QState) -> Float[Array, "..."]:
        return jnp.sum(self._shares(qstate) * jnp.asarray(self.among, jnp.float32), axis=-1)

    def chosen(self, qstate: QState) -> Float[Array, "..."]:
        return jnp.asarray(self.among, jnp.float32)[jnp.argmax(qstate["learn"]["logits"], axis=-1)]

    def parts(self, qstate: QState) -> Sequence[tuple[Array, Array]]:
        shares = self._shares(qstate)
        return [(jnp.full(shares.shape[:-1], np.float32(b)), shares[..., i]) for i, b in enumerate(self.among)]

    def limit(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> tuple[Quantizer, QState, int]:
        best = jax.nn.one_hot(jnp.argmax(qstate["learn"]["logits"], axis=-1), len(self.among), dtype=jnp.float32)
        far = best * np.float32(1e3 * self.temperature)
        return self, {**qstate, "learn": {**qstate["learn"], "logits": far}}, 0


def edmips(
    text: str, *, among: tuple[int, ...] = (2, 3, 4, 6, 8), temperature: float = 5.0, decay: float = 0.998
) -> Quantizers:
    """Returns quantizers that mix widths.

    Args:
        text: such as ``"w6/channel"`` or ``"w6,a6/sym"``: the bits that training begins with, one of ``among``, and who shares a
            width and a scale. Inputs are signed, or, as ``auint6/sym``, never negative.
        among: the widths that are mixed, 2 to 8 bits.
        temperature: of the softmax, at first.
        decay: what the temperature is multiplied by after every training step, down to 0.01.

    Raises:
        ValueError: for other formats, affine specs, or widths that do not ascend.

    Example:
        >>> edmips("w4/g32").weight.text
        "edmips('int8/g32/sym', start=4, among=(2, 3, 4, 6, 8), temperature=5.0, decay=0.998)"
    """

    def made(spec: Any, *, is_input: bool) -> EdMIPS:
        return EdMIPS(learned(spec, "edmips", is_input=is_input), spec.format.bits, among, temperature, decay)

    return quantizers(
        text, "edmips", weight=lambda spec: made(spec, is_input=False), input=lambda spec: made(spec, is_input=True)
    )
