"""Explicit meshes: arrays whose types say how they are spread over devices.

There jax refuses a reshape or a slice whose sharding it cannot tell, and the arithmetic of groups is full of them. What
lowbit computes inside one operation is nobody's type: it runs with the explicit axes made automatic, and only its results
get a sharding in their type again.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec


def explicit_mesh(arrays: Any) -> AbstractMesh | None:
    """Returns the mesh of the first array that has explicit axes in its type; None where there is none.

    Args:
        arrays: a tree of arrays, or of avals.
    """
    for x in jax.tree.leaves(arrays):
        mesh = getattr(getattr(_type_of(x), "sharding", None), "mesh", None)
        if mesh is not None and AxisType.Explicit in mesh.axis_types:
            return mesh
    return None


def automatic(function: Callable[..., Any], *operands: Any, like: Any = None) -> Any:
    """Returns ``function(*operands)``, computed with explicit mesh axes made automatic: on no explicit mesh, just the call.

    Inside another such call the axes are automatic already: operands from outside it come in, and results stay.

    Args:
        function: of trees of arrays; it closes over none that lies on the mesh.
        operands: its arguments.
        like: an array or aval: results of its rank are spread as it is, along every axis that divides; all others, and
            all where it is None, are the same on every device. A tuple or list: of the parts of a result that is one.
    """
    mesh = explicit_mesh((operands, like))
    if mesh is None:
        return function(*operands)
    around = jax.sharding.get_abstract_mesh()
    if not around.empty and AxisType.Explicit not in around.axis_types:
        return function(*_replicated(operands))
    explicit = [name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit]
    inside = mesh.update_axis_types(dict.fromkeys(explicit, AxisType.Auto))
    with jax.sharding.use_abstract_mesh(inside):
        results = function(*_replicated(operands))
    return _spread(mesh, results, like)


def _replicated(operands: Any) -> Any:
    return jax.tree.map(lambda x: jax.sharding.reshard(x, PartitionSpec()), operands)


def _spread(mesh: AbstractMesh, made: Any, like: Any) -> Any:
    if isinstance(like, (tuple, list)):
        parts = [_spread(mesh, part, each) for part, each in zip(made, like, strict=True)]
        return tuple(parts) if isinstance(made, tuple) else parts
    return jax.tree.map(lambda x: jax.sharding.reshard(x, NamedSharding(mesh, _spec(mesh, x, like))), made)


def _type_of(x: Any) -> Any:
    return jax.typeof(x) if isinstance(x, jax.Array) else x


def _spec(mesh: AbstractMesh, x: jax.Array, like: Any) -> PartitionSpec:
    """How ``like`` is spread, where the axes of ``x`` can be."""
    if like is None or x.ndim != like.ndim:
        return PartitionSpec()
    names: Sequence[Any] = _type_of(like).sharding.spec
    return PartitionSpec(
        *(name if n % _count(mesh, name) == 0 else None for n, name in zip(x.shape, names, strict=False))
    )


def _count(mesh: AbstractMesh, name: Any) -> int:
    """Over how many devices an entry of a spec spreads an axis."""
    sizes = dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))
    count = 1
    for each in name if isinstance(name, tuple) else () if name is None else (name,):
        count *= sizes[each]
    return count
