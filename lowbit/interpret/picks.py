"""Look-ups: parts of an array that indices pick. Which axes they pick from, and where the others go.

Every spelling becomes one of two primitives: `jnp.take`, ``table[i]`` and `jnp.take_along_axis` a gather or, for one scalar
index, a dynamic slice; `jax.vmap` of a dynamic slice is a gather whose windows keep the axes of length 1.
"""

from collections.abc import Sequence

from lowbit.program.eqn import Eqn

from . import moves


def picked_axes(eqn: Eqn, is_data: Sequence[bool]) -> tuple[int, ...]:
    """Returns the axes of the table that a look-up picks from.

    They are the same for one index and for many, and for a window as long as the table: where an index that is data could
    pick nothing else, its axis counts.

    Args:
        eqn: a gather or a dynamic slice.
        is_data: of every operand, whether it is data.
    """
    shape, sizes = eqn.invars[0].aval.shape, eqn.params["slice_sizes"]
    if eqn.primitive.name == "dynamic_slice":
        indexed = [i for i in range(len(shape)) if is_data[1 + i]]
        return tuple([i for i in indexed if sizes[i] < shape[i]] or indexed)
    numbers = eqn.params["dimension_numbers"]
    always = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    named = sorted(numbers.start_index_map)
    axes = [i for i, n in enumerate(shape) if i in always or (i in named and sizes[i] < n)]
    return tuple(axes or named[:1])


def offsets(eqn: Eqn) -> dict[int, int]:
    """Returns the axis of the result that every axis of the table becomes; one that an index replaces has none."""
    rank = len(eqn.invars[0].aval.shape)
    if eqn.primitive.name == "dynamic_slice":
        return {i: i for i in range(rank)}
    numbers = eqn.params["dimension_numbers"]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [i for i in range(rank) if i not in gone]
    return dict(zip(kept, (int(i) for i in numbers.offset_dims), strict=True))


def track(eqn: Eqn, axes: moves.Axes) -> moves.Axes | None:
    """Returns the axes of what is picked, or None where a scale cannot follow. Axes that count picks have numbers below 0."""
    out = eqn.outvars[0].aval.shape
    where = offsets(eqn)
    atoms_of: list[tuple[moves.Atom, ...]] = [((-1 - i, n),) if n != 1 else () for i, n in enumerate(out)]
    for source, target in where.items():
        atoms, n, whole = axes[source], out[target], eqn.invars[0].aval.shape[source]
        if n != whole and len(atoms) != 1:
            return None
        atoms_of[target] = atoms if n == whole else (((atoms[0][0], n),) if n != 1 else ())
    if eqn.primitive.name == "gather":
        numbers = eqn.params["dimension_numbers"]
        counting = [i for i in range(len(out)) if i not in where.values()]
        tables = dict(zip(numbers.start_indices_batching_dims, numbers.operand_batching_dims, strict=True))
        for position, target in enumerate(counting):
            if position in tables:
                atoms_of[target] = axes[tables[position]]
    return tuple(atoms_of)
