"""How an operation's operands meet: which axes are summed over, paired or slid along. Plain data, without jax."""

import dataclasses
from collections.abc import Mapping
from typing import Any

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Axes of the left operand, and those of the right one that they meet."""


@dataclasses.dataclass(frozen=True)
class Dot:
    """A product of matrices. Its result has the paired axes, then the left operand's others, then the right one's.

    Attributes:
        contract: the axes that are multiplied and summed over.
        batch: the axes that are paired without a sum.
    """

    contract: Pair
    batch: Pair


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution. Specs give the axes of an operand in the order ``(batch or output, channel, *spatial)``.

    Attributes:
        lhs_spec: of the input: examples, channels, spatial axes.
        rhs_spec: of the kernel: outputs, channels of one feature group, spatial axes.
        out_spec: of the result: examples, channels, spatial axes.
        strides: of the window, along each spatial axis.
        padding: ``(low, high)`` along each spatial axis; negative ones cut.
        lhs_dilation: holes in the input (transposed convolutions).
        rhs_dilation: holes in the kernel.
        feature_groups: into how many the channels are cut.
        batch_groups: into how many the examples are cut.
    """

    lhs_spec: tuple[int, ...]
    rhs_spec: tuple[int, ...]
    out_spec: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    feature_groups: int = 1
    batch_groups: int = 1


@dataclasses.dataclass(frozen=True)
class Lookup:
    """A look-up in a table.

    Attributes:
        picked: the axes of the table that indices pick from.
    """

    picked: tuple[int, ...]


Geometry = Dot | Convolution | Lookup

_KINDS: Mapping[str, type] = {"dot": Dot, "conv": Convolution, "lookup": Lookup}


def to_data(geometry: Geometry | None) -> dict[str, Any] | None:
    """Returns what JSON holds of a geometry."""
    if geometry is None:
        return None
    return {"kind": next(k for k, cls in _KINDS.items() if isinstance(geometry, cls)), **dataclasses.asdict(geometry)}


def from_data(data: Mapping[str, Any] | None) -> Geometry | None:
    """Returns the geometry that `to_data` wrote; None of files that have none.

    Raises:
        ValueError: for what is no geometry.
    """
    if data is None:
        return None
    try:
        return _KINDS[data["kind"]](**{k: as_tuple(v) for k, v in data.items() if k != "kind"})
    except (KeyError, TypeError, AttributeError):
        raise ValueError(
            f"a row's geometry must be one of {', '.join(_KINDS)} with its axes, got {data!r:.80}"
        ) from None


def as_tuple(value: Any) -> Any:
    """Returns lists, and lists in lists, as tuples."""
    return tuple(as_tuple(v) for v in value) if isinstance(value, list | tuple) else value
