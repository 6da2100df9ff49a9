"""The process that runs bundles for `lowbit.export.process`: it imports everything once, and forks for every order.

A line of standard input is an order; the answer is the process number of the child that took it, and, on a line of its own,
how that ended. What the child finds is in the folder that the order names. What a compiler does with a bundle, crashing,
filling the memory, never ending, happens to the child: it is watched and killed from outside, and has limits of its own.
This is no sandbox: a child has the files and the network of whoever runs it.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lowbit.core import atomic
from lowbit.packed.files import encode_tensors
from lowbit.targets.table import TARGETS
from lowbit.targets.target import Target

from . import stablehlo
from .forms import program
from .reading import Bundle, read_bundle
from .runners import Ran, runners
from .served.run import SLOW, work

ANSWER, OUTPUTS, SAID = "answer.json", "outputs.safetensors", "said.txt"
_PR_SET_PDEATHSIG = 1
_FILE_BYTES = 1 << 36

_CONVOLUTION_FIXED = "1.22.0"
"""StableHLO of jax 0.12: its interpreter sums int8 convolutions in 32 bits; that of jax 0.10 (1.17) in 8."""

CALLS: frozenset[str] = frozenset()
"""Custom calls that lowbit writes into artifacts: none. A custom call hands its operands to code of the process that runs the
module, and trusts the module about their number, shapes and meaning."""


def foreign(found: stablehlo.Contents) -> str:
    """Returns what a module holds that lowbit does not write; empty where there is nothing."""
    calls = [f"calls {name}" for name in found.calls if name not in CALLS]
    return ", ".join([*calls, *(f"has {name}" for name in found.foreign)])


def answer(bundle: Bundle, target: Target, *, is_asked: bool) -> tuple[dict[str, Any], Ran | None]:
    """Returns what one target makes of a bundle: status and detail, and what was found where it ran.

    Args:
        bundle: checked.
        target: what runs it.
        is_asked: whether the target was asked for by name.
    """
    if (artifact := program(target.form)) is not None:
        contents = stablehlo.contents(bundle.file(artifact))
        if reason := foreign(contents):
            return {
                "status": "failed",
                "detail": f"the module {reason}, which lowbit does not write: not compiled",
            }, None
        if target.name.startswith("interpreter") and (
            reason := _why_not_interpreted(bundle, contents, is_asked=is_asked)
        ):
            return {"status": "not run", "detail": reason}, None
    inputs = [case[0] for case in bundle.cases()]
    try:
        ran = runners()[target.name](bundle, inputs)
    except Exception as error:  # noqa: BLE001 - a tool may raise anything of what it rejects, and that is the finding
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        return {"status": "failed", "detail": f"{kind}{stablehlo.first_line(error)}"[:800]}, None
    return {"status": "ran", "detail": ""}, ran


def _why_not_interpreted(bundle: Bundle, found: stablehlo.Contents, *, is_asked: bool) -> str:
    if stablehlo.is_older_than(_CONVOLUTION_FIXED) and ("stablehlo.convolution", "i32") in found.operations:
        return "its integer convolution wraps to 8 bits (a bug of StableHLO's interpreter before jax 0.12)"
    if work(bundle) > SLOW and not is_asked:
        return f"{work(bundle):,} multiply-adds would take it minutes: ask with --target interpreter"
    return ""


def write_answer(folder: Path, said: dict[str, Any], ran: Ran | None) -> None:
    """Writes what a target did: ``outputs.safetensors``, then ``answer.json``."""
    if ran is not None:
        fields: dict[str, Any] = {name: getattr(ran, name) for name in ("compiled", "constants")}
        fields["stored"] = None if ran.stored is None else [list(each) for each in ran.stored]
        fields["measured"] = dict(ran.measured)
        fields["cases"] = None if ran.outputs is None else len(ran.outputs)
        said = said | {"ran": fields}
        cases: Sequence[Sequence[Any]] = ran.outputs or ()
        arrays = {f"{n}_{i}": np.asarray(y) for n, case in enumerate(cases) for i, y in enumerate(case)}
        atomic.write_file(folder / OUTPUTS, encode_tensors(arrays, {}))
    atomic.write_file(folder / ANSWER, json.dumps(said))


def _take(order: dict[str, Any]) -> None:
    """Takes an order, in a child."""
    os.setsid()
    _die_with_parent()
    folder = Path(order["folder"])
    said = os.open(folder / SAID, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, said), (2, said)):
        os.dup2(source, stream)
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, _FILE_BYTES),
        (resource.RLIMIT_CPU, max(int(order["cpu_seconds"]), 1)),
    ):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    jax.config.update("jax_enable_x64", bool(order["x64"]))
    bundle = read_bundle(order["bundle"])
    write_answer(folder, *answer(bundle, TARGETS[order["target"]], is_asked=order["is_asked"]))


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main() -> None:
    """Takes orders until standard input ends."""
    _die_with_parent()
    runners()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing but answers goes to the reader
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 70
            try:
                _take(order)
                status = 0
            except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is told, and the loop is not ours
                text = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
                write_answer(Path(order["folder"]), {"status": "failed", "detail": text[:800]}, None)
            finally:
                os._exit(status)
        print(child, file=answers, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


if __name__ == "__main__":
    main()
