"""An eval: a function of a finished piece, and the columns of the table that its numbers fill."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lowbit.report import tables


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        head: its head.
        of: the keys under which the number stands in a piece's result.
        text: ``text(values, float row's values)``: of a row's numbers, one per seed where it was measured.
    """

    head: str
    of: tuple[str, ...]
    text: Callable[[Sequence[float], Sequence[float]], str]


@dataclasses.dataclass(frozen=True)
class Eval:
    """What is measured of finished pieces.

    Attributes:
        name: under which it is kept and logged.
        measure: ``measure(piece) -> numbers``, nested dicts that are merged into the piece's result; or, together,
            ``measure(pieces) -> {method: numbers}`` for the pieces of the first seed, float first.
        columns: that it fills.
        require: raises, naming what to install, before anything is computed; or None.
        depends: returns what else the numbers depend on, such as versions of tools; or None.
        is_together: whether all methods are measured in turns, as times are.
        folders: of lowbit, whose code the numbers depend on besides the module of ``measure``.
        methods: names of the methods whose pieces are measured; none: all. The others' pieces do not depend on it.
    """

    name: str
    measure: Callable[[Any], Mapping[str, Any]]
    columns: tuple[Column, ...] = ()
    require: Callable[[], None] | None = None
    depends: Callable[[], Any] | None = None
    is_together: bool = False
    folders: tuple[str, ...] = ("run/evals", "export", "targets")
    methods: tuple[str, ...] = ()

    def is_of(self, method: str) -> bool:
        """Whether the pieces of a method are measured."""
        return not self.methods or method in self.methods


def spread(digits: int) -> Callable[[Sequence[float], Sequence[float]], str]:
    """Returns a text of mean and sample standard deviation over seeds."""

    def text(values: Sequence[float], base: Sequence[float]) -> str:
        return tables.spread(values, digits) if values else "-"

    return text


def mean(form: str) -> Callable[[Sequence[float], Sequence[float]], str]:
    """Returns a text of the mean, in a format such as ``.2f``."""

    def text(values: Sequence[float], base: Sequence[float]) -> str:
        return format(float(np.mean(values)), form) if values else "-"

    return text


def size(values: Sequence[float], base: Sequence[float]) -> str:
    """The mean as a number of bytes."""
    return tables.size(float(np.mean(values))) if values else "-"


def worst(values: Sequence[float], base: Sequence[float]) -> str:
    """The largest."""
    return f"{max(values):.2g}" if values else "-"


def gap(digits: int) -> Callable[[Sequence[float], Sequence[float]], str]:
    """Returns a text of the mean's difference to float's."""

    def text(values: Sequence[float], base: Sequence[float]) -> str:
        if not values or not base or values is base:
            return "" if values is base else "-"
        return f"{float(np.mean(values)) - float(np.mean(base)):+.{digits}f}"

    return text


def ratio(values: Sequence[float], base: Sequence[float]) -> str:
    """A time, and how many times as fast as float."""
    if not values:
        return "-"
    return f"{np.mean(values):.3f}" + (f" ({np.mean(base) / np.mean(values):.2f}x)" if base else "")
