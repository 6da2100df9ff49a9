"""IREE on this machine: native code and portable bytecode."""

from collections.abc import Sequence

import numpy as np

from lowbit.export import iree
from lowbit.export.bundle import Bundle

from . import Ran, Run


def _on(backend: str) -> Run:
    def run(bundle: Bundle, inputs: Sequence[np.ndarray]) -> Ran:
        compiled = iree.compile_artifact(bundle.artifact, backend=backend)
        return Ran(iree.run(compiled, inputs), len(compiled))

    return run


RUN = {"iree": _on("llvm-cpu"), "iree-vmvx": _on("vmvx")}
