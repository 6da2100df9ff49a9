"""XLA in this process, and StableHLO's own interpreter: both in jaxlib."""

from collections.abc import Sequence

import jax
import numpy as np

from lowbit.export import signature, stablehlo
from lowbit.export.bundle import Bundle

from . import Ran


def on_xla(bundle: Bundle, artifact: bytes, inputs: Sequence[np.ndarray]) -> Ran:
    """Returns what XLA makes of an artifact with the bundle's signature."""
    scope = jax.export.SymbolicScope()
    ins, outs = (signature.specs(bundle.manifest[which], scope) for which in ("inputs", "outputs"))
    return Ran([np.asarray(y) for y in stablehlo.run_on_xla(artifact, inputs, ins, outs)])


def _run_xla(bundle: Bundle, inputs: Sequence[np.ndarray]) -> Ran:
    return on_xla(bundle, bundle.artifact, inputs)


def _run_interpreter(bundle: Bundle, inputs: Sequence[np.ndarray]) -> Ran:
    return Ran(stablehlo.run_in_interpreter((bundle.path / "model.mlir").read_text(), inputs))


RUN = {"xla": _run_xla, "interpreter": _run_interpreter}
