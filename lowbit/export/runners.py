"""What runs a bundle: the ``run.py`` of every form, found here by `lowbit.export.verify`.

It has ``RUN``: by target name, a function of the bundle and the flat test inputs of several calls. Tools are imported
inside the functions. Files of the bundle come from `Bundle.file`, or `Bundle.copied` for tools that open files themselves.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lowbit.export.forms import folders_with
from lowbit.export.reading import Bundle
from lowbit.export.storage import Stored
from lowbit.targets.table import TARGETS


@dataclasses.dataclass(frozen=True)
class Ran:
    """What a tool made of a bundle.

    Attributes:
        outputs: flat results of every call, or of the first ones where all would take too long; None of a compiler that
            only reports.
        compiled: bytes of the compiled file; None where there is none.
        stored: the weights that the runner itself found inside the compiled file; None leaves the estimate to its size.
        measured: what else it found, by name with unit: ``{"flash_bytes": 147_134, "ram_bytes": 3_072}``.
        constants: bytes of the constants in the compiled file, code apart; None where the tool does not show them.
    """

    outputs: Sequence[Sequence[np.ndarray]] | None
    compiled: int | None = None
    stored: Sequence[Stored] | None = None
    measured: Mapping[str, float] = dataclasses.field(default_factory=dict)
    constants: int | None = None


Inputs = Sequence[Sequence[np.ndarray]]
"""Flat inputs of every call."""

Run = Callable[[Bundle, Inputs], Ran]


@functools.cache
def runners() -> dict[str, Run]:
    """Returns every runner by target name, in the order of the table of targets.

    A caller may put another function in the place of one: `lowbit.export.verify` runs that in its own process.
    """
    by_name: dict[str, Run] = {}
    for form in folders_with("run"):
        by_name |= importlib.import_module(f"{__name__.rpartition('.')[0]}.{form}.run").RUN
    return {name: by_name[name] for name in TARGETS if name in by_name}
