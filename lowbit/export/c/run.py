"""C99, compiled and run: on this machine, as 64-bit Arm under an emulator, on an emulated Cortex-M4."""

import collections
import dataclasses
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.export.c import cortex_m, harness
from lowbit.export.c.constants import identifier
from lowbit.export.c.source import ports
from lowbit.export.reading import Bundle
from lowbit.export.runners import Inputs, Ran, Run
from lowbit.export.storage import Stored

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
"""What the generated C compiles with, without a warning."""

_SECONDS = 600


@dataclasses.dataclass(frozen=True)
class Toolchain:
    """How C is compiled and run.

    Attributes:
        prefix: of the compiler's tools; the compiler is ``<prefix>gcc``, that of this machine ``cc``.
        flags: for every file.
        optimization: of the model.
        link: for the program.
        launcher: what runs it; nothing where this machine does.
        extra: further files of the program, by name; C sources are compiled.
    """

    prefix: str
    flags: tuple[str, ...] = ()
    optimization: str = "-O2"
    link: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def compiler(self) -> str:
        """The compiler's program."""
        return f"{self.prefix}gcc" if self.prefix else "cc"


TOOLCHAINS = {
    "c": Toolchain(""),
    "c-aarch64": Toolchain("aarch64-linux-gnu-", link=("-static",), launcher=("qemu-aarch64",)),
    "cortex-m4": Toolchain(
        "arm-none-eabi-",
        cortex_m.FLAGS,
        "-Os",
        ("--specs=rdimon.specs", "-nostartfiles", "-T", "board.ld"),
        cortex_m.EMULATOR,
        (("board.ld", cortex_m.LINKER), ("startup.c", cortex_m.STARTUP)),
    ),
}
"""By target."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a compiled model did.

    Attributes:
        outputs: flat results of every case.
        object_bytes: of the object file.
        flash_bytes: code and constants of the model: ``text + data`` of its object. The startup code, the C library and
            the test program are not the model's.
        ram_bytes: the model's static memory and the largest stack below its function; not its arguments.
        weights: bytes of the weights' arrays in the object, by the identifier of the weight.
    """

    outputs: list[list[np.ndarray]]
    object_bytes: int
    flash_bytes: int
    ram_bytes: int
    weights: Mapping[str, int]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(self.weights.values())


def run_cases(bundle: Bundle, cases: Sequence[Sequence[np.ndarray]], target: str) -> Outcome:
    """Returns what a bundle's C model makes of inputs: one program is compiled, the inputs in it.

    Args:
        bundle: that holds the ``c`` form.
        cases: flat inputs of every case.
        target: ``c``, ``c-aarch64`` or ``cortex-m4``.

    Raises:
        ValueError: with what the compiler or the program said, where one of them fails.
    """
    tools, name = TOOLCHAINS[target], bundle.manifest["name"]
    inputs, outputs = ports(bundle.manifest["inputs"], bundle.manifest["outputs"])
    unknown = [np.zeros(port.shape, port.dtype) for port in outputs]  # what is printed is read, not what is compared
    test = harness.program_source(name, inputs, outputs, [([np.asarray(x) for x in case], unknown) for case in cases])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        printed = called(built(bundle, target, test, folder), folder, allowed=(0, 1))
        sizes = called([f"{tools.prefix}size", "model.o"], folder).splitlines()[1].split()
        symbols = called([f"{tools.prefix}nm", "-S", "--defined-only", "model.o"], folder)
        stack = _stack((folder / "model.su").read_text(), f"{name}_run")
        text, data, bss = (int(word) for word in sizes[:3])
        return Outcome(
            harness.parsed(printed, outputs, len(cases)),
            (folder / "model.o").stat().st_size,
            text + data,
            data + bss + stack,
            _weights(symbols, name),
        )


def built(bundle: Bundle, target: str, main: str, folder: Path, *, flags: Sequence[str] = STRICT) -> list[str]:
    """Compiles a bundle's C model and a program around it, and returns the command that runs the program.

    Args:
        bundle: that holds the ``c`` form.
        target: one of `TOOLCHAINS`.
        main: source of the program.
        folder: where everything is written: ``model.o``, and ``model.su`` with the stack of every function.
        flags: of the compiler, beside the toolchain's.

    Raises:
        ValueError: with what the compiler said, where it fails.
    """
    tools = TOOLCHAINS[target]
    for file in ("model.h", "model.c"):
        bundle.copied(f"c/{file}", folder)
    for file, text in (*tools.extra, ("main.c", main)):
        (folder / file).write_text(text)
    extra = [file for file, _ in tools.extra if file.endswith(".c")]
    start = [tools.compiler, *tools.flags, *flags]
    called([*start, tools.optimization, "-fstack-usage", "-c", "model.c"], folder)
    called([*start, "-O1", "-c", "main.c"], folder)
    called([tools.compiler, *tools.flags, "model.o", "main.o", *extra, *tools.link, "-o", "program"], folder)
    return [*tools.launcher, str(folder / "program")]


def called(command: Sequence[str], folder: Path, allowed: Sequence[int] = (0,)) -> str:
    """Returns what a command prints, run in ``folder``.

    Raises:
        ValueError: if it does not finish, or ends with a status that is not allowed.
    """
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"{command[0]} did not finish: {error}") from None
    if done.returncode not in allowed:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ValueError(f"{command[0]} ended with {done.returncode}: {' | '.join(said[:3])}")
    return done.stdout


def _stack(usage: str, entry: str) -> int:
    """The largest stack: the function's, that of its deepest stage, that of the deepest helper of a stage."""
    frames = {"entry": 0, "stage": 0, "helper": 0}
    for line in usage.splitlines():
        place, size, _ = line.split("\t")
        function = place.rsplit(":", 1)[-1]
        kind = "entry" if function == entry else "stage" if function.startswith("stage_") else "helper"
        frames[kind] = max(frames[kind], int(size))
    return sum(frames.values())


def _weights(symbols: str, name: str) -> dict[str, int]:
    """Bytes of the global constant arrays, by identifier: only weights are global. One that is stored twice counts twice."""
    sizes: collections.Counter[str] = collections.Counter()
    for row in (line.split() for line in symbols.splitlines()):
        if len(row) == 4 and row[2] == "R":
            sizes[row[3].removeprefix(f"{name}_").rstrip("_")] += int(row[1], 16)
    return dict(sizes)


def _stored(manifest: Mapping[str, Any], found: Mapping[str, int]) -> tuple[Stored, ...]:
    """The weights that the object holds, those left out that were computed away; equal ones are one array."""
    counts: collections.Counter[str] = collections.Counter()
    for entry in manifest["weights"]:
        counts[identifier(entry["path"])] += int(np.prod(entry["shape"]))
    return tuple(Stored(counts[word], 8 * size) for word, size in found.items())


def _on(target: str) -> Run:
    def run(bundle: Bundle, inputs: Inputs) -> Ran:
        outcome = run_cases(bundle, inputs, target)
        measured = {"flash_bytes": float(outcome.flash_bytes), "ram_bytes": float(outcome.ram_bytes)}
        return Ran(outcome.outputs, outcome.object_bytes, _stored(bundle.manifest, outcome.weights), measured)

    return run


RUN = {target: _on(target) for target in TOOLCHAINS}
