"""The native call of a product of two computed operands."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Array

from lowbit.plan.rows import Site
from lowbit_kernels import StaticActivation
from lowbit_kernels.cpu.pair import MOST_SUMMED as MOST_SUMMED
from lowbit_kernels.cpu.pair import Numbers, quant_product

from .native_calls import can_take_input, grid_of


def can_take(site: Site) -> bool:
    """Returns whether the call quantizes this operand itself."""
    return site.spec is not None and site.spec.format.bits <= 8 and can_take_input(site)


def run(
    operands: Sequence[Array], numbers: Numbers, sites: Sequence[Site], states: Mapping[str, Any], *, keeps_nan: bool
) -> Array:
    """Returns the product in float32.

    Args:
        operands: floats.
        numbers: of the dot_general.
        sites: of the operands; `can_take` is true of both.
        states: of the sites, by role.
        keeps_nan: whether what sums over a NaN is NaN.
    """
    left, right = (_grid(site, states.get(site.role, {})) for site in sites)
    x, w = operands
    return quant_product(x, w, numbers, left, right, keeps_nan=keeps_nan)


def _grid(site: Site, state: Mapping[str, Any]) -> StaticActivation | None:
    grid, spec = grid_of(site, state), site.spec
    if grid is None or spec is None:
        return None
    return StaticActivation(grid.scale, grid.zero, int(spec.format.low), int(spec.format.high))
