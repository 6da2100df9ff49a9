"""Rule text: ``w4/g32,a8``. Syntax only, in one place; an error points at the character.

``w<format>[/option]*[,a<format>[/option]*]``; ``w4a8`` is accepted where there are no options. Options bind to their
part: ``/affine /sym /narrow /signed /dynamic``, who shares a scale (``/gN /tAxB /tensor /channel``: the files of
`lowbit.core.granularity`), and how scales are stored (``/bfloat16 /e8m0 /dq /int5``: the files of `lowbit.core.scales`).
"""

import dataclasses
import re
from collections.abc import Sequence

from .granularity import Granularity
from .paths import nearest
from .words import granularity_named, granularity_words, scale_words

FLAGS = ("affine", "sym", "narrow", "signed", "dynamic")
"""Options that stand alone."""

_FORMAT = re.compile(r"[A-Za-z0-9_]+")
_SHORT = re.compile(r"w(\d+)a(\d+)")
_OPTION = re.compile(r"[A-Za-z0-9_]+")


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a rule text: the operand it is for, its format word, and its options.

    Attributes:
        letter: ``w`` or ``a``.
        format: the format word as written: ``4``, ``int16``, ``nf4``.
        flags: of `FLAGS`.
        granularity: who shares a scale, where it says so.
        scale: the word of how scales are stored, where it says so.
        text: the whole rule text, for errors.
        position: where the format word starts in it.
    """

    letter: str
    format: str
    flags: tuple[str, ...] = ()
    granularity: Granularity | None = None
    scale: str | None = None
    text: str = ""
    position: int = 0


def error_at(text: str, position: int, message: str) -> ValueError:
    """Returns a ValueError that shows ``text`` with a caret under ``position``."""
    return ValueError(f"rule text {text!r}, character {position + 1}: {message}\n  {text}\n  {' ' * position}^")


def nearest_words(word: str, known: Sequence[str]) -> list[str]:
    """Returns the known words closest to ``word``."""
    return nearest(word, known)


def parse(text: str) -> tuple[Part, ...]:
    """Returns the parts of a rule text, weight first.

    Raises:
        TypeError: if ``text`` is not a string.
        ValueError: pointing at the character.

    Example:
        >>> [(p.letter, p.format, p.granularity) for p in parse("w4/g32,a8")]
        [('w', '4', Group(size=32)), ('a', '8', None)]
    """
    if not isinstance(text, str):
        raise TypeError(f"a rule text must be a string such as 'w4/g32,a8', got {type(text).__name__}")
    if short := _SHORT.fullmatch(text):
        return (
            Part("w", short[1], text=text, position=1),
            Part("a", short[2], text=text, position=short.start(2)),
        )
    parts, position = [], 0
    for chunk in text.split(","):
        parts.append(_part(text, chunk, position))
        position += len(chunk) + 1
    letters = [p.letter for p in parts]
    if letters not in (["w"], ["a"], ["w", "a"]):
        raise error_at(text, parts[-1].position - 1, "a rule text has one w part, then at most one a part")
    return tuple(parts)


def _part(text: str, chunk: str, start: int) -> Part:
    if not chunk or chunk[0] not in "wa":
        raise error_at(text, start, "expected 'w' (weights) or 'a' (inputs)")
    if not (word := _FORMAT.match(chunk, 1)):
        raise error_at(text, start + 1, f"expected a format after '{chunk[0]}', such as {chunk[0]}8")
    flags: list[str] = []
    granularity: Granularity | None = None
    scales: list[str] = []
    at = word.end()
    while at < len(chunk):
        here = start + at + 1
        if chunk[at] != "/":
            raise error_at(text, start + at, "expected '/', ',' or the end")
        if not (option := _OPTION.match(chunk, at + 1)):
            raise error_at(text, here, f"expected an option: {_known()}")
        name = option[0]
        try:
            named_granularity = granularity_named(name)
        except ValueError as error:
            raise error_at(text, here, str(error)) from None
        if named_granularity is not None:
            if granularity == named_granularity:
                raise error_at(text, here, f"option {name!r} is given twice, and only one of its kind may be")
            if granularity is not None:
                raise error_at(text, here, f"only one of /{', /'.join(granularity_words())}")
            granularity = named_granularity
        elif name in (*flags, *scales):
            raise error_at(text, here, f"option {name!r} is given twice")
        elif name in FLAGS:
            flags.append(name)
        elif name in scale_words():
            scales.append(name)
        else:
            close = f"; nearest: {', '.join(near)}" if (near := nearest_words(name, [*FLAGS, *scale_words()])) else ""
            raise error_at(text, here, f"unknown option {name!r}; one of {_known()}{close}")
        at = option.end()
    if {"affine", "sym"} <= {*flags}:
        raise error_at(text, start, "/affine and /sym exclude each other")
    if len(scales) > 1:
        raise error_at(text, start, f"a scale is stored in one way; only one scale dtype of /{' /'.join(scales)}")
    return Part(chunk[0], word[0], tuple(flags), granularity, scales[0] if scales else None, text, start + 1)


def _known() -> str:
    return ", ".join([*granularity_words(), *FLAGS, *scale_words()])
