"""Depthwise convolutions as sums of shifted products, with a derivative of the same kind.

XLA on a CPU differentiates a convolution with a group per channel by way of convolutions that it has no fast code for: 8 images of
112 x 112 x 96, stride 2, take 2.0 s, these sums 0.4 s (two busy cores, jax 0.10).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lowbit.program.eqn import Eqn


def depthwise(eqn: Eqn) -> Callable[[Array, Array], Array] | None:
    """Returns a function of images and kernels that computes what a convolution's equation does, or None where this cannot.

    It can where images are ``[batch, height, width, channel]``, kernels ``[height, width, 1, channel]``, nothing is dilated and
    there is one group for every channel.

    Args:
        eqn: of ``conv_general_dilated``.
    """
    if eqn.primitive.name != "conv_general_dilated":
        return None
    p = eqn.params
    numbers = p["dimension_numbers"]
    image, kernel = (v.aval for v in eqn.invars)
    is_plain = (
        tuple(numbers.lhs_spec) == (0, 3, 1, 2)
        and tuple(numbers.rhs_spec) == (3, 2, 0, 1)
        and tuple(numbers.out_spec) == (0, 3, 1, 2)
        and {*p["lhs_dilation"], *p["rhs_dilation"], p["batch_group_count"]} == {1}
        and all(n >= 0 for ends in p["padding"] for n in ends)
        and image.dtype == kernel.dtype == jnp.float32
    )
    if not is_plain or not p["feature_group_count"] == image.shape[3] == kernel.shape[3]:
        return None
    strides, padding = tuple(p["window_strides"]), tuple(tuple(ends) for ends in p["padding"])
    return lambda x, w: shifted(x, w, strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def shifted(
    x: Float[Array, "batch height width channel"],
    w: Float[Array, "rows columns 1 channel"],
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
) -> Float[Array, "batch high wide channel"]:
    """Returns ``sum_ij x[s h + i, s w + j] w[i, j]`` of every channel, float32.

    Args:
        x: images.
        w: a kernel for every channel.
        strides: of height and width.
        padding: zeros before and behind, of height and width.
    """
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    high, wide = _size(padded, w, strides)
    parts = _parts(padded, w, strides, high, wide)
    return functools.reduce(jnp.add, (part * w[i, j, 0] for i, j, part in parts))


def _size(padded: Array, w: Array, strides: tuple[int, int]) -> tuple[int, int]:
    high, wide = ((n - k) // s + 1 for n, k, s in zip(padded.shape[1:3], w.shape[:2], strides, strict=True))
    return high, wide


def _parts(padded: Array, w: Array, strides: tuple[int, int], high: int, wide: int) -> list[tuple[int, int, Array]]:
    down, across = strides
    return [
        (i, j, padded[:, i : i + down * (high - 1) + 1 : down, j : j + across * (wide - 1) + 1 : across])
        for i in range(w.shape[0])
        for j in range(w.shape[1])
    ]


def _forward(x: Array, w: Array, strides: Any, padding: Any) -> tuple[Array, tuple[Array, Array]]:
    return shifted(x, w, strides, padding), (x, w)


def _backward(strides: Any, padding: Any, kept: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    x, w = kept
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    high, wide = slope.shape[1:3]
    parts = _parts(padded, w, strides, high, wide)
    of_w = jnp.stack([jnp.sum(slope * part, axis=(0, 1, 2)) for _, _, part in parts]).reshape(w.shape)
    # dL/dx is the sum of shifts of the slope, zeros between its entries where the stride leaves some out.
    ends = []
    for axis, (k, s, (before, _)) in enumerate(zip(w.shape[:2], strides, padding, strict=True)):
        length = s * (slope.shape[1 + axis] - 1) + 1
        first = k - 1 - before
        ends.append((first, x.shape[1 + axis] + k - 1 - first - length, s - 1))
    spread = lax.pad(slope, jnp.float32(0), ((0, 0, 0), *ends, (0, 0, 0)))
    rows, columns = w.shape[:2]
    height, width = x.shape[1:3]
    of_x = functools.reduce(
        jnp.add,
        (
            spread[:, i : i + height, j : j + width] * w[rows - 1 - i, columns - 1 - j, 0]
            for i in range(rows)
            for j in range(columns)
        ),
    )
    return of_x, of_w


shifted.defvjp(_forward, _backward)
