"""Which form of a packed weight a platform's kernels read, and which of them run an operation."""

from typing import Any

from lowbit.core.qtensor import QTensor
from lowbit.plan.rows import Plan, Row, Site
from lowbit_kernels.platforms import PLATFORMS as PLATFORMS
from lowbit_kernels.platforms import by_platform as by_platform
from lowbit_kernels.platforms import platform_named as platform_named
from lowbit_kernels.platforms import platform_of as platform_of

from . import native
from .native import NativeTensor, Order
from .trees import QParams
from .views import note_of, view_of


def viewed(plan: Plan, qparams: QParams) -> QParams:
    """Returns ``qparams`` with the canonical matrix of every weight that has one beside it: moved bytes, never codes.

    Args:
        plan: its plan.
        qparams: packed, prepared for any machine or for none.
    """
    rows = native.rows_of(plan)
    orders = {key: _order(q, *rows[key]) for key, q in qparams.weights().items() if key in rows}
    return native.attached(qparams, {key: order for key, order in orders.items() if order is not None})


def _order(q: QTensor, row: Row, site: Site) -> Order | None:
    if row.primitive != "dot_general":
        return None
    contract, batch, axes = native.axes_of(row, site)
    where = (contract, batch, site.operand.stack)
    matrix = q.matrix if isinstance(q, NativeTensor) else None
    return Order(matrix, contract, batch, axes, view_of(q, *where), note_of(q, *where))


def matrix_on(weight: NativeTensor, platform: str) -> tuple[Any, str]:
    """Returns the matrix of a weight that a platform's kernels read, and what to say of it; or None, and why."""
    if native.is_for(weight, platform.removesuffix("-interpreter")):
        return weight.matrix, ""
    return weight.view, weight.note
