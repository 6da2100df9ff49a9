"""Rules: which quantizers an operation gets. First match wins; a rule that matches nothing raises."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lowbit.core.paths import is_match, nearest
from lowbit.core.quantizer import KEEP, Quantizer, Quantizers
from lowbit.quantizers.rtn import rtn

Rules = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule: a glob over paths and the quantizers it gives.

    Attributes:
        glob: as written.
        quantizers: for the operands.
        text: how the plan names it.
    """

    glob: str
    quantizers: Quantizers
    text: str

    def is_for(self, path: str) -> bool:
        """Returns whether the glob matches ``path``, with or without its ``@0``."""
        return is_match(self.glob, path) or is_match(self.glob, path.split("@")[0])

    @property
    def is_specific(self) -> bool:
        """Whether the glob names more than wildcards."""
        return any(c not in "*/?" for c in self.glob)


def parse_rules(rules: Rules) -> tuple[Rule, ...]:
    """Returns typed rules.

    Args:
        rules: ``{glob: rule text, quantizers, or "keep"}``.

    Raises:
        TypeError: for a value of another type.
        ValueError: for a rule text that does not parse.
    """
    if not isinstance(rules, Mapping):
        raise TypeError(f"rules must be a mapping from globs to rule texts or quantizers, got {type(rules).__name__}")
    return tuple(_rule(glob, value) for glob, value in rules.items())


def _rule(glob: str, value: Any) -> Rule:
    if not isinstance(glob, str):
        raise TypeError(f"a rule's glob must be a string, got {glob!r}")
    if isinstance(value, Quantizers):
        parts = (("w", value.weight), ("a", value.input))
        words = [letter + q.text for letter, q in parts if q is not None]
        return Rule(glob, value, f"{glob}: {', '.join(words) or 'keep'}")
    if value == "keep":
        return Rule(glob, KEEP, f"{glob}: keep")
    if isinstance(value, str):
        return Rule(glob, rtn(value), f"{glob}: {value}")
    hint = "; wrap it: Quantizers(weight=...)" if isinstance(value, Quantizer) else ""
    raise TypeError(f"rule {glob!r} must be a rule text, quantizers or 'keep', got {type(value).__name__}{hint}")


def first_matches(rules: Sequence[Rule], paths: Sequence[str]) -> dict[str, Rule | None]:
    """Returns the first rule that matches each path, or None.

    Raises:
        ValueError: where a rule matches nothing, or everything it matches was taken before; names the nearest paths.
    """
    chosen = {path: next((rule for rule in rules if rule.is_for(path)), None) for path in paths}
    wrong = [_why_idle(rule, chosen, paths) for rule in rules if not any(c is rule for c in chosen.values())]
    if wrong:
        raise ValueError(
            wrong[0] if len(wrong) == 1 else f"{len(wrong)} rules never apply:" + "".join(f"\n  {w}" for w in wrong)
        )
    return chosen


def _why_idle(rule: Rule, chosen: Mapping[str, Rule | None], paths: Sequence[str]) -> str:
    """Why a rule takes no operation."""
    reached = [path for path in paths if rule.is_for(path)]
    if reached:
        taken = chosen[reached[0]]
        assert taken is not None
        return (
            f"rule {rule.glob!r} never applies: {taken.glob!r}, before it, takes {', '.join(reached)}; put the more "
            f"specific rule first"
        )
    return (
        f"rule {rule.glob!r} matches no operation; the nearest paths are "
        f"{', '.join(nearest(rule.glob, paths)) or '(there are none)'}"
    )
