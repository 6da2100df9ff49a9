"""Calls whose arguments have another number of axes than those the plan was bound with.

A stored input scale is one number, and a scale per row follows the operation's own axes: neither depends on how many axes count
examples. So a plan serves them all: its inputs get the axes that they have in this call, and the states of inputs, arrays of
axes of length 1, as many. `jax.numpy.einsum` puts a weight on the left or on the right as the axes are. A full-integer plan holds constants in the shapes it was bound with, and takes no others.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from lowbit.plan.rows import Plan, Row, Site

from .kinds import contraction
from .operations import Inventory, Operation


def fitted(plan: Plan, inventory: Inventory) -> Plan:
    """Returns the plan with its inputs in the axes of a traced call; the same object where they have them."""
    operations = {op.path: op for op in inventory.operations}
    rows = tuple(_fitted(row, operations[row.path]) if row.path in operations else row for row in plan.rows)
    is_same = all(a is b for a, b in zip(rows, plan.rows, strict=True))
    return plan if is_same else dataclasses.replace(plan, rows=rows)


def _fitted(row: Row, op: Operation) -> Row:
    depth = len(op.stack)

    def one(index: int, site: Site) -> Site:
        rank = len(op.eqn.invars[index].aval.shape)
        if site.kind not in ("input", "mixed") or op.is_lookup or len(site.operand.shape) == depth + rank:
            return site
        contract = tuple(i + depth for i in contraction(op.eqn, index))
        shape = (*site.operand.shape[:depth], *[0] * rank)
        return dataclasses.replace(site, operand=dataclasses.replace(site.operand, shape=shape, contract=contract))

    is_turned = op.weight is not None and not row.sites[op.weight].is_weight
    sites = tuple(one(i, site) for i, site in enumerate(row.sites[::-1] if is_turned else row.sites))
    return row if sites == row.sites else dataclasses.replace(row, sites=sites)


def with_axes(before: Plan, after: Plan, states: Mapping[str, Any]) -> dict[str, Any]:
    """Returns states by path and role, those of inputs with as many axes as in another fit of the same plan."""
    if before is after:
        return dict(states)
    by_path = dict(states)
    for old, new in zip(before.rows, after.rows, strict=True):
        if old is new or old.path not in by_path:
            continue
        roles = dict(by_path[old.path])
        new_sites = {site.role: site for site in new.sites}
        for a in old.sites:
            b = new_sites[a.role]
            ranks = [len(site.operand.shape) - site.operand.stack for site in (a, b)]
            if ranks[0] != ranks[1] and a.role in roles:
                roles[a.role] = jax.tree.map(lambda x, r=ranks, n=a.operand.stack: _reshaped(x, n, *r), roles[a.role])
        by_path[old.path] = roles
    return by_path


def _reshaped(x: Any, stack: int, before: int, after: int) -> Any:
    """A scale of one input, or one for each layer."""
    shape = getattr(x, "shape", ())
    is_scale = len(shape) == stack + before and all(n == 1 for n in shape[stack:])
    return x.reshape((*shape[:stack], *[1] * after)) if is_scale else x
