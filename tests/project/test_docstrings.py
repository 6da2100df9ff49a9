"""Every public class, function and method of lowbit is described, by itself or by what it overrides."""

import importlib
import inspect
import pkgutil
import types
from collections.abc import Iterator

import pytest

import lowbit

MODULES = sorted(info.name for info in pkgutil.walk_packages(lowbit.__path__, "lowbit."))


def undescribed(module: types.ModuleType) -> list[str]:
    """Public names defined in a module, and public methods of its classes, without a docstring of their own or inherited."""
    return [name for name, docs in _public(module) if not any((doc or "").strip() for doc in docs)]


def _public(module: types.ModuleType) -> Iterator[tuple[str, list[str | None]]]:
    """Each public name with the docstrings that may speak for it: its own, then those of what it overrides."""
    yield module.__name__, [module.__doc__]
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            yield name, [value.__doc__]
        if inspect.isclass(value):
            for attribute, member in vars(value).items():
                if not attribute.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                    owners = [base for base in value.__mro__ if attribute in vars(base)]
                    yield f"{name}.{attribute}", [vars(base)[attribute].__doc__ for base in owners]


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_described(name: str) -> None:
    assert not undescribed(importlib.import_module(name))


def test_a_bare_name_is_found() -> None:
    module = types.ModuleType("planted", "A module.")
    source = '''
__name__ = "planted"
class Base:
    """A class."""
    def described(self):
        """A method."""
    def bare(self): ...
class Child(Base):
    """Another."""
    def described(self): ...
    def bare(self): ...
def _private(): ...
def function(): ...
'''
    exec(source, vars(module))
    assert undescribed(module) == ["Base.bare", "Child.bare", "function"]
