"""XLA in this process and StableHLO's own interpreter, both in jaxlib; IREE for this machine, as bytecode and for 64-bit Arm."""

import jax
import numpy as np

from lowbit.export import signature, stablehlo
from lowbit.export.iree import on_aarch64, on_host
from lowbit.export.reading import Bundle
from lowbit.export.runners import Inputs, Ran, Run

SLOW = 20_000_000
"""Multiply-adds after which StableHLO's interpreter (about a million a second) runs no further call."""


def on_xla(bundle: Bundle, artifact: bytes, inputs: Inputs) -> Ran:
    """Returns what XLA makes of an artifact with the bundle's signature."""
    scope = jax.export.SymbolicScope()
    ins, outs = (signature.specs(bundle.manifest[which], scope) for which in ("inputs", "outputs"))
    run = stablehlo.on_xla(artifact, ins, outs)
    return Ran([[np.asarray(y) for y in run(*case)] for case in inputs])


def in_interpreter(bundle: Bundle, text: str, inputs: Inputs) -> Ran:
    """Returns what StableHLO's interpreter makes of a module: of the first calls, where all would take it minutes."""
    return Ran([stablehlo.run_in_interpreter(text, case) for case in inputs[: max(1, SLOW // max(work(bundle), 1))]])


def work(bundle: Bundle) -> int:
    """Returns the multiply-adds of one call."""
    return sum(entry.get("macs", 0) for entry in bundle.manifest["plan"]["rows"])


def _run_xla(bundle: Bundle, inputs: Inputs) -> Ran:
    return on_xla(bundle, bundle.artifact, inputs)


def _run_interpreter(bundle: Bundle, inputs: Inputs) -> Ran:
    return in_interpreter(bundle, stablehlo.text_of(bundle.artifact), inputs)


def _on(backend: str) -> Run:
    def run(bundle: Bundle, inputs: Inputs) -> Ran:
        return on_host(bundle.artifact, inputs, backend=backend)

    return run


def _aarch64(bundle: Bundle, inputs: Inputs) -> Ran:
    return on_aarch64(bundle, bundle.artifact, inputs)


RUN: dict[str, Run] = {
    "xla": _run_xla,
    "interpreter": _run_interpreter,
    "iree": _on("llvm-cpu"),
    "iree-vmvx": _on("vmvx"),
    "iree-aarch64": _aarch64,
}
