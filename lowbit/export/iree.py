"""IREE: compile a portable artifact for this machine's CPU or another's, and run it here or under an emulator."""

import importlib.util
import io
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lowbit.targets.table import TARGETS

from . import stablehlo
from .c.run import called
from .installed import tools_folder
from .reading import Bundle
from .runners import Inputs, Ran

BACKENDS = ("llvm-cpu", "vmvx")

MACHINES = {
    "host": ("--iree-llvmcpu-target-cpu=host",),
    # No +i8mm, which this processor has not: with it IREE 3.13 computes some int8 convolutions wrong, by half the range.
    "aarch64": ("--iree-llvmcpu-target-triple=aarch64-unknown-linux-gnu", "--iree-llvmcpu-target-cpu=cortex-a76"),
}
"""Flags of ``llvm-cpu``, by the machine that shall run the module."""

FLAGS = (
    "--iree-opt-const-eval=false",  # else weights are dequantized when compiling: 4-bit models grow to float size
    "--iree-llvmcpu-debug-symbols=false",
    "--iree-vm-bytecode-module-strip-source-map=true",
    "--iree-llvmcpu-stack-allocation-limit=1048576",  # padded int8 convolutions of 28 channels take 473 kB; default 32 kB
)


_PEELED = "--iree-llvmcpu-vector-pproc-strategy=peel"
"""Masked loads of i4 have no lowering for 48 columns on AVX512."""

_MASKED = "--iree-llvmcpu-vector-pproc-strategy=mask"
"""For narrow weights whose rows end within a byte, which forms but the served one have: peeled, IREE 3.13 reads them wrong, without an error (of 512 rows of 9
columns in 4 bits or 10 in 2 bits for a Cortex-A76, of 22 columns in 2 bits for AVX512); masked, right, or not at all."""


def is_installed() -> bool:
    """Returns whether both IREE wheels are here."""
    return all(importlib.util.find_spec(name) is not None for name in ("iree.compiler", "iree.runtime"))


def compile_artifact(
    data: bytes, *, backend: str = "llvm-cpu", machine: str = "host", flags: Sequence[str] = ()
) -> bytes:
    """Returns the compiled module (``.vmfb``) of a StableHLO portable artifact.

    Args:
        data: the artifact, or StableHLO text.
        backend: ``llvm-cpu`` (native code) or ``vmvx`` (portable bytecode; 8-bit weights only).
        machine: one of `MACHINES`; bytecode runs on all.
        flags: further flags of ``iree-compile``.

    Raises:
        ImportError: if IREE is not installed.
        ValueError: for another backend or machine, or if IREE rejects the module.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if machine not in MACHINES:
        raise ValueError(f"machine must be one of {', '.join(MACHINES)}, got {machine!r}")
    try:
        from iree.compiler import CompilerToolError, compile_file
    except ImportError:
        raise ImportError("compiling for IREE needs iree-base-compiler: pip install 'lowbit[export]'") from None
    options = ["--iree-hal-target-device=local", f"--iree-hal-local-target-device-backends={backend}", *FLAGS]
    options.append(_MASKED if stablehlo.has_ragged_rows(data) else _PEELED)
    options += MACHINES[machine] if backend == "llvm-cpu" else ()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "model.mlirbc"), Path(folder, "model.vmfb")
        source.write_bytes(data)
        try:
            compile_file(str(source), input_type="stablehlo", output_file=str(target), extra_args=[*options, *flags])
        except CompilerToolError as error:
            errors = [line for line in str(error).splitlines() if "error:" in line]
            raise ValueError(f"IREE rejects this module: {(errors or [str(error)])[0][:500]}") from None
        return target.read_bytes()


def constant_bytes(compiled: bytes) -> int | None:
    """Returns what a compiled module stores as constants, code apart; None where they lie with the code.

    IREE writes an archive. Constants of up to 256 bytes are in its code, and all of them where they take a few kilobytes.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(compiled)) as archive:
            sizes = [entry.file_size for entry in archive.infolist() if entry.filename.endswith(".bin")]
    except zipfile.BadZipFile:
        return None
    return sum(sizes) if sizes else None


def run(compiled: bytes, args: Sequence[np.ndarray], *, entry: str = "main") -> list[np.ndarray]:
    """Returns the flat results of a compiled module on this machine: see `loaded`."""
    return loaded(compiled, entry=entry)(args)


def loaded(compiled: bytes, *, entry: str = "main") -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """Returns a function from flat inputs to flat results: a compiled module on this machine.

    Args:
        compiled: from `compile_artifact`.
        entry: the function.

    Raises:
        ImportError: if IREE's runtime is not installed.
    """
    try:
        from iree import runtime
    except ImportError:
        raise ImportError("running a compiled module needs iree-base-runtime: pip install 'lowbit[export]'") from None
    context = runtime.SystemContext(config=runtime.Config("local-sync"))
    module = runtime.VmModule.copy_buffer(context.instance, compiled)
    context.add_vm_module(module)
    function = context.modules[module.name][entry]

    def call(args: Sequence[np.ndarray]) -> list[np.ndarray]:
        outs = function(*[np.asarray(x, order="C") for x in args])
        outs = outs if isinstance(outs, list | tuple) else [outs]
        return [np.asarray(out).copy() for out in outs]  # the memory goes with `outs`

    return call


_EMULATOR = ("qemu-aarch64", "-cpu", "cortex-a76", "-L", "/usr/aarch64-linux-gnu")


def run_on_aarch64(compiled: bytes, args: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Returns the flat results of a module compiled for ``aarch64``, run by IREE's own program under an emulator.

    Args:
        compiled: from `lowbit.export.iree.compile_artifact`.
        args: flat inputs.
        count: of results.

    Raises:
        ValueError: with what the program said, where it fails.
    """
    (program,) = TARGETS["iree-aarch64"].files
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "model.vmfb").write_bytes(compiled)
        for i, x in enumerate(args):
            np.save(folder / f"x{i}.npy", np.asarray(x, order="C"))
        given = [f"--input=@x{i}.npy" for i in range(len(args))]
        results = [f"y{i}.npy" for i in range(count)]
        flags = ["--module=model.vmfb", "--device=local-sync", "--function=main", *given]
        command = [*_EMULATOR, str(tools_folder() / program), *flags, *(f"--output=@{name}" for name in results)]
        called(command, folder)
        return [np.load(folder / name) for name in results]


_EMULATED = 8
"""Calls that are made of an emulator, which starts anew for each."""


def on_aarch64(bundle: Bundle, artifact: bytes, inputs: Inputs) -> Ran:
    """Returns what 64-bit Arm makes of an artifact with the bundle's signature, of the first calls."""
    compiled = compile_artifact(artifact, machine="aarch64")
    count = len(bundle.manifest["outputs"])
    outputs = [run_on_aarch64(compiled, case, count) for case in inputs[:_EMULATED]]
    return Ran(outputs, len(compiled), constants=constant_bytes(compiled))


def on_host(artifact: bytes, inputs: Inputs, *, backend: str = "llvm-cpu") -> Ran:
    """Returns what IREE makes of an artifact on this machine."""
    compiled = compile_artifact(artifact, backend=backend)
    call = loaded(compiled)
    return Ran([call(case) for case in inputs], len(compiled), constants=constant_bytes(compiled))
