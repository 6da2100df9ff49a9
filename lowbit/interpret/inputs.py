"""An input of an operation on its served grid."""

from collections.abc import Mapping
from typing import Any

from lowbit.core.qtensor import Nearest, QTensor, quantize_with
from lowbit.core.ranges import Full, dynamic_range
from lowbit.core.scales import stored_scale
from lowbit.plan.rows import Site

from .state import layer_operand


def quantized_input(site: Site, state: Mapping[str, Any], x: Any, *, nearest: Nearest | None = None) -> QTensor:
    """Returns an input on its served grid: from the spec alone, or by the quantizer's own code where that does not do.

    Args:
        site: the input's.
        state: its scale and zero point, or what its own code keeps.
        x: the input.
        nearest: as of `lowbit.core.qtensor.quantize_with`: another gradient of the same values, where the spec does.

    Raises:
        ValueError: where that code is not there, in a plan read from a file.
    """
    spec = site.spec
    assert spec is not None
    operand = layer_operand(site)
    operand = type(operand)(tuple(x.shape), str(x.dtype), operand.contract, 0, False)
    blocks = spec.granularity.blocks(operand)
    if site.own_code:
        if site.quantizer is None:
            raise ValueError(
                f"{site.key}: its {site.role} is quantized by {site.own_code}, whose code a file does not hold: bind with "
                f"the same rules and execute that plan, or use an input quantizer that its spec describes, such as rtn"
            )
        return site.quantizer.quantize(dict(state), x, operand)
    if spec.dynamic:
        scale, zero = dynamic_range(Full(), x, operand, spec)
        return quantize_with(x, spec, stored_scale(scale, spec, operand), zero, blocks, nearest=nearest)
    return quantize_with(x, spec, state["scale"], state.get("zero"), blocks, nearest=nearest)
