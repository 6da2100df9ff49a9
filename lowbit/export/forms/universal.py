"""``universal/model.mlirbc``: the universal form as a StableHLO artifact, and its text."""

from collections.abc import Mapping

from lowbit.export import stablehlo
from lowbit.export.universal import shapes, universal_function

from . import Lowered

ARTIFACT = "universal/model.mlirbc"


def write(lowered: Lowered) -> Mapping[str, bytes]:
    """Returns the artifact and the text of the universal form.

    Raises:
        ValueError: where the form cannot hold the model.
    """
    text = stablehlo.module_text(universal_function(lowered), shapes(lowered), lowered.name)
    return {ARTIFACT: stablehlo.artifact(text, lowered.version), "universal/model.mlir": text.encode()}
