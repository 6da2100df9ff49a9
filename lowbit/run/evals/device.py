"""A full-integer model on a device: exported with integer codes at both ends, compiled, and run on an emulator."""

import dataclasses
import functools
import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import lowbit as lb
from lowbit.export.bundle import Bundle
from lowbit.export.c.run import TOOLCHAINS, run_cases
from lowbit.export.installed import missing
from lowbit.export.runners import runners
from lowbit.interpret.integer.interpretations import quantized
from lowbit.plan import serial
from lowbit.run.measure import difference
from lowbit.run.pieces import Piece, PromiseError
from lowbit.targets.table import TARGETS

from .column import Column, Eval, size, spread

_PROGRAM_BYTES = 2_500_000
"""Of samples that one program of C holds: an emulated board has 4 MB of flash for them and the model."""


def device(target: str, *, samples: int | None = None, digits: int = 2) -> Eval:
    """Returns an eval: a full-integer model on a device, every output beside that of `lowbit.execute`.

    Args:
        target: what runs it, such as ``cortex-m4``.
        samples: test samples that the device runs, at most; None: all.
        digits: of the metric.
    """
    columns = (
        Column(f"on {target}", ("metric", "device"), spread(digits)),
        Column("differ", ("difference", "device", "share"), _percent),
        Column("flash", ("device", "flash_bytes"), size),
        Column("RAM", ("device", "ram_bytes"), size),
    )
    return Eval(
        "device",
        _Device(target, samples),
        columns,
        functools.partial(require, target),
        functools.partial(version, target),
    )


def _percent(values: Sequence[float], base: Sequence[float]) -> str:
    return f"{100 * float(np.mean(values)):.3g} %" if values else "-"


@dataclasses.dataclass(frozen=True)
class _Device:
    target: str
    samples: int | None

    def __call__(self, piece: Piece) -> Mapping[str, Any]:
        if piece.is_float:
            return {}
        if isinstance(piece.test, tuple):
            raise ValueError("device: a program for a device takes one input, and the data have several")
        some, target = piece.test[: self.samples], self.target
        targets = (target, *(("c",) if is_c(target) else ()), "iree")
        bundle = exported(piece.fn, piece.plan, piece.qparams, piece.state, some[:1], piece.folder / "export", targets)
        if not is_c(target):
            whole = piece.folder / "all"
            bundle = exported(piece.fn, piece.plan, piece.qparams, piece.state, some, whole, (target,))
        bar = piece.job.screen.start(f"{piece.name} {target}", len(some))
        ran, executed = run(bundle, target, some, progress=bar), piece.executed[: len(some)]
        gap = difference(executed, ran.outputs)
        if gap["max"] and is_c(target):
            raise PromiseError(
                f"{target} differs from lowbit.execute in {100 * gap['share']:.3g} % of outputs: it must be exact"
            )
        return {
            "metric": {"device": piece.score(ran.outputs), "execute_same_samples": piece.score(executed)},
            "difference": {"device": gap},
            "device": {**ran.measured, "target": target, "samples": len(some), "compiler": version(target)},
        }


class DeviceRun(NamedTuple):
    """What a device gave.

    Attributes:
        outputs: of all samples, in real numbers.
        measured: what the target's runner found besides, such as ``flash_bytes`` and ``ram_bytes``.
    """

    outputs: np.ndarray
    measured: Mapping[str, float]


def require(target: str) -> None:
    """Raises if models cannot be run on ``target`` here.

    Raises:
        ValueError: if there is no such target, or nothing runs it.
        ImportError: naming what to install, if a package or a program of it is missing.
    """
    if target not in runners():
        raise ValueError(f"no device {target!r}: models can be run on {', '.join(runners())}")
    known = TARGETS[target]
    if needed := missing(known):
        raise ImportError(
            f"the device {target!r} needs {needed}: {known.install}; or leave it out with --without device"
        )


def version(target: str) -> str:
    """Returns what the compiler of a target that takes C says of itself, else the target's package."""
    if not is_c(target):
        return TARGETS[target].package
    said = subprocess.run([TOOLCHAINS[target].compiler, "--version"], capture_output=True, text=True, check=True).stdout
    return said.splitlines()[0]


def exported(
    fn: Any, plan: Any, qparams: Any, state: Any, x: np.ndarray, path: Path, targets: tuple[str, ...]
) -> Bundle:
    """Returns the bundle of a model that takes and gives integer codes, for inputs of ``x``'s shape."""
    return lb.export(fn, plan, qparams, (state, jnp.asarray(x)), path, integer_io=True, targets=targets)


def is_c(target: str) -> bool:
    """Whether a target takes the C form: one program then runs many samples, one at a time."""
    return target in TOOLCHAINS


def run(
    bundle: Bundle, target: str, samples: np.ndarray, *, progress: Callable[[int], None] | None = None
) -> DeviceRun:
    """Returns what ``target`` gives for samples.

    Args:
        bundle: of one input and one output, from `exported`: of one sample for a target that takes C, else of all.
        target: what runs it.
        samples: ``[batch, ...]`` in real numbers.
        progress: told how many samples are done.

    Raises:
        ValueError: if the tool rejects the model, or it does not fit the board.
    """
    (result,), given = bundle.manifest["outputs"], codes(samples, bundle)
    if not is_c(target):
        ran = runners()[target](bundle, [[given]])
        assert ran.outputs is not None
        return DeviceRun(values(np.asarray(ran.outputs[0][0]), result), dict(ran.measured))
    outputs, measured = [], {}
    size = max(1, _PROGRAM_BYTES // given[0].nbytes)
    for start in range(0, len(given), size):
        part = given[start : start + size]
        outcome = run_cases(bundle, [[x[None]] for x in part], target)
        measured = {"flash_bytes": outcome.flash_bytes, "ram_bytes": outcome.ram_bytes}
        outputs += [y for (y,) in outcome.outputs]
        if progress is not None:
            progress(start + len(part))
    return DeviceRun(values(np.concatenate(outputs), result), measured)


def codes(x: np.ndarray, bundle: Bundle) -> np.ndarray:
    """Returns inputs as the device gets them: codes on the grid of the bundle's input, as `lowbit.execute` makes them."""
    (entry,), plan = bundle.manifest["inputs"], serial.from_json(json.dumps(bundle.manifest["plan"]))
    spec = plan.grids()[next(step.grid for step in plan.steps if step.kind == "input")].spec
    assert spec is not None
    grid = {"scale": jnp.float32(entry["scale"]), "zero": jnp.int32(entry["zero_point"])}
    return np.asarray(quantized(jnp.asarray(x), grid, spec))


def values(y: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    """Returns what codes stand for: ``(code - zero point) * scale`` in float32."""
    return (y.astype(np.float32) - np.float32(entry["zero_point"])) * np.float32(entry["scale"])
