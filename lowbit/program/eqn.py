"""What is read of an equation of a jaxpr, as a type: jax's own says of a variable only that it has some abstract value."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


class Variable(Protocol):
    """A variable or a literal of a jaxpr: what is read of one everywhere is the shape and dtype in ``aval``."""

    @property
    def aval(self) -> Any:
        """Its shape and dtype."""
        ...


@runtime_checkable
class Eqn(Protocol):
    """An equation of a jaxpr, as jax has it or a view of one."""

    @property
    def primitive(self) -> Any:
        """What it does."""
        ...

    @property
    def params(self) -> dict[str, Any]:
        """Of the primitive."""
        ...

    @property
    def invars(self) -> Sequence[Variable]:
        """What it reads."""
        ...

    @property
    def outvars(self) -> Sequence[Variable]:
        """What it gives."""
        ...

    @property
    def effects(self) -> Any:
        """What it does besides, such as reading a reference."""
        ...

    @property
    def ctx(self) -> Any:
        """The configuration that it was traced under."""
        ...

    @property
    def source_info(self) -> Any:
        """The lines of the model that it comes from."""
        ...
