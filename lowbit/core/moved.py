"""Names that have moved, or are called otherwise: the old one still works, and says once what the new one is."""

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def moved(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns the ``__getattr__`` of a module from which names have gone.

    Whoever asks for one is told so by a `DeprecationWarning`, once for every name and process, and gets the same object.

    Args:
        module: where they were.
        names: from a name to its name now, that of its module before it.

    Example:
        >>> old = moved("lowbit.core.sums", {"nearest_even": "lowbit.core.rounding.nearest_even"})
        >>> with warnings.catch_warnings(record=True) as said:
        ...     warnings.simplefilter("always")
        ...     names = [old("nearest_even").__name__, old("nearest_even").__name__]
        >>> names, [str(each.message) for each in said]
        (['nearest_even', 'nearest_even'], ['lowbit.core.sums.nearest_even is now lowbit.core.rounding.nearest_even'])
    """
    told: set[str] = set()

    def getattribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        if name not in told:
            told.add(name)
            warnings.warn(f"{module}.{name} is now {names[name]}", DeprecationWarning, stacklevel=2)
        new_module, _, new_name = names[name].rpartition(".")
        return getattr(importlib.import_module(new_module), new_name)

    return getattribute
