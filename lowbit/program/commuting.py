"""What loops, sums, choices and products with constants do to channels: the rules of `lowbit.program.flow` by primitive."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from . import primitives
from .channels import Labels, compact, deeper
from .constants import full_value
from .flow import Flow, Rule, Use, is_zero
from .read import Equation, Loop, Value


def loop(flow: Flow, equation: Equation, lead: int) -> None:
    """A scan: what it carries has the channels that it starts with, in every turn and afterwards."""
    inside: Loop | None = equation.loop
    assert inside is not None
    why = flow.reason(equation, "carries it from turn to turn")
    outside = flow.lengths
    flow.lengths = (*outside[:lead], inside.length)
    for init, carry in zip(inside.inits, inside.carries, strict=True):
        if carry is not init:
            if not init.is_data:
                flow.see(init, why)
            flow.put(carry, deeper(flow.of(init, lead), lead, lead + 1), lead + 1)
    for value, part in zip(inside.xs, inside.slices, strict=True):
        if value.is_data:
            flow.put(part, flow.of(value, lead), lead + 1)
        else:
            flow.slices[part] = value, lead
            flow.depths[part] = lead + 1
    flow.run(inside.equations, [*inside.afters, *inside.ys], lead + 1)
    for carry, after in zip(inside.carries, inside.afters, strict=True):
        if carry is not after and after.is_data and carry.is_data:
            flow.channels.unify(flow.of(carry, lead + 1), flow.of(after, lead + 1), why)
        elif not after.is_data:
            flow.see(after, why)
    flow.lengths = outside
    for value, init in zip(equation.outs, inside.inits, strict=False):
        flow.put(value, flow.of(init, lead), lead)
    for value, part in zip(equation.outs[len(inside.inits) :], inside.ys, strict=True):
        if not part.is_data:
            flow.see(part, why)
        flow.put(value, flow.of(part, lead + 1), lead)


def elementwise(flow: Flow, equation: Equation, lead: int) -> Labels:
    """Sums, choices and comparisons: all that is not constant has the same channels; parameters are scaled with them."""
    name, out = equation.name, equation.outs[0]
    values = equation.ins[1:] if name == "select_n" else equation.ins
    for value in equation.ins[: len(equation.ins) - len(values)]:
        if not value.is_data:
            flow.see(value, flow.reason(equation, "chooses by it"))
    why = flow.reason(equation, "meets a value whose factor is another, or none")
    data = [v for v in values if v.is_data]
    if not data:
        for value in values:
            if not is_zero(value):
                flow.see(value, why)
        return np.zeros([1] * (lead + out.ndim), np.int64)
    labels = ranked(flow, data[0], out.ndim, lead)
    for value in data[1:]:
        other = ranked(flow, value, out.ndim, lead)
        flow.channels.unify(labels, other, why)
        labels = compact(np.maximum(*np.broadcast_arrays(labels, other)))  # the later: those of what comes right before
    for i, value in enumerate(equation.ins):
        if value not in values or value.is_data or is_zero(value):
            continue
        _taken(flow, equation, i, labels, lead)
    if name not in ("add", "sub", "add_any", "neg"):
        flow.positive.append(labels)
    return np.zeros([1] * (lead + out.ndim), np.int64) if name in _ANSWERS else labels


_ANSWERS = primitives.COMPARISONS | {"sign", "is_finite"}
"""Whose result is the same for a value and its positive multiples."""


def ranked(flow: Flow, value: Value, rank: int, lead: int) -> Labels:
    """Returns the channels of data as an operand of that rank: a single number stands for all elements."""
    labels = flow.of(value, lead)
    return labels if value.ndim == rank else labels.reshape([*labels.shape[:lead], *[1] * rank])


def _taken(flow: Flow, equation: Equation, operand: int, labels: Labels, lead: int) -> None:
    """A fixed value that is added to, or bounds, channels takes their factor, or they have none."""
    value = equation.ins[operand]
    is_bound = equation.name in ("max", "min", "clamp")
    use = Use(-1, "bound" if is_bound else "bias", equation, operand, labels, labels, made=(equation.outs[0], labels))
    if is_bound and flow.has_bounds and (known := full_value(value)) is not None and np.all(np.isfinite(known)):
        flow.uses.append(dataclasses.replace(use, leaf=-1 - len(flow.uses), takes=np.zeros_like(labels)))
        return
    if value.ndim != equation.outs[0].ndim:
        labels = flow.channels.along(
            labels, range(lead, labels.ndim), flow.reason(equation, "adds one number to all channels")
        )
        labels = labels.reshape([*labels.shape[:lead], *[1] * value.ndim])
    if flow.channels.is_free(labels):
        zeros = np.zeros([1] * labels.ndim, np.int64)
        text = flow.absorb(use, value, labels, zeros, lead)
        if text is None:
            return
        flow.channels.pin(labels, flow.reason(equation, f"reads a value that cannot be scaled with it: it {text}"))
    flow.see(value, flow.reason(equation, "reads it beside a value that is not scaled"))


def product(flow: Flow, equation: Equation, lead: int) -> Labels:
    """A product with what is constant hands channels on; where there are none, a parameter can make them."""
    a, b = equation.ins
    out = equation.outs[0]
    if a.is_data and b.is_data:
        left, right = (ranked(flow, v, out.ndim, lead) for v in (a, b))
        if a is b or equation.name == "div":
            flow.channels.pin(right, flow.reason(equation, "multiplies it by itself" if a is b else "divides by it"))
        elif flow.channels.is_free(left) and flow.channels.is_free(right):
            flow.channels.pin(left, flow.reason(equation, "multiplies two values that both could be scaled"))
        return right if flow.channels.is_free(right) else left
    data, fixed = (a, b) if a.is_data else (b, a)
    why = flow.reason(equation, "multiplies by it")
    labels = ranked(flow, data, out.ndim, lead)
    if equation.name == "div" and data is b:
        flow.channels.pin(labels, flow.reason(equation, "divides by it"))
        flow.see(fixed, why)
        return np.zeros_like(labels)
    if equation.name == "mul" and fixed.ndim == out.ndim and not fixed.is_written:
        if equation.address in flow.gains or not flow.channels.is_free(labels):
            spread = spread_axes(flow, fixed)
            given = flow.fresh(fixed, [i for i in range(out.ndim) if i not in spread], lead)
            use = Use(-1, "gain", equation, equation.ins.index(fixed), given, given, made=(out, given))
            if given.size > 1:
                text = flow.absorb(use, fixed, given, np.zeros([1] * given.ndim, np.int64), lead)
                if text is None:
                    flow.channels.pin(labels, flow.reason(equation, "meets a gain that is scaled instead"))
                    return given
                flow.channels.pin(given, flow.reason(equation, f"multiplies by a value that {text}"))
        else:
            flow.products.append((equation, labels))
    flow.see(fixed, why)
    return labels


def spread_axes(flow: Flow, value: Value) -> frozenset[int]:
    """Returns the axes that a fixed value does not vary along, because it was spread along them."""
    source = value.source
    if source is None:
        return frozenset(i for i, n in enumerate(value.shape) if n == 1)
    if source.name == "broadcast_in_dim":
        dims, inner = source.params["broadcast_dimensions"], source.ins[0]
        below = spread_axes(flow, inner)
        return frozenset(i for i in range(value.ndim) if i not in dims or dims.index(i) in below)
    if source.name in primitives.SAME | primitives.CASTS | primitives.ELEMENTWISE:
        parts = [spread_axes(flow, v) for v in source.ins if v.ndim == value.ndim]
        return frozenset.intersection(*parts) if parts else frozenset()
    if source.name in ("reshape", "squeeze"):
        outer = [i for i, n in enumerate(value.shape) if n != 1]
        below = spread_axes(flow, source.ins[0])
        inner_axes = [i for i, n in enumerate(source.ins[0].shape) if n != 1]
        if [value.shape[i] for i in outer] == [source.ins[0].shape[i] for i in inner_axes]:
            return frozenset(i for i in range(value.ndim) if value.shape[i] == 1) | {
                o for o, i in zip(outer, inner_axes, strict=True) if i in below
            }
    return frozenset(i for i, n in enumerate(value.shape) if n == 1)


COMMUTING: Mapping[str, Rule] = {
    "scan": loop,
    "mul": product,
    "div": product,
    **dict.fromkeys(("add", "sub", "add_any", "neg", "max", "min", "abs", "select_n", "clamp"), elementwise),
    **dict.fromkeys(_ANSWERS, elementwise),
}
"""By primitive; those of movements and products are in `lowbit.program.crossings`."""
