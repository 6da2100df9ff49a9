"""Rule text: ``w4/g32,a8``. Syntax only, in one place; an error points at the character.

``w<format>[/option]*[,a<format>[/option]*]``; ``w4a8`` is accepted where there are no options. Options bind to their
part: ``/gN /tAxB /tensor /channel /affine /sym /narrow /dynamic`` and the scale dtypes ``/bfloat16 /float16 /e8m0 /e4m3
/dq`` (double quantization).
"""

import dataclasses
import re
from collections.abc import Sequence

from .paths import nearest

FLAGS = ("tensor", "channel", "affine", "sym", "narrow", "dynamic", "bfloat16", "float16", "e8m0", "e4m3", "dq")

SCALE_FLAGS = ("bfloat16", "float16", "e8m0", "e4m3", "dq")

_FORMAT = re.compile(r"[A-Za-z0-9_]+")
_SHORT = re.compile(r"w(\d+)a(\d+)")
_OPTION = re.compile(r"[A-Za-z0-9_]+")


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a rule text: the operand it is for, its format word, and its options.

    Attributes:
        letter: ``w`` or ``a``.
        format: the format word as written: ``4``, ``int16``, ``nf4``.
        flags: options without a number.
        group: N of ``/gN``, or None.
        tile: A, B of ``/tAxB``, or None.
        text: the whole rule text, for errors.
        position: where the format word starts in it.
    """

    letter: str
    format: str
    flags: tuple[str, ...] = ()
    group: int | None = None
    tile: tuple[int, int] | None = None
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
        >>> [(p.letter, p.format, p.group) for p in parse("w4/g32,a8")]
        [('w', '4', 32), ('a', '8', None)]
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
    group: int | None = None
    tile: tuple[int, int] | None = None
    at = word.end()
    while at < len(chunk):
        if chunk[at] != "/":
            raise error_at(text, start + at, "expected '/', ',' or the end")
        if not (option := _OPTION.match(chunk, at + 1)):
            raise error_at(text, start + at + 1, f"expected an option: gN, tAxB, {', '.join(FLAGS)}")
        name = option[0]
        if (group is not None or tile is not None) and re.fullmatch(r"g\d+|t\d+x\d+", name):
            raise error_at(text, start + at + 1, "only one of /gN, /tAxB, /tensor, /channel")
        if found := re.fullmatch(r"g(\d+)", name):
            group = int(found[1])
            if group < 2:
                raise error_at(text, start + at + 1, f"group size must be at least 2, got {group}")
        elif found := re.fullmatch(r"t(\d+)x(\d+)", name):
            tile = (int(found[1]), int(found[2]))
            if 0 in tile:
                raise error_at(text, start + at + 1, f"a tile needs positive sides, got {tile[0]} x {tile[1]}")
        elif name in FLAGS:
            flags.append(name)
        else:
            raise error_at(text, start + at + 1, f"unknown option {name!r}; one of gN, tAxB, {', '.join(FLAGS)}")
        if len(flags) != len(set(flags)):
            raise error_at(text, start + at + 1, f"option {name!r} is given twice")
        at = option.end()
    for one, other in (("affine", "sym"), ("tensor", "channel")):
        if one in flags and other in flags:
            raise error_at(text, start, f"/{one} and /{other} exclude each other")
    if len([f for f in flags if f in SCALE_FLAGS]) > 1:
        raise error_at(text, start, f"only one scale dtype of /{', /'.join(SCALE_FLAGS)}")
    if sum((group is not None, tile is not None, "tensor" in flags, "channel" in flags)) > 1:
        raise error_at(text, start, "only one of /gN, /tAxB, /tensor, /channel")
    return Part(chunk[0], word[0], tuple(flags), group, tile, text, start + 1)
