"""Rewrites that read a model with its data: where the data comes from."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Self

from .scaling import Batches


@dataclasses.dataclass(frozen=True)
class Given(abc.ABC):
    """A rewrite with the batches that it reads the model with; subclasses are final.

    Attributes:
        batches: tuples of the arguments after params and state: a list, or a function that returns an iterator over
            them. None: `lowbit.chain(..., batches=)` gives them.
    """

    batches: Batches | None = dataclasses.field(default=None, kw_only=True, repr=False)

    def given(self, batches: Batches) -> Self:
        """Returns the same rewrite with batches, where it has none."""
        return self if self.batches is not None else dataclasses.replace(self, batches=batches)

    @abc.abstractmethod
    def __call__(self, fn: Callable[..., Any], params: Any, state: Any) -> tuple[Callable[..., Any], Any, Any]:
        """Returns ``fn', params', state'``: the same function."""


def given(rewrite: Any, batches: Batches | None, rules: Any = None) -> Any:
    """Returns a rewrite with batches, where it takes some and has none, and with rules, where it has a method ``ruled``."""
    ready = rewrite.given(batches) if batches is not None and hasattr(rewrite, "given") else rewrite
    return ready.ruled(rules) if rules is not None and hasattr(ready, "ruled") else ready
