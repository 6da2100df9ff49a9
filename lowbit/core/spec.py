"""What a quantized operand is: format, granularity and scale, as frozen, hashable data."""

import abc
import dataclasses
from collections.abc import Sequence

import jax
from jaxtyping import Array, Float, Shaped

from .blocks import Dim

SCALE_DTYPES = ("float32", "bfloat16", "float16", "e8m0", "e4m3", "dq")
"""What a stored scale is: a float; a power of two in one byte (``e8m0``); one byte of fp8 times one float32 per tensor
(``e4m3``, NVFP4); one byte with a float32 scale and a zero point per 256 scales (``dq``, double quantization)."""


@dataclasses.dataclass(frozen=True)
class Format(abc.ABC):
    """Which numbers the codes stand for. Subclasses are final, frozen dataclasses in `lowbit.formats`.

    A *level* is a number of the format carried in float32 (for integers, the integer itself); a *code* is what is
    stored. `nearest` makes levels, `encode` turns levels into codes exactly, `decode` turns codes into levels.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The word of the rule text and of files: ``int4``, ``nf4``, ``fp8_e4m3``."""

    @property
    @abc.abstractmethod
    def bits(self) -> int:
        """Stored bits per code, without scales."""

    @property
    @abc.abstractmethod
    def low(self) -> float:
        """The smallest level."""

    @property
    @abc.abstractmethod
    def high(self) -> float:
        """The largest level."""

    @property
    @abc.abstractmethod
    def is_integer(self) -> bool:
        """Whether the levels are integers, so that an operation may run in integer arithmetic."""

    @property
    def is_signed(self) -> bool:
        """Whether codes are stored in two's complement. Formats whose codes are indices or bit fields say no."""
        return self.low < 0 and self.is_integer

    @property
    def smallest(self) -> float:
        """The smallest positive level; scales are floored so that it times the scale is a normal float32."""
        return 1.0

    @property
    def reach(self) -> float:
        """The level that the largest magnitude of a symmetric range is scaled to."""
        return self.high if self.high > 0 else -self.low

    @property
    def has_zero(self) -> bool:
        """Whether zero is a level. Where it is not, a block of zeros has the smallest scale there is: next to zero."""
        return True

    @property
    def has_rounding(self) -> bool:
        """Whether `nearest` takes ``round=``: integers and floats do, codebooks have their own ties."""
        return False

    @property
    def mantissa_bits(self) -> int:
        """Stored mantissa bits of a float format; for other formats those of the largest level, ``bits - 2``."""
        return max(self.bits - 2, 0)

    @abc.abstractmethod
    def nearest(self, x: Float[Array, "..."], low: Array | float, high: Array | float) -> Float[Array, "..."]:
        """Returns the nearest level of ``x`` (float32) within ``[low, high]``; the gradient passes straight through.

        The gradient is clipped strictly: nothing reaches ``x`` on or outside the bounds.
        """

    @abc.abstractmethod
    def encode(self, levels: Float[Array, "..."]) -> Shaped[Array, "..."]:
        """Returns the codes (int8, uint8 or int16) of ``levels``; exact, because levels are already on the grid."""

    @abc.abstractmethod
    def decode(self, codes: Shaped[Array, "..."]) -> Float[Array, "..."]:
        """Returns the levels (float32) of ``codes``; the exact inverse of `encode`."""


@dataclasses.dataclass(frozen=True)
class Operand:
    """What a quantizer may know about the array it gets: everything but its values.

    Attributes:
        shape: the shape, of the leaf for weights.
        dtype: the dtype name the operand is computed in, such as ``"float32"``.
        contract: the contracted axes, in leaf order. Groups lie within the last of them.
        stack: how many leading axes count layers of a scan; they never share a scale.
        is_weight: whether the operand is a weight.
    """

    shape: tuple[Dim, ...]
    dtype: str = "float32"
    contract: tuple[int, ...] = ()
    stack: int = 0
    is_weight: bool = True


@dataclasses.dataclass(frozen=True)
class Granularity(abc.ABC):
    """Which elements share a scale."""

    @abc.abstractmethod
    def blocks(self, operand: Operand) -> tuple[Dim, ...]:
        """Returns the elements per scale along every axis of ``operand.shape``."""

    @property
    @abc.abstractmethod
    def text(self) -> str:
        """The option of the rule text: ``tensor``, ``channel``, ``g32``."""


def _unstacked(operand: Operand, blocks: Sequence[Dim]) -> tuple[Dim, ...]:
    return tuple(1 if axis < operand.stack else max(block, 1) for axis, block in enumerate(blocks))


@dataclasses.dataclass(frozen=True)
class Tensor(Granularity):
    """One scale for the whole array (for every layer of a scanned stack)."""

    def blocks(self, operand: Operand) -> tuple[Dim, ...]:
        return _unstacked(operand, operand.shape)

    @property
    def text(self) -> str:
        return "tensor"


@dataclasses.dataclass(frozen=True)
class Channel(Granularity):
    """One scale per index of the axes that are not contracted: per output channel, per row, per token."""

    def blocks(self, operand: Operand) -> tuple[Dim, ...]:
        return _unstacked(operand, [n if i in operand.contract else 1 for i, n in enumerate(operand.shape)])

    @property
    def text(self) -> str:
        return "channel"


@dataclasses.dataclass(frozen=True)
class Group(Granularity):
    """One scale per ``size`` neighbours along the last contracted axis; the other axes have their own.

    A group larger than the axis is the whole axis; a last group may be short.
    """

    size: int

    def __post_init__(self):
        if self.size < 2:
            raise ValueError(f"group size must be at least 2, got {self.size}")

    def blocks(self, operand: Operand) -> tuple[Dim, ...]:
        if not operand.contract:
            raise ValueError(f"a group of {self.size} needs a contracted axis; the operand {operand.shape} has none")
        last = operand.contract[-1]
        return _unstacked(operand, [min(self.size, n) if i == last else 1 for i, n in enumerate(operand.shape)])

    @property
    def text(self) -> str:
        return f"g{self.size}"


@dataclasses.dataclass(frozen=True)
class Tile(Granularity):
    """One scale per ``rows x columns`` tile: ``rows`` along the last contracted axis, ``columns`` along the last free."""

    rows: int
    columns: int

    def __post_init__(self):
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"a tile needs positive sides, got {self.rows} x {self.columns}")

    def blocks(self, operand: Operand) -> tuple[Dim, ...]:
        free = [i for i in range(len(operand.shape)) if i not in operand.contract and i >= operand.stack]
        if not operand.contract or not free:
            raise ValueError(f"a tile needs a contracted and a free axis; got the operand {operand.shape}")
        sides = {operand.contract[-1]: self.rows, free[-1]: self.columns}
        return _unstacked(operand, [min(sides.get(i, 1), n) for i, n in enumerate(operand.shape)])

    @property
    def text(self) -> str:
        return f"t{self.rows}x{self.columns}"


@dataclasses.dataclass(frozen=True)
class Spec:
    """How one operand is stored: which numbers, which of them share a scale, and what the scale is.

    Attributes:
        format: the numbers.
        granularity: who shares a scale.
        symmetric: whether the grid has no zero point.
        scale_dtype: one of `SCALE_DTYPES`; what the stored scale is rounded to.
        dynamic: whether the scale is computed from the values at run time instead of being stored.
        scale_spec: how the scale is itself quantized, for ``e4m3`` and ``dq``; `lowbit.formats.lookup` fills it in.
    """

    format: Format
    granularity: Granularity
    symmetric: bool = True
    scale_dtype: str = "float32"
    dynamic: bool = False
    scale_spec: "Spec | None" = None

    def __post_init__(self):
        if (self.scale_spec is not None) != (self.scale_dtype in ("e4m3", "dq")):
            raise ValueError(
                f"scale_dtype {self.scale_dtype!r} {'needs' if self.scale_spec is None else 'takes no'} scale_spec; "
                "lowbit.formats.lookup.specs(text) makes consistent specs from rule text"
            )
        if self.scale_dtype not in SCALE_DTYPES:
            raise ValueError(f"scale_dtype must be one of {', '.join(SCALE_DTYPES)}, got {self.scale_dtype!r}")
        if not self.symmetric and not self.format.is_integer:
            raise ValueError(f"only integer formats can be affine, got {self.format.name}; use /sym")

    @property
    def text(self) -> str:
        """The spec as the part of a rule text that parses back to it, without its ``w`` or ``a``."""
        options = [self.granularity.text, "sym" if self.symmetric else "affine"]
        if self.scale_dtype != "float32":
            options.append(self.scale_dtype)
        if self.dynamic:
            options.append("dynamic")
        return "/".join([self.format.name, *options])


def shape_of(x: Array | jax.ShapeDtypeStruct) -> Operand:
    """Returns an `Operand` that knows only shape and dtype."""
    return Operand(tuple(x.shape), str(x.dtype))
