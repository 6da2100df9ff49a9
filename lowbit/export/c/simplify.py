"""Equal programs with fewer operations and constants. Integers wrap, so every rule is exact."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from lowbit.program import primitives

from . import types
from .graph import CProgram, Value, constant, stored_bits

_SAME = primitives.COPIES | primitives.CASTS | {"broadcast_in_dim", "reshape"}
_NEUTRAL = {"add": 0, "mul": 1, "or": 0, "xor": 0, "and": -1}
_SHIFTS = ("sub", "shift_left", "shift_right_arithmetic", "shift_right_logical")


def simplify(graph: CProgram) -> None:
    """Changes a graph in place.

    * a constant that is subtracted is added; two that are added are one;
    * adding 0, multiplying by 1 or 0, selecting by a constant, moving nothing, bounds that nothing reaches, comparisons
      with one answer: gone;
    * the 64-bit product in 32-bit pieces of `lowbit.interpret.integer.words.wide_product`: its high word is one
      ``mul_high``, which is one instruction where the multiplier is a constant.
    """
    same: dict[Value, Value] = {}

    def now(value: Value) -> Value:
        while value in same:
            value = same[value]
        return value

    for value in graph.values():
        value.ins = tuple(now(u) for u in value.ins)
        if value.is_leaf or value.name == "turn":
            continue
        _normalize(value)
        if (alias := _alias(value)) is not None:
            same[value] = alias
            continue
        if (product := _high_product(value)) is not None:
            value.become(product)
        bounds(value)  # in order, so that no chain of operations is walked twice
    graph.outputs = [now(v) for v in graph.outputs]
    for loop in {v.loop for v in graph.values() if v.loop is not None}:
        loop.inits, loop.afters, loop.ys = ([now(v) for v in group] for group in (loop.inits, loop.afters, loop.ys))


def _normalize(value: Value) -> None:
    name, ins = value.name, value.ins
    if name in ("mul", "and") and any(u.splat == 0 for u in ins):
        value.become(constant(np.broadcast_to(0, value.shape), value.dtype))
    if (known := _compared(value)) is not None:
        value.become(constant(np.broadcast_to(known, value.shape), value.dtype))
    if name == "add" and ins[0].array is not None:
        value.ins = ins = (ins[1], ins[0])
    if name == "sub" and ins[1].array is not None:
        value.name, value.ins = "add", (ins[0], constant(-_wide(ins[1]), value.dtype))
    if value.name == "add" and value.ins[1].array is not None and (inner := value.ins[0]).name == "add":
        x, first = inner.ins
        total = None if first.array is None else constant(_wide(first) + _wide(value.ins[1]), value.dtype)
        if total is not None and stored_bits(total.array) <= stored_bits(first.array) + stored_bits(value.ins[1].array):
            value.ins = (x, total)


_MIRRORED = {"gt": "lt", "ge": "le"}


def _compared(value: Value) -> bool | None:
    """The answer of a comparison that is the same for all elements; None where it is not known."""
    if value.name not in primitives.COMPARISONS:
        return None
    left, right = reversed(value.ins) if value.name in _MIRRORED else value.ins
    (low, high), (least, most) = bounds(left), bounds(right)
    name, is_same = _MIRRORED.get(value.name, value.name), left is right
    if name in ("eq", "ne"):
        if is_same or high < least or most < low:
            return is_same == (name == "eq")
        return None
    if is_same or high < least or (name == "le" and high <= least):
        return name == "le" or not is_same
    return False if most < low or (name == "lt" and most <= low) else None


def _wide(value: Value) -> np.ndarray:
    """The elements, in an unsigned dtype that wraps as the value's does."""
    assert value.array is not None
    return value.array.astype(np.uint64)


def _alias(value: Value) -> Value | None:
    """What a value is equal to."""
    same = None
    if value.name in _SAME or (value.name == "pad" and not any(any(c) for c in value.params["padding_config"])):
        same = value.ins[0]
    elif value.name in _NEUTRAL:
        same = next((x for x, y in _both(value, value.name) if y.splat == _NEUTRAL[value.name]), None)
    elif value.name in _SHIFTS and value.ins[1].splat == 0:
        same = value.ins[0]
    elif value.name in ("max", "min"):
        same = _inside(value)
    elif value.name == "select_n" and value.ins[0].splat is not None:
        same = value.ins[1 + value.ins[0].splat]
    is_same = same is not None and same.shape == value.shape and same.dtype == value.dtype
    return same if is_same else None


def _inside(value: Value) -> Value | None:
    """The operand that a bound never cuts."""
    for x, bound in _both(value, value.name):
        is_least, is_most = bounds(bound)[1] <= bounds(x)[0], bounds(bound)[0] >= bounds(x)[1]
        if bound.array is not None and (is_least if value.name == "max" else is_most):
            return x
    return None


def _both(value: Value, name: str) -> Iterator[tuple[Value, Value]]:
    """The operands of an operation that commutes, in both orders."""
    if value.name == name:
        yield value.ins[0], value.ins[1]
        yield value.ins[1], value.ins[0]


def _top_half(value: Value) -> Value | None:
    """``u`` of ``u >> 16``."""
    is_shift = value.name == "shift_right_arithmetic" and value.ins[1].splat == 16
    return value.ins[0] if is_shift else None


def _is_low_half(value: Value, u: Value) -> bool:
    """Whether a value is ``u & 0xffff``."""
    return any(a is u and b.splat == 0xFFFF for a, b in _both(value, "and"))


def _high_product(value: Value) -> Value | None:
    """The high word of ``u * q`` with a constant ``q``, where that is what a value computes by halves."""
    if value.dtype != jnp.int32:
        return None
    for left, last in _both(value, "add"):
        for product, other in _both(left, "add"):
            cross, middle = _top_half(last), _top_half(other)
            if cross is None or middle is None:
                continue
            for top, high in _both(product, "mul"):
                u = _top_half(top)
                if u is None or high.array is None or not _is_cross(cross, u, high, middle):
                    continue
                if (low := _low_factor(middle, u)) is not None and low.array is not None:
                    q = constant((_wide(high) << np.uint64(16)) | _wide(low), value.dtype)
                    return Value("mul_high", value.shape, value.dtype, (u, q))
    return None


def _is_cross(value: Value, u: Value, high: Value, middle: Value) -> bool:
    """Whether a value is ``(u & 0xffff) * high + (middle & 0xffff)``."""
    return any(
        _is_low_half(rest, middle) and any(_is_low_half(a, u) and _is_equal(b, high) for a, b in _both(product, "mul"))
        for product, rest in _both(value, "add")
    )


def _low_factor(value: Value, u: Value) -> Value | None:
    """``low`` of ``(u >> 16) * low + ((u & 0xffff) * low >>> 16)``, a constant of 16 bits without sign."""
    for product, carry in _both(value, "add"):
        if carry.name != "shift_right_logical" or carry.ins[1].splat != 16:
            continue
        for top, low in _both(product, "mul"):
            is_half = low.array is not None and low.array.min() >= 0 and low.array.max() <= 0xFFFF
            if not is_half or _top_half(top) is not u:
                continue
            if any(_is_low_half(a, u) and _is_equal(b, low) for a, b in _both(carry.ins[0], "mul")):
                return low
    return None


def _is_equal(a: Value, b: Value) -> bool:
    return a is b or (a.array is not None and b.array is not None and np.array_equal(a.array, b.array))


def is_within(value: Value, low: int, high: int) -> bool:
    """Returns whether every element is between two bounds."""
    least, most = bounds(value)
    return low <= least and most <= high


def bounds(value: Value) -> tuple[int, int]:
    """Returns numbers between which every element is, as far as the operations say."""
    if value.bounds is None:
        least, most = types.limits(value.dtype)
        low, high = _bounds(value) if value.array is None else (int(value.array.min()), int(value.array.max()))
        value.bounds = (low, high) if least <= low and high <= most else (least, most)  # it may have wrapped
    return value.bounds


def _bounds(value: Value) -> tuple[int, int]:
    known = [bounds(u) for u in value.ins]
    name = value.name
    if name in ("convert_element_type", "pad", "concatenate") or name in SPREADS:
        return min(low for low, _ in known), max(high for _, high in known)
    if name == "select_n":
        return min(low for low, _ in known[1:]), max(high for _, high in known[1:])
    if name == "add":
        return known[0][0] + known[1][0], known[0][1] + known[1][1]
    if name in ("mul", "mul_high"):
        products = [a * b >> (32 if name == "mul_high" else 0) for a in known[0] for b in known[1]]
        return min(products), max(products)
    if name in ("max", "min"):
        choose = max if name == "max" else min
        return choose(known[0][0], known[1][0]), choose(known[0][1], known[1][1])
    if name == "and" and any(low >= 0 for low, _ in known):
        return 0, min(high for low, high in known if low >= 0)
    if name == "or" and value.dtype != jnp.bool_ and all(low >= 0 for low, _ in known):
        return 0, 2 ** max(high.bit_length() for _, high in known) - 1
    if name == "shift_right_arithmetic" and known[1][0] >= 0:
        return min(known[0][0] >> min(k, 63) for k in known[1]), max(known[0][1] >> min(k, 63) for k in known[1])
    return types.limits(value.dtype)


SPREADS = primitives.SHAPED | {"copy", "slice", "turn"}
