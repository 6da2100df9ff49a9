"""`pack`: from trained parameters and states to bits."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.core.checks import is_finite
from lowbit.core.paths import leaf_path
from lowbit.core.spec import Operand
from lowbit.packed.bits import pack as pack_tensor
from lowbit.packed.trees import Dropped, QParams
from lowbit.plan.rows import Plan, Site

from .state import QState, get, layer_operand, quantizer_of, walked_sites


def pack(plan: Plan, params: Any, qstate: QState) -> QParams:
    """Returns the packed model: `QTensor` leaves whose codes take their bits, and the ranges static inputs need.

    Args:
        plan: from `lowbit.bind`.
        params: trained parameters.
        qstate: from `lowbit.init`, `lowbit.calibrate`, training or `lowbit.solve`.

    Raises:
        ValueError: if a weight holds NaN or infinity (not checked under jit), or the plan came from a file.
    """
    sites = plan.leaf_sites()

    def leaf(keys, x):
        path = leaf_path(keys)
        if path in plan.dropped:
            return Dropped(tuple(x.shape), str(x.dtype))
        if path not in sites:
            return x
        site = sites[path]
        return _packed(site, get(qstate, site.key, site.role), x, site.operand)

    packed = jax.tree_util.tree_map_with_path(leaf, params)
    found: dict[str, dict[str, Any]] = {}
    derived: dict[str, Any] | None = None
    for row, site in walked_sites(plan):
        state = get(qstate, site.key, site.role)
        if not site.is_weight:
            found.setdefault(row.path, {})[site.role] = (
                {} if _spec(site).dynamic else _static_input(site, state, row.stack)
            )
            continue
        if plan.derive is None:
            raise ValueError(
                f"{site.key}: a derived weight needs the traced function, which a file does not hold: bind again"
            )
        if derived is None:
            derived = plan.derive(params)
        found.setdefault(row.path, {})[site.role] = _packed(site, state, derived[row.path], site.operand, row.stack)
    return QParams(packed, found)


def _spec(site: Site):
    assert site.spec is not None
    return site.spec


def _packed(site: Site, state: Any, x: Any, operand: Operand, stack: tuple[int, ...] = ()):
    if not is_finite(x):
        raise ValueError(f"weight {site.key!r} holds NaN or infinity: it cannot be packed")
    quantizer = quantizer_of(site)

    def encode(state, x):
        return quantizer.encode(state, x, layer_operand(site) if stack else operand)

    for _ in stack:
        encode = jax.vmap(encode)
    return pack_tensor(jax.jit(encode)(state, x), operand.contract, operand.stack)


def _static_input(site: Site, state: Any, stack: tuple[int, ...]) -> dict[str, Any]:
    """The scale and zero point a static input is served with, read off the quantizer's own grid."""
    quantizer = quantizer_of(site)
    operand = layer_operand(site)
    probe = jnp.zeros((1,) * len(operand.shape), operand.dtype)

    def grid(state):
        q = quantizer.quantize(state, probe, dataclasses.replace(operand, shape=probe.shape))
        return {"scale": q.scale_values} if q.zero is None else {"scale": q.scale_values, "zero": q.zero}

    for _ in stack:
        grid = jax.vmap(grid)
    return grid(state)
