"""The integer constants of every node, from scales and parameters: multipliers, biases, bounds, tables.

Computed in float32, once, when the model is packed (and, for training, in every simulated step, by the same code): every kind
knows its own. Products that meet a sum are kept from being fused, so that the same numbers come out wherever this is compiled.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array

from lowbit.core.qtensor import QTensor
from lowbit.core.spec import Spec

from .flat import Constants
from .kind import Given, Grid
from .nodes import Placement
from .ops import kind_named


def constants(
    program: Placement,
    specs: Mapping[str, Spec],
    known: Constants,
    weights: Mapping[str, QTensor],
    grids: Mapping[str, Grid],
) -> dict[str, dict[str, Array]]:
    """Returns the integer constants of every node by path, and under the path of every grid its scale and zero point.

    Args:
        program: the integer form.
        specs: by grid.
        known: the values of parameters and constants.
        weights: by operation: the quantized weight, as the operation takes it.
        grids: scale and zero point by grid.
    """
    by_path: dict[str, dict[str, Array]] = {}
    for path, (scale, zero) in grids.items():
        by_path[path] = {"scale": scale, "zero": zero.astype(jnp.int32)}
    for node, _ in program.everywhere():
        if not node.outs or node.out not in program.grids:
            continue  # integers and predicates
        reads = [program.grids[v] for v in node.ins if v in program.grids]
        own = program.grids[node.out]
        given = Given(
            node, [specs[path] for path in reads], [grids[path] for path in reads], specs[own], *grids[own], known,
            weights.get(node.path),
        )  # fmt: skip
        if own_constants := kind_named(node.kind).constants(given):
            by_path.setdefault(node.path, {}).update(own_constants)
    return by_path
