"""Movements: operations that change where a weight's elements are, not what they are.

A weight stays itself through casts, reshapes, transposes, slices and reversals. `track` follows its axes statically,
`move` applies the same operation to a `QTensor`: to its codes, its scale and its zero point together.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowbit.core.qtensor import QTensor
from lowbit.program import compat, primitives
from lowbit.program.eqn import Eqn

Atom = tuple[int, int]
"""(leaf axis, elements); a leaf axis cut in parts shows as several atoms."""
Axes = tuple[tuple[Atom, ...], ...]
"""Which leaf axes make up every axis of a moved weight."""

Cuts = tuple[tuple[int, int, int], ...]
"""(leaf axis, first element, elements), of leaf axes that slices have cut."""

_SAME, _VARYING = primitives.SAME, primitives.VARYING

CUTTING = ("rev", "slice", "dynamic_slice")
"""Movements after which some elements of an axis are gone, or in another order: the others only permute and merge axes."""

NAMES = _SAME | _VARYING | primitives.CASTS | primitives.SHAPED | set(CUTTING)
"""Primitives that move elements of one operand and compute nothing, whether or not a scale can follow."""


class MoveError(ValueError):
    """A scale cannot follow its codes through a movement."""


def leaf_axes(shape: Sequence[int]) -> Axes:
    """Returns the axes of a leaf that has not moved."""
    return tuple(((i, n),) if n != 1 else () for i, n in enumerate(shape))


def track(eqn: Eqn, axes: Axes) -> Axes | None:
    """Returns the axes after ``eqn``, or None where it is not a movement that a scale can follow."""
    name, params = eqn.primitive.name, eqn.params
    if len(eqn.outvars) != 1:  # a scan whose results are all known has none
        return None
    shape = eqn.invars[0].aval.shape
    out = eqn.outvars[0].aval.shape
    if name in _SAME or name in _VARYING:
        return axes if len(eqn.invars) == 1 else None
    if name == "convert_element_type":
        return axes if jnp.issubdtype(params["new_dtype"], jnp.floating) else None
    if name == "transpose":
        return tuple(axes[i] for i in params["permutation"])
    if name == "squeeze":
        return tuple(a for i, a in enumerate(axes) if i not in params["dimensions"])
    if name == "reshape":
        return None if params.get("dimensions") is not None else _regroup(axes, out)
    if name == "broadcast_in_dim":
        return _regroup(axes, out) if math.prod(out) == math.prod(shape) else None
    if name == "rev":
        return axes
    if name in ("slice", "dynamic_slice"):
        if name == "slice" and params.get("strides") is not None and any(s != 1 for s in params["strides"]):
            return None
        cut = []
        for atoms, n in zip(axes, out, strict=True):
            if n == math.prod(m for _, m in atoms):
                cut.append(atoms)
            elif len(atoms) == 1:
                cut.append(((atoms[0][0], n),) if n != 1 else ())
            else:
                return None
        return tuple(cut)
    return None


def flipped(eqn: Eqn, axes: Axes, before: frozenset[int]) -> frozenset[int]:
    """Returns the leaf axes whose elements are in reversed order after a movement; ``axes`` are those after it."""
    if eqn.primitive.name != "rev":
        return before
    return before ^ frozenset(axis for i in eqn.params["dimensions"] for axis, _ in axes[i])


def cuts(eqn: Eqn, axes: Axes, before: Cuts, reversed_axes: frozenset[int]) -> Cuts:
    """Returns what is left of leaf axes that are cut, after a movement; ``axes`` are those before it.

    An axis of which several parts are cut, or that is in reversed order, is left out: nothing is said of it.

    Example:
        >>> closed = jax.make_jaxpr(lambda w: w[2])(jnp.zeros((3, 4, 5)))
        >>> cuts(closed.eqns[0], leaf_axes((3, 4, 5)), (), frozenset())
        ((0, 2, 1),)
    """
    if eqn.primitive.name != "slice":
        return before
    known = {axis: (start, count) for axis, start, count in before}
    atoms = [axis for group in axes for axis, _ in group]
    for group, first, n, whole in zip(
        axes, eqn.params["start_indices"], eqn.outvars[0].aval.shape, eqn.invars[0].aval.shape, strict=True
    ):
        if n != whole:
            axis = group[0][0]
            known[axis] = known.get(axis, (0, whole))[0] + int(first), int(n)
            if atoms.count(axis) > 1 or axis in reversed_axes:
                del known[axis]
    return tuple(sorted((axis, *cut) for axis, cut in known.items()))


def along_layers(eqn: Eqn, layers: int, others: Sequence[Any]) -> Callable[[Any], Any] | None:
    """Returns what a movement does to the first axes of any array, which count layers; None where it moves others as well.

    Args:
        eqn: a movement.
        layers: how many axes count layers.
        others: operands after the first: where a dynamic slice begins.
    """
    name, params, shape = eqn.primitive.name, eqn.params, eqn.invars[0].aval.shape
    out = eqn.outvars[0].aval.shape
    if name in ("slice", "dynamic_slice") and out[layers:] == shape[layers:] and params.get("strides") is None:
        starts = others[:layers] if name == "dynamic_slice" else params["start_indices"][:layers]

        def cut(x: Any) -> Any:
            rest = [0] * (x.ndim - layers)
            return lax.dynamic_slice(x, [*starts, *rest], [*out[:layers], *x.shape[layers:]])

        return cut
    gone = len(shape) - len(out)
    if 0 < gone <= layers and out == shape[gone:] and shape[:gone] == (1,) * gone and name in ("squeeze", "reshape"):
        return lambda x: x.reshape(x.shape[gone:])
    return None


def _regroup(axes: Axes, shape: Sequence[int]) -> Axes | None:
    atoms = [atom for group in axes for atom in group]
    out, position = [], 0
    for n in shape:
        group, size = [], 1
        while size < n:
            if position == len(atoms):
                return None
            axis, length = atoms[position]
            if size * length <= n:
                group.append((axis, length))
                size *= length
                position += 1
            elif length % (n // size) == 0 and n % size == 0:
                group.append((axis, n // size))
                atoms[position] = (axis, length // (n // size))
                size = n
            else:
                return None
        if size != n:
            return None
        out.append(tuple(group))
    return tuple(out) if position == len(atoms) else None


def move(eqn: Eqn, q: QTensor, others: Sequence[Any] = ()) -> QTensor:
    """Returns ``q`` moved by ``eqn``; ``others`` are the values of its further operands (indices of dynamic slices).

    Raises:
        MoveError: where groups do not line up with the movement.
    """
    name, params = eqn.primitive.name, eqn.params
    if name == "stop_gradient":
        return jax.tree.map(lax.stop_gradient, q)
    if name in _SAME:
        return q
    if name in _VARYING:
        return jax.tree.map(lambda x: compat.rebind(eqn, [x])[0], q)
    if name == "convert_element_type":
        return dataclasses.replace(q, dtype=str(jnp.dtype(params["new_dtype"])))
    q = q.merged()  # integers of groups move as what they make of the levels
    if name == "transpose":
        order = params["permutation"]
        return _mapped(q, lambda x: jnp.transpose(x, order), [q.blocks[i] for i in order])
    if name in ("squeeze", "reshape", "broadcast_in_dim"):
        return _reshaped(q, tuple(eqn.outvars[0].aval.shape))
    if name == "rev":
        return _reversed(q, params["dimensions"])
    if name == "slice":
        return _sliced(q, params["start_indices"], list(eqn.outvars[0].aval.shape), static=True)
    if name == "dynamic_slice":
        return _sliced(q, list(others), list(params["slice_sizes"]), static=False)
    raise MoveError(f"{name} does not move a weight")


def _mapped(q: QTensor, function: Any, blocks: Sequence[int]) -> QTensor:
    codes = function(q.codes)
    rank = codes.ndim
    groups = tuple((i - rank, b) for i, (n, b) in enumerate(zip(codes.shape, blocks, strict=True)) if 1 < b < n)
    zero = None if q.zero is None else function(q.zero)
    return dataclasses.replace(q, codes=codes, scale=function(q.scale_values), zero=zero, groups=groups)


def _reshaped(q: QTensor, shape: tuple[int, ...]) -> QTensor:
    old, scale, blocks = q.shape, q.scale_values.shape, q.blocks
    new_scale: list[int] = []
    new_blocks: list[int] = []
    for old_dims, new_dims in _segments(old, shape):
        sizes = [scale[i] for i in old_dims]
        dims = [old[i] for i in old_dims]
        target = [shape[i] for i in new_dims]
        if all(s == 1 for s in sizes):
            new_scale += [1] * len(target)
            new_blocks += target
        elif all(s == n for s, n in zip(sizes, dims, strict=True)):
            new_scale += target
            new_blocks += [1] * len(target)
        elif [n for n in dims if n != 1] == [n for n in target if n != 1] and sum(n != 1 for n in dims) == 1:
            (at,) = (i for i in old_dims if old[i] != 1)
            new_scale += [scale[at] if n != 1 else 1 for n in target]
            new_blocks += [blocks[at] if n != 1 else 1 for n in target]
        else:
            block = blocks[old_dims[-1]]
            inner_ok = all(scale[i] == old[i] for i in old_dims[:-1]) and old[old_dims[-1]] % block == 0
            real = [i for i, n in enumerate(target) if n != 1]
            if inner_ok and real and target[real[-1]] % block == 0:
                for i, n in enumerate(target):
                    new_scale.append(n // block if i == real[-1] else n)
                    new_blocks.append(block if i == real[-1] else 1)
            else:
                raise MoveError(
                    f"groups of {block} do not line up with the reshape {old} -> {shape}: choose a group that divides "
                    f"the axes, or /channel"
                )
    codes = q.codes.reshape(shape)
    rank = len(shape)
    groups = tuple((i - rank, b) for i, (n, b) in enumerate(zip(shape, new_blocks, strict=True)) if 1 < b < n)
    zero = None if q.zero is None else q.zero.reshape(new_scale)
    return dataclasses.replace(q, codes=codes, scale=q.scale_values.reshape(new_scale), zero=zero, groups=groups)


def _segments(old: Sequence[int], new: Sequence[int]):
    """Yields the smallest runs of axes of ``old`` and ``new`` that hold the same elements."""
    i = j = 0
    while i < len(old) or j < len(new):
        a, b = [], []
        size_a = size_b = 1
        if i < len(old):
            a, size_a, i = [i], old[i], i + 1
        if j < len(new):
            b, size_b, j = [j], new[j], j + 1
        while size_a != size_b:
            if size_a < size_b:
                a.append(i)
                size_a *= old[i]
                i += 1
            else:
                b.append(j)
                size_b *= new[j]
                j += 1
        if i == len(old) or j == len(new):
            a += range(i, len(old))
            b += range(j, len(new))
            i, j = len(old), len(new)
        yield a, b


def _reversed(q: QTensor, dimensions: Sequence[int]) -> QTensor:
    for axis in dimensions:
        block = q.blocks[axis]
        if 1 < block < q.shape[axis] and q.shape[axis] % block:
            raise MoveError(f"groups of {block} do not line up with a reversal of an axis of {q.shape[axis]}")
    return _mapped(q, lambda x: lax.rev(x, dimensions), q.blocks)


def _sliced(q: QTensor, starts: Sequence[Any], sizes: Sequence[int], *, static: bool) -> QTensor:
    scale_starts, scale_sizes, blocks = [], [], []
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        n, block = q.shape[axis], q.blocks[axis]
        if size == n or block >= n:
            scale_starts.append(0 if static else jnp.zeros_like(start))
            scale_sizes.append(q.scale_values.shape[axis])
            blocks.append(min(block, size))
        elif block == 1:
            scale_starts.append(start)
            scale_sizes.append(size)
            blocks.append(1)
        elif static and start % block == 0 and (size % block == 0 or start + size == n):
            scale_starts.append(start // block)
            scale_sizes.append(-(-size // block))
            blocks.append(min(block, size))
        else:
            raise MoveError(f"groups of {block} do not line up with a slice of {size} out of {n} on axis {axis}")

    def cut(x, at, size):
        if static:
            return lax.slice(x, at, [a + s for a, s in zip(at, size, strict=True)])
        return lax.dynamic_slice(x, at, size)

    scale = cut(q.scale_values, scale_starts, scale_sizes)
    zero = None if q.zero is None else cut(q.zero, scale_starts, scale_sizes)
    codes = cut(q.codes, starts, sizes)
    rank = codes.ndim
    groups = tuple((i - rank, b) for i, (n, b) in enumerate(zip(codes.shape, blocks, strict=True)) if 1 < b < n)
    return dataclasses.replace(q, codes=codes, scale=scale, zero=zero, groups=groups)
