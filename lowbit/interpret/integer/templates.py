"""Softmax and normalizations, found by what they compute: their normal form, not how they are written.

From every sum along one axis, `find` looks on for a result and back for an input such that, with the input as the one
leaf of `lowbit.program.canonical.View`, the result is

* softmax: ``exp(x) / sum exp(x)``, where a mask may multiply both;
* a norm: ``c / sqrt(a * mean(c^2) + epsilon)`` times constants, ``c`` being ``x`` or ``x - mean(x)``.

What the integer arithmetic gets is the input in the axes of the result. Where the equations read it in other axes, as
under `jax.vmap`, movements between the two are added; the equations themselves stay as they were traced.
"""

import dataclasses
import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from lowbit.program import primitives, read
from lowbit.program.axes import Labels, rooted, stripped
from lowbit.program.canonical import ONE, Atom, NotSeen, Polynomial, View
from lowbit.program.constants import is_integral
from lowbit.program.cuts import Cuts
from lowbit.program.read import Equation, Value

from .masks import Mask, kept, mask_of, moved

Readers = Mapping[Value, Sequence[Equation | None]]

_FORWARD = 28
"""Equations that are looked at after a sum: a norm has some dozen."""
_BACKWARD = 8
"""Equations between a sum and its input: a softmax has three."""
_NEAR = 1e-5
_ENDS = ("div", "mul", "exp", "select_n")
_THROUGH = (
    primitives.ELEMENTWISE | primitives.SAME | primitives.CASTS | primitives.SHAPED | {"reduce_sum", "reduce_max"}
)


@dataclasses.dataclass(frozen=True)
class Match:
    """A template found in a program.

    Attributes:
        kind: ``softmax`` or ``norm``.
        x: what it reads.
        axis: along which.
        equations: its equations, in order; the last makes the result.
        before: movements that make ``x`` of what the program has.
        is_centered: whether the mean is subtracted (a norm).
        epsilon: of a norm.
        gain: a product with constants inside a norm, or None.
        kept: of a masked softmax: where it reads ``x``.
        integers: what the equations read that is data and computed of integers alone: masks.
    """

    kind: str
    x: Value
    axis: int
    equations: tuple[Equation, ...]
    before: tuple[Equation, ...] = ()
    is_centered: bool = False
    epsilon: Value | None = None
    gain: tuple[Equation, Value] | None = None
    kept: Value | None = None
    integers: tuple[Value, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Form:
    """What a result is, before the equations are looked at."""

    kind: str
    axis: int
    is_centered: bool = False
    epsilon: float | Value = 0.0
    gain: tuple[float, tuple[Value, ...]] = (1.0, ())
    masks: tuple[Mask, ...] = ()
    rate: float = 1.0


def find(equations: Sequence[Equation], order: Mapping[Equation, int], readers: Readers) -> dict[Equation, Match]:
    """Returns the templates in a list of equations, by the equation that makes the result.

    Args:
        equations: of the program, or of the body of a loop.
        order: of all equations.
        readers: who reads each value.

    Raises:
        ValueError: for a constant in front of a softmax that masks and biases at once.
    """
    by_root: dict[Equation, Match] = {}
    inside: set[Equation] = set()
    cuts = Cuts(order)
    for equation in equations:
        if equation.name != "reduce_sum" or not equation.is_data or equation in inside:
            continue
        if not jnp.issubdtype(equation.outs[0].dtype, jnp.floating):
            continue
        template = _from(equation, order, readers, cuts)
        if template is not None:
            by_root[template.equations[-1]] = template
            inside.update(template.equations)
    return by_root


def _from(total: Equation, order: Mapping[Equation, int], readers: Readers, cuts: Cuts) -> Match | None:
    (x,), axes = total.ins, total.params["axes"]
    longer = [i for i in axes if x.shape[i] > 1]
    if len(longer) > 1 or (not longer and len(axes) != 1):
        return None
    through = cuts.of(x)
    leaves = [leaf for leaf in _leaves(x) if through is None or leaf in through]
    for root in _ends(total, order, readers):
        later = []
        for leaf in leaves:
            view = View(leaf, has_ones=not longer)
            try:
                seen = view.of(root.outs[0], rooted(root.outs[0], has_ones=not longer))
            except NotSeen:
                continue
            form = _softmax(view, seen, root) or _norm(view, seen, root)
            if form is not None and form.rate != 1:
                later.append((view, form))
            elif form is not None and (template := _match(view, form, root, order, readers)) is not None:
                return template
        for view, form in later:
            if (template := _match(view, form, root, order, readers)) is not None:
                return template
    return None


def _ends(total: Equation, order: Mapping[Equation, int], readers: Readers) -> Iterator[Equation]:
    """What may be the last equation, in program order."""
    todo = [(order[total], total)]
    seen = {total}
    for _ in range(_FORWARD):
        if not todo:
            return
        _, equation = heapq.heappop(todo)
        out = equation.outs[0]
        if equation.name in _ENDS and jnp.issubdtype(out.dtype, jnp.floating):
            yield equation
        for reader in readers.get(out, ()):
            if reader is not None and reader not in seen and reader.name in _THROUGH and reader.scope is total.scope:
                seen.add(reader)
                heapq.heappush(todo, (order[reader], reader))


def _leaves(x: Value) -> list[Value]:
    """What the sum may be of, the farthest first."""
    counts: dict[Value, int] = {}
    todo = [(x, 0)]
    while todo:
        value, depth = todo.pop()
        value, _ = stripped(value, rooted(value))
        if not value.is_data or counts.get(value, -1) >= depth:
            continue
        counts[value] = depth
        source = value.source
        if source is not None and source.name in primitives.ELEMENTWISE and depth < _BACKWARD:
            todo += [(v, depth + 1) for v in source.ins if jnp.issubdtype(v.dtype, jnp.floating)]
    return sorted(counts, key=lambda v: -counts[v])


def _axis(view: View, summed: Atom, here: Atom) -> int | None:
    """The axis of the root that a sum is along: where the leaf inside it has another label than outside."""
    bound, inside, _ = summed.content
    labels = {view.atoms[a].content[1] for a, _ in _spelled(view, inside) if view.atoms[a].kind == "leaf"}
    if len(labels) != 1:
        return None
    changed = [b for a, b in zip(labels.pop(), here.content[1], strict=True) if a != b and a == bound]
    return changed[0] if len(changed) == 1 and isinstance(changed[0], int) else None


def _spelled(view: View, term: Any) -> list[tuple[int, float]]:
    """A term with the products inside its exponentials."""
    factors = []
    for a, e in term:
        factors += list(view.atoms[a].content) if view.atoms[a].kind == "exp" else [(a, e)]
    return factors


def _leaf_at_root(view: View, root: Equation, term: Any) -> Atom | None:
    """The leaf as the root reads it, if a term is nothing else: with every axis of the root, once."""
    ((number, power),) = term if len(term) == 1 else ((-1, 0.0),)
    if power != 1 or view.atoms[number].kind != "leaf":
        return None
    wanted = {label for label in rooted(root.outs[0], has_ones=view.has_ones) if label is not None}
    labels = [label for label in view.atoms[number].content[1] if label is not None]
    return view.atoms[number] if sorted(labels, key=str) == sorted(wanted, key=str) else None


def _softmax(view: View, seen: Polynomial, root: Equation) -> _Form | None:
    """``exp(rate x) masks / sum exp(rate x) masks``."""
    if len(seen) != 1:
        return None
    ((term, c),) = seen.items()
    totals = [view.atoms[a] for a, e in term if view.atoms[a].kind == "sum" and e == -1]
    outside = frozenset((a, e) for a, e in term if view.atoms[a].kind != "sum")
    powers = [(at, e) for a, e in outside if (at := _leaf_at_root(view, root, _exponent(view, a))) is not None]
    if not math.isclose(c, 1.0, rel_tol=_NEAR) or len(totals) != 1 or len(powers) != 1 or len(term) != len(outside) + 1:
        return None
    (here, rate), (bound, inside, _) = powers[0], totals[0].content
    axis = _axis(view, totals[0], here)
    if axis is None or rate <= 0 or not _is_same(view, inside, outside, bound, axis):
        return None
    masks = []
    for a, e in outside:
        if (mask := _mask(view, a, e, root)) is not None:
            masks.append(mask)
        elif _leaf_at_root(view, root, _exponent(view, a)) is None:
            return None
    return _Form("softmax", axis, masks=tuple(masks), rate=1.0 if math.isclose(rate, 1.0, rel_tol=_NEAR) else rate)


def _mask(view: View, a: int, e: float, root: Equation) -> Mask | None:
    inner = _exponent(view, a)
    ((number, power),) = inner if len(inner) == 1 else ((-1, 0.0),)
    try:
        return mask_of(view.atoms[a], e, view.atoms[number] if power == 1 else None)
    except ValueError as error:
        raise ValueError(f"integer=True: {root.source}: {error}") from None


def _exponent(view: View, a: int) -> Any:
    """What an exponential is of; nothing of other atoms."""
    return view.atoms[a].content if view.atoms[a].kind == "exp" else frozenset()


def _is_same(view: View, inside: Any, outside: Any, bound: str, axis: int) -> bool:
    """Whether what is summed is what the sum divides, along another axis."""

    def key(a: int, e: float) -> Any:
        atom = view.atoms[a]
        if atom.kind == "exp":
            return "exp", frozenset(key(*part) for part in atom.content), round(e, 9)
        if atom.kind in ("leaf", "constant", "integral", "where"):
            value, labels, *rest = atom.content
            return atom.kind, value, tuple(axis if label == bound else label for label in labels), *rest
        return a, e

    return {key(a, e) for a, e in inside} == {key(a, e) for a, e in outside}


def _norm(view: View, seen: Polynomial, root: Equation) -> _Form | None:
    common = frozenset.intersection(*seen) if seen else frozenset()
    spreads = [(view.atoms[a], a) for a, e in common if e == -0.5 and view.atoms[a].kind in ("root", "sum")]
    if len(spreads) != 1 or len(seen) > 2:
        return None
    spread, number = spreads[0]
    gains = [(a, e) for a, e in common if view.atoms[a].kind == "constant"]
    rest = {term - {(number, -0.5), *gains}: c for term, c in seen.items()}
    leaves = [(at, c) for term, c in rest.items() if (at := _leaf_at_root(view, root, term)) is not None]
    if len(leaves) != 1 or any(e != 1 or view.atoms[a].value is None for a, e in gains):
        return None
    (here, beta), means = leaves[0], {t: c for t, c in rest.items() if _leaf_at_root(view, root, t) is None}
    inside = view.polynomial(number) if spread.kind == "root" else {frozenset([(number, 1.0)]): 1.0}
    sums = {t: c for t, c in inside.items() if any(view.atoms[a].kind == "sum" for a, _ in t)}
    squares = [(view.atoms[a], c) for t, c in sums.items() for a, e in t if len(t) == 1 and e == 1]
    if len(squares) != 1 or len(inside) - len(sums) > 1:
        return None
    square, over = squares[0]
    axis, count = _axis(view, square, here), square.content[2]
    if axis is None or {e for _, e in square.content[1]} != {2.0} or over <= 0:
        return None
    ((leaf, _),) = square.content[1]
    first = view.ids.get(("sum", (square.content[0], frozenset([(leaf, 1.0)]), count), square.labels), -1)
    alpha = over * count
    wanted = {} if not means else {frozenset([(first, 1.0)]): -beta / count}
    wanted_sums = {frozenset([(view.ids["sum", square.content, square.labels], 1.0)]): over}
    if means:
        wanted_sums[frozenset([(first, 2.0)])] = -alpha / count**2
    if not _is_near(means, wanted) or not _is_near(sums, wanted_sums):
        return None
    epsilon = _epsilon(view, {t: c for t, c in inside.items() if t not in sums}, alpha)
    gain = beta / math.sqrt(alpha)
    gain = 1.0 if math.isclose(gain, 1.0, rel_tol=_NEAR) else gain
    if epsilon is None or gain <= 0:
        return None
    values = tuple(v for a, _ in gains if (v := view.atoms[a].value) is not None)
    return _Form("norm", axis, bool(means), epsilon, (gain, values))


def _is_near(found: Polynomial, wanted: Polynomial) -> bool:
    return set(found) == set(wanted) and all(math.isclose(c, wanted[t], rel_tol=_NEAR) for t, c in found.items())


def _epsilon(view: View, rest: Polynomial, alpha: float) -> float | Value | None:
    """What is added to the mean of squares: a number, or a value that the parameters decide."""
    is_one = math.isclose(alpha, 1.0, rel_tol=_NEAR)
    if set(rest) <= {ONE}:
        number = rest.get(ONE, 0.0)
        return (number if is_one else number / alpha) if number >= 0 else None
    ((term, c),) = rest.items()
    ((a, e),) = term if len(term) == 1 else ((-1, 0.0),)
    atom = view.atoms[a]
    is_scalar = atom.kind == "constant" and not atom.labels and e == 1
    return atom.value if is_scalar and is_one and math.isclose(c, 1.0, rel_tol=_NEAR) else None


def _match(view: View, form: _Form, root: Equation, order: Mapping[Equation, int], readers: Readers) -> Match | None:
    """The equations of a form, or None where something else reads what lies inside."""
    out = root.outs[0]
    region = sorted(_region(root, set(view.entries)), key=lambda e: order[e])
    inside = set(region)
    if any(r not in inside for e in region if e is not root for v in e.outs for r in readers.get(v, ())):
        return None
    own = rooted(out, has_ones=view.has_ones)
    entries = {v: _outside(labels, form.axis) for v, labels in view.entries.items()}
    x = next((v for v, labels in entries.items() if labels == own and v.shape == out.shape), None)
    before: list[Equation] = []
    if x is None:
        first, labels = next(iter(entries.items()))
        before, x = moved(first, labels, own, Value(out.shape, first.dtype, True), root.scope)
    equations: list[Equation] = []
    for value, labels in entries.items():
        if value is not x:
            movements, _ = moved(x, own, labels, value, root.scope)
            movements[-1].outs = [value]
            equations += movements
    if form.rate != 1:
        x = _at_rate(x, form.rate, before, equations, root)
    template = Match(form.kind, x, form.axis, (*equations, *region), tuple(before))
    if form.kind == "norm":
        gain = _gain(form, out, root)
        epsilon = form.epsilon if isinstance(form.epsilon, Value) else read.constant(np.float32(form.epsilon))
        is_lost = bool(form.gain[1]) and gain is None
        return (
            None if is_lost else dataclasses.replace(template, is_centered=form.is_centered, epsilon=epsilon, gain=gain)
        )
    if form.masks:
        movements, where = kept(form.masks, x, root.scope)
        integers = [v for e in region for v in e.ins if v.is_data and is_integral(v)]
        return dataclasses.replace(
            template, before=(*before, *movements), kept=where, integers=tuple(dict.fromkeys(integers))
        )
    return template


def _at_rate(x: Value, rate: float, before: list[Equation], equations: list[Equation], root: Equation) -> Value:
    """The input times a number, made before; the equations read what it was made of."""
    program = read.spliced(lambda s: s * jnp.asarray(rate, s.dtype), [x], root.scope)
    before += program.equations
    back = read.spliced(lambda s: s / jnp.asarray(rate, s.dtype), program.outs, root.scope)
    back.equations[-1].outs = [x]
    equations[:0] = back.equations
    return program.outs[0]


def _region(root: Equation, entries: set[Value]) -> set[Equation]:
    region, todo = {root}, [root]
    while todo:
        for value in todo.pop().ins:
            if value in entries or value.source is None or value.source in region or is_integral(value):
                continue
            region.add(value.source)
            todo.append(value.source)
    return region


def _outside(labels: Labels, axis: int) -> Labels:
    return tuple(axis if isinstance(label, str) else label for label in labels)


def _gain(form: _Form, out: Value, root: Equation) -> tuple[Equation, Value] | None:
    """The product with constants inside a norm, as one equation behind it."""
    number, values = form.gain
    if number == 1 and not values:
        return None
    if len(values) > 1 or any(v.ndim != out.ndim for v in values):
        return None
    if not values:
        factor = read.constant(np.full((1,) * out.ndim, number, out.dtype))
    elif number == 1:
        (factor,) = values
    else:
        factor = read.spliced(lambda g: g * jnp.asarray(number, g.dtype), values, root.scope).outs[0]
    scaled = read.spliced(lambda y, g: lax.mul(y, jnp.broadcast_to(g, y.shape)), (out, factor), root.scope)
    return Equation(scaled.equations[-1].eqn, [out, factor], [out], scope=root.scope), factor
