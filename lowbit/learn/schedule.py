"""When to quantize, and to how many bits: quantizers that wrap quantizers, pure functions of the step."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.core.qtensor import QTensor
from lowbit.core.quantizer import QState, Quantizer, Quantizers, is_served_by_spec
from lowbit.core.spec import Operand, Spec
from lowbit.core.statistics import Statistic


@dataclasses.dataclass(frozen=True)
class _Wrapper(Quantizer):
    """A quantizer around another: its state, statistics and served grid; only training differs."""

    spec: Spec = dataclasses.field(init=False)
    inner: Quantizer

    def __post_init__(self):
        object.__setattr__(self, "spec", self.inner.spec)

    def needs(self, operand: Operand) -> tuple[Statistic, ...]:
        return self.inner.needs(operand)

    def init(self, operand: Operand, stats: Mapping[str, Any], key: Array) -> QState:
        return self.inner.init(operand, stats, key)

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        return self.inner.quantize(qstate, x, operand)

    @abc.abstractmethod
    def train(
        self, qstate: QState, x: Float[Array, "..."], operand: Operand, *, key: Array | None, step: Array | None
    ) -> QTensor:
        """Returns what training computes with: in what a wrapper differs."""

    def update(self, qstate: QState, stats: Mapping[str, Any]) -> QState:
        return self.inner.update(qstate, stats)

    @property
    def is_projection(self) -> bool:
        return self.inner.is_projection

    @property
    def is_nearest(self) -> bool:
        return self.inner.is_nearest

    @property
    def needs_values(self) -> bool:
        return self.inner.needs_values

    @property
    def text(self) -> str:
        rest = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("spec", "inner")}
        arguments = "".join(f", {k}={v!r}" for k, v in rest.items())
        return f"{type(self).__name__.lower()}({self.inner.text}{arguments})"


@dataclasses.dataclass(frozen=True)
class Delayed(_Wrapper):
    """Trains in float until a step, then as the inner quantizer.

    Attributes:
        until: the first quantized step.

    Reference: Krishnamoorthi, 2018, arXiv 1806.08342, section 3.2 (``quant_delay``): quantize after the float
    training has converged.
    """

    until: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.until < 0:
            raise ValueError(f"until must be a step >= 0, got {self.until}")

    def served_by_spec(self) -> bool:
        return is_served_by_spec(self.inner)

    def train(
        self, qstate: QState, x: Float[Array, "..."], operand: Operand, *, key: Array | None, step: Array | None
    ) -> QTensor:
        """Returns ``x`` itself (levels off the grid) before step ``until``; the gradient of ``x`` is then one.

        Raises:
            ValueError: without a step.
        """
        if step is None:
            raise ValueError("a delay needs step=, the number of the training step")
        on_grid = self.inner.train(qstate, x, operand, key=key, step=step)
        return _where(step >= self.until, on_grid, _off_grid(on_grid, x))

    def limit(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> tuple[Quantizer, QState, int]:
        inner, qstate, step = self.inner.limit(qstate, x, operand)
        return dataclasses.replace(self, inner=inner), qstate, max(step, self.until)


@dataclasses.dataclass(frozen=True)
class Gradual(_Wrapper):
    """Trains on ``share`` quantized and ``1 - share`` exact values, the share growing from 0 to 1 between two steps.

    Attributes:
        start: the last step with a share of 0.
        end: the first step with a share of 1.
    """

    start: int = 0
    end: int = 1

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.start < self.end:
            raise ValueError(f"steps must be 0 <= start < end, got {self.start} and {self.end}")

    def served_by_spec(self) -> bool:
        return is_served_by_spec(self.inner)

    def train(
        self, qstate: QState, x: Float[Array, "..."], operand: Operand, *, key: Array | None, step: Array | None
    ) -> QTensor:
        """Returns a mixture of the exact and the quantized value.

        Raises:
            ValueError: without a step.
        """
        if step is None:
            raise ValueError("a gradual start needs step=, the number of the training step")
        on_grid = self.inner.train(qstate, x, operand, key=key, step=step)
        exact = _off_grid(on_grid, x)
        done = (jnp.asarray(step, jnp.float32) - self.start) * (1.0 / (self.end - self.start))
        share = jnp.clip(done, 0.0, 1.0)
        mixed = dataclasses.replace(on_grid, codes=share * on_grid.codes + (1.0 - share) * exact.codes)
        return _where(step >= self.end, on_grid, mixed)

    def limit(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> tuple[Quantizer, QState, int]:
        inner, qstate, step = self.inner.limit(qstate, x, operand)
        return dataclasses.replace(self, inner=inner), qstate, max(step, self.end)


def delayed(quantizers: Quantizers, until: int) -> Quantizers:
    """Returns quantizers that train in float before step ``until``.

    Args:
        quantizers: of a rule.
        until: the first quantized step, >= 0.

    Raises:
        ValueError: for a negative step.

    Example:
        >>> from lowbit.quantizers.lsq import lsq
        >>> delayed(lsq("w4"), 1000).weight.text
        "delayed(lsq('int4/channel/sym', start='auto'), until=1000)"
    """
    return _each(quantizers, lambda inner: Delayed(inner, until))


def gradual(quantizers: Quantizers, start: int, end: int) -> Quantizers:
    """Returns quantizers whose training moves from exact to quantized values between two steps.

    Args:
        quantizers: of a rule.
        start: the last step that is exact.
        end: the first step that is quantized.

    Raises:
        ValueError: unless ``0 <= start < end``.

    Example:
        >>> from lowbit.quantizers.rtn import rtn
        >>> gradual(rtn("a8"), 0, 10).input.start
        0
    """
    return _each(quantizers, lambda inner: Gradual(inner, start, end))


def bits_at(step: int, milestones: Mapping[int, int]) -> int:
    """Returns the bits of the last milestone passed: for progressive training, one bind per number of bits.

    Bits are static, so a change of bits is a new plan: bind again at a milestone and go on from the trained parameters.

    Args:
        step: the training step.
        milestones: first step -> bits; one of them at step 0.

    Raises:
        ValueError: without a milestone at 0.

    Example:
        >>> [bits_at(step, {0: 8, 100: 4, 300: 2}) for step in (0, 99, 100, 500)]
        [8, 8, 4, 2]
    """
    if 0 not in milestones:
        raise ValueError(f"milestones need one at step 0, got steps {sorted(milestones)}")
    return milestones[max(first for first in milestones if first <= step)]


def _each(quantizers: Quantizers, wrap) -> Quantizers:
    weight, inputs = quantizers.weight, quantizers.input
    return Quantizers(None if weight is None else wrap(weight), None if inputs is None else wrap(inputs))


def _off_grid(q: QTensor, x: Array) -> QTensor:
    """``x`` as levels of the scale of ``q``: not rounded, the gradient to ``x`` one, none to the scale."""
    fixed = jax.tree.map(jax.lax.stop_gradient, q)
    levels = fixed._blockwise(x.astype(jnp.float32), 1.0 / fixed.scale_values, lambda a, b: a * b)
    if fixed.zero is not None:
        levels = fixed._blockwise(levels, fixed.zero.astype(jnp.float32), lambda a, b: a + b)
    return dataclasses.replace(fixed, codes=levels)


def _where(condition: Array, on: QTensor, off: QTensor) -> QTensor:
    """Levels of one or the other, and the scale of the first with its gradient only where it is chosen."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), on, off)
