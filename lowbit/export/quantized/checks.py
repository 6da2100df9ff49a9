"""A module with quantized types, checked, and lowered to plain arithmetic by StableHLO's own pass."""

import re
from collections.abc import Sequence
from typing import Any

from jaxlib.mlir import ir  # noqa: TID251 - public jax cannot read a module
from jaxlib.mlir.passmanager import PassManager  # noqa: TID251

from lowbit.export.stablehlo import artifact, first_line, new_context, register_passes, text_of

_QUANT_TO_MATH = "builtin.module(func.func(stablehlo-legalize-quant-to-math,chlo-legalize-to-stablehlo))"


def check(text: str, versions: Sequence[str]) -> None:
    """Raises ValueError, naming the operation, for a module that does not verify or that an artifact changes.

    Args:
        text: StableHLO.
        versions: of artifacts that every operation, type and constant must come back from.
    """
    with new_context(), ir.Location.unknown():
        try:
            module = ir.Module.parse(text)
            module.operation.verify()
        except Exception as error:  # noqa: BLE001 - MLIR raises errors of several private classes
            raise ValueError(f"this module does not verify: {_diagnosis(error, text)}") from None
        wanted = _outline(module)
    for version in versions:
        with new_context(), ir.Location.unknown():
            if _outline(ir.Module.parse(text_of(artifact(text, version)))) != wanted:
                raise ValueError(f"StableHLO {version} does not give this module back as it was")


def _outline(module: Any) -> list[tuple[str, ...]]:
    """Operations in order, with the types of their results and the values of constants."""
    outlines = []

    def visit(op: Any) -> Any:
        value = (str(op.attributes["value"]),) if op.name == "stablehlo.constant" else ()
        outlines.append((op.name, *(str(result.type) for result in op.results), *value))
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return outlines


def _diagnosis(error: Exception, text: str) -> str:
    """What is wrong, and the operation, of an error that points at a line."""
    said = next((line.strip() for line in str(error).splitlines() if "error:" in line), first_line(error))
    place = re.search(r'"-":(\d+):\d+: ', said)
    if place is None:
        return said[:300]
    return f"{said[place.end() :][:300]} at {text.splitlines()[int(place[1]) - 1].strip()[:120]}"


def without_quantized_types(text: str) -> str:
    """Returns a module with StableHLO's own arithmetic in the place of quantized types; arguments are their integers.

    Raises:
        ValueError: for an operation on quantized types that StableHLO does not lower.
    """
    register_passes()
    with new_context(), ir.Location.unknown():
        module = ir.Module.parse(text)
        try:
            PassManager.parse(_QUANT_TO_MATH).run(module.operation)
        except Exception as error:  # noqa: BLE001 - MLIR raises errors of several private classes
            raise ValueError(f"StableHLO does not lower these quantized types: {_diagnosis(error, text)}") from None
        return str(module.operation.get_asm(large_elements_limit=None))
