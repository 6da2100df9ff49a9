"""Flax nnx modules as pure functions."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from lowbit.core.keywords import check_keywords, merged


@dataclasses.dataclass(frozen=True)
class NNXFunction:
    """``fn(params, state, *args)`` of an nnx module.

    Attributes:
        graphdef: the static part of the module.
        is_mutable: whether the call returns ``(y, state')``.
        method: the name of the method called, or None for ``__call__``.
        static: keyword arguments fixed for every call, as sorted items.
    """

    graphdef: Any
    is_mutable: bool
    method: str | None = None
    static: tuple[tuple[str, Any], ...] = ()

    takes_state: ClassVar[bool] = True  # the first argument after the parameters is no data

    def __call__(self, params: Any, state: Any, *args: Any) -> Any:
        from flax import nnx as flax_nnx

        state = jax.tree.map(lambda x: x, state)  # fresh variables: a call may change them at its own trace level
        module = flax_nnx.merge(self.graphdef, _wrapped(params, flax_nnx.Param), state)
        call = module if self.method is None else getattr(module, self.method)
        y = call(*args, **dict(self.static))
        if not self.is_mutable:
            return y
        _, _, after = flax_nnx.split(module, flax_nnx.Param, ...)
        return y, after


def _wrapped(params: Any, kind: Any) -> Any:
    from flax import nnx as flax_nnx

    leaves = jax.tree_util.tree_flatten_with_path(params, is_leaf=lambda x: x is None)[0]
    flat = {tuple(_name(key) for key in keys): kind(leaf) for keys, leaf in leaves}
    return flax_nnx.from_flat_state(flat.items())


def _name(key: Any) -> Any:
    return key.key if hasattr(key, "key") else key.idx if hasattr(key, "idx") else key.name


def nnx(
    module: Any,
    *,
    mutable: bool = False,
    method: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **static: Any,
) -> tuple[NNXFunction, dict[Any, Any], Any]:
    """Returns ``fn, params, state`` of an nnx module.

    ``params`` is a plain nested dict of arrays. ``state`` holds every variable that is not an `nnx.Param` (batch
    statistics, random streams) and gets no gradient. ``fn(params, state, *args)`` gives ``y``, or ``(y, state')`` with
    ``mutable=True``. For training and evaluation, set the module's mode first (``module.train()``, ``module.eval()``)
    and adapt twice; both share one plan.

    Args:
        module: a `flax.nnx.Module`.
        mutable: whether a call returns the changed state.
        method: another method than ``__call__``, by name.
        kwargs: keyword arguments of the call that are fixed, whatever their names: ``mutable`` and ``method`` too.
        **static: keyword arguments of the call that are fixed.

    Raises:
        TypeError: if ``module`` is not an nnx module, or for a keyword that could be nnx's and the module's.
    """
    from flax import nnx as flax_nnx

    if not isinstance(module, flax_nnx.Module):
        raise TypeError(f"module must be a flax.nnx.Module, got {type(module).__name__}")
    if not isinstance(mutable, bool):
        raise TypeError(f"mutable must be True or False, got {mutable!r}")
    if method is not None and not (isinstance(method, str) and callable(getattr(module, method, None))):
        raise TypeError(f"method must be the name of a method of the module, or None, got {method!r}")
    given = {n: x for n, x in (("mutable", mutable), ("method", method), ("kwargs", kwargs)) if x}
    target = getattr(type(module), method or "__call__", None)
    check_keywords("lowbit.nnx", target, ("mutable", "method", "kwargs"), static | given)
    graphdef, params, state = flax_nnx.split(module, flax_nnx.Param, ...)
    plain = flax_nnx.to_pure_dict(params)
    return NNXFunction(graphdef, mutable, method, tuple(sorted(merged(static, kwargs).items()))), plain, state
