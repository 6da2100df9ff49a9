"""The Hopper kernels compiled for sm_90a without a GPU: Mosaic GPU to PTX, `ptxas` to registers and spills."""

import importlib.metadata
import importlib.util
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding, use_abstract_mesh

from lowbit_kernels import xla
from lowbit_kernels.aot.report import Backend, Report, compiled, failed
from lowbit_kernels.layout import packed_length
from lowbit_kernels.matrix import PackedMatrix
from lowbit_kernels.pallas import gpu

TARGETS = {"sm_90a": pathlib.Path(__file__).parent / "h100.txtpb"}
SMEM_LIMIT = 232448  # bytes a block can have on sm_90
NOTE = (
    "registers, spill_bytes: by ptxas, of a thread. smem_bytes: of a block. wgmma: types of the tensor core "
    "instructions. fma: float32 ones; 0 in integer kernels, where a fused product and sum would round once instead of twice. "
    "temp_bytes: of the whole program. Compiled only: the speed on a device is not measured."
)
# Registers are handed out in steps of 8, so a tenth of 80 to 170 is one or two steps: what another ptxas may move without
# a block less on a multiprocessor. Shared memory is decided by the tiles and must be equal.
TOLERANCE = {"registers": 0.1, "temp_bytes": 0.05, "fma": 0.0}
BF16, S8, E4M3 = "f32.bf16.bf16", "s32.s8.s8", "f32.e4m3.e4m3"
PACKAGES = ("jax", "jax-cuda13-pjrt", "nvidia-cuda-nvcc")


class Case(NamedTuple):
    """One compilation of a `(rows, 4096) @ (4096, 4096)`.

    Attributes:
        rows: M.
        bits, group: of the weight.
        activation: as `pallas.gpu.matmul` takes it.
        wgmma: types of the tensor core instruction; "" compiles the plain XLA form instead.
    """

    rows: int
    bits: int
    group: int
    activation: str | None
    wgmma: str

    @property
    def name(self) -> str:
        scale = f"g{self.group}" if self.group < SIZE else "channel"
        return f"{'kernel' if self.wgmma else 'xla'} w{self.bits}/{scale} {self.activation or 'float'} M{self.rows}"


SIZE = 4096
_CASES = (
    *(Case(rows, 4, 128, None, BF16) for rows in (1, 64, 256)),
    Case(16, 4, 32, None, BF16),
    Case(16, 4, SIZE, None, BF16),
    Case(64, 8, 128, None, BF16),
    Case(64, 8, 128, "int8", S8),
    Case(256, 8, SIZE, "int8", S8),
    *(Case(rows, 4, 128, "int8", S8) for rows in (1, 64)),
    Case(16, 4, 32, "int8", S8),
    Case(64, 4, 128, "fp8", E4M3),
    Case(8, 8, SIZE, None, ""),  # what the dispatch rule of `gpu.supports` says of XLA
)
_BY_NAME = {case.name: case for case in _CASES}


def versions() -> dict[str, str]:
    """Of jax and of the compilers.

    Raises:
        ImportError: one of them is not installed.
    """
    try:
        return {name: importlib.metadata.version(name) for name in PACKAGES}
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(f"the CUDA compilers are the packages {PACKAGES}, {error.name} is not installed") from error


def environments(target: str, folder: str) -> tuple[dict[str, str], ...]:
    """What the process of a case starts with: Mosaic writes to `folder`, `ptxas` is the one of the wheel."""
    del target
    wheel = importlib.util.find_spec("nvidia")
    roots = [] if wheel is None else list(wheel.submodule_search_locations or [])
    programs = [str(path.parent) for root in roots for path in pathlib.Path(root).glob("cu*/bin/ptxas")]
    return (
        {
            "JAX_PLATFORMS": "cpu",
            "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # cuDNN is not needed to compile
            "MOSAIC_GPU_DUMP_TO": folder,
            "PATH": os.pathsep.join([*programs, os.environ.get("PATH", "")]),
            "XLA_FLAGS": "--xla_gpu_autotune_level=0",  # autotuning needs a device
        },
    )


def compile_case(target: str, case: str, folder: str) -> Report:
    """The report of one case; this process must have been started with one of `environments(target, folder)`."""
    from lowbit_kernels.pallas import gpu_kernel  # needs jax 0.11

    topology = topologies.get_topology_desc(
        platform="cuda", target_config=TARGETS[target].read_text(), topology="1x1x1"
    )
    described = _BY_NAME[case]
    function, arguments = program(described, SingleDeviceSharding(topology.devices[0]))
    with use_abstract_mesh(gpu_kernel.abstract_hopper()):
        found = compiled(function, arguments)
    if isinstance(found, Report):
        return found
    memory = found.memory_analysis()
    metrics = {"temp_bytes": memory.temp_size_in_bytes if memory else None}
    if described.wgmma:
        metrics |= read_dump(pathlib.Path(folder))
    problem = complaint(described, metrics)
    return failed("compile", problem) if problem else Report(ok=True, metrics=metrics)


def program(case: Case, sharding: SingleDeviceSharding) -> tuple[Callable[..., jax.Array], tuple[Any, Any]]:
    """The function of a case and the shapes of its arguments; the kernel's weight is prepared."""

    def array(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    x = array(jax.ShapeDtypeStruct((case.rows, SIZE), jnp.bfloat16))
    packed = PackedMatrix(
        codes=array(jax.ShapeDtypeStruct((packed_length(SIZE, case.bits), SIZE), jnp.uint8)),
        scales=array(jax.ShapeDtypeStruct((SIZE // case.group, SIZE), jnp.float32)),
        bits=case.bits,
        length=SIZE,
        group=case.group,
    )
    if not case.wgmma:
        return lambda x, weight: xla.run(x, weight, case.activation, "bfloat16", None), (x, packed)
    weight = jax.tree.map(array, jax.eval_shape(gpu.prepare, packed))
    return lambda x, weight: gpu.matmul(x, weight, activation=case.activation).astype(jnp.bfloat16), (x, weight)


def read_dump(folder: pathlib.Path) -> dict[str, Any]:
    """Registers, spills, shared memory and instructions of the one kernel that Mosaic wrote about."""
    (ptx,), (log,), (resources,) = (
        [path.read_text() for path in folder.glob(f"*.{end}")] for end in ("ptx", "ptxas", "resources.txt")
    )
    return {
        "registers": max(int(n) for n in re.findall(r"Used (\d+) registers", log)),
        "spill_bytes": sum(int(n) for n in re.findall(r"(\d+) bytes spill", log)),
        "smem_bytes": int(re.findall(r"smem_scratch_bytes=(\d+)", resources)[0]),
        "wgmma": sorted(set(re.findall(r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k\d+\.(\S+)", ptx))),
        "fma": len(re.findall(r"\bfma\.\S*f32\b", ptx)),
    }


def complaint(case: Case, metrics: dict[str, Any]) -> str:
    """What no golden file can excuse, or ""."""
    if not case.wgmma:
        weight, temp = SIZE * SIZE * case.bits // 8, metrics["temp_bytes"]
        return f"temporaries of {temp} bytes: XLA copies the weight of {weight} bytes" if temp >= weight else ""
    if metrics["wgmma"] != [case.wgmma]:
        return f"wgmma is {metrics['wgmma']}, expected {case.wgmma}"
    if metrics["spill_bytes"]:
        return f"{metrics['spill_bytes']} bytes are spilled"
    if metrics["smem_bytes"] > SMEM_LIMIT:
        return f"{metrics['smem_bytes']} bytes of shared memory, a block can have {SMEM_LIMIT}"
    if case.activation == "int8" and metrics["fma"]:
        return f"{metrics['fma']} fma instructions round a product and a sum at once"
    return ""


BACKEND = Backend(
    name="cuda",
    targets=tuple(TARGETS),
    cases=tuple(_BY_NAME),
    note=NOTE,
    tolerance=TOLERANCE,
    versions=versions,
    environments=environments,
    compile_case=compile_case,
)
