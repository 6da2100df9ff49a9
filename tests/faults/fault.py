"""What a planted fault is."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: what went wrong.
        file: from the root of the tree.
        old: text that stands in it once.
        new: what stands there instead.
        tests: node ids, one of which must fail at least; files and doctests count.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
