"""What a target cannot take of a plan, and the nearest that it can: the table of `lowbit.targets.table`, applied."""

import dataclasses
from collections.abc import Sequence

from lowbit.core.spec import Spec
from lowbit.formats.lookup import format_named
from lowbit.plan.rows import Plan, Row, Site

from .table import TARGETS
from .target import Holds, Target


@dataclasses.dataclass(frozen=True)
class Violation:
    """One operand that a target cannot take.

    Attributes:
        target: the target's name.
        path: of the operation.
        primitive: of the operation.
        role: of the operand.
        got: its spec, or ``float``.
        allowed: what the rule allows.
        nearest: the nearest spec that is allowed.
        note: why.
        rule: the plan's, which took the operation.
    """

    target: str
    path: str
    primitive: str
    role: str
    got: str
    allowed: str
    nearest: str
    note: str
    rule: str

    def __str__(self) -> str:
        what = {"dot_general": "dense layer", "conv_general_dilated": "convolution", "gather": "embedding"}
        why = f" ({self.note})" if self.note else ""
        return (
            f"{self.target} cannot take the {self.role} of {self.path} ({what.get(self.primitive, self.primitive)}): got "
            f"{self.got} by the rule {self.rule!r}, allowed is {self.allowed}{why}; nearest: {self.nearest}"
        )


def check_inputs(plan: Plan) -> None:
    """Raises ValueError where an input is quantized by code of its own: a module and its forms hold the grids of specs."""
    for row in plan.rows:
        for site in row.sites:
            if site.own_code:
                raise ValueError(
                    f"the {site.role} of {row.path} is quantized by {site.own_code}, by code of its own, which no exported form "
                    f"holds; use an input quantizer that its spec describes, such as lowbit.rtn's with its defaults"
                )


def violations(plan: Plan, target: Target) -> tuple[Violation, ...]:
    """Returns what a target cannot take of a plan; nothing where it takes all.

    Args:
        plan: the plan.
        target: one of `TARGETS`.

    Example:
        >>> import lowbit as lb, jax.numpy as jnp
        >>> fn, params, x = lambda p, x: x @ p["w"], {"w": jnp.ones((8, 4))}, jnp.ones((2, 8))
        >>> print(violations(lb.bind(fn, {"**": "w4,a8"}, params, x), TARGETS["tflm"])[0])
        tflm cannot take the weight of w (dense layer): got int4/channel/sym by the rule '**: w4,a8', allowed is int4 with
        granularity tensor (no 2-bit type; 4-bit weights of a dense layer share one scale); nearest: int4/tensor/sym
    """
    refused = []
    for row in plan.quantized:
        holds = target.holds.get(row.primitive)
        for site in row.sites:
            if row.primitive == "gather" and not site.is_weight:
                continue  # indices
            allowed = "float only" if holds is None else _broken(site, holds)
            if allowed is not None and (holds is not None or site.spec is not None):
                nearest = "keep" if holds is None else _nearest(site, holds)
                got = "float" if site.spec is None else site.spec.text
                note = "" if holds is None else holds.note
                refused.append(
                    Violation(target.name, row.path, row.primitive, site.role, got, allowed, nearest, note, row.rule)
                )
    return tuple(refused)


def check(plan: Plan, targets: Sequence[Target], forms: Sequence[str] | None = None) -> None:
    """Raises ValueError where a target cannot take a plan, naming the operation, the rule and the nearest spec.

    Or where it takes a form that is not written: the table says what such a target could hold, for a search over bits.

    Args:
        plan: the plan.
        targets: that must be able to take it.
        forms: those that are written; None: any.
    """
    refused = [each for target in targets for each in violations(plan, target)]
    if refused:
        more = f"; and {len(refused) - 1} more" if len(refused) > 1 else ""
        raise ValueError(f"{refused[0]}{more}. Change that rule, or leave the target out")
    for target in targets:
        if reason := _refusal(plan, target):
            raise ValueError(f"{reason}, or leave the target out")
        if forms is not None and target.form not in forms:
            able = ", ".join(name for name, each in TARGETS.items() if each.form in forms)
            raise ValueError(
                f"target {target.name!r} takes the {target.form} form, and lowbit.export writes only "
                f"{', '.join(forms)}; targets for that: {able}"
            )


def _refusal(plan: Plan, target: Target) -> str:
    """Why a target cannot take a plan as a whole, or a step of it; empty where it can."""
    if target.is_full_integer and not plan.is_full_integer:
        return f"{target.name} takes full-integer plans only: bind with integer=True"
    for step in plan.steps:
        words = (step.kind, *(step.absorbed if step.kind == "table" else ()))
        word = next((word for word in words if word in target.refuses), None)
        if word is not None:
            where = f"{word} at {step.path}" + (f" ({step.source})" if step.source else "")
            return f"{target.name} cannot take the {where}: {target.refuses[word]}. Write it otherwise"
    return ""


def table(plan: Plan, target: Target) -> list[dict[str, str]]:
    """Returns the rules that were applied to a plan, as JSON entries: one per operation."""

    def rule(row: Row) -> dict[str, str]:
        holds = target.holds[row.primitive]
        return {
            "path": row.path,
            "operation": row.primitive,
            "weights": ", ".join(holds.weights),
            "inputs": ", ".join(holds.inputs),
            "note": holds.note,
        }

    return [rule(row) for row in plan.quantized]


def _held(site: Site, holds: Holds) -> Spec | None:
    """What a target is given of an operand: int8 where integer or negative scales are multiplied into the codes."""
    spec = site.spec
    formats = holds.weights if site.is_weight else holds.inputs
    if spec is None or formats == ("*",):
        return spec
    if spec.merged == spec and not (spec.has_signed_scales and spec.format.is_integer):
        return spec
    granularity = spec.merged.granularity
    return Spec(format_named("int8"), granularity)


def _broken(site: Site, holds: Holds) -> str | None:
    """What the rule allows, where a site breaks it."""
    spec = _held(site, holds)
    formats = holds.weights if site.is_weight else holds.inputs
    name = "float" if spec is None else spec.format.name
    if formats != ("*",) and name not in formats and (spec is not None or not site.is_weight):
        return " or ".join(formats)
    if spec is None:
        return None
    granularity = holds.granularity(name) if site.is_weight else holds.input_granularity
    if spec.granularity.kind not in granularity:
        return f"{name} with granularity {' or '.join(granularity)}"
    if site.is_weight and not spec.symmetric and not holds.has_affine_weights:
        return f"{name} without zero points"
    if spec.dynamic and not holds.has_dynamic_inputs:
        return f"{name} with calibrated scales"
    return None


def _nearest(site: Site, holds: Holds) -> str:
    """The allowed spec that changes least: no fewer bits where there is a choice."""
    formats = holds.weights if site.is_weight else holds.inputs
    spec = _held(site, holds)
    if spec is None:
        return next((name for name in reversed(formats) if name != "*"), "int8")
    name = spec.format.name
    if formats != ("*",) and name not in formats:
        bits = [(int(word.removeprefix("u").removeprefix("int")), word) for word in formats if word != "float"]
        name = min(bits, key=lambda b: (b[0] < spec.format.bits, abs(b[0] - spec.format.bits)))[1]
    granularity = holds.granularity(name) if site.is_weight else holds.input_granularity
    scale = spec.granularity.text if spec.granularity.kind in granularity else granularity[-1]
    is_symmetric = spec.symmetric or (site.is_weight and not holds.has_affine_weights)
    return "/".join([name, scale, "sym" if is_symmetric else "affine"])
