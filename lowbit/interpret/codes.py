"""Codes that a solver chose, checked against the grids they are of."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped

from lowbit.core.checks import is_traced
from lowbit.core.gradients import straight_through
from lowbit.core.paths import nearest
from lowbit.core.qtensor import QTensor
from lowbit.core.spec import Format
from lowbit.plan.rows import Plan

from .state import quantized_sites

_MARK = "plan "


def marked_codes(plan: Plan, codes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns codes that carry the fingerprint of their plan: another one then refuses them."""
    return {**{key: x for key, x in codes.items() if not key.startswith(_MARK)}, _MARK + plan.fingerprint: None}


def checked_codes(plan: Plan, codes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns codes by key, as the format stores them.

    Args:
        plan: with the grids.
        codes: or None; with or without the fingerprint of their plan.

    Raises:
        TypeError: if they are no mapping, or not of integers.
        ValueError: for another plan's, a key that is no quantized weight, another shape, or a number that is no code of the
            format (values are not checked under jit).
    """
    if codes is None:
        return {}
    if not isinstance(codes, Mapping):
        raise TypeError(f"codes must be {{site.key: integers}}, got {codes!r:.40} ({type(codes).__name__})")
    sites = {site.key: site for _, site in quantized_sites(plan) if site.is_weight}
    checked: dict[str, Any] = {}
    for key, x in codes.items():
        if isinstance(key, str) and key.startswith(_MARK):
            if key != _MARK + plan.fingerprint:
                raise ValueError(
                    f"codes are another plan's ({key.removeprefix(_MARK)}, this one is {plan.fingerprint})"
                )
            continue
        if key not in sites:
            near = ", ".join(nearest(str(key), sites)) or "(there are none)"
            raise ValueError(f"codes[{key!r}]: the plan quantizes no such weight; the nearest are {near}")
        spec = sites[key].spec
        assert spec is not None
        if not (hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.integer)):
            raise TypeError(f"codes[{key!r}] must be an array of integers, got {getattr(x, 'dtype', type(x).__name__)}")
        shape = tuple(sites[key].operand.shape)
        if tuple(x.shape) != shape:
            raise ValueError(f"codes[{key!r}] must have the weight's shape {shape}, got {tuple(x.shape)}")
        stored = jax.eval_shape(spec.format.encode, jax.ShapeDtypeStruct((), jnp.float32)).dtype
        wrong = _wrong(jnp.asarray(x), spec.format, stored)
        if not is_traced(wrong) and bool(jnp.any(wrong)):
            first = int(jnp.asarray(x).reshape(-1)[int(jnp.argmax(wrong.reshape(-1)))])
            raise ValueError(
                f"codes[{key!r}]: {first} is no code of {spec.format.name} ({int(jnp.sum(wrong))} such); codes are what "
                f"its encode() makes of levels"
            )
        checked[key] = jnp.asarray(x).astype(stored)
    return checked


def with_codes(q: QTensor, codes: Any) -> QTensor:
    """Returns a tensor of levels with those of the codes in place of its own; the tensor itself where there are none.

    Gradients pass straight through to what its own levels came from.
    """
    if codes is None:
        return q
    return dataclasses.replace(q, codes=straight_through(q.codes, q.spec.format.decode(codes)))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _wrong(codes: Shaped[Array, "..."], numbers: Format, stored: Any) -> Bool[Array, "..."]:
    """Which numbers are no code: they do not fit its dtype, or decode to no level, or to that of another code."""
    kept = codes.astype(stored)
    levels = numbers.decode(kept)
    back = numbers.encode(levels)
    is_level = jnp.isfinite(levels) & (levels >= numbers.low) & (levels <= numbers.high)
    return (kept.astype(codes.dtype) != codes) | ~is_level | (back != kept)
