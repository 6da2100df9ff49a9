"""The quantized form: StableHLO's own lowering of its types, then XLA or the interpreter; IREE takes the types as they are."""

from lowbit.export import stablehlo
from lowbit.export.iree import on_host
from lowbit.export.quantized.checks import without_quantized_types
from lowbit.export.quantized.write import PROGRAM
from lowbit.export.reading import Bundle
from lowbit.export.runners import Inputs, Ran, Run
from lowbit.export.served.run import in_interpreter, on_xla


def _xla(bundle: Bundle, inputs: Inputs) -> Ran:
    text = without_quantized_types(stablehlo.text_of(bundle.file(PROGRAM)))
    return on_xla(bundle, stablehlo.artifact(text, bundle.manifest["stablehlo"]), inputs)


def _interpreter(bundle: Bundle, inputs: Inputs) -> Ran:
    return in_interpreter(bundle, stablehlo.text_of(bundle.file(PROGRAM)), inputs)


def _iree(bundle: Bundle, inputs: Inputs) -> Ran:
    return on_host(bundle.file(PROGRAM), inputs)


RUN: dict[str, Run] = {"xla-quantized": _xla, "interpreter-quantized": _interpreter, "iree-quantized": _iree}
