"""What movements, sums, look-ups and products with weights do to channels: the rules of `lowbit.program.flow` by primitive."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import primitives
from .axes import is_widened
from .channels import Labels, concatenated, placed, reshaped, sliced, transposed, varying
from .flow import Flow, Rule, Use, is_zero
from .read import Equation, Value


def same(flow: Flow, equation: Equation, lead: int) -> Labels | None:
    """The same values; a cast to integers is not."""
    if equation.name in primitives.CASTS and not is_widened(equation):
        return flow.stop(equation, "rounds it", lead)
    return flow.of(equation.ins[0], lead)


def shaped(flow: Flow, equation: Equation, lead: int) -> Labels | None:
    """Movements of one value."""
    name, params, value, out = equation.name, equation.params, equation.ins[0], equation.outs[0]
    labels = flow.of(value, lead)
    if name == "transpose":
        return transposed(labels, lead, params["permutation"])
    if name == "rev":
        return np.flip(labels, tuple(lead + i for i in params["dimensions"]))
    if name == "broadcast_in_dim":
        return placed(labels, lead, params["broadcast_dimensions"], out.ndim)
    if params.get("dimensions") is not None and name == "reshape":
        return flow.stop(equation, "reshapes it in another order", lead)
    return reshaped(labels, lead, value.shape, out.shape)


def part(flow: Flow, equation: Equation, lead: int) -> Labels | None:
    """A part of one value; where an index says which, not along channels."""
    name, params, value, out = equation.name, equation.params, equation.ins[0], equation.outs[0]
    labels = flow.of(value, lead)
    if name == "slice":
        strides = params["strides"] or [1] * value.ndim
        cuts = [slice(*cut) for cut in zip(params["start_indices"], params["limit_indices"], strides, strict=True)]
        return sliced(labels, lead, cuts)
    if not value.is_data:
        return _picked(flow, equation, lead, dict(enumerate(range(out.ndim))))
    cut = [i for i in varying(labels, lead) if out.shape[i] != value.shape[i]]
    return flow.channels.along(labels, [lead + i for i in cut], flow.reason(equation, "picks channels by an index"))


def update(flow: Flow, equation: Equation, lead: int) -> Labels | None:
    """A value written into another: the same channels, which the index may not choose."""
    whole, new = equation.ins[:2]
    why = flow.reason(equation, "writes channels where an index says")
    cut = [i for i in range(whole.ndim) if whole.shape[i] != new.shape[i]]
    if not whole.is_data:
        if not is_zero(whole):
            flow.see(whole, why)
            return flow.stop(equation, "writes it into a constant", lead)
        return flow.channels.along(flow.of(new, lead), [lead + i for i in cut], why)
    if not new.is_data and not is_zero(new):
        return flow.stop(equation, "writes a constant into it", lead)
    first, second = flow.of(whole, lead), flow.of(new, lead)
    first = flow.channels.along(first, [lead + i for i in cut], why)
    if new.is_data:
        flow.channels.unify(first, second, why)
    return (
        first if first.size >= second.size else np.broadcast_to(second, np.broadcast_shapes(first.shape, second.shape))
    )


def joined(flow: Flow, equation: Equation, lead: int) -> Labels | None:
    """Values side by side; a constant among them has no factor, unless it is zero."""
    axis = equation.params["dimension"]
    parts = []
    for value in equation.ins:
        if value.is_data:
            parts.append(flow.of(value, lead))
        elif is_zero(value):
            parts.append(flow.channels.fresh([1] * (lead + value.ndim)))
        else:
            flow.see(value, flow.reason(equation, "stands beside it"))
            parts.append(np.zeros([1] * (lead + value.ndim), np.int64))
    lengths = [v.shape[axis] for v in equation.ins]
    if not flow.channels.is_free(np.concatenate([p.reshape(-1) for p in parts])):
        return np.zeros([1] * (lead + equation.outs[0].ndim), np.int64)
    return concatenated(parts, lead, axis, lengths)


def padded(flow: Flow, equation: Equation, lead: int) -> Labels | None:
    """Zeros around a value, whose channels may be any."""
    value, filler = equation.ins
    labels = flow.of(value, lead)
    config = equation.params["padding_config"]
    if filler.is_data or not is_zero(filler):
        return flow.stop(equation, "pads it with another value than zero", lead)
    for i, (low, high, inside) in enumerate(config):
        axis = lead + i
        if labels.shape[axis] == 1:
            continue
        if inside:
            return flow.stop(equation, "puts zeros between channels", lead)
        labels = np.take(labels, range(max(0, -low), labels.shape[axis] - max(0, -high)), axis)
        ends = [[*labels.shape[:axis], max(0, n), *labels.shape[axis + 1 :]] for n in (low, high)]
        labels = np.concatenate([flow.channels.fresh(ends[0]), labels, flow.channels.fresh(ends[1])], axis)
    return labels


def cut(flow: Flow, equation: Equation, lead: int) -> None:
    """The parts of a value."""
    axis, labels, start = equation.params["axis"], flow.of(equation.ins[0], lead), 0
    for value in equation.outs:
        cuts = [slice(start, start + n) if i == axis else slice(0, n) for i, n in enumerate(value.shape)]
        flow.put(value, sliced(labels, lead, cuts), lead)
        start += value.shape[axis]


def reduced(flow: Flow, equation: Equation, lead: int) -> Labels | None:
    """A sum, or a choice by size, along axes on which all is one channel."""
    value, name = equation.ins[0], equation.name
    axes = equation.params["axes"]
    labels = flow.of(value, lead)
    if any(labels.shape[lead + i] > 1 for i in axes):
        labels = _pinned(flow, equation, labels, "combines different channels")
    if name in ("argmax", "argmin"):
        flow.positive.append(labels)
        return np.zeros([1] * (lead + equation.outs[0].ndim), np.int64)
    if name != "reduce_sum":
        flow.positive.append(labels)
    return np.squeeze(labels, tuple(lead + i for i in axes))


def _pinned(flow: Flow, equation: Equation, labels: Labels, text: str) -> Labels:
    flow.channels.pin(labels, flow.reason(equation, text))
    return np.zeros([1] * labels.ndim, np.int64)


def windowed(flow: Flow, equation: Equation, lead: int) -> Labels | None:
    """The same in windows, or from the start on."""
    labels, params = flow.of(equation.ins[0], lead), equation.params
    if "window_dimensions" in params:
        axes = [i for i, n in enumerate(params["window_dimensions"]) if n > 1]
    else:
        axes = [params["axis"]]
    if any(labels.shape[lead + i] > 1 for i in axes):
        labels = _pinned(flow, equation, labels, "combines different channels")
    if "sum" not in equation.name:
        flow.positive.append(labels)
    return labels


def looked_up(flow: Flow, equation: Equation, lead: int) -> Labels | None:
    """Rows of a table have its channels; so have rows of data."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    value, out = equation.ins[0], equation.outs[0]
    gone = {*numbers.collapsed_slice_dims, *getattr(numbers, "operand_batching_dims", ())}
    kept = [i for i in range(value.ndim) if i not in gone]
    places = dict(zip(kept, sorted(numbers.offset_dims), strict=True))
    if not value.is_data:
        return _picked(flow, equation, lead, places)
    labels = flow.of(value, lead)
    free = [i for i in varying(labels, lead) if i in gone or sizes[i] != value.shape[i]]
    labels = flow.channels.along(labels, [lead + i for i in free], flow.reason(equation, "picks channels by an index"))
    return placed(labels, lead, [places.get(i) for i in range(value.ndim)], out.ndim)


def _picked(flow: Flow, equation: Equation, lead: int, places: Mapping[int, int]) -> Labels | None:
    """What an index picks of a table: its channels are those of the axes that are taken whole."""
    table, out = equation.ins[0], equation.outs[0]
    sizes = equation.params["slice_sizes"]
    whole = [i for i in places if sizes[i] == table.shape[i]]
    labels = flow.fresh(table, whole, lead)
    result = placed(labels, lead, [places.get(i) for i in range(table.ndim)], out.ndim)
    use = Use(-1, "table", equation, 0, labels, labels, made=(out, result))
    for value in equation.ins[1:]:
        if not value.is_data:
            flow.see(value, flow.reason(equation, "picks by it"))
    if (text := flow.absorb(use, table, labels, np.zeros([1] * labels.ndim, np.int64), lead)) is not None:
        why = flow.reason(equation, f"reads a table that {text}")
        flow.channels.pin(labels, why)
        flow.see(table, why)
    return result


def dot(flow: Flow, equation: Equation, lead: int) -> Labels | None:
    """A weight takes back the factors of the channels it contracts, and makes new ones."""
    contract, batch = equation.params["dimension_numbers"]
    free = [
        [i for i in range(v.ndim) if i not in contract[k] and i not in batch[k]] for k, v in enumerate(equation.ins)
    ]
    places = [[*batch[0], *free[0], *[None] * len(free[1])], [*batch[1], *[None] * len(free[0]), *free[1]]]
    where = [{axis: i for i, axis in enumerate(p) if axis is not None} for p in places]
    rank = equation.outs[0].ndim
    if all(v.is_data for v in equation.ins):
        return _between_data(flow, equation, contract, where, lead)
    at = 0 if equation.ins[0].is_data else 1
    data, weight = equation.ins[at], equation.ins[1 - at]
    labels = flow.of(data, lead)
    inside, outside = (
        [i for i in axes if labels.shape[lead + i] > 1] for axes in ((*contract[at], *batch[at]), free[at])
    )
    if outside and inside and flow.channels.is_free(labels):
        labels = _pinned(
            flow, equation, labels, "contracts some of the axes that channels differ along, and not others"
        )
    elif outside and flow.channels.is_free(labels):
        flow.see(weight, flow.reason(equation, "multiplies it"))
        return placed(labels, lead, [where[at].get(i) for i in range(data.ndim)], rank)
    elif outside:
        labels = np.zeros([1] * labels.ndim, np.int64)
    over: list[int | None] = [None] * data.ndim
    for k in range(len(contract[0])):
        over[contract[at][k]] = contract[1 - at][k]
    for k in range(len(batch[0])):
        over[batch[at][k]] = batch[1 - at][k]
    takes = placed(labels, lead, over, weight.ndim)
    makes = flow.fresh(weight, [*batch[1 - at], *free[1 - at]], lead)
    result = placed(makes, lead, [where[1 - at].get(i) for i in range(weight.ndim)], rank)
    return _weighed(flow, equation, 1 - at, makes, takes, (data, labels), result, lead)


def _weighed(
    flow: Flow,
    equation: Equation,
    operand: int,
    makes: Labels,
    takes: Labels,
    read: tuple[Value, Labels],
    result: Labels,
    lead: int,
) -> Labels:
    weight = equation.ins[operand]
    use = Use(-1, "weight", equation, operand, makes, takes, read, (equation.outs[0], result))
    text = flow.absorb(use, weight, makes, takes, lead)
    if text is not None:
        why = flow.reason(equation, f"has a weight that {text}")
        flow.channels.pin(makes, why)
        flow.channels.pin(takes, why)
        flow.see(weight, why)
    return result


def _between_data(
    flow: Flow, equation: Equation, contract: Any, where: Sequence[Mapping[int, int]], lead: int
) -> Labels:
    parts = []
    for k, value in enumerate(equation.ins):
        labels = flow.of(value, lead)
        if any(labels.shape[lead + i] > 1 for i in contract[k]) and flow.channels.is_free(labels):
            labels = _pinned(flow, equation, labels, "contracts channels of two values, neither of them a weight")
        for i in contract[k]:
            labels = np.take(labels, [0], lead + i)
        parts.append(placed(labels, lead, [where[k].get(i) for i in range(value.ndim)], equation.outs[0].ndim))
    left, right = parts
    if flow.channels.is_free(left) and flow.channels.is_free(right):
        flow.channels.pin(left, flow.reason(equation, "multiplies two values that both could be scaled"))
    return right if flow.channels.is_free(right) else left


def convolution(flow: Flow, equation: Equation, lead: int) -> Labels | None:
    """The same for a convolution: input channels are contracted, in groups of their own."""
    data, weight = equation.ins
    params = equation.params
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    if not data.is_data or weight.is_data or params["batch_group_count"] != 1:
        return flow.stop(equation, "convolves with data", lead)
    labels, channel = flow.of(data, lead), numbers.lhs_spec[1]
    if any(i != channel for i in varying(labels, lead)):
        labels = _pinned(flow, equation, labels, "adds over an axis along which channels differ")
    out_axis, in_axis = numbers.rhs_spec[:2]
    vector = labels.reshape([*labels.shape[:lead], -1])
    per_group = weight.shape[in_axis]
    shape = [1] * weight.ndim
    if vector.shape[-1] == 1:
        takes = vector.reshape([*vector.shape[:lead], *shape])
    elif groups == 1:
        shape[in_axis] = per_group
        takes = vector.reshape([*vector.shape[:lead], *shape])
    else:
        outputs = weight.shape[out_axis]
        pairs = np.repeat(vector.reshape([*vector.shape[:lead], groups, per_group]), outputs // groups, axis=lead)
        shape[0], shape[1] = outputs, per_group
        order = [0 if i == out_axis else 1 if i == in_axis else None for i in range(weight.ndim)]
        rest = iter(range(2, weight.ndim))
        full = pairs.reshape([*pairs.shape[:lead], *shape])
        takes = transposed(full, lead, [next(rest) if o is None else o for o in order])
    makes = flow.fresh(weight, [out_axis], lead)
    result = makes.reshape([*makes.shape[:lead], -1])
    final = [1] * equation.outs[0].ndim
    final[numbers.out_spec[1]] = result.shape[-1]
    result = result.reshape([*makes.shape[:lead], *final])
    return _weighed(flow, equation, 1, makes, takes, (data, labels), result, lead)


CROSSINGS: Mapping[str, Rule] = {
    **dict.fromkeys(primitives.SAME | primitives.VARYING | primitives.CASTS | {"reduce_precision"}, same),
    **dict.fromkeys(("transpose", "rev", "broadcast_in_dim", "reshape", "squeeze"), shaped),
    **dict.fromkeys(("slice", "dynamic_slice"), part),
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "argmax", "argmin"), reduced),
    **dict.fromkeys(
        ("reduce_window_sum", "reduce_window_max", "reduce_window_min", "cumsum", "cummax", "cummin"), windowed
    ),
    "concatenate": joined,
    "conv_general_dilated": convolution,
    "dot_general": dot,
    "dynamic_update_slice": update,
    "gather": looked_up,
    "pad": padded,
    "split": cut,
}
"""By primitive."""
