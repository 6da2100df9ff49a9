"""What equations do to spaces that may be rotated: the rules of `lowbit.program.turns` by primitive."""

import math
from collections.abc import Mapping, Sequence

from . import primitives
from .axes import is_widened
from .channels import Reason
from .flow import is_zero
from .read import Equation
from .turns import EVEN, OTHER, Label, Rule, Turns


def _why(equation: Equation, text: str) -> Reason:
    return Reason(equation.name, equation.source, text)


def stopped(walk: Turns, equation: Equation) -> None:
    """Anything else stands in the way of all that it reads."""
    why = _why(equation, "does not commute with rotations")
    for value in equation.ins:
        if value.is_data:
            walk.pin(walk.of(value), why)
        else:
            walk.see(value, why)
    for value in equation.outs:
        walk.labels[value] = tuple(EVEN if n == 1 else OTHER for n in value.shape)


def _nonlinear(walk: Turns, equation: Equation) -> tuple[Label, ...]:
    """Elementwise: along an axis that all is one along, so is the result."""
    why = _why(equation, "is not linear")
    rank = equation.outs[0].ndim
    labels = [walk.of(v) for v in equation.ins if v.ndim == rank]
    for value in equation.ins:
        if not value.is_data:
            walk.see(value, why)
    if equation.name == "square" or (equation.name == "integer_pow" and equation.params["y"] == 2):
        return tuple(
            ("square", n) if kind == "space" else (kind, n) if kind == "even" else OTHER for kind, n in labels[0]
        )
    for each in labels:
        walk.pin(each, why)
    return tuple(EVEN if all(each[i] == EVEN for each in labels) else OTHER for i in range(rank))


def _summed(walk: Turns, equation: Equation) -> tuple[Label, ...]:
    why = _why(equation, "adds a value that is not rotated with it")
    rank = equation.outs[0].ndim
    values = list(equation.ins)
    labels: list[Label] = []
    for i in range(rank):
        common: Label | None = None
        for value in values:
            label = walk.of(value)[i] if value.ndim == rank else EVEN
            if not value.is_data and label == OTHER:
                continue
            if not value.is_data and is_zero(value):
                continue
            common = label if common is None else walk.unify(common, label, why)
        labels.append(OTHER if common is None else common)
    for value in values:
        if value.is_data or value.is_written:
            continue
        even = walk.of(value) if value.ndim == rank else ()
        varied = [i for i, label in enumerate(even) if label == OTHER]
        turned = [i for i in varied if labels[i][0] == "space"]
        for i in turned:
            walk.side(value, i, labels[i], "bias", _why(equation, "adds a value that is computed"))
        if any(labels[i][0] == "square" for i in varied):
            walk.pin(labels, why)
        if not turned:
            walk.see(value, why)
    for i, label in enumerate(labels):  # a written vector has no axis to rotate
        if label[0] == "space" and any(
            v.is_written and v.ndim == rank and walk.of(v)[i] == OTHER and not is_zero(v) for v in values
        ):
            walk.pin((label,), why)
    return tuple(labels)


def _multiplied(walk: Turns, equation: Equation) -> tuple[Label, ...]:
    why = _why(equation, "multiplies elements of a space by different numbers")
    a, b = equation.ins
    rank = equation.outs[0].ndim
    if a is b:
        return tuple(("square", n) if kind == "space" else EVEN if kind == "even" else OTHER for kind, n in walk.of(a))
    labels: list[Label] = []
    both = [walk.of(v) if v.ndim == rank else (EVEN,) * rank for v in (a, b)]
    for left, right in zip(*both, strict=True):
        if EVEN in (left, right) and not (equation.name == "div" and left == EVEN and right != EVEN):
            labels.append(right if left == EVEN else left)
        else:
            walk.pin((left, right), why)
            labels.append(OTHER)
    for value in (a, b):
        if not value.is_data:
            walk.see(value, why)
    return tuple(labels)


def _same(walk: Turns, equation: Equation) -> tuple[Label, ...] | None:
    if equation.name in primitives.CASTS and not is_widened(equation):
        return stopped(walk, equation)
    return walk.of(equation.ins[0])


def _moved(walk: Turns, equation: Equation) -> tuple[Label, ...] | None:
    labels, value, out = walk.of(equation.ins[0]), equation.ins[0], equation.outs[0]
    if equation.name == "transpose":
        return tuple(labels[i] for i in equation.params["permutation"])
    if equation.name == "broadcast_in_dim":
        dims = equation.params["broadcast_dimensions"]
        return tuple(
            EVEN if i not in dims or value.shape[dims.index(i)] != n else labels[dims.index(i)]
            for i, n in enumerate(out.shape)
        )
    return _reshaped(walk, labels, value.shape, out.shape, _why(equation, "cuts the axis in parts that are no heads"))


def _reshaped(
    walk: Turns, labels: Sequence[Label], old: Sequence[int], new: Sequence[int], why: Reason
) -> tuple[Label, ...]:
    """Heads cut out of an axis are rotated one by one; heads put side by side, too."""
    outs: list[Label] = [EVEN if n == 1 else OTHER for n in new]
    i = j = 0
    while i < len(old) and j < len(new):
        k, m, a, b = i + 1, j + 1, old[i], new[j]
        while a != b:
            if a < b:
                a, k = a * old[k], k + 1
            else:
                b, m = b * new[m], m + 1
        before = [x for x in range(i, k) if old[x] != 1]
        after = [y for y in range(j, m) if new[y] != 1]
        if len(before) == 1 and len(after) == 1:
            outs[after[0]] = labels[before[0]]
        elif len(before) == 1 and len(after) > 1 and labels[before[0]][0] == "space":
            root = walk.root(labels[before[0]][1])
            walk.size[root] = math.gcd(walk.size[root], new[after[-1]])
            outs[after[-1]] = labels[before[0]]
        elif len(after) == 1 and len(before) > 1 and labels[before[-1]][0] == "space":
            walk.pin([labels[x] for x in before[:-1]], why)
            root = walk.root(labels[before[-1]][1])
            walk.size[root] = math.gcd(walk.size[root], old[before[-1]])
            outs[after[0]] = labels[before[-1]]
        elif all(labels[x] == EVEN for x in range(i, k)):
            for y in after:
                outs[y] = EVEN
        else:
            walk.pin([labels[x] for x in before], why)
        i, j = k, m
    return tuple(outs)


def _reduced(walk: Turns, equation: Equation) -> tuple[Label, ...]:
    labels, axes = walk.of(equation.ins[0]), equation.params["axes"]
    for i in axes:
        if equation.name != "reduce_sum":
            walk.pin((labels[i],), _why(equation, "chooses elements by size"))
        elif labels[i][0] == "space":
            walk.with_mean.add(walk.root(labels[i][1]))
    rest = tuple(label for i, label in enumerate(labels) if i not in axes)
    if equation.name != "reduce_sum":
        walk.pin(rest, _why(equation, "chooses elements by size"))
        return tuple(EVEN if label == EVEN else OTHER for label in rest)
    return rest


def _cut(walk: Turns, equation: Equation) -> tuple[Label, ...]:
    value, out = equation.ins[0], equation.outs[0]
    if not value.is_data:
        return _table(walk, equation, dict(enumerate(range(out.ndim))))
    labels = walk.of(value)
    whole = [n == m for n, m in zip(value.shape, out.shape, strict=True)]
    walk.pin([x for x, w in zip(labels, whole, strict=True) if not w], _why(equation, "takes some of its elements"))
    return tuple(x if w or x == EVEN else OTHER for x, w in zip(labels, whole, strict=True))


def _table(walk: Turns, equation: Equation, places: Mapping[int, int]) -> tuple[Label, ...]:
    table, out = equation.ins[0], equation.outs[0]
    why = _why(equation, "picks of a table that is computed")
    labels: list[Label] = [EVEN if n == 1 else OTHER for n in out.shape]
    for axis, place in places.items():
        if equation.params["slice_sizes"][axis] == table.shape[axis] > 1:
            label = walk.fresh(table.shape[axis])
            if walk.side(table, axis, label, "maker", why):
                labels[place] = label
    for axis in set(range(table.ndim)) - {a for a, p in places.items() if labels[p][0] == "space"}:
        walk.keep(table, axis)
    return tuple(labels)


def _looked_up(walk: Turns, equation: Equation) -> tuple[Label, ...] | None:
    numbers, value = equation.params["dimension_numbers"], equation.ins[0]
    if value.is_data:
        return stopped(walk, equation)
    gone = {*numbers.collapsed_slice_dims, *getattr(numbers, "operand_batching_dims", ())}
    kept = [i for i in range(value.ndim) if i not in gone]
    return _table(walk, equation, dict(zip(kept, sorted(numbers.offset_dims), strict=True)))


def _dot(walk: Turns, equation: Equation) -> tuple[Label, ...]:
    contract, batch = equation.params["dimension_numbers"]
    ins, why = equation.ins, _why(equation, "contracts it with a weight that is computed")
    free = [[i for i in range(v.ndim) if i not in contract[k] and i not in batch[k]] for k, v in enumerate(ins)]
    labels = [walk.of(v) for v in ins]
    for i, j in zip(*batch, strict=True):
        walk.pin((labels[0][i], labels[1][j]), _why(equation, "pairs its elements, one by one"))
    outs: list[Label] = [EVEN if ins[0].shape[i] == 1 else OTHER for i in batch[0]]
    for k, value in enumerate(ins):
        for i in free[k]:
            label = labels[k][i]
            if not value.is_data and value.shape[i] > 1:
                label = walk.fresh(value.shape[i])
                label = label if walk.side(value, i, label, "maker", why) else OTHER
            outs.append(label if label[0] in ("space", "even") else OTHER)
            if label[0] == "square":
                walk.pin((label,), _why(equation, "multiplies squares"))
    for i, j in zip(*contract, strict=True):
        left, right = labels[0][i], labels[1][j]
        if ins[0].is_data and ins[1].is_data:
            if left[0] == right[0] == "space":
                walk.unify(left, right, why)
            else:
                walk.pin((left, right), _why(equation, "contracts it with what is not rotated"))
            continue
        at, axis, label = (1, j, left) if ins[0].is_data else (0, i, right)
        if label[0] == "space":
            walk.side(ins[at], axis, label, "taker", why)
        else:
            walk.keep(ins[at], axis)
            walk.pin((label,), _why(equation, "contracts squares"))
    return tuple(outs)


def _looped(walk: Turns, equation: Equation) -> None:
    loop = equation.loop
    assert loop is not None
    why = _why(equation, "carries it from turn to turn")
    for init, carry in zip(loop.inits, loop.carries, strict=True):
        if carry is not init:
            walk.labels[carry] = walk.of(init)
    for value, part in zip(loop.xs, loop.slices, strict=True):
        if value.is_data:
            walk.labels[part] = walk.of(value)[1:]
            walk.pin(walk.of(value)[:1], why)
        else:
            walk.slices[part] = value
    walk.run(loop.equations, [*loop.afters, *loop.ys])
    for carry, after in zip(loop.carries, loop.afters, strict=True):
        if carry is not after and carry.is_data:
            pairs = zip(walk.of(carry), walk.of(after), strict=True)
            for a, b in pairs:
                if a[0] == b[0] == "space":
                    walk.unify(a, b, why)
                elif a != b:
                    walk.pin((a, b), why)
    for value, init in zip(equation.outs, loop.inits, strict=False):
        walk.labels[value] = walk.of(init)
    for value, part in zip(equation.outs[len(loop.inits) :], loop.ys, strict=True):
        walk.labels[value] = (OTHER, *walk.of(part))


_UNARY = ("exp", "tanh", "logistic", "sqrt", "rsqrt", "square", "integer_pow", "max", "min", "abs", "pow", "log", "erf", "erf_inv",
          "erfc", "exp2", "expm1", "log1p", "sin", "cos", "clamp", "select_n", "reciprocal", "sign", "cbrt", *primitives.COMPARISONS)  # fmt: skip

TURNING: Mapping[str, Rule] = {
    **dict.fromkeys(primitives.SAME | primitives.VARYING | primitives.CASTS, _same),
    **dict.fromkeys(("transpose", "broadcast_in_dim", "reshape", "squeeze"), _moved),
    **dict.fromkeys(("add", "sub", "add_any", "neg"), _summed),
    **dict.fromkeys(("mul", "div"), _multiplied),
    **dict.fromkeys(_UNARY, _nonlinear),
    **dict.fromkeys(("reduce_sum", "reduce_max"), _reduced),
    **dict.fromkeys(("slice", "dynamic_slice"), _cut),
    "dot_general": _dot,
    "gather": _looked_up,
    "scan": _looped,
}
"""By primitive."""
