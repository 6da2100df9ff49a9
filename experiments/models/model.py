"""What every network file returns."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Model(NamedTuple):
    """A network as the job sees it.

    Attributes:
        fn: ``fn(params, state, x) -> y``, evaluation.
        params: float parameters.
        state: everything else (batch statistics), or an empty dict.
        train_fn: ``fn(params, state, x, rngs=) -> (y, state')`` where training differs from evaluation, else None.
    """

    fn: Callable[..., Any]
    params: Any
    state: Any
    train_fn: Callable[..., Any] | None = None
