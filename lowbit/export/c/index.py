"""Index arithmetic: sums of loop variables times constants, with the range that each can have."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Atom:
    """A variable of the C program that counts from ``low`` to ``high``, both included.

    Attributes:
        text: its name, or an expression in parentheses.
        low: smallest value.
        high: largest value.
        level: how many blocks enclose its definition.
    """

    text: str
    low: int
    high: int
    level: int


@dataclasses.dataclass(frozen=True)
class Index:
    """``const + sum(factor * atom)``.

    Attributes:
        terms: pairs of atom and factor, no factor 0.
        const: the rest.

    Example:
        >>> i, j = (Index.of(Atom(name, 0, 5, 1)) for name in "ij")
        >>> flat = i * 6 + j
        >>> flat.text, flat.high, [part.text for part in flat.divided(6)]
        ('i * 6 + j', 35, ['i', 'j'])
    """

    terms: tuple[tuple[Atom, int], ...] = ()
    const: int = 0

    @classmethod
    def of(cls, atom: Atom) -> "Index":
        """Returns a variable as an index."""
        return cls(((atom, 1),)) if atom.low < atom.high else cls((), atom.low)

    def __add__(self, other: "Index | int") -> "Index":
        if isinstance(other, int):
            return Index(self.terms, self.const + other)
        factors = dict(self.terms)
        for atom, factor in other.terms:
            factors[atom] = factors.get(atom, 0) + factor
        return Index(tuple((a, f) for a, f in factors.items() if f), self.const + other.const)

    def __mul__(self, factor: int) -> "Index":
        return Index(tuple((a, f * factor) for a, f in self.terms if factor), self.const * factor)

    def __sub__(self, other: "Index | int") -> "Index":
        return self + (-other if isinstance(other, int) else other * -1)

    @property
    def low(self) -> int:
        """The smallest value."""
        return self.const + sum(f * (a.low if f > 0 else a.high) for a, f in self.terms)

    @property
    def high(self) -> int:
        """The largest value."""
        return self.const + sum(f * (a.high if f > 0 else a.low) for a, f in self.terms)

    @property
    def level(self) -> int:
        """How many blocks enclose the innermost variable."""
        return max((a.level for a, _ in self.terms), default=0)

    @property
    def text(self) -> str:
        """The index in C."""
        words: list[str] = []
        for atom, factor in self.terms:
            size = atom.text if abs(factor) == 1 else f"{atom.text} * {abs(factor)}"
            words += ["-" if factor < 0 else "+", size]
        if self.const or not words:
            words += ["-" if self.const < 0 else "+", str(abs(self.const))]
        first = words[1] if words[0] == "+" else f"-{words[1]}"
        return " ".join([first, *words[2:]])

    @property
    def operand(self) -> str:
        """The index in C, in parentheses where it is a sum or a product."""
        return self.text if self.text.isidentifier() or self.text.isdecimal() else f"({self.text})"

    def divided(self, n: int) -> tuple["Index", "Index"]:
        """Returns quotient and remainder by a positive number; the index is not negative where it is used."""
        whole = Index(tuple((a, f) for a, f in self.terms if f % n == 0), self.const // n * n)
        rest = self - whole
        quotient = Index(tuple((a, f // n) for a, f in whole.terms), whole.const // n)
        if 0 <= rest.low and rest.high < n:
            return quotient, rest
        if rest.low < 0:  # of a guarded use: C divides towards zero, so all of it is divided at once
            quotient, rest = Index(), self
        ratio = Atom(f"({rest.operand} / {n})", rest.low // n, rest.high // n, rest.level)
        left = Atom(f"({rest.operand} % {n})", 0, n - 1, rest.level)
        return quotient + Index.of(ratio), Index.of(left)


def flat(indices: Sequence[Index], shape: Sequence[int]) -> Index:
    """Returns the row-major position of an element."""
    total = Index()
    for index, size in zip(indices, shape, strict=True):
        total = total * size + index
    return total


def unflat(position: Index, shape: Sequence[int]) -> tuple[Index, ...]:
    """Returns the indices of the element at a row-major position.

    Example:
        >>> [i.text for i in unflat(Index.of(Atom("i", 0, 11, 1)), (3, 4))]
        ['(i / 4)', '(i % 4)']
    """
    indices: list[Index] = []
    for size in reversed(shape):
        if size == 1:
            indices.append(Index())
            continue
        position, rest = (Index(), position) if position.low >= 0 and position.high < size else position.divided(size)
        indices.append(rest)
    return tuple(reversed(indices))
