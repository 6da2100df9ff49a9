"""One prepared run on a Hopper GPU, under ten minutes: exactness on the device, both roofs, then W4A16 on real layers.

python -m lowbit_kernels.bench.gpu --json gpu.json
python -m lowbit_kernels.bench.gpu --exact-only

Weights are rotated through at least `--megabytes` (default 1024; never under 200, four times the L2 cache), so that every
matmul reads its own from memory. Times are of one matmul: all copies in one compiled call, several calls in flight.
"""

import argparse
import datetime as dt
import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lowbit_kernels import code_range, pack_matrix, reference
from lowbit_kernels.api import matmul_spec
from lowbit_kernels.bench.__main__ import commit
from lowbit_kernels.bench.timing import Times, interleave, ratio
from lowbit_kernels.pallas import gpu
from lowbit_kernels.pallas.gpu import GpuConfig, KMinorMatrix

LAYERS = ((4096, 4096), (4096, 14336), (14336, 4096), (8192, 28672))  # (K, N)
ROWS = (1, 4, 16, 64, 256, 1024)
GROUP = 128
LEAST_MEGABYTES = 200
CALLS = 4  # in flight: hides the time the host takes to launch
EXACT = tuple((rows, bits, activation) for rows in (1, 9, 130) for bits, activation in (
    (4, None), (8, None), (4, "int8"), (8, "int8"), (4, "fp8")
))  # fmt: skip
Contestants = dict[str, Callable[[], object]]


def main(arguments: list[str] | None = None) -> int:
    """0 where every result was exact, 1 where one was not, 2 without a GPU that runs the kernel."""
    parser = argparse.ArgumentParser(
        prog="python -m lowbit_kernels.bench.gpu", description="Exactness, roofs and W4A16 on a Hopper GPU."
    )
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="values of M")
    parser.add_argument("--megabytes", type=int, default=1024, help="of weights that one call reads, 200 or more")
    parser.add_argument("--seconds", type=float, default=2.0, help="time a row of the table may take")
    parser.add_argument("--exact-only", action="store_true", help="no timing")
    parser.add_argument("--json", help="write everything to this file")
    args = parser.parse_args(arguments)
    if args.megabytes < LEAST_MEGABYTES:
        parser.error(f"--megabytes must be {LEAST_MEGABYTES} or more: less stays in the L2 cache, got {args.megabytes}")
    try:
        rows = [int(m) for m in args.rows.split(",")]
    except ValueError:
        parser.error(f"--rows takes numbers with commas between them, got {args.rows!r}")
    reason = refusal()
    if reason:
        print(f"nothing to measure: the kernel {reason}", file=sys.stderr)
        return 2
    result: dict[str, Any] = {**description(), "exact": exactness(GpuConfig()), "layers": []}
    print(json.dumps(result), flush=True)
    wrong = [line for line in result["exact"] if not line["equal"]]
    if not args.exact_only:
        result["roofs"] = roofs()
        print(json.dumps(result["roofs"]), flush=True)
        for length, out in LAYERS:
            for count in rows:
                line = layer(count, length, out, args.megabytes << 20, args.seconds, result["roofs"])
                print(json.dumps(line), flush=True)
                result["layers"].append(line)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(result, file, indent=1)
    print(f"{len(wrong)} of {len(result['exact'])} results differ from the reference", flush=True)
    return 1 if wrong else 0


def refusal() -> str | None:
    """Why the kernel does not run here, or None."""
    packed = pack_matrix(jnp.zeros((128, 64), jnp.int8), jnp.ones((2, 64)), bits=4, group=64)
    return gpu.supports(matmul_spec(jax.ShapeDtypeStruct((1, 128), jnp.bfloat16), packed, "int8", None))


def description() -> dict[str, Any]:
    """What a number needs to be read later."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "jax": jax.__version__,
        "platform_version": getattr(device.client, "platform_version", ""),
        "commit": commit(),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def exactness(config: GpuConfig, cases: tuple[tuple[int, int, str | None], ...] = EXACT) -> list[dict[str, Any]]:
    """Each case against the reference, on data that leaves nothing to round in float32; int8 on any data."""
    lines = []
    for rows, bits, activation in cases:
        rng = np.random.default_rng(rows + bits)
        low, high = code_range(bits, True)
        scales = rng.standard_t(3, (2, 64)) if activation == "int8" else 2.0 ** rng.integers(-2, 3, (2, 64))
        codes = jnp.asarray(rng.integers(low, high + 1, (256, 64)))
        packed = pack_matrix(codes, jnp.asarray(scales, jnp.float32), bits=bits, group=128)
        values = rng.standard_t(3, (rows, 256)) if activation == "int8" else rng.integers(-8, 9, (rows, 256))
        if activation == "fp8":
            values[:, 0] = (
                7  # absmax 7 = 448 / 64: the scale is a power of two, so that every code is an integer times 64
            )
            values = np.clip(values, -7, 7)
        x = jnp.asarray(values, jnp.float32).astype(jnp.bfloat16)
        want = reference.matmul(x, packed, "int8" if activation == "int8" else None)
        run = jax.jit(functools.partial(gpu.matmul, activation=activation, config=config))
        got = run(x, gpu.prepare(packed))
        worst = float(jnp.max(jnp.abs(got - want)))
        lines.append({"rows": rows, "bits": bits, "activation": activation, "equal": worst == 0, "worst": worst})
    return lines


def roofs() -> dict[str, float]:
    """Measured ceilings: bytes read and written a second by a copy of 1 GiB, and bfloat16 operations a second."""
    data = jnp.ones(1 << 28, jnp.float32)
    copy = jax.jit(lambda x: x + 1.0)
    square = jnp.ones((8192, 8192), jnp.bfloat16)
    dot = jax.jit(jnp.dot)
    return {
        "copy_GBps": 2 * data.nbytes / _best(lambda: copy(data)) / 1e9,
        "bf16_TFLOPs": 2 * 8192**3 / _best(lambda: dot(square, square)) / 1e12,
    }


def _best(call: Callable[[], Array]) -> float:
    """Seconds of one call of several in flight, the best of ten."""
    call().block_until_ready()
    found = []
    for _ in range(10):
        start = time.perf_counter()
        jax.block_until_ready([call() for _ in range(CALLS)])
        found.append((time.perf_counter() - start) / CALLS)
    return min(found)


def layer(rows: int, length: int, out: int, size: int, seconds: float, ceilings: dict[str, float]) -> dict[str, Any]:
    """One row of the table: milliseconds a matmul of ours and of each peer, and shares of both roofs."""
    weight_bytes = out * length // 2 + out * length // GROUP * 4
    count = -(-size // weight_bytes)
    contestants, left_out = contest(rows, length, out, count, GpuConfig())
    if "torch" not in left_out:
        try:
            contestants["torch int4"] = torch_int4(rows, length, out, count)
        except Exception as error:  # noqa: BLE001 (a peer that does not run is a line of the report)
            left_out["torch int4"] = f"{type(error).__name__}: {error}"[:200]
    times = interleave(contestants, seconds=seconds)
    ours = times["lowbit"]
    each = ours.median / CALLS / count / 1e3
    moved = weight_bytes + rows * (length + out) * 2
    return {
        "M": rows, "K": length, "N": out, "group": GROUP, "copies": count,
        "ms": {name: _milliseconds(t, count) for name, t in times.items()},
        "times_faster_than": {name: ratio(t, ours) for name, t in times.items() if name != "lowbit"},
        "share_of_bandwidth": moved / each / 1e9 / ceilings["copy_GBps"],
        "share_of_bf16": 2 * rows * length * out / each / 1e12 / ceilings["bf16_TFLOPs"],
        "left_out": left_out,
    }  # fmt: skip


def _milliseconds(times: Times, count: int) -> dict[str, float]:
    return {"min": times.minimum / CALLS / count, "median": times.median / CALLS / count}


def contest(rows: int, length: int, out: int, count: int, config: GpuConfig) -> tuple[Contestants, dict[str, str]]:
    """Ours, bfloat16 weights in XLA, and XLA that unpacks int4 in the call; and who is left out, why."""
    x, weights = operands(rows, length, out, count)
    floats = [dequantized(w) for w in weights[: max(1, count // 4)]] * 4  # a bfloat16 copy takes four times the memory
    found = {
        "lowbit": _timed(lambda x, w: gpu.matmul(x, w, config=config).astype(jnp.bfloat16), x, weights),
        "XLA bf16": _timed(lambda x, w: jnp.dot(x, w.T), x, floats[:count]),
        "XLA dequantize": _timed(lambda x, w: jnp.dot(x, dequantized(w).T), x, weights),
    }
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return found, {"torch": "not installed"}
    return found, {} if torch.cuda.is_available() else {"torch": "has no CUDA"}


def operands(rows: int, length: int, out: int, count: int) -> tuple[Array, list[KMinorMatrix]]:
    """Activations and `count` distinct weights, made on the device."""
    keys = jax.random.split(jax.random.key(0), count + 1)

    @jax.jit
    def one(key: Array) -> KMinorMatrix:
        codes, scales = jax.random.split(key)
        table = (length // GROUP, out)
        return KMinorMatrix(
            codes=jax.random.bits(codes, (out, length // 2), jnp.uint8),
            scales=jax.random.uniform(scales, table, jnp.float32, 0.01, 0.02),
            sums=jnp.zeros(table, jnp.int32),  # nothing here has a zero point
            bits=4,
            length=length,
            group=GROUP,
        )

    return jax.random.normal(keys[0], (rows, length), jnp.bfloat16), [one(key) for key in keys[1:]]


@jax.jit
def dequantized(matrix: KMinorMatrix) -> Array:
    """`(N, K)` bfloat16."""
    scales = jnp.repeat(matrix.scales.T, matrix.weight.shape[1] // matrix.scales.shape[0], axis=1)
    return (matrix.weight.astype(jnp.float32) * scales).astype(jnp.bfloat16)


def _timed(matmul: Callable[[Array, Any], Array], x: Array, weights: list[Any]) -> Callable[[], object]:
    """A call that runs `matmul` with every weight, `CALLS` times, and waits."""
    one = jax.jit(matmul)  # a call inside a call is traced and lowered once, not once a weight
    every = jax.jit(lambda x, weights: [one(x, w) for w in weights])
    jax.block_until_ready(every(x, weights))
    return lambda: jax.block_until_ready([every(x, weights) for _ in range(CALLS)])


def torch_int4(rows: int, length: int, out: int, count: int) -> Callable[[], object]:
    """Torch's weight-only 4-bit matmul on the GPU; the functions are private, and the only ones it has."""
    import torch  # pyright: ignore[reportMissingImports]

    x = torch.randn(rows, length, dtype=torch.bfloat16, device="cuda")
    scales = torch.rand(length // GROUP, out, 2, dtype=torch.bfloat16, device="cuda")
    weights = [
        torch._convert_weight_to_int4pack(
            torch.randint(0, 256, (out, length // 2), dtype=torch.uint8, device="cuda"), 8
        )
        for _ in range(count)
    ]

    def call() -> None:
        for _ in range(CALLS):
            for weight in weights:
                torch._weight_int4pack_mm(x, weight, GROUP, scales)
        torch.cuda.synchronize()

    call()
    return call


if __name__ == "__main__":
    sys.exit(main())
