"""Flax linen modules as pure functions."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from lowbit.core.keywords import check_keywords, merged

_OF_APPLY = frozenset(("rngs", "method", "mutable", "capture_intermediates"))
"""Keywords that `flax.linen.Module.apply` keeps for itself: a module's own of these names are passed inside."""


@dataclasses.dataclass(frozen=True)
class LinenFunction:
    """``fn(params, state, *args, rngs=None)`` of a linen module; equal functions compare equal, so caches hold.

    Attributes:
        module: the module.
        mutable: collections the call may change; then it returns ``(y, state')``.
        method: another method than ``__call__``, or None.
        static: keyword arguments fixed for every call, as sorted items.
    """

    module: Any
    mutable: tuple[str, ...] = ()
    method: Callable[..., Any] | str | None = None
    static: tuple[tuple[str, Any], ...] = ()

    takes_state: ClassVar[bool] = True  # the first argument after the parameters is no data

    def __hash__(self) -> int:
        return hash((type(self.module), self.mutable, self.method))  # modules with sets or dicts do not hash

    def __call__(self, params: Any, state: Mapping[str, Any], *args: Any, rngs: Any = None) -> Any:
        variables = {"params": params, **state}
        method, options = self.method, dict(self.static)
        if _OF_APPLY & options.keys():
            method, options = functools.partial(_called, self.method, options), {}
        if not self.mutable:
            return self.module.apply(variables, *args, rngs=rngs, method=method, **options)
        y, changed = self.module.apply(
            variables, *args, rngs=rngs, method=method, mutable=list(self.mutable), **options
        )
        return y, {**state, **changed}


def _called(method: Callable[..., Any] | str | None, options: Mapping[str, Any], module: Any, *args: Any) -> Any:
    call = functools.partial(method, module) if callable(method) else getattr(module, method or "__call__")
    return call(*args, **options)


def linen(
    module: Any,
    variables: Mapping[str, Any],
    *,
    mutable: tuple[str, ...] | list[str] = (),
    method: Callable[..., Any] | str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **static: Any,
) -> tuple[LinenFunction, Any, dict[str, Any]]:
    """Returns ``fn, params, state`` of a linen module.

    ``fn(params, state, *args, rngs=None)`` gives ``y``, or ``(y, state')`` with ``mutable`` collections. ``state`` is
    every collection that is not ``params`` and gets no gradient. Training and evaluation are two calls of this function
    that share one plan: ``linen(module, variables, mutable=("batch_stats",), train=True)``.

    Args:
        module: a `flax.linen.Module`.
        variables: from ``module.init``.
        mutable: names of the collections a call may change.
        method: another method than ``__call__``.
        kwargs: keyword arguments of the module that are fixed, whatever their names: ``mutable`` and ``method`` too.
        **static: keyword arguments of the module that are fixed, such as ``train=False``.

    Raises:
        TypeError: if ``variables`` is not a mapping, or for a keyword that could be linen's and the module's.
        ValueError: if it has no ``params``, or ``mutable`` names a collection it lacks.
    """
    from flax import linen as flax_linen

    if not isinstance(module, flax_linen.Module):
        raise TypeError(f"module must be a flax.linen.Module, got {type(module).__name__}")
    if not isinstance(mutable, tuple | list) or not all(isinstance(name, str) for name in mutable):
        raise TypeError(f"mutable must be a tuple or list of names of collections, got {mutable!r}")
    if not (method is None or callable(method) or isinstance(method, str)):
        raise TypeError(f"method must be a method, its name, or None, got {method!r}")
    if not isinstance(variables, Mapping):
        raise TypeError(f"variables must be the mapping that module.init returns, got {type(variables).__name__}")
    if "params" not in variables:
        raise ValueError(f"variables must hold 'params', got {sorted(variables)}")
    target = method if callable(method) else getattr(type(module), method or "__call__", None)
    given = {n: x for n, x in (("mutable", mutable), ("method", method), ("kwargs", kwargs)) if x}
    check_keywords("lowbit.linen", target, ("mutable", "method", "kwargs"), static | given)
    state = {name: value for name, value in variables.items() if name != "params"}
    if unknown := [name for name in mutable if name not in state]:
        raise ValueError(f"mutable names {unknown}, but the variables hold {sorted(state) or 'no such collection'}")
    fn = LinenFunction(module, tuple(mutable), method, tuple(sorted(merged(static, kwargs).items())))
    return fn, variables["params"], state
