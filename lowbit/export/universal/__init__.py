"""The universal form: one StableHLO module that edge compilers turn into integer kernels and any compiler runs as it is.

Weights are integer constants of their own width behind ``quant.dequantize``; inputs of quantized operations, and in a
full-integer plan every value that crosses an operation, go through ``quant.fake_quant``; the operations between are in
float32. `lowbit.export.composites` has the primitives and what they compute.

The integers and scales are those of the served form. Its accumulators are not: a float32 sum of dequantized products is off
by a few roundings, so that a value close to the middle between two steps may land on the other one.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.core.qtensor import QTensor
from lowbit.export import composites, lowering
from lowbit.export.fold import fold
from lowbit.export.forms import Lowered
from lowbit.interpret.trace import trace
from lowbit.packed.bits import unpack

from . import full_integer, ordinary


def shapes(lowered: Lowered) -> list[jax.ShapeDtypeStruct]:
    """Returns the module's inputs."""
    return [jax.ShapeDtypeStruct(tuple(x["shape"]), jnp.dtype(x["dtype"])) for x in lowered.inputs]


def universal_jaxpr(lowered: Lowered) -> Any:
    """Returns the universal form as a closed jaxpr of the flat inputs, for whoever writes another file from it.

    Its constants are integer weights and small float arrays; the primitives are those of `lowbit.export.composites` and
    jax's own, operations as the model has them.

    Raises:
        ValueError: where the form cannot hold the model.
    """
    return jax.make_jaxpr(universal_function(lowered, rewritten=()))(*shapes(lowered))


def universal_function(
    lowered: Lowered, *, rewritten: Collection[str] = lowering.REWRITTEN
) -> Callable[..., list[Any]]:
    """Returns the function of the flat inputs whose trace is the universal form.

    Args:
        lowered: what is exported.
        rewritten: primitives that are written as `lowbit.export.lowering` has them.

    Raises:
        ValueError: where the form cannot hold the model.
    """
    leaves, tree = jax.tree.flatten(lowered.qparams, is_leaf=lambda x: isinstance(x, QTensor))
    leaves = [unpack(leaf) if isinstance(leaf, QTensor) else leaf for leaf in leaves]
    codes = [leaf.codes for leaf in leaves if isinstance(leaf, QTensor)]
    levels = {path: state["codes"] for path, state in lowered.qparams.sites.items() if "codes" in state}

    def function(codes: Sequence[Any], levels: dict[str, Any], *inputs: Any) -> list[Any]:
        # Integers are traced and stay in the program; what depends on scales alone is a value, as composites need it.
        with jax.ensure_compile_time_eval():
            rest = iter(codes)
            filled = [dataclasses.replace(x, codes=next(rest)) if isinstance(x, QTensor) else x for x in leaves]
            qparams = jax.tree.unflatten(tree, filled)
            sites = {path: {**s, "codes": levels[path]} if path in levels else s for path, s in qparams.sites.items()}
            qparams = dataclasses.replace(qparams, sites=sites)
            call, has_codes = lowered.call, lowered.has_integer_io
            traced = trace(lowered.fn, qparams.params, call.arguments(inputs), dict(call.kwargs), has_codes=has_codes)
            if lowered.plan.is_full_integer:
                return full_integer.results(lowered.plan, traced, qparams, has_integer_io=has_codes)
            return ordinary.results(lowered.plan, traced, qparams)

    closed = jax.make_jaxpr(function)(codes, levels, *shapes(lowered))
    return fold(closed, jax.tree.leaves((codes, levels)), kept=composites.NAMES, rewritten=rewritten)
