"""JSON from anyone: read strictly, or refused with ValueError."""

import json
from typing import Any


def parse_json(content: str | bytes) -> Any:
    """Returns what JSON text says, where it says it once.

    Of a key that stands twice in an object, readers take the first or the last: what was checked is then not what another
    program reads. NaN and infinities are no JSON.

    Args:
        content: text, or its bytes in UTF-8 without a byte order mark.

    Raises:
        ValueError: if it is no JSON, has a key twice, a number that is none, other bytes than UTF-8, or is too deep to be read.

    Example:
        >>> parse_json('{"a": [1, 2]}')
        {'a': [1, 2]}
        >>> parse_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: the key 'a' stands twice in one object
    """
    text = content if isinstance(content, str) else content.decode("utf-8")  # json itself guesses among encodings
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is too deep to be read") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r:.80} stands twice in one object")
    return entries


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no number")
