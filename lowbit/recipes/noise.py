"""How much noise the results of every operation carry once everything before it is quantized too."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lowbit.core.metrics import decibels
from lowbit.interpret.observe import OUTPUT
from lowbit.observe.besides import Captured
from lowbit.observe.observe import observe
from lowbit.plan.rows import Plan


def accumulated(
    fn: Callable[..., Any], plan: Plan, params: Any, solved: Any, qstate: Any, args: tuple[Any, ...]
) -> dict[str, float]:
    """Returns decibels of signal over noise by operation: float results against those of the quantized model.

    All results of one call, of both models, are in memory. An operation in a loop that is not over layers is left out.

    Args:
        fn: the function of the plan.
        plan: from `lowbit.bind`.
        params: float parameters.
        solved: the same on their grids, biases corrected.
        qstate: ranges and scales.
        args: of the call, without parameters.
    """
    wanted = {row.path: {OUTPUT: (Captured(),)} for row in plan.quantized}
    if not wanted:
        return {}
    right, wrong = (
        jax.device_get(observe(fn, plan, values, [args], wanted, qstate=state))
        for values, state in ((params, None), (solved, qstate))
    )
    by_path = {}
    for path in wanted:
        (x, turns), (q, _) = right[path][OUTPUT]["captured"], wrong[path][OUTPUT]["captured"]
        if np.max(turns) > 1:
            continue
        x, q = np.asarray(x, np.float64), np.asarray(q, np.float64)
        by_path[path] = decibels(float(np.sum(x**2)), float(np.sum((x - q) ** 2)))
    return by_path
