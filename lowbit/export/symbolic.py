"""Symbolic dimensions: what can be left open when exporting, and what cannot."""

from collections.abc import Collection, Sequence

from lowbit.plan.rows import Plan
from lowbit.targets.target import Target

from .signature import Call


def check_plan(call: Call, plan: Plan, targets: Sequence[Target]) -> None:
    """Raises ValueError where open dimensions meet what needs numbers.

    Args:
        call: with symbolic dimensions.
        plan: its plan.
        targets: that the model is exported for.
    """
    fixed = [target.name for target in targets if not target.has_symbolic]
    dynamic = [row.path for row in plan.quantized for site in row.sites if site.spec is not None and site.spec.dynamic]
    for reason in (
        f"{', '.join(fixed)} cannot take it: leave the target out" if fixed else "",
        "a full-integer plan fixes every shape" if plan.is_full_integer else "",
        f"{dynamic[0]} computes its input's scale at run time: calibrate it (a8 for a8/dynamic)" if dynamic else "",
    ):
        if reason:
            raise ValueError(f"an input has a symbolic dimension, and {reason}, or give the dimension a number")


def check_operations(operations: Collection[tuple[str, str]], targets: Sequence[Target]) -> None:
    """Raises ValueError for an operation of the module that a target's compiler does not take."""
    names = {name for name, _ in operations}
    for target in targets:
        for name in sorted(names & set(target.rejects)):
            raise ValueError(
                f"{target.name} cannot {target.rejects[name]}, leave the target out, or give the dimension a number"
            )
