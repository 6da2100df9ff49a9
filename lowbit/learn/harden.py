"""`harden`: learned widths and levels become specs; `widths`: what they cost while they are learned."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.core.checks import is_traced
from lowbit.core.quantizer import Quantizer, Quantizers
from lowbit.interpret.state import QState, check_state, get, marked, put, quantized_sites, quantizer_of
from lowbit.interpret.with_quantizers import with_quantizers
from lowbit.packed import arguments
from lowbit.plan.rows import Plan, Row


def harden(plan: Plan, qstate: QState) -> tuple[Plan, QState]:
    """Returns the plan whose specs say the widths and levels that were learned, and its state.

    `lowbit.simulate` gives the same values before and after, where an operation's weight alone is quantized; where it adds up
    integers, sums are rounded elsewhere if the format is then no integer's. Sites that learn neither are as they were.

    Args:
        plan: from `lowbit.bind`.
        qstate: trained.

    Raises:
        TypeError: for a plan or a state of another type.
        ValueError: for another plan's state, under `jax.jit` (specs are made of values), or two inputs of one operation that
            would become of different kinds.

    Example:
        >>> import jax, jax.numpy as jnp, lowbit as lb
        >>> from lowbit.quantizers.hgq import hgq
        >>> fn, params, x = lambda p, x: x @ p["w"], {"w": jnp.array([[1.0, 0.3], [-0.4, 0.7]])}, jnp.ones((1, 2))
        >>> plan = lb.bind(fn, {"**": hgq("w6/tensor")}, params, x)
        >>> plan, qstate = lb.harden(plan, lb.init(fn, plan, params, x))
        >>> plan["w"].weight.spec.text
        'int6/tensor/sym'
    """
    arguments.check(plan=plan, qstate=qstate)
    check_state(plan, qstate)
    if all(quantizer_of(site).is_hard for _, site in quantized_sites(plan)):
        return plan, qstate
    hardened: dict[tuple[str, str], tuple[Quantizer, QState]] = {}
    for _, site in quantized_sites(plan):
        quantizer, state = quantizer_of(site), get(qstate, site.key, site.role)
        if quantizer.is_hard:
            hardened[site.key, site.role] = quantizer, state
            continue
        if any(is_traced(x) for x in jax.tree.leaves(state)):
            raise ValueError("harden makes specs of values: call it outside jax.jit")
        hardened[site.key, site.role] = quantizer.hardened(state, site.operand)

    def choose(row: Row) -> Any:
        quantizers = [
            (site, hardened[site.key, site.role][0]) for site in row.sites if (site.key, site.role) in hardened
        ]
        if all(quantizer == site.quantizer for site, quantizer in quantizers):
            return None
        weight = next((quantizer for site, quantizer in quantizers if site.is_weight), None)
        inputs = list(dict.fromkeys(quantizer for site, quantizer in quantizers if not site.is_weight))
        if len(inputs) > 1:
            raise ValueError(
                f"{row.path}: its two inputs would become {inputs[0].text} and {inputs[1].text}, which no rule says"
            )
        return Quantizers(weight, inputs[0] if inputs else None)

    hard = with_quantizers(plan, choose)
    parts: QState = {"learn": {}, "fixed": {}}
    for key, role in hardened:
        put(parts, key, role, hardened[key, role][1])
    return hard, marked(hard, parts)


def widths(plan: Plan, qstate: QState) -> dict[str, Float[Array, ""]]:
    """Returns the mean bits of a code of every quantized weight, by key, differentiable in what is learned; scales left out.

    A cost to train with is made of them: ``sum(count[key] * bits)`` of stored bits, times multiply-adds of bit operations.

    Args:
        plan: from `lowbit.bind`.
        qstate: its state, traced or not.

    Example:
        >>> import jax, jax.numpy as jnp, lowbit as lb
        >>> fn, params, x = lambda p, x: x @ p["w"], {"w": jnp.ones((8, 4))}, jnp.ones((1, 8))
        >>> plan = lb.bind(fn, {"**": "w3"}, params, x)
        >>> {key: float(bits) for key, bits in widths(plan, lb.init(fn, plan, params, x)).items()}
        {'w': 3.0}
    """
    arguments.check(plan=plan, qstate=qstate)
    check_state(plan, qstate)
    return {
        site.key: jnp.mean(quantizer_of(site).widths(get(qstate, site.key, site.role)))
        for _, site in quantized_sites(plan)
        if site.is_weight
    }
