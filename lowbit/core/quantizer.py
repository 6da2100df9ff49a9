"""The quantizer protocol: five pure methods on a frozen dataclass."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .grid import Grid, grid_of
from .matrix import MatrixView
from .qtensor import QTensor
from .spec import Operand, Spec
from .statistics import Statistic

QState = dict[str, Any]
"""``{"learn": float leaves that an optimizer may change, "fixed": the rest}`` of one site."""


@dataclasses.dataclass(frozen=True)
class Quantizer(abc.ABC):
    """How one operand becomes a `QTensor`. Subclasses are final, frozen dataclasses: a spec and hyper-parameters.

    ``fake`` and ``encode`` are written once, here, for every method.
    """

    spec: Spec

    def needs(self, operand: Operand) -> tuple[Statistic, ...]:
        """Returns the statistics folded over batches for an operand that is not a weight. Default: none."""
        return ()

    @abc.abstractmethod
    def init(self, operand: Operand, stats: Mapping[str, Any], key: Array) -> QState:
        """Returns the state of one site.

        Args:
            operand: shape, dtype and axes.
            stats: for weights ``{"values": the array}``; for other operands the finished statistics of `needs`.
            key: a typed key.
        """

    @abc.abstractmethod
    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        """Returns ``x`` on the grid that is served; levels in float32, differentiable."""

    def train(
        self, qstate: QState, x: Float[Array, "..."], operand: Operand, *, key: Array | None, step: Array | None
    ) -> QTensor:
        """Returns what training computes with. Default: `quantize`. Noise, soft rounding, delays override this."""
        return self.quantize(qstate, x, operand)

    def update(self, qstate: QState, stats: Mapping[str, Any]) -> QState:
        """Returns the state after a training batch. Default: unchanged. Moving averages and freezing override this."""
        return qstate

    def limit(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> "tuple[Quantizer, QState, int]":
        """Returns the quantizer, state and step with which `train` is `quantize`, to the last bit.

        A method that overrides `train` overrides this too: the limit of its noise, its delay or its statistics. The
        contract tests go there.
        """
        return self, qstate, 0

    def served_by_spec(self) -> bool:
        """Returns whether spec, scale and zero point say all there is to say of `quantize`, for an input.

        That is: `lowbit.core.qtensor.quantize_with` of the format's own `nearest`, on a scale and a zero point that do not
        depend on the values or, where dynamic, on the full range of each block. Such an input is quantized inside the
        kernels and needs no quantizer in a file. Any other is served by `quantize` itself, so False is always right.
        A subclass that changes more than training says it anew: see `is_served_by_spec`.
        """
        return False

    @property
    def is_hard(self) -> bool:
        """Whether the spec says how codes are stored. False of learned widths and levels: `lowbit.harden` comes before `lowbit.pack`."""
        return True

    def hardened(self, qstate: QState, operand: Operand) -> "tuple[Quantizer, QState]":
        """Returns the quantizer whose spec says what was learned, and its state; `quantize` gives the same values.

        Not under jit: specs are made of values. A method that is not `is_hard` overrides it.
        """
        return self, qstate

    def widths(self, qstate: QState) -> Float[Array, "..."]:
        """Returns the bits of a code, differentiable in what is learned: one number, or one per scale."""
        return jnp.float32(self.spec.format.bits)

    @property
    def is_projection(self) -> bool:
        """Whether quantizing twice is quantizing once: ``encode(fake(x)) == encode(x)``.

        True but for methods that bend the values before rounding (DoReFa's tanh). Solvers, which leave parameters on
        the grid, need it.
        """
        return True

    @property
    def is_nearest(self) -> bool:
        """Whether `quantize` gives the nearest point of `grid`, ties aside.

        True but for methods that bend the values or move the bounds between levels (DoReFa's tanh, the threshold of TWN).
        """
        return self.is_projection

    def fake(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> Float[Array, "..."]:
        """Returns ``x`` rounded to the grid, in its own dtype."""
        return self.quantize(qstate, x, operand).dequantize()

    def encode(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        """Returns ``x`` as integer codes; ``encode(x).dequantize() == fake(x)`` to the last bit."""
        return self.quantize(qstate, jax.lax.stop_gradient(x), operand).encode()

    def grid(
        self,
        qstate: QState,
        operand: Operand,
        view: MatrixView | None = None,
        *,
        values: Float[Array, "..."] | None = None,
    ) -> Grid:
        """Returns the grid of a state: what `quantize` rounds to, and a solver chooses from.

        Args:
            qstate: of the site.
            operand: of the site: shape and axes.
            view: how it is read as matrices; by default ``MatrixView.of(operand)``. `lowbit.plan.rows.Row.matrix` also knows of
                experts and of grouped convolutions.
            values: what is to be rounded; needed where the scale is computed from it, as of a /dynamic spec.

        Returns:
            Scale and zero point ``[matrix, group, N]``, the group of every row of ``K`` ``[matrix, K]``, and the format:
            `jax.vmap` over it gives a solver one matrix at a time.

        Raises:
            ValueError: without values where the scale needs them.
        """
        if values is None and self.needs_values:
            raise ValueError(f"{self.text} computes its scale from the values: grid(..., values=) needs them")
        x = jnp.zeros(operand.shape, operand.dtype) if values is None else values
        return grid_of(self.quantize(qstate, x, operand), view or MatrixView.of(operand), operand.stack)

    @property
    def needs_values(self) -> bool:
        """Whether `quantize` finds the scale in the values that it is given, and not in the state."""
        return self.spec.dynamic

    @property
    def text(self) -> str:
        """The quantizer as text: its class name, its spec, its hyper-parameters."""
        rest = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "spec"}
        arguments = "".join(f", {k}={v!r}" for k, v in rest.items())
        return f"{type(self).__name__.lower()}({self.spec.text!r}{arguments})"


_TRAINING = {
    "needs", "init", "train", "update", "limit", "is_projection", "is_nearest", "needs_values", "text", "grid", "is_hard",
    "hardened", "widths",
}  # fmt: skip


def is_served_by_spec(quantizer: Quantizer) -> bool:
    """Returns `Quantizer.served_by_spec`, as far as the class that says it knows: False below a class that overrides.

    A subclass inherits the answer where it overrides what starts and trains a quantizer, or nothing. Anything else may be
    what `quantize` calls.
    """
    for cls in type(quantizer).__mro__:
        if "served_by_spec" in vars(cls):
            return quantizer.served_by_spec()
        own = {name for name, value in vars(cls).items() if callable(value) or isinstance(value, property)}
        if any(not name.startswith("__") for name in own - _TRAINING):
            return False
    return False


@dataclasses.dataclass(frozen=True)
class Quantizers:
    """The quantizers of one rule: for the weight, and for inputs (both operands where there is no weight).

    Attributes:
        weight: or None, where weights stay in float.
        input: or None, where inputs stay as computed.
    """

    weight: Quantizer | None = None
    input: Quantizer | None = None

    def __post_init__(self):
        for name in ("weight", "input"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Quantizer):
                raise TypeError(f"{name} must be a quantizer or None, got {value!r:.40} ({type(value).__name__})")


KEEP = Quantizers()
"""Leave the operation in float."""
