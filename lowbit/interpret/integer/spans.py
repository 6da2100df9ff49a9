"""Grids that several tensors share: whether they leave each of them levels to tell its values apart.

A concatenation or a selection has one grid for all that it joins, as wide as the widest. Beside boxes in pixels, scores
between 0 and 1 all become 0. What is joined is measured with the grids, and a tensor that is left with hardly a level is an
error. A sum, a maximum or a minimum is a grid of its own, so that a small operand is lost in it as in any rounding: a
warning, where all of it is.

Not looked at: carries of a scan, which are one quantity at different times; bounds of clips, rounded as the values are.
"""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lowbit.core.checks import is_traced
from lowbit.interpret.state import QState, get, layer_operand, quantizer_of
from lowbit.plan.rows import Plan, Site, Step

ROLE = "operands"
"""Where the statistics of a step have the spans of what it joins."""

SHARED = ("concatenate", "select")
JOINS = (*SHARED, "add", "max", "min")

LEAST = 4.0
"""Levels that a tensor needs on a grid it shares: two bits."""


def empty(step: Step) -> dict[str, Array]:
    """Returns the spans of the operands of a step before the first batch: none, from 0 to 0."""
    return {"low": jnp.zeros(len(step.inputs), jnp.float32), "high": jnp.zeros(len(step.inputs), jnp.float32)}


def updated(spans: Mapping[str, Array], values: Sequence[Any]) -> dict[str, Array]:
    """Returns the spans after one batch. They hold 0, as grids do."""
    low, high = (jnp.stack([f(x.astype(jnp.float32), initial=0.0) for x in values]) for f in (jnp.min, jnp.max))
    return {"low": jnp.minimum(spans["low"], low), "high": jnp.maximum(spans["high"], high)}


def _step_of(site: Site, state: QState) -> float:
    operand = layer_operand(site)
    probe = jnp.zeros((1,) * len(operand.shape), operand.dtype)
    q = quantizer_of(site).quantize(state, probe, dataclasses.replace(operand, shape=probe.shape))
    return float(q.scale_values.reshape(()))


def check(plan: Plan, statistics: Mapping[str, Any], qstate: QState) -> None:
    """Raises where a grid leaves a tensor that shares it fewer than `LEAST` levels. Not under jit.

    Args:
        plan: full-integer.
        statistics: with the spans.
        qstate: with the grids made of them.

    Raises:
        ValueError: naming the step, its source line, all spans, and the ways out.
    """
    for step in plan.steps:
        spans = statistics.get(step.path, {}).get(ROLE)
        if spans is None or any(is_traced(x) for x in jax.tree.leaves((spans, qstate))):
            continue
        site = plan.grids()[step.grid]
        scale = _step_of(site, get(qstate, step.grid, site.role))
        low, high = (np.asarray(spans[name], np.float64) for name in ("low", "high"))
        levels = (high - low) / scale
        count = 2 ** quantizer_of(site).spec.format.bits
        least = min(LEAST, count / 4) if step.kind in SHARED else 1.0
        for i in np.flatnonzero((levels > 0) & (levels < least)):
            others = ", ".join(
                f"{path} in [{a:.4g}, {b:.4g}]"
                for j, (path, a, b) in enumerate(zip(step.inputs, low, high, strict=True))
                if j != i
            )
            what = f"{step.inputs[i]} in [{low[i]:.4g}, {high[i]:.4g}]"
            if step.kind not in SHARED:
                warnings.warn(
                    f"integer=True: {what} is less than one step ({scale:.4g}) of the {step.kind} {step.path} ({step.source}), whose "
                    f"other operand is {others}: it is lost in it; use aint16 there",
                    stacklevel=3,
                )
                continue
            raise ValueError(
                f"integer=True: the {step.kind} {step.path} ({step.source}) puts {what} on the grid of {others}, which leaves "
                f"it {levels[i]:.2g} of {count} levels. Give them a grid each: return them as results of their own; or bring "
                f"them to one range by constant factors before they are joined, undone behind the model; or use 'aint16'"
            )
