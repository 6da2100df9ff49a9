"""What computes a plan: one interpretation for ordinary plans and one for full-integer ones, chosen here for all that use one."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array

from lowbit.interpret.trace import Args, Kwargs
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan

from .implementations import How
from .integer.full import FullInteger
from .kernel_orders import KernelOrders
from .observe import Grids, States, Watch
from .ordinary import Ordinary
from .refusals import Refusals
from .state import QState
from .trace import Model, Trace


@runtime_checkable
class Interpretation(Protocol):
    """What one kind of plan is simulated, measured, observed, executed and packed by. A traced call has a quantized operation.

    Attributes:
        plans: the plans that it is of.
        beside: what statistics read beside a value that has to be measured in a run before.
        lacks: the implementations that have no kernels for them.
    """

    plans: str
    beside: frozenset[str]
    lacks: tuple[str, ...]

    def check(self, plan: Plan, traced: Trace, refused: Refusals) -> None:
        """Notes weights of a plan that was just placed which cannot be computed with: part of `lowbit.bind`."""
        ...

    def simulated(
        self, plan: Plan, traced: Trace, qstate: QState, *, train: bool, key: Array | None, step: Array | None,
        custom_vjp: str, codes: Mapping[str, Any],
    ) -> tuple[Any, QState]:  # fmt: skip
        """Returns ``(y, qstate')`` of `lowbit.simulate`; ``codes`` are checked."""
        ...

    def measured(self, plan: Plan, traced: Trace, statistics: States, grids: Grids | None) -> States:
        """Returns the statistics of every site after one batch: of operands on ``grids``, or in float."""
        ...

    def observed(
        self, plan: Plan, traced: Trace, watch: Watch, states: States, *, qstate: QState, codes: Mapping[str, Any],
        floats: Trace, beside: Mapping[str, Any], is_alone: bool = False,
    ) -> States:  # fmt: skip
        """Returns the states of what is watched after one quantized batch.

        Args:
            plan: the plan.
            traced: the call.
            watch: what is looked at.
            states: before the batch.
            qstate: of the plan.
            codes: chosen for weights; checked.
            floats: the call of the float model.
            beside: ``{path: {role: {"float", "gradient" or "ends": array}}}`` of this batch, what `beside` names in it.
            is_alone: whether every operation is given what the float model has, put on its grids.
        """
        ...

    def executed(self, fn: Model, plan: Plan, qparams: QParams, args: Args, kwargs: Kwargs, how: How) -> Any:
        """Returns ``y`` of `lowbit.execute`; ``qparams`` are the plan's. A plan that quantizes nothing is ``fn``."""
        ...

    def kernel_orders(self, fn: Model, plan: Plan) -> KernelOrders:
        """Returns what puts weights of a plan into the kernels' order, and remembers them."""
        ...

    def needs_program(self, plan: Plan) -> str:
        """Returns what `lowbit.pack` cannot make without the traced program, and that it needs it; "" where it does not."""
        ...

    def constants(
        self, plan: Plan, traced: Trace, params: Any, qstate: QState, codes: Mapping[str, Any]
    ) -> Mapping[str, Mapping[str, Any]]:
        """Returns what `lowbit.pack` stores beside weights and ranges, by path."""
        ...


_INTERPRETATIONS: dict[bool, Interpretation] = {False: Ordinary(), True: FullInteger()}


def interpretation_of(plan: Plan) -> Interpretation:
    """Returns what computes a plan."""
    return _INTERPRETATIONS[plan.is_full_integer]
