"""How the input of an operation is read as rows of its weight's matrix, from what a row says of the two."""

import math

from lowbit.core.rows import ResultView, RowView, Window, order_of

from .geometry import Convolution, Dot
from .rows import Row, Site


def row_view(row: Row, index: int) -> RowView | None:
    """Returns how operand ``index`` is read as rows ``[matrix, row, K]``; None for a weight, and for what has no such form.

    No form have: indices of look-ups, layers or matrices in reversed order, an image that is a weight, a convolution with batch groups, an input whose weight is a
    part of its leaf along the contraction, and one whose weight data picked.
    """
    geometry, weight = row.geometry, next((i for i, site in enumerate(row.sites) if site.is_weight), None)
    if weight == index:
        return None
    if isinstance(geometry, Dot):
        contract, batch = geometry.contract[index], geometry.batch[index]
        if weight is None:  # two activations: what is batch and what are heads nobody says
            sizes = [row.sites[index].shape[i] for i in sorted(contract)]
            known = [n for n in sizes if n is not None]
            parts = tuple((n,) for n in known)
            return (
                RowView((), tuple(sorted(contract)), parts, (), tuple(range(len(parts))))
                if len(known) == len(sizes)
                else None
            )
        operand_parts = _parts(row.sites[weight], (*geometry.batch[weight], *geometry.contract[weight]))
        if operand_parts is None:
            return None
        parts, axes = operand_parts
        outer = sum(len(part) for part in parts[: len(batch)])
        flips = _flips(row.sites[weight], axes, outer)
        if flips is None:
            return None
        return RowView(
            tuple(batch), tuple(contract), parts, order_of(axes[:outer]), order_of(axes[outer:]), flipped=flips
        )
    if isinstance(geometry, Convolution) and weight == 1 and geometry.batch_groups == 1:
        site = row.sites[1]
        operand_parts, kernel = _parts(site, geometry.rhs_spec[1:]), [site.shape[i] for i in geometry.rhs_spec[2:]]
        if operand_parts is None or None in kernel:
            return None
        flips = _flips(site, operand_parts[1], 0)
        outputs = {axis for axis, _ in site.axes[geometry.rhs_spec[0]]} if site.axes else set()
        if flips is None or (geometry.feature_groups > 1 and outputs & set(site.flipped)):
            return None
        window = Window(
            geometry.lhs_spec,
            tuple(n for n in kernel if n is not None),
            geometry.strides,
            geometry.padding,
            geometry.lhs_dilation,
            geometry.rhs_dilation,
            geometry.feature_groups,
        )
        return RowView((), (), operand_parts[0], (), order_of(operand_parts[1]), window, flips)
    return None


def result_view(row: Row, index: int) -> ResultView | None:
    """Returns how the result is read beside the rows of operand ``index``; None where that has no rows."""
    view, geometry = row_view(row, index), row.geometry
    flipped = sum(len(site.flipped) for site in row.sites)
    if view is None or len(view.flipped) != flipped:  # columns in another order than the weight's
        return None
    if isinstance(geometry, Convolution):
        examples, channels, *places = geometry.out_spec
        return ResultView((), (examples, *places), (), (), channels, geometry.feature_groups)
    assert isinstance(geometry, Dot)
    paired = len(geometry.batch[0])
    left, right = (len(site.shape) - len(geometry.contract[i]) - paired for i, site in enumerate(row.sites))
    free = range(paired, paired + left) if index == 0 else range(paired + left, paired + left + right)
    if not view.batch:  # of two activations all that is paired is rows
        return ResultView((), (*range(paired), *free), (), ())
    return ResultView(tuple(range(paired)), tuple(free), view.parts[:paired], view.batch_order)


def _flips(site: Site, axes: tuple[int, ...], outer: int) -> tuple[int, ...] | None:
    """Which contracted axes of the leaf, the ones from ``outer``, are reversed; None where layers or matrices are."""
    if any(axis < site.operand.stack for axis in site.flipped) or set(site.flipped) & set(axes[:outer]):
        return None
    return tuple(i for i, axis in enumerate(axes[outer:]) if axis in site.flipped)


def _parts(site: Site, axes: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]] | None:
    """Of axes of a weight, as its operation has it: the lengths of the leaf's axes in each, and those axes."""
    lengths = [site.shape[i] for i in axes]
    if None in lengths:
        return None
    if not site.axes:  # computed: it has not moved since
        return tuple((n,) for n in lengths if n is not None), axes
    parts = tuple(tuple(n for _, n in site.axes[i]) for i in axes)
    leaf_axes = tuple(axis for i in axes for axis, _ in site.axes[i])
    is_whole = all(math.prod(part) == n for part, n in zip(parts, lengths, strict=True))
    is_plain = len(set(leaf_axes)) == len(leaf_axes) and all(axis >= 0 for axis in leaf_axes)
    whole = [site.operand.shape[axis] for axis in leaf_axes]
    return (parts, leaf_axes) if is_whole and is_plain and whole == [n for part in parts for n in part] else None
