"""`with_quantizers`: the same plan with other quantizers, checked as `lowbit.bind` checks."""

from collections.abc import Callable
from typing import Any

from lowbit.core.quantizer import Quantizers
from lowbit.packed import arguments
from lowbit.plan import match
from lowbit.plan.rows import Plan, Row

from .bind import planned


def with_quantizers(plan: Plan, choose: Callable[[Row], Any]) -> Plan:
    """Returns the plan with the quantizers that ``choose`` wants; the function is not traced again.

    Args:
        plan: from `lowbit.bind`.
        choose: ``row -> rule text, quantizers, "keep"``, as in a rule, or None to leave the row as it is.

    Returns:
        A plan of the same operations. States of the old one are another plan's: `lowbit.rebind` carries them over.

    Raises:
        TypeError: for a plan or a choice of another type.
        ValueError: for a plan that was read from a file, and for what `lowbit.bind` refuses.

    Example:
        >>> import jax.numpy as jnp
        >>> from lowbit.interpret.bind import bind
        >>> params = {"a": jnp.ones((8, 4)), "b": jnp.ones((4, 2))}
        >>> plan = bind(lambda p, x: x @ p["a"] @ p["b"], {"**": "w8,a8"}, params, jnp.ones((2, 8)))
        >>> fewer = with_quantizers(plan, lambda row: "w4,a8" if row.path == "a" else None)
        >>> [(row.path, row.weight.spec.text, row.rule) for row in fewer]
        [('a', 'int4/channel/sym', 'a: w4,a8'), ('b', 'int8/channel/sym', '**: w8,a8')]
    """
    arguments.check(plan=plan, choose=choose)
    if plan.program is None:
        raise ValueError("a plan read from a file does not hold what was traced: bind again")
    chosen = {row.path: _rule(row, choose(row)) for row in plan}
    return planned(plan.program, chosen, integer=plan.is_full_integer, rounding=plan.rounding or "exact")


def _rule(row: Row, choice: Any) -> match.Rule:
    return rule_of(row) if choice is None else match.parse_rules({row.path: choice})[0]


def rule_of(row: Row) -> match.Rule:
    """Returns a rule that gives a row the quantizers that it has."""
    weight = next((site.quantizer for site in row.sites if site.is_weight), None)
    others = [site.quantizer for site in row.sites if not site.is_weight and site.quantizer is not None]
    return match.Rule(row.path, Quantizers(weight, others[0] if others else None), row.rule)
