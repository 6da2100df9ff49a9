"""``universal/model.mlirbc``: the universal form as a StableHLO artifact, deflated beside it, and its text."""

import functools
from collections.abc import Mapping

from lowbit.export import stablehlo
from lowbit.export.codes import shapes
from lowbit.export.folder import Content
from lowbit.export.forms import Lowered
from lowbit.export.universal import universal_function

PROGRAM = "universal/model.mlirbc"


def write(lowered: Lowered) -> Mapping[str, Content]:
    """Returns the artifact and the text of the universal form.

    Raises:
        ValueError: where the form cannot hold the model.
    """
    module = stablehlo.module(universal_function(lowered), shapes(lowered), lowered.name)
    return {
        PROGRAM: lambda stream: stream.write(stablehlo.artifact(module, lowered.version)),
        "universal/model.mlir": functools.partial(stablehlo.print_text, module),
    }
