"""Everything that a bind refuses, in one error: each with its path and line, and rules that can be pasted."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Refusal:
    """One thing that was refused.

    Attributes:
        why: the whole sentence, with path and source line.
        instead: rules that would not be refused, by path; none where rules cannot help.
    """

    why: str
    instead: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Refused(ValueError):
    """What was refused, all of it: its text lists it.

    Attributes:
        refusals: by what they are about.
    """

    def __init__(self, refusals: Mapping[str, Refusal], text: str):
        super().__init__(text)
        self.refusals = dict(refusals)


class Refusals:
    """What was refused so far.

    Args:
        rules: what was bound with; those that are text are repeated in the message.
        chosen: the glob of the rule of every operation, by path; None: no rules are shown.
    """

    def __init__(self, rules: Mapping[str, Any] | None = None, chosen: Mapping[str, str | None] | None = None):
        self.rules, self.chosen = rules, chosen
        self.by_path: dict[str, Refusal] = {}

    def add(self, path: str, why: str, instead: Mapping[str, str] | None = None, *, source: str = "") -> None:
        """Notes a refusal; the first one about a path counts.

        Args:
            path: what it is about.
            why: the sentence; path and source are put before it where it lacks them.
            instead: rules that would not be refused.
            source: the source line.
        """
        where = f"{path} ({source})" if source and source not in why else path
        named = re.search(rf"(?<![\w/]){re.escape(path)}(?![\w/])", why)
        if path and (named is None or where != path):
            is_first = named is not None and named.start() == 0
            why = where + why.removeprefix(path) if is_first else f"{where}: {why}"
        self.by_path.setdefault(path, Refusal(why, instead or {}))

    def attempt(
        self, path: str, make: Callable[[], Result], instead: Mapping[str, str] | None = None, *, source: str = ""
    ) -> Result | None:
        """Returns what ``make`` does; where it raises ValueError, the refusal is noted for `check`, and None comes back."""
        try:
            return make()
        except ValueError as error:
            if isinstance(error, Refused):
                self.extend(error)
            else:
                self.add(path, str(error), instead, source=source)
            return None

    def extend(self, error: Refused) -> None:
        """Notes all that an error is about."""
        for path, refusal in error.refusals.items():
            self.by_path.setdefault(path, refusal)

    def check(self) -> None:
        """Raises Refused, a ValueError, if anything was refused: all of it, and rules that would not be, to paste."""
        if not self.by_path:
            return
        lines = list(dict.fromkeys(refusal.why for refusal in self.by_path.values()))
        text = (
            lines[0]
            if len(lines) == 1
            else f"{len(lines)} operations are refused:" + "".join(f"\n  {w}" for w in lines)
        )
        raise Refused(self.by_path, text + self._pasted())

    def _pasted(self) -> str:
        if self.rules is None or not all(isinstance(value, str) for value in self.rules.values()):
            return ""
        instead = {path: rule for refusal in self.by_path.values() for path, rule in refusal.instead.items()}
        if not instead or len(instead) < len(self.by_path):
            return ""
        taken = {path for path in self.chosen or {} if path in instead or path.split("@")[0] in instead}
        left = {glob for path, glob in (self.chosen or {}).items() if path not in taken}
        rest = {glob: rule for glob, rule in self.rules.items() if glob in left and glob not in instead}
        what = "they stay in float" if set(instead.values()) == {"keep"} else "it binds"
        return f"\nWith these rules {what}:\n  {instead | rest!r}"
