"""Keyword arguments that both lowbit and a model may have: nobody's is hidden."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_KEYWORDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def shares_keywords(name: str, fn: Any = None) -> Callable[[F], F]:
    """Returns the decorator of a function that passes keywords on to a model: every call is checked by `check_keywords`.

    The function takes ``kwargs=None`` and ``**keywords`` and gives both to the model, see `merged`.

    Args:
        name: what messages call the function.
        fn: the model; by default the first argument.
    """

    def decorated(function: F) -> F:
        own = [n for n, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY]

        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            if given:
                check_keywords(name, (args[0] if args else given.get("fn")) if fn is None else fn, own, given)
            return function(*args, **given)

        return call  # pyright: ignore[reportReturnType]

    return decorated


def check_keywords(name: str, fn: Any, own: Collection[str], given: Mapping[str, Any]) -> None:
    """Raises where nobody can tell whose a keyword is.

    ``kwargs={...}`` always goes to the model, whatever the names in it. A keyword of lowbit's own that the model takes as well
    (by name, or by ``**``) is lowbit's only beside ``kwargs=``; ``kwargs={}`` will do.

    Args:
        name: of lowbit's function.
        fn: the model.
        own: the names of lowbit's own keywords.
        given: the keywords of the call.

    Raises:
        TypeError: for a keyword that could be either's or comes twice, or ``kwargs`` that is no mapping of names.
    """
    named = given.get("kwargs")
    if named is None:
        both = [n for n in given if n in own and n != "kwargs" and takes_keyword(fn, n)]
        if both:
            raise TypeError(
                f"{name} and the model both take {both[0]}=: pass the model's as kwargs={{{both[0]!r}: ...}}; beside kwargs=, "
                f"or kwargs={{}}, {both[0]}= is that of {name}"
            )
        if "kwargs" in given and takes_keyword(fn, "kwargs", is_named=True):
            raise TypeError(f"the model has a keyword called kwargs itself: pass kwargs={{'kwargs': ...}} to {name}")
        return
    if not isinstance(named, Mapping) or not all(isinstance(n, str) for n in named):
        raise TypeError(
            f"{name}: kwargs must be a mapping from the names of the model's keywords to values, got "
            f"{type(named).__name__}"
        )
    if "kwargs" not in named and takes_keyword(fn, "kwargs", is_named=True):
        raise TypeError(f"the model has a keyword called kwargs itself: pass kwargs={{'kwargs': ...}} to {name}")
    if twice := [n for n in named if n in given and n not in own]:
        raise TypeError(f"{name} got the model's keyword {twice[0]}= twice, by itself and in kwargs=")


def merged(keywords: Mapping[str, Any], kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the keywords of the model: those of the call and those in ``kwargs``."""
    return {**keywords, **(kwargs or {})}


def explicit(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what to add to a call so that these keywords go to the model, whatever their names."""
    return {"kwargs": kwargs} if kwargs else {}


def takes_keyword(fn: Any, name: str, *, is_named: bool = False) -> bool:
    """Returns whether a function can be called with a keyword; ``is_named``: whether its signature says it by this name."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # no function, or one that does not say
        return False
    if any(p.name == name and p.kind in _KEYWORDS for p in parameters):
        return True
    return not is_named and any(p.kind is p.VAR_KEYWORD for p in parameters)
