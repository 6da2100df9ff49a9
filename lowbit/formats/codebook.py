"""Codebooks: any increasing list of levels, NF4 and learned ones. A code is an index.

A learned codebook is static: its levels are part of the format's name (as float16), so plans and files need nothing
else, and a tensor's levels cannot drift from its codes.
"""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from lowbit.core.rounding import clip_between
from lowbit.core.spec import Format

# Dettmers et al., QLoRA, 2023, https://arxiv.org/abs/2305.14314, appendix E: quantiles of N(0, 1) from 0.9677083 down,
# eight positive and seven negative steps, scaled to [-1, 1].
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Codebook(Format):
    """Increasing levels, ``2**bits`` of them or fewer.

    A value goes to its nearest level; half way, to the lower one. NaN stays NaN as a level and gets the code of the
    level nearest to zero.

    Attributes:
        levels: increasing, exact in float32.
        word: the name, or None for one made of the levels (which must then be exact in float16).

    Raises:
        ValueError: unless there are 2 to 256 increasing finite levels with a positive one.

    Example:
        >>> Codebook((-1.0, 0.0, 0.5, 1.0)).nearest(jnp.array([0.3, 0.25, -7.0]), -1.0, 1.0).tolist()
        [0.5, 0.0, -1.0]
    """

    levels: tuple[float, ...]
    word: str | None = None

    def __post_init__(self):
        values = np.asarray(self.levels, np.float64)
        if not 2 <= values.size <= 256 or not np.isfinite(values).all() or (np.diff(values) <= 0).any():
            raise ValueError(f"a codebook needs 2 to 256 finite, increasing levels, got {self.levels}")
        if values[-1] <= 0:
            raise ValueError(f"a codebook needs a positive level, got {self.levels}")
        if self.word is None and (values.astype(np.float16) != values).any():
            raise ValueError("the levels of an unnamed codebook must be exact in float16; see learned_codebook")

    @property
    def name(self) -> str:
        if self.word is not None:
            return self.word
        halves = np.asarray(self.levels, ">f2").tobytes().hex()
        return f"lut{self.bits}_{halves}"

    @property
    def bits(self) -> int:
        return max(math.ceil(math.log2(len(self.levels))), 1)

    @property
    def low(self) -> float:
        return self.levels[0]

    @property
    def high(self) -> float:
        return self.levels[-1]

    @property
    def reach(self) -> float:
        return max(-self.low, self.high)

    @property
    def is_integer(self) -> bool:
        return False

    @property
    def has_zero(self) -> bool:
        return 0.0 in self.levels

    @property
    def is_mirrored(self) -> bool:
        return self.levels == tuple(-level for level in reversed(self.levels))

    @property
    def smallest(self) -> float:
        return min((abs(v) for v in self.levels if v != 0), default=1.0)

    def nearest(self, x: Float[Array, "..."], low: Array | float, high: Array | float) -> Float[Array, "..."]:
        # A chain of selects, not a gather: 15 vector operations for 16 levels, and no memory traffic.
        return _straight(clip_between(x, low, high), self.levels)

    def encode(self, levels: Float[Array, "..."]) -> Shaped[Array, "..."]:
        code = jnp.zeros(levels.shape, jnp.int32)
        for level in self.levels[1:]:
            code = code + (levels >= jnp.float32(level)).astype(jnp.int32)
        zero = int(np.argmin(np.abs(np.asarray(self.levels))))
        return jnp.where(jnp.isnan(levels), zero, code).astype(jnp.uint8)

    def decode(self, codes: Shaped[Array, "..."]) -> Float[Array, "..."]:
        value = jnp.full(codes.shape, self.levels[0], jnp.float32)
        for index, level in enumerate(self.levels[1:], 1):
            value = jnp.where(codes.astype(jnp.uint8) >= index, jnp.float32(level), value)
        return value


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _straight(x: Float[Array, "..."], levels: tuple[float, ...]) -> Float[Array, "..."]:
    """The nearest level; the gradient passes straight through."""
    middle = [np.float32((a + b) / 2) for a, b in itertools.pairwise(levels)]
    value = jnp.full(x.shape, levels[0], jnp.float32)
    for bound, level in zip(middle, levels[1:], strict=True):
        value = jnp.where(x > bound, jnp.float32(level), value)
    return jnp.where(jnp.isnan(x), x, value)


_straight.defjvp(lambda levels, primals, tangents: (_straight(primals[0], levels), tangents[0]))


def lloyd_max(
    values: Float[np.ndarray, "..."],
    count: int,
    *,
    weights: Float[np.ndarray, "..."] | None = None,
    iterations: int = 500,
    tolerance: float = 1e-10,
) -> Float[np.ndarray, " levels"]:
    """Returns the ``count`` levels with the least (weighted) mean squared error of ``values``: k-means in one dimension.

    Starts at equally probable levels of the density to the power 1/3 (Panter and Dite, 1951), then alternates nearest
    levels and means (Lloyd, 1982, method I) until no level moves by more than ``tolerance`` of the range. Weighted by
    the diagonal Fisher information it is the codebook of SqueezeLLM (Kim et al., 2023,
    https://arxiv.org/abs/2306.07629, Eq. 4). Float64 on the host: not for use under `jax.jit`.

    Args:
        values: any shape.
        count: levels, 2 to 256.
        weights: non-negative, of the shape of ``values``: Fisher information, or a density on a grid of values.
        iterations: at most this many.
        tolerance: of the range of ``values``.

    Returns:
        Increasing float64 levels; fewer than ``count`` where the values have fewer distinct ones.

    Raises:
        ValueError: for another count, shape or negative weights.

    Example:
        >>> lloyd_max(np.array([0.0, 0.2, 0.9, 1.1]), 2).round(3).tolist()
        [0.1, 1.0]
    """
    if not 2 <= count <= 256:
        raise ValueError(f"count must be 2 to 256 levels, got {count}")
    x = np.asarray(values, np.float64).reshape(-1)
    w = np.ones_like(x) if weights is None else np.asarray(weights, np.float64).reshape(-1)
    if w.shape != x.shape or (w < 0).any() or not w.sum() > 0 or not np.isfinite(x).all():
        raise ValueError(
            f"lloyd_max needs finite values and weights >= 0 of the same shape, got {x.shape} and {w.shape}"
        )
    order = np.argsort(x, kind="stable")
    x, w = x[order], w[order]
    mass, moment = (np.concatenate([[0.0], np.cumsum(part)]) for part in (w, w * x))
    levels = _start(x, w, count)
    for _ in range(iterations):
        cut = np.concatenate([[0], np.searchsorted(x, (levels[1:] + levels[:-1]) / 2, side="right"), [x.size]])
        share = np.diff(mass[cut])
        means = np.where(share > 0, np.diff(moment[cut]) / np.where(share > 0, share, 1.0), levels)
        moved = np.abs(means - levels).max()
        levels = np.sort(means)
        if moved <= tolerance * (x[-1] - x[0]):
            break
    return np.unique(levels)


def _start(x, w, count):
    """Equal shares of density**(1/3), from a histogram."""
    if x[0] == x[-1]:
        return x[:1]
    density, edges = np.histogram(x, bins=min(256, max(count * 4, 16)), weights=w)
    share = np.concatenate([[0.0], np.cumsum(np.cbrt(density))])
    targets = (np.arange(count) + 0.5) / count * share[-1]
    return np.unique(np.interp(targets, share + np.arange(share.size) * 1e-12 * share[-1], edges))


def learned_codebook(values: Array | np.ndarray, bits: int, *, weights: Array | np.ndarray | None = None) -> Codebook:
    """Returns the codebook of ``2**bits`` levels learned from ``values``, scaled so that the largest level is 1.

    Values are expected to be scaled already as the format will see them, by each block's absmax for instance; the
    largest magnitude is mapped to a level of magnitude 1, and levels are rounded to float16.

    Args:
        values: any shape.
        bits: 1 to 8.
        weights: importance of each value, of the same shape, such as the diagonal Fisher information.

    Raises:
        ValueError: for other bits.

    Example:
        >>> learned_codebook(np.array([-2.0, -1.9, 0.1, 0.0, 1.0, 2.0]), 2).levels
        (-0.97509765625, 0.024993896484375, 0.5, 1.0)
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"a learned codebook has 1 to 8 bits, got {bits}")
    levels = lloyd_max(np.asarray(values), 2**bits, weights=None if weights is None else np.asarray(weights))
    scaled = np.unique((levels / np.abs(levels).max()).astype(np.float16))
    return Codebook(tuple(float(v) for v in scaled))


NF4 = Codebook(_NF4, "nf4")
"""The 4-bit normal float of QLoRA."""

FORMATS = (NF4,)
"""The named formats; learned ones are made by `learned_codebook`."""


def named(name: str) -> Codebook | None:
    """Returns ``nf4``, or a codebook whose levels are in its name (``lut4_...``), or None."""
    if name == "nf4":
        return NF4
    word, _, halves = name.partition("_")
    if word[:3] != "lut" or not word[3:].isdecimal():
        return None
    try:
        levels = np.frombuffer(bytes.fromhex(halves), ">f2")
    except ValueError:
        raise ValueError(f"{name!r}: levels are groups of four hexadecimal digits, one float16 each") from None
    return Codebook(tuple(float(v) for v in levels))
