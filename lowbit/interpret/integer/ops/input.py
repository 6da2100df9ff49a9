"""An argument, put on a grid at the entry: what every interpretation does in its own way."""

from typing import Any

from lowbit.interpret.integer.kind import Kind, Taken


class Input(Kind):
    """An argument. It is no computation: an interpretation enters its codes."""

    name = "input"

    def compute(self, taken: Taken) -> list[Any]:
        return list(taken.codes)


KIND = Input()
