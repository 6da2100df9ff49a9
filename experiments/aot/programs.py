"""What a compiler makes of a network: kernels called, buffers of the size of an unpacked weight, bytes, integer products."""

import math
import pathlib
import re
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding, use_abstract_mesh

import lowbit as lb
from experiments.aot.networks import CASES
from lowbit_kernels.aot import cuda, tpu
from lowbit_kernels.aot.report import Backend, Report, compiled, failed

CALLS = {"tpu": '"tpu_custom_call"', "cuda": '"mosaic_gpu'}
KERNELS = {"tpu": "pallas_tpu", "cuda": "mosaic_gpu"}
NOTE = (
    "kernels: calls in the compiled program; products: operations with a quantized weight that explain gives to the kernel. "
    "temp, bytes: temporaries and bytes accessed in one call, by the compiler; a loop's body is counted once. macs: "
    "multiply-adds of the whole network; packed: bytes of its quantized weights. Compiled only: nothing is measured."
)
TOLERANCE = {"temp": 0.05, "bytes": 0.05}
_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32}
_ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16)\[([\d,]+)\]")
_COMPUTATION = re.compile(r"(?:ENTRY )?(%[\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%[\w.\-]+ = (.*?) ([\w\-]+)\((.)")
_VIEWS = ("bitcast", "slice-start", "slice-done", "get-tuple-element", "tuple")
_PRODUCT = re.compile(r"= s32\[\S* (?:convolution|dot)\((%[\w.\-]+), (%[\w.\-]+)\)")


def compiled_case(platform: str, sharding: SingleDeviceSharding, name: str) -> Report:
    """The report of a network compiled for one device.

    Args:
        platform: "tpu" or "cuda".
        sharding: on a device of the topology that is compiled for.
        name: of the case.
    """
    network, rules = CASES[name]
    fn, params, args = network()
    plan = lb.bind(fn, rules, params, *args)

    def served(params: Any, args: Any) -> Any:
        qparams = lb.pack(plan, params, lb.init(fn, plan, params, *args))
        return lb.prepare(plan, qparams, platform=platform)

    qparams, told = jax.eval_shape(served, params, args), []
    jax.eval_shape(lambda q, args: told.append(lb.explain(fn, plan, q, *args, platform=platform)), qparams, args)
    arrays = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), (qparams, *args)
    )
    found = compiled(lb.execute(fn, plan, platform=platform), arrays)
    if isinstance(found, Report):
        return found
    text = found.as_text() or ""
    weights = {row.path: row.weight for row in plan.quantized if row.weight is not None}
    metrics = {
        "kernels": text.count(f"custom_call_target={CALLS[platform]}"),
        "products": sum(line.split()[1] == KERNELS[platform] for line in told[0].splitlines()),
        "others": sorted(line.split()[0] for line in told[0].splitlines() if line.split()[1] == "xla"),
        "macs": sum(row.macs for row in plan.rows),
        "packed": sum(math.prod(site.operand.shape) * _bits(site) // 8 for site in weights.values()),
    }
    memory, cost = found.memory_analysis(), found.cost_analysis()
    metrics["temp"] = memory.temp_size_in_bytes if memory else None
    metrics["bytes"] = int(cost["bytes accessed"]) if cost and "bytes accessed" in cost else None
    problem = complaint(text, metrics, list(weights.values()))
    return failed("compile", problem) if problem else Report(ok=True, metrics=metrics)


def _bits(site: Any) -> int:
    return site.spec.format.bits


def complaint(text: str, metrics: dict[str, Any], weights: list[Any]) -> str:
    """What no golden file can excuse, or "".

    Args:
        text: of the compiled program.
        metrics: of it.
        weights: sites of the quantized weights.
    """
    if metrics["kernels"] != metrics["products"]:
        return f"{metrics['kernels']} kernels are called for {metrics['products']} products"
    if wide := unpacked(text, weights):
        return f"arrays of the size of an unpacked weight: {', '.join(wide)}"
    if wide := widened(text):
        return f"integers are multiplied in wider types: {', '.join(wide)}"
    return ""


def unpacked(text: str, weights: list[Any]) -> list[str]:
    """The buffers of a program with as many elements as a weight, of all its layers or of one, and more bits for each."""
    bits: dict[int, int] = {}
    for site in weights:
        shape, stack = site.operand.shape, site.operand.stack
        for size in (math.prod(shape), math.prod(shape[stack:])):
            bits[size] = max(_bits(site), bits.get(size, 0))
    found = set()
    for dtype, shape in buffers(text):
        size = math.prod(int(n) for n in shape.split(","))
        if size in bits and _BITS.get(dtype, 64) > bits[size]:
            found.add(f"{dtype}[{shape}]")
    return sorted(found)


def buffers(text: str) -> list[tuple[str, str]]:
    """The dtypes and shapes of what the instructions of a program make of other values.

    What is inside a fusion never leaves registers or on-chip memory; what has no operands is made of no weight; views, and parts
    on their way to on-chip memory, hold the bytes that are there already.
    """
    fused = set(re.findall(r" fusion\(.*calls=(%[\w.\-]+)", text))
    found, inside = [], ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            inside = head[1]
        elif inside not in fused and (made := _INSTRUCTION.match(line)) and made[2] not in _VIEWS and made[3] != ")":
            found += _ARRAY.findall(made[1])
    return found


def widened(text: str) -> list[str]:
    """The products of a program that sum in int32 and whose operands are wider than 8 bits."""
    found = []
    for match in _PRODUCT.finditer(text):
        types = [re.search(rf"{re.escape(name)} = (\w+)\[", text) for name in match.groups()]
        names = [each[1] if each else "?" for each in types]
        if any(_BITS.get(name, 64) > 8 for name in names):
            found.append(" x ".join(names))
    return found


def _compile_tpu(target: str, case: str, folder: str) -> Report:
    del folder
    description = topologies.get_topology_desc(platform="tpu", topology_name=tpu.TOPOLOGIES[target])
    return compiled_case("tpu", SingleDeviceSharding(description.devices[0]), case)


def _compile_cuda(target: str, case: str, folder: str) -> Report:
    from lowbit_kernels.pallas import gpu_kernel  # needs jax 0.11

    del folder
    configuration = cuda.TARGETS[target].read_text()
    description = topologies.get_topology_desc(platform="cuda", target_config=configuration, topology="1x1x1")
    with use_abstract_mesh(gpu_kernel.abstract_hopper()):
        return compiled_case("cuda", SingleDeviceSharding(description.devices[0]), case)


def _backend(kernels: Backend, targets: tuple[str, ...], compile_case: Any) -> Backend:
    return Backend(
        name=kernels.name,
        targets=targets,
        cases=tuple(CASES),
        note=NOTE,
        tolerance=TOLERANCE,
        versions=kernels.versions,
        environments=lambda target, folder: kernels.environments(target, folder)[-1:],
        compile_case=compile_case,
        module="experiments.aot",
        folder=pathlib.Path(__file__).parent / "golden",
    )


BACKENDS = {
    "tpu": _backend(tpu.BACKEND, ("v5e", "v6e", "tpu7x"), _compile_tpu),
    "cuda": _backend(cuda.BACKEND, tuple(cuda.TARGETS), _compile_cuda),
}
