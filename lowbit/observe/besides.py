"""What some statistics look at beside an operand: the same operand in the float model, or the gradient by the result."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from lowbit.core.checks import is_traced
from lowbit.core.spec import Operand
from lowbit.core.statistics import Statistic
from lowbit.interpret import observe as walk
from lowbit.interpret.observe import OUTPUT, Watch
from lowbit.interpret.trace import Trace
from lowbit.plan.rows import Plan

from .perturbed import perturbed


@dataclasses.dataclass(frozen=True)
class Captured(Statistic):
    """The values of one batch, and how often there were some: more than once in a loop, where only the last are left."""

    name = "captured"
    is_exact = False

    def init(self, operand: Operand) -> Any:
        return jnp.zeros(operand.shape, operand.dtype), jnp.zeros((), jnp.int32)

    def update(self, state: Any, x: Shaped[Array, "..."], operand: Operand, *, beside: Array | None = None) -> Any:
        return x, state[1] + 1

    def across(self, state: Any, axis_names: tuple[str, ...]) -> Any:
        raise ValueError(
            "a statistic beside the float operand or a gradient is not for operations inside jax.shard_map: every device "
            "has values of its own"
        )


def values(
    fn: Any,
    plan: Plan,
    traced: Trace,
    watch: Watch,
    loss: Any,
    params: Any,
    args: Any,
    kwargs: Mapping[str, Any],
    *,
    kinds: frozenset[str] = frozenset(("float", "gradient")),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns ``{path: {role: {what: array}}}`` of one batch, and how often each was computed.

    Args:
        fn: the function.
        plan: its plan.
        traced: the call.
        watch: what is looked at.
        loss: of the result of ``fn``, or None.
        params: float parameters.
        args: the batch.
        kwargs: keyword arguments.
        kinds: which of them to find.
    """
    wanted = {(path, role): kinds & {s.beside for s in statistics} for path, role, statistics in watch.places}
    wanted = {place: kinds for place, kinds in wanted.items() if kinds}
    arrays: dict[str, Any] = {}
    turns: dict[str, Any] = {}
    if not wanted:
        return arrays, turns
    capture: dict[str, dict[str, Any]] = {}
    for (path, role), kinds in wanted.items():
        if "float" in kinds:
            capture.setdefault(path, {})[role] = (Captured(),)
        if "gradient" in kinds:
            capture.setdefault(path, {})[OUTPUT] = (Captured(),)
    seen = Watch.of(capture)
    states = walk.observation(plan, traced, seen, walk.empty(seen, plan, traced))
    slopes = _gradients(
        fn, plan, loss, params, args, kwargs, states, {p for (p, _), kinds in wanted.items() if "gradient" in kinds}
    )
    for (path, role), kinds in wanted.items():
        into = arrays.setdefault(path, {}).setdefault(role, {})
        if "float" in kinds:
            into["float"] = states[path][role]["captured"][0]
        if "gradient" in kinds:
            into["gradient"] = slopes[path]
    for path, roles in states.items():
        turns[path] = functools.reduce(jnp.maximum, [jnp.max(each["captured"][1]) for each in roles.values()])
    return arrays, turns


def _gradients(
    fn: Any, plan: Plan, loss: Any, params: Any, args: Any, kwargs: Any, states: Any, paths: set[str]
) -> dict[str, Any]:
    if not paths:
        return {}
    zeros = {path: {OUTPUT: jnp.zeros_like(states[path][OUTPUT]["captured"][0])} for path in sorted(paths)}
    run = perturbed(fn, plan, custom_vjp="body")

    def scalar(deltas: Any) -> Any:
        y = run(params, deltas, *args, kwargs=dict(kwargs))
        y = y if loss is None else loss(y)
        if getattr(y, "shape", None) != ():
            raise ValueError(
                f"loss must make a scalar of the result of fn for statistics beside gradients, got {jax.tree.map(jnp.shape, y)}"
            )
        return y

    return {path: roles[OUTPUT] for path, roles in jax.grad(scalar)(zeros).items()}


def check_turns(turns: Mapping[str, Any]) -> None:
    """Raises where an operation was computed more than once in a batch. Not under jit.

    Raises:
        ValueError: naming it.
    """
    known = {path: count for path, count in turns.items() if not is_traced(count)}
    for path, count in jax.device_get(known).items():
        if np.any(count > 1):
            raise ValueError(
                f"{path!r} is computed {int(count)} times a batch, in a loop that is not over layers: a statistic beside the "
                f"float operand or a gradient has no pair there; unroll the loop, or look at it without"
            )
