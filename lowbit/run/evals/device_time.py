"""Time of a model in C: microseconds on this machine, and instructions on an emulated Cortex-M4.

An emulator has no clock of its own. QEMU's ``-icount shift=0`` lets virtual time pass by one nanosecond an instruction, so
the board's system timer, which counts at 25 MHz, tells instructions in steps of 40. A real Cortex-M4 needs at least one cycle an instruction.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import lowbit as lb
from lowbit.export.c.run import built, called
from lowbit.export.c.types import c_type
from lowbit.export.reading import Bundle, read_bundle
from lowbit.run.measure import interleaved
from lowbit.run.pieces import Piece
from lowbit.run.samples import chosen

from . import iree
from .column import Column, Eval, mean
from .device import codes, is_c

_ROUNDS = 50
_INSTRUCTIONS_PER_TICK = 40
_CALLS = """#include <stdio.h>
{include}
#include "model.h"

static const {given} in[] = {{{numbers}}};
static {made} out[{size}];

int main(void)
{{
    {body}
    return 0;
}}
"""
_HOST = """for (int round = 0; round < {rounds}; ++round) {
        struct timespec a, b;
        {name}_run(in, out);
        clock_gettime(CLOCK_MONOTONIC, &a);
        {name}_run(in, out);
        clock_gettime(CLOCK_MONOTONIC, &b);
        printf("%.0f\\n", 1e9 * (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec));
    }"""
_BOARD = """volatile uint32_t *timer = (volatile uint32_t *)0xE000E010u; /* control, reload, current */
    {name}_run(in, out);
    timer[1] = 0xFFFFFFu;
    timer[2] = 0;
    timer[0] = 5u;
    uint32_t before = timer[2];
    {name}_run(in, out);
    uint32_t after = timer[2];
    printf("%lu %lu\\n", (unsigned long)((before - after) & 0xFFFFFFu), (unsigned long)((timer[0] >> 16) & 1u));"""


def device_time(target: str, *, seconds: float = 4.0) -> Eval:
    """Returns an eval: time of one sample on one core of this machine, of what `device` exported, which must be asked for too.

    Through the C compiler, where the target takes C, and through IREE, every model in turn; instructions on a Cortex-M4.

    Args:
        target: of `device`.
        seconds: of measuring in IREE.
    """
    instructions = (Column("M4 Minstr", ("latency", "instructions"), _millions),) if target == "cortex-m4" else ()
    columns = (
        *instructions,
        Column("C us", ("latency", "c"), mean(".0f")),
        Column("IREE us", ("latency", "iree"), mean(".0f")),
    )
    return Eval("device_time", _DeviceTime(target, seconds), columns, iree.require, is_together=True)


def _millions(values: Sequence[float], base: Sequence[float]) -> str:
    return f"{np.mean(values) / 1e6:.2f}" if values else "-"


@dataclasses.dataclass(frozen=True)
class _DeviceTime:
    target: str
    seconds: float

    def __call__(self, pieces: Mapping[str, Piece]) -> Mapping[str, Any]:
        times_of: dict[str, dict[str, Any]] = {name: {} for name in pieces}
        calls = {}
        for name, piece in pieces.items():
            x = chosen(piece.test, slice(1))
            assert isinstance(x, np.ndarray)  # `device` was asked for before
            if piece.is_float:
                example = (piece.state, jnp.asarray(x))
                bundle = lb.export(piece.fn, piece.plan, piece.qparams, example, piece.folder / "export")
                given = x
            else:
                bundle = read_bundle(piece.folder / "export")
                given = codes(x, bundle)
                if is_c(self.target):
                    times_of[name]["c"] = microseconds(bundle, given)
                if self.target == "cortex-m4":
                    times_of[name]["instructions"] = instructions(bundle, given)
            target = iree.compiled(bundle.artifact, piece.folder / "model.vmfb")
            calls[name] = functools.partial(iree.loaded(target), given)
        for name, times in interleaved(calls, seconds=self.seconds).items():
            times_of[name]["iree"] = 1e3 * times.median
        return {name: {"latency": values} for name, values in times_of.items()}


def microseconds(bundle: Bundle, x: np.ndarray) -> float:
    """Returns the median time of one sample on one core of this machine.

    Args:
        bundle: of one sample, with the C form.
        x: its code.

    Raises:
        ValueError: where the compiler or the program fails.
    """
    printed = _printed(bundle, x, "c", _HOST, "#include <time.h>", ("-std=gnu99",), ())
    return float(np.median([float(line) for line in printed.splitlines()])) / 1e3


def instructions(bundle: Bundle, x: np.ndarray) -> int | None:
    """Returns the instructions of one sample on a Cortex-M4, to 40; None where they are more than the timer counts (671 million).

    Args:
        bundle: of one sample, with the C form.
        x: its code.

    Raises:
        ValueError: where the compiler or the emulator fails.
    """
    printed = _printed(bundle, x, "cortex-m4", _BOARD, "", ("-std=c99",), ("-icount", "shift=0"))
    ticks, has_wrapped = (int(word) for word in printed.split())
    return None if has_wrapped else ticks * _INSTRUCTIONS_PER_TICK


def _printed(
    bundle: Bundle,
    x: np.ndarray,
    target: str,
    body: str,
    include: str,
    standard: tuple[str, ...],
    emulator: tuple[str, ...],
) -> str:
    """What a program of ours around the model prints."""
    name = bundle.manifest["name"]
    (entry,), (result,) = bundle.manifest["inputs"], bundle.manifest["outputs"]
    size = int(np.prod(result["shape"]))
    numbers = ",".join(map(str, np.asarray(x).reshape(-1).tolist()))
    source = _CALLS.format(
        include=include, numbers=numbers, size=size, given=c_type(entry["dtype"]), made=c_type(result["dtype"]),
        body=body.replace("{name}", name).replace("{rounds}", str(_ROUNDS)),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        program, *rest = built(bundle, target, source, folder, flags=standard)
        return called([program, *emulator, *rest], folder)
