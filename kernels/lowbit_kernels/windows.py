"""Where the windows of a convolution lie: strides, padding and dilation, checked, in one dimension or two."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lowbit_kernels import checks

LAYOUTS = ("NHWC", "NCHW", "NWC", "NCW")


class Layout(NamedTuple):
    """Where the axes of x are: one dimension (`flat`) is a height of 1, at the axis `height`."""

    flat: bool
    height: int


class Windows(NamedTuple):
    """The windows of a call in two dimensions.

    Attributes:
        strides: of the windows.
        padding: positions before and after each axis.
        dilation: of the kernel.
        first: channels lie before the positions.
        shape: `(batch, height, width, O)` of the result, whatever its layout.
        axes: where those of x are.
    """

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    first: bool
    shape: tuple[int, int, int, int]
    axes: Layout


def windows_of(
    what: str,
    x: Array,
    kernel: tuple[int, int, int, int],
    groups: int,
    *,
    layout: str | None,
    strides: tuple[int, ...] | None,
    padding: Any,
    rhs_dilation: tuple[int, ...] | None,
) -> tuple[Array, Windows]:
    """Returns x in two dimensions, and its windows.

    Args:
        what: names the function.
        x: its first argument.
        kernel: `(KH, KW, I, O)`.
        groups: feature groups.
        layout: of x and of the result, one of `LAYOUTS`; None is channels last.
        strides: one a spatial axis, or None for 1.
        padding: "SAME", "SAME_LOWER", "VALID" or pairs of positions.
        rhs_dilation: as `strides`.

    Raises:
        ValueError: what does not fit together.
        TypeError: what is no integer.
    """
    layout = ("NHWC" if x.ndim == 4 else "NWC") if layout is None else layout
    checks.word(f"{what}: layout", layout, LAYOUTS)
    checks.integer(f"{what}: feature_group_count", groups, 1)
    first, flat, inputs = layout[1] == "C", len(layout) == 3, kernel[2] * groups
    if x.ndim != len(layout) or x.shape[1 if first else -1] != inputs:
        raise ValueError(
            f"{what}: x must be {layout} with {kernel[2]} x feature_group_count = {inputs} channels for HWIO {kernel}, "
            f"got {x.shape}"
        )
    if kernel[3] % groups:
        raise ValueError(f"{what}: {kernel[3]} outputs do not divide into {groups} feature groups")
    axes = 1 if flat else 2
    ones = (1,) * axes
    strides = ones if strides is None else checks.integers(f"{what}: strides", strides, axes, 1)
    dilation = ones if rhs_dilation is None else checks.integers(f"{what}: rhs_dilation", rhs_dilation, axes, 1)
    padding = _checked_padding(what, padding, axes)
    if flat:
        if kernel[0] != 1:
            raise ValueError(f"{what}: {layout} takes a kernel of one dimension, got HWIO {kernel}")
        x = jnp.expand_dims(x, 2 if first else 1)
        strides, dilation = (1, *strides), (1, *dilation)
        padding = padding if isinstance(padding, str) else ((0, 0), *padding)
    batch, height, width = (x.shape[0], *x.shape[2:]) if first else x.shape[:3]
    window = tuple((k - 1) * d + 1 for k, d in zip(kernel[:2], dilation, strict=True))
    pads = lax.padtype_to_pads((height, width), window, strides, padding) if isinstance(padding, str) else padding
    pads = tuple((int(low), int(high)) for low, high in pads)
    sizes = [
        max((size + low + high - size_of_window) // stride + 1, 0)
        for size, (low, high), size_of_window, stride in zip((height, width), pads, window, strides, strict=True)
    ]
    shape = batch, sizes[0], sizes[1], kernel[3]
    return x, Windows(strides, pads, dilation, first, shape, Layout(flat, 2 if first else 1))


def _checked_padding(what: str, padding: Any, axes: int) -> Any:
    """Either "SAME" or "VALID", or one pair of integers a spatial axis."""
    if isinstance(padding, str):
        return checks.word(f"{what}: padding", padding.upper(), ("SAME", "SAME_LOWER", "VALID"))
    if not isinstance(padding, Sequence) or len(padding) != axes:
        got = f"{padding!r:.80}" if isinstance(padding, Sequence) else checks.kind_of(padding)
        raise ValueError(f"{what}: padding must be 'SAME', 'VALID' or {axes} pairs, one a spatial axis, got {got}")
    return tuple(checks.integers(f"{what}: padding's pairs", pair, 2) for pair in padding)
