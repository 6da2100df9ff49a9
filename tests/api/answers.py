"""Wrong calls, and what is amiss with their answers."""

import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple


class Call(NamedTuple):
    """A function, and the names of what it takes: positional ones first."""

    name: str
    function: Callable[..., Any]
    given: dict[str, Any]
    rest: tuple[Any, ...] = ()

    def made(self, name: str, value: Any) -> None:
        given = {**self.given, name: value}
        kinds = inspect.signature(self.function).parameters
        first = [
            given.pop(n)
            for n, p in kinds.items()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and n in given
        ]
        rest = given.pop("args", self.rest) if any(p.kind is p.VAR_POSITIONAL for p in kinds.values()) else ()
        self.function(*first, *rest, **given)


class Wrong(NamedTuple):
    """A call with one wrong value, and what it is in words."""

    call: Call
    name: str
    what: str
    value: Any


def answers(calls: Iterable[Wrong], package: str, names: Mapping[str, str]) -> str:
    """Returns a line for each call whose answer is not a TypeError or ValueError of the package with the argument's name in it.

    Args:
        calls: the wrong ones.
        package: its folder.
        names: of an argument a pattern that says it, where that is not its name.
    """
    silent, deep, unnamed, other = [], [], [], []
    for call, name, what, value in calls:
        said = f"{call.name}({name}={what})"
        try:
            call.made(name, value)
        except (TypeError, ValueError) as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            if not frame.filename.startswith(package):
                deep.append(f"{said}: {type(error).__name__} at {frame.filename}: {str(error)[:90]}")
            elif not re.search(names.get(name, rf"\b{name}\b"), str(error)):
                unnamed.append(f"{said}: {str(error)[:90]}")
        except Exception as error:  # noqa: BLE001 - whatever else it is, it is listed
            other.append(f"{said}: {type(error).__name__}: {str(error)[:90]}")
        else:
            silent.append(said)
    found = {"silent": silent, "deep inside": deep, "without its name": unnamed, "another error": other}
    return "\n".join(f"{kind}: {each}" for kind, calls in found.items() for each in calls)
