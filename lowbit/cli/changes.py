"""``--set KEY=VALUE``: a config with fields changed, and its fields checked against their types."""

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any

from .errors import UsageError


def changed(config: Any, changes: Sequence[str]) -> Any:
    """Returns a config with ``KEY=VALUE`` changes made.

    A key is a field, or a path of fields: ``fit.epochs``; items of a tuple of named things go by name:
    ``methods.lsq_w4a4.fit.lr``. The value must be of the type that the field has now.

    Args:
        config: a frozen dataclass.
        changes: texts such as ``seeds=0,1``.

    Raises:
        UsageError: for an unknown key (the nearest are named), a wrong type, or a value the config refuses.
    """
    for change in changes:
        key, sign, text = change.partition("=")
        if not sign or not key.strip():
            raise UsageError(f"--set {change}: write KEY=VALUE, such as --set seeds=0,1")
        try:
            config = _replaced(config, key.strip().split("."), text.strip(), key.strip())
        except (ValueError, TypeError) as error:
            raise UsageError(f"--set {change}: {error}") from error
    return config


def _replaced(value: Any, names: Sequence[str], text: str, key: str) -> Any:
    name, rest = names[0], names[1:]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        known = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        _check_known(name, known, key, names)
        now = known[name]
        if not rest and now in (None, ()):
            now = _like(type(value), name, now)
        new = _replaced(now, rest, text, key) if rest else _parsed(now, text, key)
        return dataclasses.replace(value, **{name: new})
    if isinstance(value, tuple) and value and all(hasattr(item, "name") for item in value):
        known = {item.name: i for i, item in enumerate(value)}
        _check_known(name, known, key, names)
        if not rest:
            raise UsageError(
                f"--set {key}: {name} is a whole part; name a field of it, such as {key}.{_first_field(value[known[name]])}"
            )
        items = list(value)
        items[known[name]] = _replaced(items[known[name]], rest, text, key)
        return tuple(items)
    raise UsageError(f"--set {key}: there is nothing called {name} in {value!r}")


def _like(kind: type, name: str, now: Any) -> Any:
    """What a field holds that is None or has no items yet: a number, a text or a tuple of them; ``now`` where it is none."""
    plain = {int: 0, float: 0.0, str: "", bool: False}
    hints = typing.get_args(typing.get_type_hints(kind)[name])
    like = next((plain[each] for each in hints if each in plain), None)
    return now if like is None else like if now is None else (like,)


def _first_field(value: Any) -> str:
    return dataclasses.fields(value)[-1].name if dataclasses.is_dataclass(value) else "name"


def _check_known(name: str, known: dict[str, Any], key: str, names: Sequence[str]) -> None:
    if name not in known:
        prefix = key[: len(key) - len(".".join(names))]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known)
        raise UsageError(f"--set {key}: no field {prefix}{name}; nearest: {', '.join(prefix + n for n in near)}")


def _parsed(now: Any, text: str, key: str) -> Any:
    """``text`` as a value of the type of ``now``."""
    if isinstance(now, bool):
        if text not in ("True", "False"):
            raise UsageError(f"--set {key}={text}: must be True or False")
        return text == "True"
    if isinstance(now, str):
        return text
    if isinstance(now, tuple):
        kinds = {type(item) for item in now}
        if not kinds <= {int, float, str} or len(kinds) > 1:
            raise UsageError(f"--set {key}: this field cannot be set from the command line; write a config file")
        items = text.strip("()[] ").rstrip(",")
        like = now[0] if now else 0
        return tuple(_parsed(like, part.strip(), key) for part in items.split(",")) if items else ()
    if isinstance(now, int | float):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = None
        if type(value) is int and isinstance(now, float):
            value = float(value)
        if type(value) is not type(now):
            kind = {int: "a whole number", float: "a number"}[type(now)]
            raise UsageError(f"--set {key}={text}: must be {kind}, such as {now}")
        return value
    raise UsageError(f"--set {key}: this field cannot be set from the command line; write a config file")


def check_types(value: Any, key: str) -> None:
    """Raises where a field of a config, or of a dataclass inside it, is of another type than it is declared.

    Args:
        value: a dataclass.
        key: what it is called in the error.

    Raises:
        UsageError: naming the field, its value and the type.
    """
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        name, item = f"{key}.{field.name}", getattr(value, field.name)
        if not _is_of(item, hints[field.name]):
            hint = hints[field.name]
            kind = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
            raise UsageError(f"{name} must be {kind.removeprefix('typing.')}, got {item!r:.60} ({type(item).__name__})")
        for i, inner in enumerate(item if isinstance(item, tuple) else (item,)):
            if dataclasses.is_dataclass(inner) and not isinstance(inner, type):
                check_types(inner, f"{name}[{i}]" if isinstance(item, tuple) else name)


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of a declared type, as far as that is one of a config's: others are taken as they are."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, each) for each in inner)
    if hint is None or hint is type(None):
        return value is None
    if origin is tuple and isinstance(value, tuple) and len(inner) == 2 and inner[1] is ...:
        return all(_is_of(each, inner[0]) for each in value)
    if origin is not None and isinstance(origin, type):
        return isinstance(value, origin)
    if not isinstance(hint, type) or hint is object:
        return True
    if hint in (int, float):
        return type(value) is int or (hint is float and type(value) is float)
    return isinstance(value, hint) if dataclasses.is_dataclass(hint) or hint in (str, bool, tuple, dict, list) else True
