"""The universal form on XLA and IREE: as any compiler runs it that knows no composite."""

from lowbit.export.forms.universal import ARTIFACT
from lowbit.export.reading import Bundle

from . import Inputs, Ran, Run
from .iree import on_aarch64, on_host
from .xla import on_xla


def _xla(bundle: Bundle, inputs: Inputs) -> Ran:
    return on_xla(bundle, bundle.file(ARTIFACT), inputs)


def _iree(bundle: Bundle, inputs: Inputs) -> Ran:
    return on_host(bundle.file(ARTIFACT), inputs)


def _aarch64(bundle: Bundle, inputs: Inputs) -> Ran:
    return on_aarch64(bundle, bundle.file(ARTIFACT), inputs)


RUN: dict[str, Run] = {"xla-universal": _xla, "iree-universal": _iree, "iree-aarch64-universal": _aarch64}
