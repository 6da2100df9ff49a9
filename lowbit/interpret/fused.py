"""One call of an ordinary plan whose native products take in what follows them, with the gradient of the operations."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.core.meshes import explicit_mesh
from lowbit.packed.arena import Placed, array_of
from lowbit.packed.trees import QParams
from lowbit.program.read import read

from . import fuse
from .kernel_orders import TraceOf


def fused(trace_of: TraceOf, qparams: QParams, args: Any, kwargs: Any) -> Any:
    """Returns one call's result, what follows its products being inside their native calls: the same bits, and gradients.

    The derivative is that of the operations one by one, as `lowbit.interpret.derivative` has it.
    """
    count = len(jax.tree.leaves(qparams))
    flat, tree = jax.tree.flatten((qparams, args, kwargs))
    arenas = [x.arena for x in flat if isinstance(x, Placed)][:1]

    def one_by_one(*flat: Any) -> Any:
        return trace_of(*jax.tree.unflatten(tree, map(array_of, flat)), is_fused=False)

    def products(*flat: Any) -> Any:
        return trace_of(*jax.tree.unflatten(tree, flat), is_fused=True)

    apart = [x for x in flat if not isinstance(x, Placed)]
    if explicit_mesh(apart) is not None:  # every product's results are spread in their types again: none joins another
        return one_by_one(*flat)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, Placed) else x for x in flat]
    closed, out_shapes = jax.make_jaxpr(products, return_shape=True)(*shapes)
    program = read(closed, fixed=count)
    if not fuse.has_product(program):
        return one_by_one(*flat)
    out_tree = jax.tree.structure(out_shapes)
    # What nothing reads, such as the packed form of a prepared weight, is no argument: each costs time in every call.
    read_here = [i for i, v in enumerate(program.inputs) if v in program.readers or _is_key(flat[i])]
    avals = [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) if not _is_key(x) else None for x in shapes]
    passed = [i for i in read_here if not isinstance(flat[i], Placed)]

    def whole(given: Sequence[Any]) -> list[Any]:
        *others, arena = given if arenas else (*given, None)
        values: dict[int, Any] = dict(zip(passed, others, strict=True))
        values |= {i: dataclasses.replace(x, arena=arena) for i in read_here if isinstance(x := flat[i], Placed)}
        return [values[i] if i in values else jnp.zeros(a.shape, a.dtype) for i, a in enumerate(avals)]  # pyright: ignore[reportOptionalMemberAccess] (of keys, which are all read)

    @jax.custom_vjp
    def run(*given: Any) -> Any:
        return jax.tree.unflatten(out_tree, fuse.run(program, whole(given)))

    def forward(*given: Any) -> Any:
        return run(*given), given

    def backward(given: Any, gradient: Any) -> Any:
        moving = [i for i, x in enumerate(given) if jnp.issubdtype(x.dtype, jnp.inexact)]

        def of_moving(*values: Any) -> Any:
            now = dict(zip(moving, values, strict=True))
            return one_by_one(*whole([now.get(i, x) for i, x in enumerate(given)]))

        gradients = dict(zip(moving, jax.vjp(of_moving, *(given[i] for i in moving))[1](gradient), strict=True))
        return tuple(gradients.get(i) for i in range(len(given)))

    run.defvjp(forward, backward)
    return run(*(flat[i] for i in passed), *arenas)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.extended)
