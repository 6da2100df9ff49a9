"""The recipe that picks by plan: what comes before ``qronos``, as the specs of the plan ask for it.

A scale that serves a whole weight needs channels of one range: they are equalized, relu6 with bounds by channel. Else
nothing comes before. What is picked is said in the report.
"""

from lowbit.core.spec import Tensor
from lowbit.plan.rows import Plan
from lowbit.rewrites.chain import chain
from lowbit.rewrites.equalize import equalize

from .qronos import recipe as qronos
from .recipe import Recipe


def pick(plan: Plan) -> Recipe:
    """Returns what is run on a plan."""
    found = qronos()
    weights = [row.weight.spec for row in plan.rows if row.weight is not None and row.weight.spec is not None]
    shared = sum(isinstance(spec.granularity, Tensor) for spec in weights)
    if shared:
        return found.named("auto", f"{shared} weights have one scale", rewrite=chain(equalize(bounds=True)))
    return found.named("auto", "every channel has its own scales")


def recipe() -> Recipe:
    """Returns the recipe ``auto``."""
    return qronos().named("auto", "picked when the plan is known", pick=pick)
