"""Loading the native library and registering its handlers with XLA.

The library is optional. Without it everything still runs in plain XLA operations, slower; `status()` says why.
"""

import ctypes
import functools
import importlib.metadata
import os
import pathlib
from typing import NamedTuple

import jax

LIBRARY = "liblowbit_kernels.so"
# handler in the library -> name of the XLA custom call
TARGETS = {
    "LowbitMatmulCall": "lowbit_kernels.cpu.matmul",
    "LowbitConvCall": "lowbit_kernels.cpu.conv",
    "LowbitPairCall": "lowbit_kernels.cpu.pair",
}
# Of a library whose convolutions take as little scratch as `conv.scratch_bytes` says.
HOLDS_LINES = "lowbit_holds_lines"
# Of a library that was built before there were these, they are not there: then `has_fixed` is False.
FIXED = {
    "LowbitFixedMatmulCall": "lowbit_kernels.cpu.fixed_matmul",
    "LowbitFixedConvCall": "lowbit_kernels.cpu.fixed_conv",
}
ISAS = ("amx", "avx512vnni", "avxvnni", "avx2", "neon", "scalar")  # numbers shared with cpp/core/isa.h
ISA_VARIABLE = "LOWBIT_KERNELS_ISA"


class Status(NamedTuple):
    """What the native library offers here.

    Attributes:
        path: of the library, or None where there is none.
        isas: instruction sets this machine runs, best first; the first is the default.
        reason: why there is no library, or "".
    """

    path: str | None
    isas: tuple[str, ...]
    reason: str


@functools.cache
def status() -> Status:
    """The native library's state; loads and registers it on the first call."""
    paths = [path for path in _candidates() if path.exists()]
    if not paths:
        reason = (
            "the native library is not built (no C++ compiler or CMake was found when lowbit-kernels was installed): "
            "reinstall with one, `pip install --force-reinstall --no-deps ./kernels`"
        )
        return Status(None, (), reason)
    try:
        library = ctypes.CDLL(str(paths[0]))
    except OSError as error:
        return Status(None, (), f"the native library does not load: {error}")
    if missing := [symbol for symbol in (*TARGETS, HOLDS_LINES) if not hasattr(library, symbol)]:
        reason = f"the native library {paths[0]} is of another version, without {', '.join(missing)}: build it again"
        return Status(None, (), reason)
    there = {symbol: target for symbol, target in FIXED.items() if hasattr(library, symbol)}
    for symbol, target in (TARGETS | there).items():
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, symbol)), platform="cpu")
    usable = tuple(name for number, name in enumerate(ISAS) if library.lowbit_isa_supported(number))
    return Status(str(paths[0]), usable, "")


@functools.cache
def reads_arena() -> bool:
    """Whether operands may be placed in an arena (`arena.py`): a library that was built before there were any reads none."""
    path = status().path
    return path is not None and hasattr(ctypes.CDLL(path), "lowbit_reads_arena")


@functools.cache
def adds_residuals() -> bool:
    """Whether an array may be added in a call (`fused.py`): a library that was built before there was such a step adds none."""
    path = status().path
    return path is not None and hasattr(ctypes.CDLL(path), "lowbit_adds_residuals")


@functools.cache
def has_fixed() -> bool:
    """Whether products may end in codes in fixed point (`fixed.py`)."""
    path = status().path
    return path is not None and all(hasattr(ctypes.CDLL(path), symbol) for symbol in FIXED)


def isa_number(name: str | None) -> int:
    """Number of an instruction set; None takes the environment variable LOWBIT_KERNELS_ISA, else the best (-1).

    Raises:
        ValueError: the name is unknown.
        NotImplementedError: this machine does not run it.
    """
    name = name if name is not None else os.environ.get(ISA_VARIABLE)
    if name is None:
        return -1
    if name not in ISAS:
        raise ValueError(f"instruction set {name!r} is unknown; the names are {ISAS}")
    if name not in status().isas:
        raise NotImplementedError(f"instruction set {name!r} does not run here; this machine runs {status().isas}")
    return ISAS.index(name)


def _candidates() -> list[pathlib.Path]:
    """Where the library may lie: beside this file, or, in an editable install, in the folder with what was built."""
    paths = [pathlib.Path(__file__).parent / LIBRARY]
    try:
        distribution = importlib.metadata.distribution("lowbit-kernels")
    except importlib.metadata.PackageNotFoundError:
        return paths
    return [*paths, pathlib.Path(str(distribution.locate_file(f"lowbit_kernels/cpu/{LIBRARY}")))]
