"""The universal form on XLA and IREE: as any compiler runs it that knows no composite."""

from collections.abc import Sequence

import jax
import numpy as np

from lowbit.export import iree, signature, stablehlo
from lowbit.export.bundle import Bundle
from lowbit.export.forms.universal import ARTIFACT

from . import Ran, Run


def _xla(bundle: Bundle, inputs: Sequence[np.ndarray]) -> Ran:
    scope = jax.export.SymbolicScope()
    ins, outs = (signature.specs(bundle.manifest[which], scope) for which in ("inputs", "outputs"))
    data = (bundle.path / ARTIFACT).read_bytes()
    return Ran([np.asarray(y) for y in stablehlo.run_on_xla(data, inputs, ins, outs)])


def _iree(bundle: Bundle, inputs: Sequence[np.ndarray]) -> Ran:
    compiled = iree.compile_artifact((bundle.path / ARTIFACT).read_bytes())
    return Ran(iree.run(compiled, inputs), len(compiled))


RUN: dict[str, Run] = {"xla-universal": _xla, "iree-universal": _iree}
