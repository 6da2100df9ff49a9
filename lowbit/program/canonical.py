"""A view of values for matching: one normal form for the many ways to write one function. Nothing is evaluated by it.

A value is seen as a polynomial: a sum of products of powers of *atoms*. So ``x * x``, ``square(x)`` and ``x ** 2`` are one,
as are divisions and products with reciprocals, ``sub`` and ``add`` of a negation, ``1 / sqrt`` and ``rsqrt``. An atom is
what the view was told to stop at, a constant, a sum along an axis, the exponential of a product, a root of a polynomial, or
any other elementwise function. Sums are linear and let go of what does not vary along them, so that the mean of squared
differences, and the mean of squares less the squared mean, are one; exponentials turn sums into products, so that what is
subtracted from every element of a softmax cancels.

Axes are named, not counted: each axis of a value is one of the root's, or one that is summed over. So transposes, axes of
length 1, broadcasts and calls disappear.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import primitives
from .axes import Label, Labels, stripped
from .constants import is_integral, written_value
from .read import Equation, Value

Term = frozenset[tuple[int, float]]
"""A product of powers of atoms."""
Polynomial = Mapping[Term, float]
"""Coefficients by product."""

ONE: Term = frozenset()
_LARGEST = 48
MASKED = -1e4
"""The exponential of this or less is 0, in every float."""
_NEAR = 1e-5
"""Coefficients closer than this are one: ``x / 3`` and ``x * (1 / 3)`` in float32."""


class NotSeen(Exception):
    """A value depends on data that the view has no name for, or would take too long to write out."""


@dataclasses.dataclass(frozen=True)
class Atom:
    """What products are made of.

    Attributes:
        kind: ``leaf``, ``constant``, ``integral`` (computed of integers alone), ``sum``, ``exp``, ``log``, ``root`` (any
            polynomial), ``where`` (1 or 0), or the name of a primitive.
        content: what tells it from others of the kind.
        labels: the axes it varies along.
        is_positive: whether it is never negative.
        value: of a leaf or constant: where it was first read, before it was spread.
    """

    kind: str
    content: Any
    labels: frozenset[Label]
    is_positive: bool = False
    value: Value | None = None


class View:
    """Values as polynomials.

    Args:
        leaf: data that the view stops at.
        has_ones: whether axes of length 1 have labels; needed where one is summed over.
        limit: how many equations it looks at before it gives up.

    Attributes:
        entries: the values, and the labels of their axes, as which the leaf was read.
    """

    def __init__(self, leaf: Value, *, has_ones: bool = False, limit: int = 96):
        self.leaf, self.has_ones, self.limit = leaf, has_ones, limit
        self.entries: dict[Value, Labels] = {}
        self.atoms: list[Atom] = []
        self.ids: dict[Any, int] = {}
        self.polynomials: dict[Any, list[tuple[int, Polynomial]]] = {}
        self.done: dict[tuple[Value, Labels], Polynomial] = {}

    def atom(self, term_atom: Atom) -> Polynomial:
        """Returns an atom, once."""
        key = term_atom.kind, term_atom.content, term_atom.labels
        if key not in self.ids:
            self.ids[key] = len(self.atoms)
            self.atoms.append(term_atom)
        return {frozenset([(self.ids[key], 1.0)]): 1.0}

    def labels(self, polynomial: Polynomial) -> frozenset[Label]:
        """Returns the axes that a polynomial varies along."""
        return frozenset().union(*(self.atoms[a].labels for term in polynomial for a, _ in term))

    def of(self, value: Value, labels: Labels) -> Polynomial:
        """Returns a value as a polynomial.

        Args:
            value: the value.
            labels: of its axes.

        Raises:
            NotSeen: where it depends on data other than the leaf.
        """
        seen, seen_labels = value, labels
        value, labels = key = stripped(value, labels)
        if value is self.leaf:
            self.entries.setdefault(seen, seen_labels)
        if key not in self.done:
            self.done[key] = self._of(value, labels, seen)
        return self.done[key]

    def _of(self, value: Value, labels: Labels, seen: Value) -> Polynomial:
        here = frozenset(label for label in labels if label is not None)
        if value is self.leaf:
            return self.atom(Atom("leaf", (value, labels), here, value=seen))
        if not value.is_data:
            number = written_value(value) if math.prod(value.shape) == 1 else None
            if number is not None and number.dtype != np.bool_:
                return scaled(float(number.reshape(())))
            return self.atom(Atom("constant", (value, labels), here, value=seen))
        self.limit -= 1
        if value.source is None or self.limit < 0:
            raise NotSeen
        if value.source.name == "convert_element_type" and is_integral(value.source.ins[0]):
            inner, axes = stripped(value.source.ins[0], labels)
            return self.atom(Atom("integral", (inner, axes), here, value=seen))
        return self.equation(value.source, labels)

    def equation(self, equation: Equation, labels: Labels) -> Polynomial:
        """Returns the result of an equation over data."""
        name, params = equation.name, equation.params
        if name in ("reduce_sum", "reduce_max"):
            return self.reduced(equation, labels)
        if name not in primitives.ELEMENTWISE:
            raise NotSeen
        if name == "select_n":
            return self.selected(equation, labels)
        given = [self.of(v, _operand(v, labels, equation)) for v in equation.ins]
        if name in _ALGEBRA:
            return _ALGEBRA[name](self, params, *given)
        return self.function(name, repr(sorted(params.items(), key=str)), given)

    def function(self, name: str, params: str, given: Sequence[Polynomial]) -> Polynomial:
        """Returns another elementwise function of polynomials."""
        labels = frozenset().union(*(self.labels(p) for p in given))
        return self.atom(Atom(name, (params, tuple(self.root(p) for p in given)), labels))

    def root(self, polynomial: Polynomial) -> int:
        """Returns the atom that stands for a whole polynomial."""
        for number, other in self.polynomials.setdefault(frozenset(polynomial), []):
            if is_near(polynomial, other):
                return number
        ((term, _),) = self.atom(
            Atom("root", len(self.ids), self.labels(polynomial), self.is_positive(polynomial))
        ).items()
        ((number, _),) = term
        self.polynomials[frozenset(polynomial)].append((number, polynomial))
        return number

    def polynomial(self, number: int) -> Polynomial:
        """Returns what an atom of kind ``root`` stands for."""
        return next(p for terms in self.polynomials.values() for n, p in terms if n == number)

    def is_positive(self, polynomial: Polynomial) -> bool:
        """Returns whether a polynomial is never negative, as far as its signs say."""

        def is_term(term: Term) -> bool:
            return all(self.atoms[a].is_positive or e % 2 == 0 for a, e in term)

        return all(c >= 0 and is_term(term) for term, c in polynomial.items())

    def reduced(self, equation: Equation, labels: Labels) -> Polynomial:
        """Returns a sum or a maximum along one axis."""
        (x,), axes = equation.ins, equation.params["axes"]
        level = sum(isinstance(label, str) for label in labels)
        bound, rest, inner = f"~{level}", iter(labels), []
        for i, n in enumerate(x.shape):
            inner.append((bound if n > 1 or self.has_ones else None) if i in axes else next(rest))
        if inner.count(bound) > 1:
            raise NotSeen
        p = self.of(x, tuple(inner))
        if bound not in inner:
            return p
        if equation.name == "reduce_sum":
            return self.sum(p, bound, math.prod(x.shape[i] for i in axes))
        return self.atom(Atom("reduce_max", (self.root(p), bound), self.labels(p) - {bound}))

    def sum(self, p: Polynomial, bound: str, count: int) -> Polynomial:
        """Returns the sum along an axis of ``count`` elements."""
        total_polynomial: Polynomial = {}
        for term, c in p.items():
            inside = frozenset((a, e) for a, e in term if bound in self.atoms[a].labels)
            outside = {term - inside: c}
            if not inside:
                total_polynomial = added(total_polynomial, times(outside, scaled(count)))
                continue
            here = frozenset().union(*(self.atoms[a].labels for a, _ in inside)) - {bound}
            total = self.atom(Atom("sum", (bound, inside, count), here, self.is_positive({inside: 1.0})))
            total_polynomial = added(total_polynomial, times(outside, total))
        return total_polynomial

    def selected(self, equation: Equation, labels: Labels) -> Polynomial:
        """Returns a choice between two: one that is 0 makes it a product with the other."""
        which, *cases = equation.ins
        if len(cases) != 2:
            raise NotSeen
        known = written_value(which) if not which.is_data else None
        if known is not None and (known.all() or not known.any()):
            chosen = cases[int(known.all())]
            return self.of(chosen, _operand(chosen, labels, equation))
        low, high = (self.of(v, _operand(v, labels, equation)) for v in cases)
        predicate, axes = stripped(which, _operand(which, labels, equation))
        if low and high:
            here = frozenset(label for label in axes if label is not None) | self.labels(low) | self.labels(high)
            return self.atom(Atom("select_n", (predicate, axes, self.root(low), self.root(high)), here))
        return times(low or high, self.where(predicate, axes, is_negated=bool(low)))

    def exp(self, p: Polynomial) -> Polynomial:
        """Returns the exponential: a product of those of its terms. That of `MASKED` or less is 0."""
        factor = scaled(1.0)
        for term, c in p.items():
            (number, power) = next(iter(term), (-1, 0.0))
            atom = self.atoms[number] if len(term) == 1 and power == 1 else None
            if atom is not None and atom.kind == "log":
                factor = times(factor, {frozenset([(atom.content, c)]): 1.0})
            elif atom is not None and atom.kind == "where" and c <= MASKED:
                predicate, axes, is_negated = atom.content
                factor = times(factor, self.where(predicate, axes, is_negated=not is_negated))
            elif atom is not None and atom.kind == "select_n" and (kept := self._unmasked(atom, c)) is not None:
                factor = times(factor, kept)
            else:
                here = frozenset().union(*(self.atoms[a].labels for a, _ in term))
                factor = times(factor, _powered(self.atom(Atom("exp", term, here, is_positive=True)), c))
        return factor

    def _unmasked(self, atom: Atom, c: float) -> Polynomial | None:
        """The exponential of a choice between something and `MASKED`: a product."""
        predicate, axes, *cases = atom.content
        for i, fill in enumerate(map(self.polynomial, cases)):
            if set(fill) == {ONE} and c * fill[ONE] <= MASKED:
                other = self.polynomial(cases[1 - i])
                return times(self.where(predicate, axes, is_negated=i == 1), self.exp(times(other, scaled(c))))
        return None

    def where(self, predicate: Value, axes: Labels, *, is_negated: bool) -> Polynomial:
        """Returns what is 1 where a predicate holds (or does not), else 0."""
        here = frozenset(label for label in axes if label is not None)
        return self.atom(Atom("where", (predicate, axes, is_negated), here, is_positive=True))

    def log(self, p: Polynomial) -> Polynomial:
        """Returns the logarithm: of a product, the sum of those of its factors."""
        if len(p) != 1:
            p = {frozenset([(self.root(p), 1.0)]): 1.0}
        ((term, c),) = p.items()
        if c <= 0:
            raise NotSeen
        logarithm = scaled(math.log(c))
        for a, e in term:
            atom = self.atoms[a]
            of = {atom.content: 1.0} if atom.kind == "exp" else self.atom(Atom("log", a, atom.labels))
            logarithm = added(logarithm, times(of, scaled(e)))
        return logarithm

    def power(self, p: Polynomial, exponent: float) -> Polynomial:
        """Returns a power."""
        if exponent == int(exponent) and 1 <= exponent <= 4:
            powered = p
            for _ in range(int(exponent) - 1):
                powered = times(powered, p)
            return powered
        if not p:
            raise NotSeen
        ((term, c),) = p.items() if len(p) == 1 else ((ONE, 0.0),)
        if c and (exponent == int(exponent) or (c > 0 and all(self.atoms[a].is_positive for a, _ in term))):
            return {frozenset((a, e * exponent) for a, e in term): float(c) ** exponent}
        return {frozenset([(self.root(p), exponent)]): 1.0}

    def largest(self, a: Polynomial, b: Polynomial) -> Polynomial:
        """Returns the larger of two: minus infinity never is, and a variance is never below 0."""
        for one, other in ((a, b), (b, a)):
            if set(one) <= {ONE} and (one.get(ONE) == -math.inf or (not one and self.is_variance(other))):
                return other
        first, second = sorted((self.root(a), self.root(b)))
        return self.atom(Atom("max", (first, second), self.labels(a) | self.labels(b)))

    def is_variance(self, p: Polynomial) -> bool:
        """Returns whether a polynomial is ``a (sum x^2 - (sum x)^2 / n)`` with ``a`` positive, or has no negative term."""
        if self.is_positive(p):
            return True
        squares = {
            self.atoms[a].content[:2]: c
            for term, c in p.items()
            if len(term) == 1
            and self.atoms[a := next(iter(term))[0]].kind == "sum"
            and c > 0
            and next(iter(term))[1] == 1
        }
        for term, c in p.items():
            atom, power = next(iter(term), (0, 0.0))
            if len(term) == 1 and power == 2 and self.atoms[atom].kind == "sum" and c < 0:
                bound, inside, count = self.atoms[atom].content
                twice = bound, frozenset((a, 2 * e) for a, e in inside)
                return len(p) == 2 and twice in squares and -c * count < squares[twice] * (1 + _NEAR)
        return False


def _operand(value: Value, labels: Labels, equation: Equation) -> Labels:
    """The labels of an operand's axes: a scalar, or one of length 1 where the result is longer, is spread."""
    if not value.shape:
        return ()
    full = equation.outs[0].shape
    return tuple(label if n == m else None for label, n, m in zip(labels, value.shape, full, strict=True))


def scaled(number: float) -> Polynomial:
    """Returns a number."""
    return {ONE: float(number)} if number != 0 else {}


def added(a: Polynomial, b: Polynomial) -> Polynomial:
    """Returns the sum; terms that cancel are gone."""
    merged = dict(a)
    for term, c in b.items():
        total = merged.get(term, 0.0) + c
        if abs(total) <= _NEAR * abs(c):
            merged.pop(term, None)
        else:
            merged[term] = total
    return merged


def times(a: Polynomial, b: Polynomial) -> Polynomial:
    """Returns the product."""
    if len(a) * len(b) > _LARGEST:
        raise NotSeen
    product: Polynomial = {}
    for left, c in a.items():
        for right, d in b.items():
            powers = dict(left)
            for atom, e in right:
                powers[atom] = powers.get(atom, 0.0) + e
            product = added(product, {frozenset((k, e) for k, e in powers.items() if e != 0): c * d})
    return product


def _powered(atom: Polynomial, exponent: float) -> Polynomial:
    ((term, _),) = atom.items()
    ((number, _),) = term
    return {frozenset([(number, exponent)]): 1.0}


def is_near(a: Polynomial, b: Polynomial) -> bool:
    """Returns whether two polynomials have the same terms and nearly the same coefficients."""
    return set(a) == set(b) and all(math.isclose(c, b[term], rel_tol=_NEAR) for term, c in a.items())


def _constant_power(view: View, params: Any, x: Polynomial, y: Polynomial) -> Polynomial:
    del params
    if set(y) <= {ONE}:
        return view.power(x, y.get(ONE, 0.0)) if y else scaled(1.0)
    return view.function("pow", "", [x, y])


_ALGEBRA: Mapping[str, Any] = {
    "add": lambda view, params, a, b: added(a, b),
    "add_any": lambda view, params, a, b: added(a, b),
    "sub": lambda view, params, a, b: added(a, times(b, scaled(-1.0))),
    "neg": lambda view, params, a: times(a, scaled(-1.0)),
    "mul": lambda view, params, a, b: times(a, b),
    "div": lambda view, params, a, b: times(a, view.power(b, -1.0)),
    "square": lambda view, params, a: times(a, a),
    "reciprocal": lambda view, params, a: view.power(a, -1.0),
    "integer_pow": lambda view, params, a: view.power(a, float(params["y"])),
    "pow": _constant_power,
    "sqrt": lambda view, params, a: view.power(a, 0.5),
    "rsqrt": lambda view, params, a: view.power(a, -0.5),
    "abs": lambda view, params, a: a if view.is_positive(a) else view.function("abs", "", [a]),
    "exp": lambda view, params, a: view.exp(a),
    "exp2": lambda view, params, a: view.exp(times(a, scaled(math.log(2.0)))),
    "log": lambda view, params, a: view.log(a),
    "max": lambda view, params, a, b: view.largest(a, b),
    "reduce_precision": lambda view, params, a: a,
}
"""Primitives that are algebra on polynomials: ``(view, parameters, *operands) -> result``."""
