"""Recipes by name: every module of this folder that has a function ``recipe``."""

import importlib
import pkgutil

from lowbit.core.paths import nearest

from .recipe import Recipe


def names() -> tuple[str, ...]:
    """Returns the names of all recipes."""
    import lowbit.recipes as folder

    modules = [module.name for module in pkgutil.iter_modules(folder.__path__)]
    return tuple(name for name in modules if hasattr(importlib.import_module(f"{folder.__name__}.{name}"), "recipe"))


def named(name: str) -> Recipe:
    """Returns a recipe by name.

    Raises:
        ValueError: for an unknown one.
    """
    known = names()
    if name not in known:
        near = ", ".join(nearest(name, known))
        raise ValueError(f"recipe {name!r} is none of {', '.join(known)}" + (f"; nearest: {near}" if near else ""))
    return importlib.import_module(f"lowbit.recipes.{name}").recipe()
