"""``quantized/model.mlirbc``: the quantized form as a StableHLO artifact, and its text."""

from collections.abc import Mapping

from lowbit.export import stablehlo
from lowbit.export.codes import shapes
from lowbit.export.forms import Lowered
from lowbit.export.integer import Boundary
from lowbit.export.quantized import full_integer, quantized_function
from lowbit.export.quantized.checks import check
from lowbit.export.quantized.settle import settled

PROGRAM = "quantized/model.mlirbc"

_BOUNDARY = {"stablehlo.uniform_quantize", "stablehlo.uniform_dequantize"}
"""What may read or make floats in a full-integer module: its entry and its exit."""


def write(lowered: Lowered) -> Mapping[str, bytes]:
    """Returns the artifact and the text of the quantized form.

    Raises:
        ValueError: where the form cannot hold the model, or an operation of it does not verify.
    """
    text = stablehlo.module_text(quantized_function(lowered), shapes(lowered), lowered.name)
    ins, outs = [None] * len(lowered.inputs), [None] * len(lowered.outputs)
    if lowered.has_integer_io:
        boundary = Boundary(lowered.fn, lowered.plan, lowered.qparams, lowered.call)
        ins, outs = (
            full_integer.boundary(lowered.plan, lowered.qparams, grids) for grids in (boundary.ins, boundary.outs)
        )
    text = settled(text, ins, outs)
    floats = {name for names in stablehlo.float_operations(text).values() for name in names}
    if lowered.plan.is_full_integer and floats - _BOUNDARY:
        raise ValueError(f"this quantized module still computes in floats: {', '.join(sorted(floats - _BOUNDARY))}")
    check(text, (lowered.version, stablehlo.current_version()))
    return {PROGRAM: stablehlo.artifact(text, lowered.version), "quantized/model.mlir": text.encode()}
