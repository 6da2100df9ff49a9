"""`rebind`: a plan under other rules, with the states that still fit."""

from collections.abc import Mapping
from typing import Any

from lowbit.core.keywords import merged, shares_keywords
from lowbit.interpret.bind import bind
from lowbit.interpret.state import QState, check_state, get, marked, put, quantized_sites, with_spans_from
from lowbit.interpret.trace import Model
from lowbit.packed import arguments
from lowbit.plan.rows import Plan

from .fold import init


@shares_keywords("lowbit.rebind")
def rebind(
    fn: Model,
    plan: Plan,
    rules: Mapping[str, Any],
    params: Any,
    qstate: QState,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> tuple[Plan, QState]:
    """Returns the plan of ``fn`` under other rules, and its state: that of every site which is what it was is carried over.

    Args:
        fn: the function of the plan, or a changed one.
        plan: the old plan.
        rules: as in `lowbit.bind`.
        params: float parameters.
        qstate: the state of the old plan.
        *args: an example batch: what is new is measured on it.
        kwargs: keyword arguments of ``fn``, whatever their names.
        **keywords: keyword arguments of ``fn``.

    Returns:
        ``plan, qstate``. A site fits where key, role, shape, axes and quantizer are the same.

    Raises:
        ValueError: for what `lowbit.bind` refuses, or a state that is not the old plan's.
    """
    arguments.check(fn=fn, plan=plan, params=params, qstate=qstate)
    check_state(plan, qstate)
    given = merged(keywords, kwargs)
    rounding = plan.rounding or "exact"
    bound = bind(fn, rules, params, *args, integer=plan.is_full_integer, rounding=rounding, kwargs=given)
    fresh = init(fn, bound, params, *args, kwargs=given)
    before = {(site.key, site.role): site for _, site in quantized_sites(plan)}
    parts: QState = {"learn": {}, "fixed": {}}
    for _, site in quantized_sites(bound):
        old = before.get((site.key, site.role))
        fits = old is not None and (old.operand, old.quantizer) == (site.operand, site.quantizer)
        put(parts, site.key, site.role, get(qstate if fits else fresh, site.key, site.role))
    return bound, with_spans_from(marked(bound, parts), fresh)
