"""The universal form on XLA and IREE: as any compiler runs it that knows no composite."""

from lowbit.export.iree import on_aarch64, on_host
from lowbit.export.reading import Bundle
from lowbit.export.runners import Inputs, Ran, Run
from lowbit.export.served.run import on_xla
from lowbit.export.universal.write import PROGRAM


def _xla(bundle: Bundle, inputs: Inputs) -> Ran:
    return on_xla(bundle, bundle.file(PROGRAM), inputs)


def _iree(bundle: Bundle, inputs: Inputs) -> Ran:
    return on_host(bundle.file(PROGRAM), inputs)


def _aarch64(bundle: Bundle, inputs: Inputs) -> Ran:
    return on_aarch64(bundle, bundle.file(PROGRAM), inputs)


RUN: dict[str, Run] = {"xla-universal": _xla, "iree-universal": _iree, "iree-aarch64-universal": _aarch64}
