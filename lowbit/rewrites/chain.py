"""`chain`: several rewrites as one."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from lowbit.core.marks import takes_state

from .given import given
from .scaling import Batches
from .stateless import rewritten

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


def chain(*rewrites: Rewrite, batches: Batches | None = None) -> "Chain":
    """Returns the rewrite that applies ``rewrites`` from left to right.

    A rewrite takes ``(fn, params, state)`` and returns ``(fn', params', state')``: another model, the same function.
    It comes before `lowbit.bind`. What comes out is marked as taking ``state``, so that `lowbit.export` keeps it as a
    constant, also where a rewrite returns a plain function. A function without state is rewritten with ``state=None``, and stays
    one: ``fn'(params', *args)``. No rewrite at all is legal and changes nothing.

    Args:
        *rewrites: such as ``lowbit.rewrites.batch_norm.fold(x)`` and ``lowbit.rewrites.smooth.smooth(0.5)``.
        batches: tuples of the arguments after params and state, in a list or from a function that returns an iterator: for
            those rewrites that read the model with its data and have none of their own.

    Raises:
        TypeError: if one of them is not callable, or does not return three values.

    Example:
        >>> def doubled(fn, params, state):  # twice the weight, half the input
        ...     return lambda p, s, x: fn(p, s, 0.5 * x), 2.0 * params, state
        >>> fn, params, state = chain(doubled, doubled)(lambda p, s, x: p * x, 3.0, {})
        >>> params, fn(params, state, 1.0)
        (12.0, 3.0)
        >>> fn, params, state = chain(doubled)(lambda p, x: p * x, 3.0, None)
        >>> params, fn(params, 1.0), state
        (6.0, 3.0, None)
    """
    for rewrite in rewrites:
        if not callable(rewrite):
            raise TypeError(
                f"a rewrite must be a function (fn, params, state) -> (fn', params', state'), got {type(rewrite).__name__}"
            )

    return Chain(tuple(rewrites), batches)


@dataclasses.dataclass(frozen=True)
class Chain:
    """Several rewrites, from left to right; ``print`` shows them.

    Attributes:
        rewrites: the rewrites.
        batches: for those that read the model with its data and have none of their own.
        rules: of what will be quantized, for those that ask (``ruled``).
    """

    rewrites: tuple[Rewrite, ...]
    batches: Batches | None = dataclasses.field(default=None, repr=False)
    rules: Any = dataclasses.field(default=None, repr=False)

    def given(self, batches: Batches) -> "Chain":
        """Returns the same chain with batches, where it has none."""
        return self if self.batches is not None else dataclasses.replace(self, batches=batches)

    def ruled(self, rules: Any) -> "Chain":
        """Returns the same chain with rules."""
        return dataclasses.replace(self, rules=rules)

    def __call__(self, fn: Callable[..., Any], params: Any, state: Any) -> tuple[Callable[..., Any], Any, Any]:
        if state is None:
            return rewritten(self, fn, params, None)
        model = fn, params, state
        for rewrite in self.rewrites:
            model = given(rewrite, self.batches, self.rules)(*model)
            if not isinstance(model, tuple) or len(model) != 3:
                raise TypeError(f"a rewrite must return (fn', params', state'), got {type(model).__name__}")
        fn, params, state = model
        return (fn if not self.rewrites or takes_state(fn) else Rewritten(fn)), params, state

    def __str__(self) -> str:
        return f"chain({', '.join(map(str, self.rewrites))})"
