"""From the universal form to a checked LiteRT model."""

import json
import tempfile
from pathlib import Path

from lowbit.export import stablehlo
from lowbit.export.codes import shapes
from lowbit.export.forms import Lowered
from lowbit.export.universal import universal_jaxpr

from . import is_installed, work
from .audit import Contents
from .prepare import Prepared

INSTALL = "pip install 'lowbit[edge]'"


def converted(lowered: Lowered) -> tuple[bytes, str]:
    """Returns the model, and what is in it as JSON.

    Raises:
        ValueError: if the converter is not installed or fails, or its result is not what the plan says.
    """
    if not is_installed("litert_converter"):
        raise ValueError(f"the litert form needs litert-converter, which is not installed: {INSTALL}")
    function = Prepared(universal_jaxpr(lowered))
    module = stablehlo.module(function, shapes(lowered), lowered.name)
    with tempfile.TemporaryDirectory() as folder:
        artifact, model, contents = (Path(folder, name) for name in ("model.mlirbc", "model.tflite", "contents.json"))
        artifact.write_bytes(stablehlo.artifact(module, lowered.version))
        work("convert", str(artifact), str(model), str(contents), what="the LiteRT converter")
        described = json.dumps(json.loads(contents.read_text()) | {"weights": function.weights}, indent=1)
        Contents.of(described).check(lowered.plan)
        return model.read_bytes(), described
