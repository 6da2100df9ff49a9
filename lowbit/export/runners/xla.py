"""XLA in this process, and StableHLO's own interpreter: both in jaxlib."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.export import stablehlo
from lowbit.export.bundle import Bundle

from . import Ran


def _run_xla(bundle: Bundle, inputs: Sequence[np.ndarray]) -> Ran:
    outputs = [jax.ShapeDtypeStruct(tuple(o["shape"]), jnp.dtype(o["dtype"])) for o in bundle.manifest["outputs"]]
    return Ran([np.asarray(y) for y in stablehlo.run_on_xla(bundle.artifact, inputs, outputs)])


def _run_interpreter(bundle: Bundle, inputs: Sequence[np.ndarray]) -> Ran:
    return Ran(stablehlo.run_in_interpreter((bundle.path / "model.mlir").read_text(), inputs))


RUN = {"xla": _run_xla, "interpreter": _run_interpreter}
