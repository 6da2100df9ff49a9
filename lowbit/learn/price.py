"""`price`: what learned widths cost, differentiable: the term that training weighs against the loss."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowbit.interpret.state import QState, check_state, get, quantizer_of
from lowbit.packed import arguments
from lowbit.plan.costs import costs
from lowbit.plan.rows import Plan, Site

UNITS = ("bits", "bytes", "bops")


def price(plan: Plan, qstate: QState, *, unit: str = "bits") -> Float[Array, ""]:
    """Returns what the widths of a state cost, differentiable in what is learned of them.

    ``"bits"`` is the mean over the weights of a code's bits, scales left out; ``"bytes"`` what codes and scales take;
    ``"bops"`` the sum over operations of multiply-adds times the bits of both operands (EBOPs where widths are per channel:
    the mean width is taken). As a term of the loss: ``beta * price(...)`` (HGQ), or ``beta * jnp.abs(price(...) - goal)``
    (FracBits).

    Args:
        plan: from `lowbit.bind`.
        qstate: its state, traced or not.
        unit: see above.

    Raises:
        TypeError: for a plan or a state of another type.
        ValueError: for another plan's state, an unknown unit, or no quantized weight.

    Example:
        >>> import jax.numpy as jnp, lowbit as lb
        >>> fn, params, x = lambda p, x: x @ p["w"], {"w": jnp.ones((8, 4))}, jnp.ones((1, 8))
        >>> plan = lb.bind(fn, {"**": "w3"}, params, x)
        >>> qstate = lb.init(fn, plan, params, x)
        >>> float(price(plan, qstate)), float(price(plan, qstate, unit="bytes"))
        (3.0, 28.0)
    """
    arguments.check(plan=plan, qstate=qstate)
    check_state(plan, qstate)
    if unit not in UNITS:
        raise ValueError(f"unit must be one of {', '.join(UNITS)}, got {unit!r}")
    if not any(site.is_weight and site.spec is not None for row in plan.rows for site in row.sites):
        raise ValueError("plan has no quantized weight: bind with a rule such as {'**': hgq('w6')}")

    def bits(site: Site) -> Array:
        if site.spec is None:
            return jnp.float32(8 * np.dtype(site.operand.dtype).itemsize)
        return jnp.mean(quantizer_of(site).widths(get(qstate, site.key, site.role)))

    total, elements = jnp.zeros(()), 0
    for row, cost in zip(plan.rows, costs(plan), strict=True):
        weight = row.weight
        if unit == "bops":
            both = jnp.float32(1.0)
            for site in row.sites:
                both = both * bits(site)
            total = total + np.float32(cost.macs) * both
        elif weight is not None and cost.elements and (unit == "bytes" or weight.spec is not None):
            total = total + np.float32(cost.elements) * bits(weight)
            total = total + np.float32(cost.scale_bits if unit == "bytes" else 0)
            elements += cost.elements
    return total / np.float32({"bits": elements, "bytes": 8, "bops": 1}[unit])
