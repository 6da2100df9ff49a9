"""Everything that a bind refuses, in one error: each with its path and line, and rules that can be pasted."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Made = TypeVar("Made")


class Refusals:
    """What was refused so far.

    Args:
        rules: what was bound with; those that are text are repeated in the message.
    """

    def __init__(self, rules: Mapping[str, Any] | None = None):
        self.rules = rules
        self.found: dict[str, ValueError] = {}

    def made(self, path: str, make: Callable[[], Made]) -> Made:
        """Returns what ``make`` does; where it raises ValueError, the refusal is noted for `check`, and None comes back."""
        try:
            return make()
        except ValueError as error:
            self.found[path] = error
            return None  # pyright: ignore[reportReturnType]

    def check(self) -> None:
        """Raises ValueError if anything was refused: the one refusal as it is, or all of them with rules that leave them out."""
        if not self.found:
            return
        first, *rest = self.found.values()
        if not rest:
            raise first
        lines = "".join(f"\n  {error}" for error in self.found.values())
        raise ValueError(f"{len(self.found)} operations are refused:{lines}{self._pasted()}") from first

    def _pasted(self) -> str:
        if self.rules is None or not all(isinstance(value, str) for value in self.rules.values()):
            return ""
        kept = dict.fromkeys(self.found, "keep")
        return f"\nWith these rules they stay in float:\n  {kept | dict(self.rules)!r}"
