"""What training does to a quantized model, epoch by epoch: steps, signal over noise of weights, and weights that collapse."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.core.paths import flatten
from lowbit.interpret.state import get, quantizer_of
from lowbit.plan.rows import Plan

LOST = 3.0
"""Decibels of signal over noise under which a weight is said to have collapsed: noise of more than half its energy."""


@functools.lru_cache(maxsize=64)
def trajectory(plan: Plan) -> Callable[[Any, Any], dict[str, dict[str, float]]]:
    """Returns ``measure(params, qstate)``, cached by plan.

    It returns ``{"weight_db": {path: decibels}, "levels": {path: count}, "learned": {"path/role/name": mean magnitude}}``: of
    every weight that is a parameter its signal over noise on its grid and how many levels it reaches from its lowest to its
    highest, one where it has collapsed; of every leaf that is learned, such as a step, its mean magnitude.

    Args:
        plan: from `lowbit.bind`, with its quantizers.
    """
    sites = {path: site for path, site in plan.leaf_sites().items() if site.spec is not None}

    @jax.jit
    def measure(params: Any, qstate: Any) -> dict[str, Any]:
        leaves = dict(zip(*flatten(params)[:2], strict=True))
        decibels, levels = {}, {}
        for path, site in sites.items():
            x = leaves[path]
            q = quantizer_of(site).quantize(get(qstate, site.key, site.role), x, site.operand)
            off = jnp.sum(jnp.square((q.dequantize() - x).astype(jnp.float32)))
            power = jnp.sum(jnp.square(x.astype(jnp.float32)))
            decibels[path] = 10 * jnp.log10(jnp.maximum(power, 1e-30) / jnp.maximum(off, 1e-30))
            codes = q.encode().unpacked_codes().astype(jnp.float32)
            levels[path] = jnp.max(codes) - jnp.min(codes) + 1
        learned = {
            "/".join((key, role, *(str(getattr(part, "key", part)) for part in at))): jnp.mean(jnp.abs(leaf))
            for key, roles in qstate["learn"].items()
            for role, state in roles.items()
            for at, leaf in jax.tree_util.tree_leaves_with_path(state)
        }
        return {"weight_db": decibels, "levels": levels, "learned": learned}

    def values(params: Any, qstate: Any) -> dict[str, dict[str, float]]:
        measurements = jax.device_get(measure(params, qstate))
        return {kind: {key: round(float(x), 6) for key, x in each.items()} for kind, each in measurements.items()}

    return values


def collapsed(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with an epoch that was not wrong with the one before, a line each.

    Args:
        before: values of the epoch before, as they are logged; None for the first.
        now: of this one.
    """
    warnings = []
    for path, decibels in now.get("weight_db", {}).items():
        levels = now["levels"][path]
        was = (
            None if before is None else (before["weight_db"].get(path, math.inf), before["levels"].get(path, math.inf))
        )
        if levels <= 1 and not (was and was[1] <= 1):
            warnings.append(f"{path} has collapsed to one level")
        elif decibels < LOST and levels > 2 and not (was and was[0] < LOST):
            warnings.append(f"{path} is mostly noise on its grid: {decibels:.1f} dB")
    if before is not None and now["loss"] > 3 * before["loss"] and before["loss"] > 0:
        warnings.append(
            f"the loss went from {before['loss']:.3g} to {now['loss']:.3g}: a lower step_lr or lr may hold it"
        )
    return warnings
