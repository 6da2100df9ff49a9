"""Taylor scores: ``sum (g . dy)^2`` of every operation's result, its own operands quantized and nothing else.

``g`` is the gradient of the loss by the result, ``dy`` what quantization changes of it: the diagonal of the Gauss-Newton matrix, in
the coordinates of the result. One pass forward and backward a batch, and one forward for every candidate.

Reference: the score of NVIDIA's Model Optimizer (AutoQuantize), without its minimum over formats.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from lowbit.core.spec import Operand
from lowbit.core.statistics import Statistic, Total
from lowbit.interpret import observe as walk
from lowbit.interpret.observe import OUTPUT, Grids, Watch
from lowbit.interpret.state import QState, carried_states
from lowbit.interpret.trace import Model, trace_planned
from lowbit.observe import besides
from lowbit.plan.rows import Plan


@dataclasses.dataclass(frozen=True)
class Weighted(Total):
    """``sum (g (x - y))^2`` of a result ``x``, beside the stack of the float one, ``y``, and the gradient, ``g``."""

    name = "weighted"
    is_of_product = True
    is_exact = False
    beside = "pair"

    def init(self, operand: Operand) -> Any:
        return jnp.zeros((), jnp.float32)

    def update(self, state: Any, x: Shaped[Array, "..."], operand: Operand, *, beside: Array | None = None) -> Any:
        assert beside is not None
        right, slope = beside[0].astype(jnp.float32), beside[1].astype(jnp.float32)
        return state + jnp.sum(jnp.square(slope * (x.astype(jnp.float32) - right)))


class _Wanted:
    """Of a statistic that keeps nothing itself: the values it is beside are wanted of a result or an operand."""

    def init(self, operand: Operand) -> Any:
        return jnp.zeros((), jnp.float32)

    def update(self, state: Any, x: Shaped[Array, "..."], operand: Operand, *, beside: Array | None = None) -> Any:
        return state

    def across(self, state: Any, axis_names: tuple[str, ...]) -> Any:
        return state


@dataclasses.dataclass(frozen=True)
class _Float(_Wanted, Statistic):
    name = beside = "float"


@dataclasses.dataclass(frozen=True)
class _Gradient(_Wanted, Statistic):
    name = beside = "gradient"


@functools.lru_cache(maxsize=16)
def float_pass(fn: Model, plan: Plan, loss: Callable[..., Any] | None) -> Callable[..., Any]:
    """Returns ``(params, key, args, kwargs) -> floats, turns``: operands, results and gradients of one batch, jitted."""
    wanted: dict[str, dict[str, Any]] = {}
    for row in plan.quantized:
        wanted[row.path] = {OUTPUT: (_Float(), _Gradient())}
        for site in row.sites:
            if site.kind != "leaf" and not (row.primitive == "gather" and not site.is_weight):
                wanted[row.path][site.role] = (_Float(),)
    watch = Watch.of(wanted)

    @jax.jit
    def run(params: Any, key: Any, args: Any, kwargs: Any) -> Any:
        traced = trace_planned(fn, plan, params, args, dict(kwargs))
        of = loss if loss is None or key is None else functools.partial(loss, key)
        return besides.values(fn, plan, traced, watch, of, params, args, kwargs)

    return run


@functools.lru_cache(maxsize=64)
def candidate_pass(fn: Model, plan: Plan) -> Callable[..., Any]:
    """Returns ``(params, qstate, floats, args, kwargs) -> {path: score}`` of one batch and the candidate of a plan, jitted."""
    watch = Watch.of({row.path: {OUTPUT: (Weighted(),)} for row in plan.quantized})

    @jax.jit
    def run(params: Any, qstate: QState, floats: Any, args: Any, kwargs: Any) -> Any:
        traced = trace_planned(fn, plan, params, args, dict(kwargs))
        carried = carried_states(plan, qstate)
        beside: dict[str, Any] = {}
        for row in plan.quantized:
            roles = floats[row.path]
            pair = [roles[OUTPUT]["float"], roles[OUTPUT]["gradient"].astype(roles[OUTPUT]["float"].dtype)]
            beside[row.path] = {OUTPUT: {"pair": jnp.stack(pair, axis=len(row.stack))}}
            carried.setdefault(row.path, {})["float"] = {
                role: each["float"] for role, each in roles.items() if role != OUTPUT
            }
        grids = Grids.of(qstate).forced()
        start = walk.empty(watch, plan, traced)
        observed = walk.observation(plan, traced, watch, start, grids=grids, carried=carried, beside=beside)
        return {path: jnp.sum(roles[OUTPUT]["weighted"]) for path, roles in observed.items()}

    return run
