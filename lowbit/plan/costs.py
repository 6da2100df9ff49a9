"""What a plan costs: bytes with scales, multiply-adds, bit operations, and which operations feed which. Plain data."""

import dataclasses
import math

import jax.numpy as jnp

from .rows import Plan, Site


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one operation costs.

    Attributes:
        path: of its row.
        macs: multiply-adds at the shapes it was bound with, all layers together.
        bops: bit operations: ``macs`` times the bits of both operands.
        elements: of its weight; 0 where there is none, or where an earlier row stores it.
        code_bits: that the weight's codes, or its floats, take.
        scale_bits: that its scales and zero points take.
        producers: paths of the rows that its operands are computed from, nearest upstream.
        consumers: paths of the rows that read what it makes, nearest downstream.
    """

    path: str
    macs: int
    bops: int
    elements: int
    code_bits: int
    scale_bits: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the weight with its scales, each rounded up to whole bytes."""
        return math.ceil(self.code_bits / 8) + math.ceil(self.scale_bits / 8)


def costs(plan: Plan) -> tuple[Cost, ...]:
    """Returns what every row costs, in order. A shared weight is counted at the first row that has it.

    Args:
        plan: of `lowbit.bind`, or read from a file.

    Example:
        >>> import jax.numpy as jnp, lowbit as lb
        >>> plan = lb.bind(lambda p, x: x @ p["w"], {"**": "w4,a8"}, {"w": jnp.ones((32, 8))}, jnp.ones((2, 32)))
        >>> [(c.path, c.macs, c.bops, c.code_bits, c.scale_bits) for c in costs(plan)]
        [('w', 512, 16384, 1024, 256)]
    """
    readers = consumers(plan)
    seen: set[str] = set()
    rows = []
    for row in plan.rows:
        weight = row.weight
        is_new = weight is not None and weight.key not in seen
        if weight is not None:
            seen.add(weight.key)
        elements = math.prod(weight.operand.shape) if weight is not None and is_new else 0
        rows.append(
            Cost(
                row.path,
                row.macs,
                row.macs * math.prod(_bits(site) for site in row.sites),
                elements,
                elements * _bits(weight) if weight is not None else 0,
                int(scale_bits(weight)) if weight is not None and is_new else 0,
                row.producers,
                readers[row.path],
            )
        )
    return tuple(rows)


def consumers(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Returns the paths of the rows that read what every row makes, nearest downstream, by path."""
    takers: dict[str, list[str]] = {row.path: [] for row in plan.rows}
    for row in plan.rows:
        for path in row.producers:
            takers[path].append(row.path)
    return {path: tuple(rows) for path, rows in takers.items()}


def _bits(site: Site) -> int:
    """Bits of an element as it is stored, or read, without scales."""
    return 8 * jnp.dtype(site.operand.dtype).itemsize if site.spec is None else site.spec.format.bits


def weight_bits(site: Site) -> float:
    """Returns the stored bits of a weight site, scales and zero points included, padding aside."""
    return math.prod(site.operand.shape) * float(_bits(site)) + scale_bits(site)


def scale_bits(site: Site) -> float:
    """Returns the bits of the scales and zero points of a weight site."""
    spec = site.spec
    if spec is None:
        return 0.0
    blocks = spec.granularity.blocks(site.operand)
    scales = math.prod(math.ceil(n / b) if n else 1 for n, b in zip(site.operand.shape, blocks, strict=True))
    return scales * (spec.scale.bits + (0 if spec.symmetric else max(spec.format.bits, 8)))
