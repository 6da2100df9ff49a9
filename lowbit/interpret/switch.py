"""The training switch: a warning where a simulation is differentiated in the form that serves."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.core.quantizer import Quantizer
from lowbit.plan.rows import Plan

from .state import quantized_sites, quantizer_of


def trains_otherwise(plan: Plan) -> list[str]:
    """Returns the sites, with their quantizers, that train in another form than they serve, or keep a state in training."""
    names = []
    for _, site in quantized_sites(plan):
        quantizer = quantizer_of(site)
        cls = type(quantizer)
        if cls.train is not Quantizer.train or cls.update is not Quantizer.update:
            names.append(f"the {site.role} of {site.key!r} ({quantizer.text})")
    return names


def watched(plan: Plan, result: Any) -> Any:
    """Returns ``result``; where it is differentiated, whoever traces that is warned of quantizers that train otherwise.

    Args:
        plan: the plan of the simulation.
        result: a tree of arrays.
    """
    names = trains_otherwise(plan)
    if not names:
        return result
    more = f", and {len(names) - 1} more," if len(names) > 1 else ""
    message = (
        f"lowbit.simulate is differentiated without train=True, but {names[0]}{more} trains in another form than it serves, or "
        f"keeps a state while training: use lowbit.simulate(fn, plan, train=True), which takes key= and step= and returns "
        f"(y, qstate)"
    )
    return jax.tree.map(lambda x: _watched(x, message) if jnp.issubdtype(x.dtype, jnp.inexact) else x, result)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _watched(x, message):
    return x


@_watched.defjvp
def _(message, primals, tangents):
    warnings.warn(message, UserWarning, stacklevel=2)
    return primals[0], tangents[0]
