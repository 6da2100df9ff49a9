"""What runs a bundle: one module per tool, found here by `lowbit.export.verify`.

A module has ``RUN``: by target name, a function of the bundle and its test inputs. Tools are imported inside the functions.
"""

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lowbit.export.bundle import Bundle
from lowbit.export.storage import Stored
from lowbit.export.targets import TARGETS


@dataclasses.dataclass(frozen=True)
class Ran:
    """What a tool made of a bundle.

    Attributes:
        outputs: flat results; None of a compiler that only reports.
        compiled: bytes of the compiled file; None where there is none.
        stored: the weights that the runner itself found inside the compiled file; None leaves the estimate to its size.
        measured: what else it found, by name with unit: ``{"flash_bytes": 147_134, "ram_bytes": 3_072}``.
        constants: bytes of the constants in the compiled file, code apart; None where the tool does not show them.
    """

    outputs: Sequence[np.ndarray] | None
    compiled: int | None = None
    stored: Sequence[Stored] | None = None
    measured: Mapping[str, float] = dataclasses.field(default_factory=dict)
    constants: int | None = None


Run = Callable[[Bundle, Sequence[Any]], Ran]


@functools.cache
def runners() -> dict[str, Run]:
    """Returns every runner by target name, in the order of the table of targets."""
    found: dict[str, Run] = {}
    for module in pkgutil.iter_modules(__path__):
        found |= importlib.import_module(f"{__name__}.{module.name}").RUN
    return {name: found[name] for name in TARGETS if name in found}
