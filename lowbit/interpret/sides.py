"""The weight of a dot goes to the right: jax puts operands where `einsum` finds them first, not where the user wrote them.

One form for simulation, `reference`, `carried` and the native kernels: scales are multiplied in one order, the weight's
first, and groups lie on the right.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from lowbit.program.eqn import Eqn

from .matmul import Matmul


@dataclasses.dataclass(frozen=True)
class Sides:
    """A dot or convolution, operands exchanged or not.

    Attributes:
        matmul: the operation on operands in the order that `operands` gives.
        order: the transposition of its result to that of the operation as traced; None where nothing was exchanged.
    """

    matmul: Matmul
    order: tuple[int, ...] | None

    @property
    def is_exchanged(self) -> bool:
        """Whether the left operand, as traced, is on the right."""
        return self.order is not None

    def operands(self, left: Any, right: Any) -> tuple[Any, Any]:
        """Returns the operands, or what belongs to them, in the order of ``matmul``."""
        return (right, left) if self.is_exchanged else (left, right)

    def restore(self, out: Array) -> Array:
        """Returns the result of ``matmul`` with the axes of the operation as traced."""
        return out if self.order is None else jnp.transpose(out, self.order)


def weight_right(eqn: Eqn, weight: int | None) -> Sides:
    """Returns an operation with its weight on the right.

    Args:
        eqn: a dot_general or convolution. An image that is a weight stays on the left: a convolution has no other form.
        weight: which operand the weight is; None where both depend on data.
    """
    matmul = Matmul.of(eqn)
    params = dict(matmul.params)
    if weight != 0 or matmul.name != "dot_general":
        return Sides(matmul, None)
    (lc, rc), (lb, rb) = params["dimension_numbers"]
    params["dimension_numbers"] = ((rc, lc), (rb, lb))
    if isinstance(params.get("precision"), tuple):
        params["precision"] = params["precision"][::-1]
    batch = len(lb)
    rows = len(eqn.invars[0].aval.shape) - len(lc) - batch
    columns = len(eqn.invars[1].aval.shape) - len(rc) - batch
    order = (*range(batch), *range(batch + columns, batch + columns + rows), *range(batch, batch + columns))
    return Sides(dataclasses.replace(matmul, params=tuple(sorted(params.items()))), order)
