"""`chain`: several rewrites as one."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from lowbit.core.marks import takes_state

Rewrite = Callable[[Callable[..., Any], Any, Any], tuple[Callable[..., Any], Any, Any]]
"""``(fn, params, state) -> (fn', params', state')`` with ``fn'(params', state', *args)`` equal to ``fn(params, state, *args)``."""


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """A function that a rewrite returned, ``fn(params, state, *args)``, marked as one that takes state.

    Attributes:
        fn: the function.
    """

    fn: Callable[..., Any]

    takes_state: ClassVar[bool] = True  # the first argument after the parameters is no data

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The function: what `inspect.signature` shows."""
        return self.fn

    def __call__(self, params: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        return self.fn(params, state, *args, **kwargs)

    def __str__(self) -> str:
        return str(self.fn)


def chain(*rewrites: Rewrite) -> Rewrite:
    """Returns the rewrite that applies ``rewrites`` from left to right.

    A rewrite takes ``(fn, params, state)`` and returns ``(fn', params', state')``: another model, the same function.
    It comes before `lowbit.bind`. What comes out is marked as taking ``state``, so that `lowbit.export` keeps it as a
    constant, also where a rewrite returns a plain function. No rewrite at all is legal and changes nothing.

    Args:
        *rewrites: such as ``lowbit.rewrites.batch_norm.fold(x)``.

    Raises:
        TypeError: if one of them is not callable, or does not return three values.

    Example:
        >>> def doubled(fn, params, state):  # twice the weight, half the input
        ...     return lambda p, s, x: fn(p, s, 0.5 * x), 2.0 * params, state
        >>> fn, params, state = chain(doubled, doubled)(lambda p, s, x: p * x, 3.0, {})
        >>> params, fn(params, state, 1.0)
        (12.0, 3.0)
    """
    for rewrite in rewrites:
        if not callable(rewrite):
            raise TypeError(
                f"a rewrite must be a function (fn, params, state) -> (fn', params', state'), got {type(rewrite).__name__}"
            )

    def chained(fn: Callable[..., Any], params: Any, state: Any) -> tuple[Callable[..., Any], Any, Any]:
        model = fn, params, state
        for rewrite in rewrites:
            model = rewrite(*model)
            if not isinstance(model, tuple) or len(model) != 3:
                raise TypeError(f"a rewrite must return (fn', params', state'), got {type(model).__name__}")
        fn, params, state = model
        return (fn if not rewrites or takes_state(fn) else Rewritten(fn)), params, state

    return chained
