"""The universal form: one StableHLO module that edge compilers turn into integer kernels and any compiler runs as it is.

Weights are integer constants of their own width behind ``quant.dequantize``; inputs of quantized operations, and in a
full-integer plan every value that crosses an operation, go through ``quant.fake_quant``; the operations between are in
float32. `lowbit.export.composites` has the primitives and what they compute.

The integers and scales are those of the served form. Its accumulators are not: a float32 sum of dequantized products is off
by a few roundings, so that a value close to the middle between two steps may land on the other one.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax

from lowbit.export import composites, lowering
from lowbit.export.codes import program, shapes
from lowbit.export.forms import Lowered

from . import full_integer, ordinary


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
    return program(lowered, full_integer.results, ordinary.results, kept=composites.NAMES, rewritten=rewritten)
