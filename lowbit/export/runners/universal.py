"""The universal form on XLA and IREE: as any compiler runs it that knows no composite."""

from collections.abc import Sequence

import numpy as np

from lowbit.export import iree
from lowbit.export.bundle import Bundle
from lowbit.export.forms.universal import ARTIFACT

from . import Ran, Run
from .iree import on_aarch64
from .xla import on_xla


def _xla(bundle: Bundle, inputs: Sequence[np.ndarray]) -> Ran:
    return on_xla(bundle, (bundle.path / ARTIFACT).read_bytes(), inputs)


def _iree(bundle: Bundle, inputs: Sequence[np.ndarray]) -> Ran:
    compiled = iree.compile_artifact((bundle.path / ARTIFACT).read_bytes())
    return Ran(iree.run(compiled, inputs), len(compiled), constants=iree.constant_bytes(compiled))


def _aarch64(bundle: Bundle, inputs: Sequence[np.ndarray]) -> Ran:
    return on_aarch64(bundle, (bundle.path / ARTIFACT).read_bytes(), inputs)


RUN: dict[str, Run] = {"xla-universal": _xla, "iree-universal": _iree, "iree-aarch64-universal": _aarch64}
