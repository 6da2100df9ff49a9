"""The words of granularities and of storages of scales, found: a module of either folder with a ``named`` function has some."""

import functools
import importlib
import pkgutil
from types import ModuleType

from . import granularity, scales
from .granularity import Granularity
from .storage import Numbers, Storage


def _modules(package: ModuleType) -> tuple[ModuleType, ...]:
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    return tuple(module for module in modules if hasattr(module, "named"))


@functools.cache
def granularity_words() -> tuple[str, ...]:
    """Returns the options that say who shares a scale, as they are listed: ``gN``, ``channel``.

    Example:
        >>> granularity_words()
        ('channel', 'gN', 'tensor', 'tAxB')
    """
    return tuple(word for module in _modules(granularity) for word in module.WORDS)


@functools.cache
def scale_words() -> tuple[str, ...]:
    """Returns the options that say how scales are stored.

    Example:
        >>> {"bfloat16", "e8m0", "dq", "int5"} <= set(scale_words())
        True
    """
    return tuple(word for module in _modules(scales) for word in module.WORDS)


def granularity_named(word: str) -> Granularity | None:
    """Returns the granularity of an option, or None where it is none.

    Raises:
        ValueError: where its numbers are out of range.
    """
    return next(
        (meant for module in _modules(granularity) if (meant := module.named(word)) is not None),
        None,
    )


def storage_named(word: str, numbers: Numbers) -> Storage:
    """Returns the storage of scales of this name.

    Args:
        word: one of `scale_words`.
        numbers: from the name of a format to the format.

    Raises:
        ValueError: for another word.
    """
    for module in _modules(scales):
        if (storage := module.named(word, numbers)) is not None:
            return storage
    raise ValueError(f"a scale is stored as one of {', '.join(scale_words())}, got {word!r}")
