"""The quantized form: StableHLO's own lowering of its types, then XLA or the interpreter; IREE takes the types as they are."""

from collections.abc import Sequence

import numpy as np

from lowbit.export import iree, stablehlo
from lowbit.export.bundle import Bundle
from lowbit.export.forms.quantized import ARTIFACT
from lowbit.export.quantized_types.checks import without_quantized_types

from . import Ran, Run
from .xla import on_xla


def _artifact(bundle: Bundle) -> bytes:
    return (bundle.path / ARTIFACT).read_bytes()


def _xla(bundle: Bundle, inputs: Sequence[np.ndarray]) -> Ran:
    text = without_quantized_types(stablehlo.text_of(_artifact(bundle)))
    return on_xla(bundle, stablehlo.artifact(text, bundle.manifest["stablehlo"]), inputs)


def _interpreter(bundle: Bundle, inputs: Sequence[np.ndarray]) -> Ran:
    return Ran(stablehlo.run_in_interpreter(stablehlo.text_of(_artifact(bundle)), inputs))


def _iree(bundle: Bundle, inputs: Sequence[np.ndarray]) -> Ran:
    compiled = iree.compile_artifact(_artifact(bundle))
    return Ran(iree.run(compiled, inputs), len(compiled), constants=iree.constant_bytes(compiled))


RUN: dict[str, Run] = {"xla-quantized": _xla, "interpreter-quantized": _interpreter, "iree-quantized": _iree}
