"""The fingerprint of a plan: what states, packed parameters and files carry, so that another plan's are refused."""

import hashlib
import json
import re
from typing import Any

from .rows import Plan, Site

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Where Python writes a function inside a quantizer's text: another place in every process."""


def fingerprint(plan: Plan) -> str:
    """Returns 16 hexadecimal digits that stand for everything that decides how a state or packed parameters are read.

    That is, of every operation: path, primitive, layers, groups of channels, and of its operands role, kind, leaves, shape,
    axes, spec and the quantizer's text; the parameters that packing drops; of a full-integer plan the steps and what
    shares a grid. Not the batch size, the order of operations, how the rules were written, the named rounding, or what is
    printed only. A plan read back from a file has the fingerprint of the plan that was saved, on every version of jax.
    """
    rows = sorted(
        [row.path, row.primitive, list(row.stack), row.feature_groups, [_site(site) for site in row.sites]]
        for row in plan.rows
    )
    steps = [
        [step.path, step.kind, list(step.inputs), step.grid, list(step.scope), step.site and _site(step.site)]
        for step in plan.steps
    ]
    text = json.dumps([rows, sorted(plan.dropped), steps], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _site(site: Site) -> list[Any]:
    named = [site.role, site.kind, site.key, list(site.leaves)]
    if site.spec is None:
        return named
    operand = site.operand
    axes = [list(operand.shape), operand.dtype, list(operand.contract), operand.stack, operand.is_weight]
    return [*named, axes, site.spec.text, _ADDRESS.sub("", site.method)]
