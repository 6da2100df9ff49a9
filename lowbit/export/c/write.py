"""C99 for microcontrollers: ``c/model.h``, ``c/model.c`` and a test program with the bundle's vectors, ``c/test.c``."""

import numpy as np

from lowbit.export.c.harness import program_source
from lowbit.export.c.source import compiled, ports
from lowbit.export.forms import Lowered
from lowbit.packed.bits import unpack


def write(lowered: Lowered) -> dict[str, bytes]:
    """Returns the C files of a full-integer model with codes in and out.

    Raises:
        ValueError: for another plan, or a primitive that has no C.
    """
    if not lowered.plan.is_full_integer:
        raise ValueError(
            "the C form needs a full-integer plan: bind with lowbit.bind(..., integer=True) and export with "
            "integer_io=True"
        )
    if not lowered.has_integer_io:
        raise ValueError("the C form takes and gives codes: export with integer_io=True")
    weights = {path: np.asarray(unpack(q).encode().codes) for path, q in lowered.qparams.weights().items()}
    inputs, outputs = ports(lowered.inputs, lowered.outputs)
    program = compiled(lowered.jaxpr, lowered.name, inputs, outputs, weights)
    case = [np.asarray(x) for x in lowered.vectors], [np.asarray(y) for y in lowered.results]
    test = program_source(lowered.name, inputs, outputs, [case])
    files = {"c/model.h": program.header, "c/model.c": program.source, "c/test.c": test}
    return {name: text.encode() for name, text in files.items()}
