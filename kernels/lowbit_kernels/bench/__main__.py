"""Times the kernels beside their peers, interleaved, and prints a table and a JSON line a case.

python -m lowbit_kernels.bench                     every case, a few minutes
python -m lowbit_kernels.bench --case w4a8 --rows 1,128
python -m lowbit_kernels.bench --json results.jsonl
python -m lowbit_kernels.bench --tune              which options are fastest here; written where quant_matmul looks
"""

import argparse
import ctypes
import datetime as dt
import functools
import json
import os
import subprocess
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from lowbit_kernels import (
    PreparedMatrix,
    StaticActivation,
    code_range,
    fused_conv,
    pack_conv,
    pack_matrix,
    prepare,
    prepare_conv,
    quant_conv,
    quant_matmul,
    status,
    tuning,
)
from lowbit_kernels.bench import peers
from lowbit_kernels.bench.timing import interleave, ratio
from lowbit_kernels.bench.tune import table_path, tune
from lowbit_kernels.cpu import library
from lowbit_kernels.platforms import processor
from lowbit_kernels.shapes import CONVS, LAYERS, MatmulShape

CASES = ("machine", "w4a8", "stream", "w8a8", "w4a8 integer scales", "w4a16", "conv")
Contestants = dict[str, Callable[[], object]]
STATIC = StaticActivation(jnp.float32(0.03), jnp.int32(3))


def main() -> None:
    """Runs the chosen cases."""
    parser = argparse.ArgumentParser(
        prog="python -m lowbit_kernels.bench", description="Times the kernels beside their peers."
    )
    parser.add_argument("--case", choices=CASES, help="one case; all by default")
    parser.add_argument("--rows", default="", help="values of M, for instance 1,128")
    parser.add_argument("--seconds", type=float, default=2.0, help="time a row of the table may take")
    parser.add_argument(
        "--threads", type=int, default=min(2, os.cpu_count() or 1), help="of the peers, and of the probes"
    )
    parser.add_argument("--json", help="append a JSON line a case to this file")
    parser.add_argument("--tune", action="store_true", help="time the implementations' options and write the faster")
    parser.add_argument("--table", help="file that --tune writes (default: the user's cache for this machine)")
    args = parser.parse_args()
    if status().path is None:
        parser.error(f"there are no native kernels to time: {status().reason}")
    rows = [int(m) for m in args.rows.split(",")] if args.rows else None
    print(f"{device()}, jax {jax.__version__}, {status().isas}, {args.threads} threads, load {os.getloadavg()[0]:.1f}")
    if peers.absent():
        print(f"left out, not installed: {', '.join(peers.absent())}")
    if args.tune:
        tune_cases(args, rows)
        return
    for case in [args.case] if args.case else CASES:
        if case == "machine":
            print(json.dumps(machine(args.threads)))
            continue
        for shape, contestants in contests(case, rows, args.threads):
            report(case, shape, contestants, args)


TUNED = {"w4a8": (4, "int8"), "w8a8": (8, "int8"), "w4a16": (4, None)}


def tune_cases(args: argparse.Namespace, rows: list[int] | None) -> None:
    """Tunes the cases that `TUNED` names, and writes the table."""
    if args.case is not None and args.case not in TUNED:
        raise SystemExit(f"--tune takes the cases {', '.join(TUNED)}, not {args.case}")
    path = table_path(args.table)
    for case in [args.case] if args.case else TUNED:
        bits, activation = TUNED[case]
        for shape in LAYERS:
            if rows is None or shape.rows in rows:
                w = weights(shape, bits, shape.length if case == "w8a8" else shape.group)
                tuning.write(path, tune(_x(shape), w, activation, name=None, seconds=args.seconds))
    print(f"wrote {path}")


def report(case: str, shape: str, contestants: Contestants, args: argparse.Namespace) -> None:
    """Measures and prints one row: ours first, and how many times slower each peer is."""
    times = interleave(contestants, seconds=args.seconds)
    ours = next(iter(times))
    cells = [f"{ours} {times[ours].minimum:.3f}/{times[ours].median:.3f} ms"]
    cells += [
        f"{name} {times[name].minimum:.3f}/{times[name].median:.3f} ({ratio(times[name], times[ours]):.2f}x)"
        for name in list(times)[1:]
    ]
    print(f"{case} {shape}: " + ", ".join(cells), flush=True)
    if args.json:
        line = {
            "case": case, "shape": shape, "device": device(), "commit": commit(), "jax": jax.__version__,
            "isa": [os.environ.get(library.ISA_VARIABLE) or status().isas[0]], "threads": args.threads, "load": os.getloadavg()[0],
            "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "times": {n: {"min_ms": t.minimum, "median_ms": t.median, "rounds": len(t.rounds),
                          "ratio": ratio(t, times[ours])} for n, t in times.items()},
        }  # fmt: skip
        with open(args.json, "a") as file:
            file.write(json.dumps(line) + "\n")


def contests(case: str, rows: list[int] | None, threads: int) -> Iterator[tuple[str, Contestants]]:
    """(shape, contestants) of a case; ours comes first."""
    if case == "conv":
        for shape in CONVS:
            yield (
                f"{shape.kernel}x{shape.kernel} {shape.channels}ch {shape.height}x{shape.width} groups {shape.groups} stride {shape.stride}",
                _conv(shape, threads),
            )
        return
    if case == "stream":
        yield "M=1 through 512 MB of weights (time of one pass)", _stream()
        return
    build = {"w4a8": _w4a8, "w8a8": _w8a8, "w4a8 integer scales": _integer_scales, "w4a16": _w4a16}[case]
    some = {"w4a16": (1, 128, 512), "w4a8 integer scales": (128, 512)}
    for shape in LAYERS:
        if rows is None and shape.rows not in some.get(case, (shape.rows,)):
            continue
        if rows is None or shape.rows in rows:
            scale = "channel" if case == "w8a8" else f"g{shape.group}"
            yield f"M={shape.rows} K={shape.length} N={shape.out} {scale}", build(shape, threads)


def weights(shape: MatmulShape, bits: int, group: int, seed: int = 0) -> PreparedMatrix:
    """A prepared random matrix."""
    rng = np.random.default_rng(seed)
    low, high = code_range(bits, True)
    codes = jnp.asarray(rng.integers(low, high + 1, (shape.length, shape.out), dtype=np.int8))
    scales = jnp.asarray(rng.random((shape.length // group, shape.out)), jnp.float32)
    return jax.jit(lambda c, s: prepare(pack_matrix(c, s, bits=bits, group=group)))(codes, scales)


def timed(fn: Callable, *args) -> Callable[[], object]:
    """A call that blocks until the result is there; compiled already."""
    jitted = jax.jit(fn)
    jax.block_until_ready(jitted(*args))
    return lambda: jitted(*args).block_until_ready()


def _x(shape: MatmulShape) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).standard_normal((shape.rows, shape.length)), jnp.float32)


def _float(shape: MatmulShape) -> Callable[[], object]:
    w = jnp.asarray(np.random.default_rng(2).standard_normal((shape.length, shape.out)), jnp.float32)
    return timed(jnp.dot, _x(shape), w)


def _native(activation):
    return functools.partial(quant_matmul, activation=activation, implementation="cpu")


def _w4a8(shape: MatmulShape, threads: int) -> Contestants:
    x, w = _x(shape), weights(shape, 4, shape.group)
    found: Contestants = {"lowbit": timed(_native("int8"), x, w), "lowbit static": timed(_native(STATIC), x, w)}
    if "onnxruntime" not in peers.absent():
        found["ORT accuracy 4"] = peers.matmul_nbits(*shape, 4, threads)
    found["XLA f32"] = _float(shape)
    if shape.rows <= 8:
        w4 = jnp.asarray(np.random.default_rng(0).integers(-8, 8, (shape.length, shape.out))).astype(jnp.int4)
        found["XLA jnp.int4"] = timed(lambda x, w: jnp.dot(x, w.astype(jnp.float32)), x, w4)
    return found


def _w8a8(shape: MatmulShape, threads: int) -> Contestants:
    x, w = _x(shape), weights(shape, 8, shape.length)
    codes = jnp.clip(jnp.round(x * 40), -128, 127).astype(jnp.int8)
    found: Contestants = {
        "lowbit": timed(_native("int8"), x, w),
        "lowbit codes": timed(_native(StaticActivation(jnp.float32(0.03), jnp.int32(0))), codes, w),
    }
    if "onnxruntime" not in peers.absent():
        found["ORT MatMulInteger"] = peers.matmul_integer(shape.rows, shape.length, shape.out, threads)
    if not {"onnx", "openvino"} & set(peers.absent()):
        found["OpenVINO int8"] = peers.openvino_int8(shape.rows, shape.length, shape.out, threads)
    if "torch" not in peers.absent() and shape.rows > 16:
        found["torch int8"] = peers.torch_int8(shape.rows, shape.length, shape.out, threads)
    w8 = jnp.asarray(np.random.default_rng(0).integers(-128, 128, (shape.length, shape.out), dtype=np.int8))
    found["XLA int8"] = timed(lambda x, w: jnp.dot(x, w, preferred_element_type=jnp.int32), codes, w8)
    return found


def _integer_scales(shape: MatmulShape, threads: int) -> Contestants:
    """Groups with integer scales under one float scale a channel, beside 8-bit weights: time over theirs is the inverse of the ratio."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-7, 8, (shape.length, shape.out), dtype=np.int8)
    factors = rng.integers(1, 16, (shape.length // shape.group, shape.out), dtype=np.int8)
    scales = rng.random((1, shape.out)).astype(np.float32)
    w = prepare(pack_matrix(codes, scales, bits=4, group=shape.group, factors=factors))
    x = _x(shape)
    return {
        "lowbit": timed(_native("int8"), x, w),
        "lowbit W8A8": timed(_native("int8"), x, weights(shape, 8, shape.length)),
    }


def _w4a16(shape: MatmulShape, threads: int) -> Contestants:
    found: Contestants = {"lowbit": timed(_native(None), _x(shape), weights(shape, 4, shape.group))}
    if "onnxruntime" not in peers.absent():
        found["ORT accuracy 1"] = peers.matmul_nbits(*shape, 1, threads)
    if "torch" not in peers.absent():
        found["torch int4"] = peers.torch_int4(*shape, threads)
    found["XLA f32"] = _float(shape)
    return found


def _stream() -> Contestants:
    shape = LAYERS[0]
    x, first = _x(shape), weights(shape, 4, shape.group)
    size = sum(leaf.nbytes for leaf in (first.blocks, first.scales))
    copies = [jax.tree.map(jnp.copy, first) for _ in range(-(-(512 << 20) // size))]
    call = jax.jit(_native("int8"))

    def once() -> None:
        jax.block_until_ready([call(x, w) for w in copies])

    once()
    print(f"stream: one pass reads {size * len(copies) / 1e9:.3f} GB; the machine's bandwidth is in the case `machine`")
    return {"lowbit": once}


def _conv(shape, threads: int) -> Contestants:
    rng = np.random.default_rng(0)
    kernel = (shape.kernel, shape.kernel, shape.channels // shape.groups, shape.out)
    packed = pack_conv(rng.integers(-127, 128, kernel), rng.random(shape.out).astype(np.float32), bits=8)
    w = prepare_conv(packed, feature_group_count=shape.groups)
    x = jnp.asarray(rng.standard_normal((shape.batch, shape.height, shape.width, shape.channels)), jnp.float32)
    codes = jnp.clip(jnp.round(x * 40), -128, 127).astype(jnp.int8)
    geometry = {"feature_group_count": shape.groups, "strides": (shape.stride,) * 2, "implementation": "cpu"}
    call = functools.partial(quant_conv, activation=STATIC, **geometry)
    emit = StaticActivation(jnp.float32(3.0), jnp.int32(0))
    fused = functools.partial(fused_conv, activation=STATIC, emit=emit, keep=False, **geometry)
    found: Contestants = {
        "lowbit, codes to codes": timed(lambda x, w: fused(x, w).codes, codes, w),
        "lowbit, floats to floats": timed(call, x, w),
    }
    if "onnxruntime" not in peers.absent():
        found["ORT QLinearConv"] = peers.qlinear_conv(shape, threads)
    wf = jnp.asarray(rng.standard_normal(kernel), jnp.float32)
    found["XLA f32"] = timed(
        lambda x, w: jax.lax.conv_general_dilated(
            x,
            w,
            geometry["strides"],
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=shape.groups,
        ),
        x,
        wf,
    )
    return found


def machine(threads: int) -> dict[str, float]:
    """Read bandwidth of 512 MB, and the peaks of loops of VNNI and of AMX products on registers alone, best of several."""
    native = ctypes.CDLL(status().path)
    native.lowbit_probe_read.restype = ctypes.c_double
    native.lowbit_probe_read.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    data = np.ones(512 << 17, np.float32)
    read = min(native.lowbit_probe_read(data.ctypes.data, data.nbytes, threads) for _ in range(8))
    found = {"read_GBps": round(data.nbytes / read / 1e9, 1)}
    # 1 to 2 ms each: starting a thread weighs nothing
    for name, count, products in (("vnni", 400_000, 1024), ("amx", 100_000, 65536)):
        probe = getattr(native, f"lowbit_probe_{name}")
        probe.restype, probe.argtypes = ctypes.c_double, [ctypes.c_int64, ctypes.c_int]
        took = min(probe(count, threads) for _ in range(100))
        if took > 0:
            found[f"{name}_GOPS"] = round(count * products * 2 * threads / took / 1e9)
    return found


@functools.cache
def device() -> str:
    """Name of the processor, and how many cores."""
    return f"{processor()} x{os.cpu_count()}"


@functools.cache
def commit() -> str:
    """Short hash of the source tree, with + where it has changes; empty outside one."""
    folder, file = os.path.split(os.path.abspath(__file__))
    try:
        run = functools.partial(subprocess.run, cwd=folder, capture_output=True, text=True, check=True)
        run(["git", "ls-files", "--error-unmatch", file])  # installed into another project, it lies in that one's tree
        name = run(["git", "rev-parse", "--short", "HEAD"]).stdout.strip()
        return name + ("+" if run(["git", "status", "--porcelain"]).stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


if __name__ == "__main__":
    main()
