"""Rewrites of a model without state: rewrites are of ``fn(params, state, *args)``, and the caller's ``fn(params, *args)`` keeps its form."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from lowbit.core.marks import takes_state


@dataclasses.dataclass(frozen=True)
class _WithState:
    """A function without state, as rewrites take it: ``fn(params, state, *args)``, the state not looked at.

    Attributes:
        fn: ``fn(params, *args)``.
    """

    fn: Callable[..., Any]

    def __call__(self, params: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        del state
        return self.fn(params, *args, **kwargs)

    def __str__(self) -> str:
        return str(self.fn)


@dataclasses.dataclass(frozen=True)
class Stateless:
    """What a rewrite made of a function without state, called as that is: ``fn(params, *args)``. ``print`` shows what was done.

    Attributes:
        fn: ``fn(params, state, *args)``, from the rewrite.
        original: the function that was rewritten.
    """

    fn: Callable[..., Any]
    original: Callable[..., Any]

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The function that was rewritten: what `inspect.signature` shows."""
        return self.original

    @property
    def takes_state(self) -> bool:
        """Whether the function that was rewritten says that the first of its arguments is a state."""
        return takes_state(self.original)

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        return self.fn(params, {}, *args, **kwargs)

    def __str__(self) -> str:
        return str(self.fn)


def rewritten(
    rewrite: Callable[..., tuple[Callable[..., Any], Any, Any]], fn: Callable[..., Any], params: Any, state: Any
) -> tuple[Callable[..., Any], Any, Any]:
    """Returns ``fn', params', state'`` of a rewrite; of a function without state, ``fn'(params', *args)`` and None.

    Args:
        rewrite: ``(fn, params, state) -> (fn', params', state')``.
        fn: ``fn(params, state, *args)``, or ``fn(params, *args)`` where ``state`` is None.
        params: its parameters.
        state: what it takes beside parameters and data, or None.

    Raises:
        ValueError: where a rewrite gives a state to a function that takes none.

    Example:
        >>> fn, params, state = rewritten(
        ...     lambda f, p, s: (lambda p, s, x: f(p, s, x / 2), 2 * p, s), lambda p, x: p * x, 3.0, None
        ... )
        >>> params, fn(params, 1.0), state
        (6.0, 3.0, None)
    """
    if state is not None:
        return rewrite(fn, params, state)
    new_fn, params, new = rewrite(_WithState(fn), params, {})
    if jax.tree.leaves(new):
        raise ValueError(
            f"the rewrite {rewrite} made a state of a function without one: give the function a state={{}}"
        )
    return Stateless(new_fn, fn), params, None
