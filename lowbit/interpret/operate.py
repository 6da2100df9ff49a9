"""One operation on its operands, on their grids or not: what simulation computes, and whoever looks at it."""

from typing import Any

import jax

from lowbit.core.qtensor import QTensor
from lowbit.program.compat import rebind

from .arithmetic import is_integer_pair, result_dtype, simulated
from .lookup import lookup
from .operations import Operation
from .sides import weight_right
from .walk import plain

# Inner jits, inlined by the compiler: layers alike are traced, and differentiated, once. 60 dense layers: 7 -> 2 times float.
_simulated = jax.jit(simulated, static_argnums=(0, 3))


def compute(op: Operation, left: Any, right: Any) -> Any:
    """Returns the operation on its operands, quantized or not: levels in, the result in its own dtype out."""
    eqn = op.eqn
    if op.is_lookup:
        return lookup(eqn, left, right) if isinstance(left, QTensor) else op.rebind([left, right])
    if is_integer_pair(left, right):
        sides = weight_right(eqn, op.weight)
        return sides.restore(_simulated(sides.matmul, *sides.operands(left, right), result_dtype(eqn)))
    return rebind(eqn, [plain(left), plain(right)])[0]
