"""Grids that several tensors share: whether they leave each of them levels to tell its values apart.

A concatenation or a selection has one grid for all that it joins, as wide as the widest, and what a scan carries has one for
all its turns. Beside boxes in pixels, scores between 0 and 1 all become 0. What is joined is measured with the grids, and a
tensor that is left with hardly a level is an error. A sum, a maximum or a minimum is a grid of its own, so that a small operand
is lost in it as in any rounding: a warning, where all of it is. So is the bound of a clip that becomes 0 on the grid.

The spans stay in the state, beside the grids that they were measured with: training moves the grids, and `lowbit.pack` looks
again. A carry that starts as what another scan made is not looked at.
"""

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lowbit.core.checks import is_traced
from lowbit.interpret.state import QState, get, layer_operand, quantizer_of, spans_of, with_spans
from lowbit.plan.rows import Plan, Site, Step

from .ops import kind_named

ROLE = "operands"
"""Where the statistics of a step have the spans of what it joins."""

LEAST = 4.0
"""Levels that a tensor needs on a grid it shares: two bits."""

Spans = Mapping[str, Array]
"""``low, high``: of the operands, of a scan then of what became of them, then of the bounds of clips, float32."""


def is_looked_at(step: Step) -> bool:
    """Returns whether a step joins tensors, or clips."""
    return kind_named(step.kind).joins or _bounds(step) > 0


def _bounds(step: Step) -> int:
    """How many clips by a scalar a step absorbs; a table computes them exactly."""
    return sum(name in ("max", "min") for name in step.absorbed) if kind_named(step.kind).rounds_clips else 0


def _joined(plan: Plan, step: Step) -> list[str]:
    """What a step joins, by path: without the indices that choose."""
    if not kind_named(step.kind).joins:
        return []
    kinds = {other.path: other.kind for other in plan.steps}
    return [path for path in step.inputs if kinds[path] != "index"]


def empty(plan: Plan, step: Step) -> dict[str, Array]:
    """Returns the spans of a step before the first batch: none, from 0 to 0."""
    count = len(_joined(plan, step)) * (2 if step.kind == "scan" else 1) + _bounds(step)
    return {"low": jnp.zeros(count, jnp.float32), "high": jnp.zeros(count, jnp.float32)}


def updated(spans: Spans, values: Sequence[Any]) -> dict[str, Array]:
    """Returns the spans after one batch. They hold 0, as grids do."""
    low, high = (jnp.stack([f(x.astype(jnp.float32), initial=0.0) for x in values]) for f in (jnp.min, jnp.max))
    return {"low": jnp.minimum(spans["low"], low), "high": jnp.maximum(spans["high"], high)}


def kept(plan: Plan, statistics: Mapping[str, Any], qstate: QState) -> QState:
    """Returns a state with the spans that were measured with it: what `check` reads."""
    measured = {step.path: statistics[step.path][ROLE] for step in plan.steps if is_looked_at(step)}
    grids = _grids(plan)
    return with_spans(qstate, {path: (_key(plan, path, grids), spans) for path, spans in measured.items()})


def _grids(plan: Plan) -> dict[str, str]:
    return {step.path: step.grid for step in plan.steps}


def _key(plan: Plan, path: str, grids: Mapping[str, str]) -> str:
    """The key of the state under which the spans of a step are: a grid's, its own where it has one."""
    return grids[path] or next(iter(plan.grids()))


def _step_of(site: Site, state: QState) -> float:
    operand = layer_operand(site)
    probe = jnp.zeros((1,) * len(operand.shape), operand.dtype)
    q = quantizer_of(site).quantize(state, probe, dataclasses.replace(operand, shape=probe.shape))
    return float(q.scale_values.reshape(()))


def _measured(plan: Plan, qstate: QState) -> Iterator[tuple[Step, np.ndarray, np.ndarray]]:
    by_path = spans_of(qstate)
    for step in plan.steps:
        _, spans = by_path.get(step.path, ("", None))
        if spans is not None and not any(is_traced(x) for x in jax.tree.leaves((spans, qstate))):
            yield step, np.asarray(spans["low"], np.float64), np.asarray(spans["high"], np.float64)


def check(plan: Plan, qstate: QState) -> None:
    """Raises where a grid leaves a tensor that shares it fewer than `LEAST` levels. Not under jit.

    Args:
        plan: any; only full-integer ones share grids.
        qstate: with the grids, and the spans that were measured with them. A state made by an older lowbit has no spans.

    Raises:
        ValueError: naming the step, its source line, all spans, and the ways out.
    """
    sites = plan.grids()
    steps: dict[str, float] = {}

    def scale_of(grid: str) -> float:
        if grid not in steps:
            steps[grid] = _step_of(sites[grid], get(qstate, grid, sites[grid].role))
        return steps[grid]

    for step, low, high in _measured(plan, qstate):
        names = _joined(plan, step)
        count = len(names)
        if step.kind == "scan":
            _check_carries(plan, step, names, low, high, scale_of)
            continue
        scale, levels = scale_of(step.grid), 2 ** quantizer_of(sites[step.grid]).spec.format.bits
        _check_bounds(step, high[count:] + low[count:], scale)
        for i, left in _small(step, low[:count], high[:count], scale, levels):
            others = ", ".join(_span(names[j], low[j], high[j]) for j in range(count) if j != i)
            what = _span(names[i], low[i], high[i])
            if kind_named(step.kind).shares:
                raise ValueError(
                    f"integer=True: the {step.kind} {step.path} ({step.source}) puts {what} on the grid of {others}, which leaves "
                    f"it {left:.2g} of {levels} levels. Give them a grid each: return them as results of their own; or bring "
                    f"them to one range by constant factors before they are joined, undone behind the model; or use 'aint16'"
                )
            _warn(
                f"integer=True: {what} is less than one step ({scale:.4g}) of the {step.kind} {step.path} ({step.source}), whose "
                f"other operand is {others}: it is lost in it; use aint16 there"
            )


def _small(step: Step, low: np.ndarray, high: np.ndarray, scale: float, levels: int) -> Iterator[tuple[int, float]]:
    """Yields operands that have too few levels, and how many."""
    left = (high - low) / scale
    least = min(LEAST, levels / 4) if kind_named(step.kind).shares else 1.0
    for i in np.flatnonzero((left > 0) & (left < least)):
        yield int(i), float(left[i])


def _check_carries(
    plan: Plan, step: Step, names: Sequence[str], low: np.ndarray, high: np.ndarray, scale_of: Any
) -> None:
    """What a scan starts with and what it ends with are on one grid."""
    grids, kinds = _grids(plan), {other.path: other.kind for other in plan.steps}
    count = len(names)
    for i, name in enumerate(names):
        if kinds[name] == "scan" or (low[i], high[i]) == (low[i + count], high[i + count]):
            continue  # what is scanned over is what it was
        scale = scale_of(grids[name])
        levels = 2 ** quantizer_of(plan.grids()[grids[name]]).spec.format.bits
        pair = [i, i + count]
        for at, left in _small(step, low[pair], high[pair], scale, levels):
            spans = [_span(name, low[i], high[i]), _span("what it is after the turns", low[i + count], high[i + count])]
            raise ValueError(
                f"integer=True: the scan {step.path} ({step.source}) carries {spans[0]} and {spans[1]} on one grid, which leaves "
                f"{'what it starts with' if at == 0 else 'what it ends with'} {left:.2g} of {levels} levels. Write the turns out "
                f"in a Python loop, so that each has a grid of its own; or use 'aint16'"
            )


def _check_bounds(step: Step, bounds: np.ndarray, scale: float) -> None:
    for bound in bounds[(bounds != 0) & (np.abs(bounds) < scale / 2)]:
        _warn(
            f"integer=True: the bound {bound:.4g} of the clip after {step.path} ({step.source}) is less than half a step "
            f"({scale:.4g}) of its grid: it acts as 0; use aint16 there"
        )


def _span(name: str, low: float, high: float) -> str:
    return f"{name} in [{low:.4g}, {high:.4g}]"


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)
