"""The TPU kernels compiled for chips that are not there, through `jax.experimental.topologies` and the libtpu wheel."""

import importlib.metadata
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from lowbit_kernels.aot.report import Backend, Report, compiled
from lowbit_kernels.layout import packed_length
from lowbit_kernels.matrix import PackedMatrix
from lowbit_kernels.numerics import StaticActivation
from lowbit_kernels.pallas import tpu
from lowbit_kernels.shapes import FEED_FORWARD, LAYERS, SMALL, MatmulShape

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
NOTE = (
    "kernel: a tpu_custom_call is in the program. vmem, temp: bytes, by the compiler. cycles: STATIC ESTIMATE of the "
    "kernel by the compiler, never measured on a chip; good for ranking blocks and as a guard, not as a speed. "
    "retried: asking for the estimate aborted the compiler, which compiled without being asked."
)
# Estimates and buffers are deterministic for one compiler; the allowance is for harmless changes of the kernel.
TOLERANCE = {"cycles": 0.05, "vmem": 0.05, "temp": 0.05}


class Case(NamedTuple):
    """One matmul. `activation` is "float", "dynamic" or "static"; the weight is affine where static."""

    shape: MatmulShape
    bits: int
    activation: str
    x_dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        rows, length, out, group = self.shape
        scale = f"g{group}" if group < length else "channel"
        return f"w{self.bits}/{scale} {self.activation} {self.x_dtype} M{rows} {length}x{out}"


def _layer(rows: int, group: int, length: int = 4096, out: int = 4096) -> MatmulShape:
    return MatmulShape(rows, length, out, group)


_CASES = (
    # 512 rows are two blocks of the program that 256 rows compile to.
    *(Case(shape, 4, "dynamic") for shape in (*LAYERS, *FEED_FORWARD) if shape.rows <= 128),
    *(Case(_layer(rows, 128), 4, "dynamic") for rows in (1, 256)),
    *(Case(_layer(rows, 128), 4, "float") for rows in (1, 16, 256)),
    *(Case(_layer(rows, 4096), 8, "dynamic") for rows in (1, 16, 256)),
    *(Case(_layer(16, 128), 2, activation) for activation in ("dynamic", "float")),
    Case(_layer(16, 128), 4, "static"),
    Case(_layer(16, 128), 4, "float", "float32"),
    Case(SMALL[4], 4, "dynamic", "float32"),
)
_BY_NAME = {case.name: case for case in _CASES}


def versions() -> dict[str, str]:
    """Of jax and of the compiler.

    Raises:
        ImportError: libtpu is not installed.
    """
    try:
        return {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError("the TPU compiler is in the package libtpu, which is not installed: make test-aot") from error


def environments(target: str, folder: str) -> tuple[dict[str, str], ...]:
    """What the process of a case starts with: libtpu writes its static profile to `folder`.

    Asking for the profile turns on checks inside libtpu that abort some programs which compile without it, some after
    the profile is written: the second environment does not ask.
    """
    del target
    # Without the last, libtpu takes a lock on the chips that it does not use, and a second process fails.
    plain = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "LIBTPU_INIT_ARGS": "",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    return plain | {"LIBTPU_INIT_ARGS": f"--xla_jf_dump_static_llo_profile_to={folder}"}, plain


def compile_case(target: str, case: str, folder: str) -> Report:
    """The report of one case; this process must have been started with one of `environments(target, folder)`."""
    description = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[target])
    function, arguments = program(_BY_NAME[case], SingleDeviceSharding(description.devices[0]))
    found = compiled(function, arguments)
    if isinstance(found, Report):
        return found
    return Report(ok=True, metrics=metrics(found, pathlib.Path(folder)))


def program(
    case: Case, sharding: SingleDeviceSharding
) -> tuple[Callable[..., jax.Array], tuple[Any, PackedMatrix, StaticActivation | None]]:
    """The function of a case and the shapes of its arguments."""
    rows, length, out, group = case.shape

    def array(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)

    table = (-(-length // group), out)
    weight = PackedMatrix(
        codes=array((packed_length(length, case.bits), out), "uint8"),
        scales=array(table, "float32"),
        zeros=array(table, "int8") if case.activation == "static" else None,
        bits=case.bits,
        length=length,
        group=group,
    )
    grid = StaticActivation(array((), "float32"), array((), "int32")) if case.activation == "static" else None

    def matmul(x: jax.Array, weight: PackedMatrix, grid: StaticActivation | None) -> jax.Array:
        activation = "int8" if case.activation == "dynamic" else grid
        return tpu.run(x, weight, activation, case.x_dtype, None)

    return matmul, (array((rows, length), case.x_dtype), weight, grid)


def metrics(compiled: jax.stages.Compiled, folder: pathlib.Path) -> dict[str, int | bool | None]:
    """What the compiler says of a program: see `NOTE`."""
    text = compiled.as_text() or ""
    call = next((line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line), "")
    vmem = re.search(r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"0","size":"(\d+)"', call)
    profiles = [path.read_text() for path in sorted(folder.glob("lowbit_w*static_llo_profile*"))]
    cycles = [int(number) for text in profiles for number in re.findall(r"estimated_cycles: (\d+)", text)]
    memory = compiled.memory_analysis()
    result: dict[str, int | bool | None] = {"kernel": bool(call), "temp": memory.temp_size_in_bytes if memory else None}
    if vmem:
        result["vmem"] = int(vmem[1])
    if cycles:
        result["cycles"] = max(cycles)
    return result


BACKEND = Backend(
    name="tpu",
    targets=tuple(TOPOLOGIES),
    cases=tuple(_BY_NAME),
    note=NOTE,
    tolerance=TOLERANCE,
    versions=versions,
    environments=environments,
    compile_case=compile_case,
)
