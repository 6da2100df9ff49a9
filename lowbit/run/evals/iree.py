"""The edge compiler: an exported module through IREE, for the CPU of this machine."""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import lowbit as lb
from lowbit.core import atomic
from lowbit.export import iree as compiler
from lowbit.run.measure import difference, outputs
from lowbit.run.pieces import Piece
from lowbit.run.samples import chosen

from .column import Column, Eval, size, spread, worst


def iree(*, samples: int | None = 1_000, batch: int = 1, digits: int = 2) -> Eval:
    """Returns an eval: exported, compiled by IREE and run there, compared with `lowbit.execute`.

    Args:
        samples: test samples that the compiled module is run on, at most; None: all.
        batch: samples per call of the exported module.
        digits: of the metric.
    """
    columns = (
        Column("export", ("bytes", "export"), size),
        Column("vmfb", ("bytes", "vmfb"), size),
        Column("on IREE", ("metric", "iree"), spread(digits)),
        Column("exec-IREE", ("difference", "iree", "max"), worst),
    )
    return Eval("iree", _Iree(samples, batch), columns, require, _version)


@dataclasses.dataclass(frozen=True)
class _Iree:
    samples: int | None
    batch: int

    def __call__(self, piece: Piece) -> Mapping[str, Any]:
        example = (piece.state, *piece.example(self.batch))
        bundle = lb.export(piece.fn, piece.plan, piece.qparams, example, piece.folder / "export")
        target = compiled(bundle.artifact, piece.folder / "model.vmfb")
        executed = piece.executed[: self.samples]
        ran = outputs(loaded(target), chosen(piece.test, slice(self.samples)), self.batch)
        return {
            "metric": {"iree": piece.score(ran), "execute_same_samples": piece.score(executed)},
            "bytes": {"export": bundle.stored_bytes, "vmfb": target.stat().st_size},
            "difference": {"iree": difference(executed, ran)},
        }


def _version() -> str:
    return importlib.metadata.version("iree-base-compiler")


def require() -> None:
    """Raises ImportError, naming what to install, if the compiler or its runtime is missing."""
    try:
        is_there = compiler.is_installed()
    except ModuleNotFoundError:  # find_spec of a submodule imports its parent
        is_there = False
    if not is_there:
        raise ImportError(
            "the edge compiler IREE is not installed: pip install 'lowbit[export]', or leave its evals out with "
            "--without iree"
        )


def compiled(artifact: bytes, target: Path) -> Path:
    """Compiles a portable artifact to ``target`` and returns it."""
    atomic.write_file(target, compiler.compile_artifact(artifact))
    return target


def loaded(target: Path) -> Callable[..., np.ndarray]:
    """Returns ``f(*inputs) -> y`` that runs the compiled module's ``main`` on one core."""
    call = compiler.loaded(target.read_bytes())
    return lambda *inputs: call(list(inputs))[0]
