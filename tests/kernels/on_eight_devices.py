"""Packed kernels on eight devices, run by `test_sharded.py` in a process of its own: prints a line of JSON a case."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lowbit as lb
from lowbit_kernels import StaticActivation, pack_matrix, quant_matmul, sharded, xla
from lowbit_kernels.api import canonical
from lowbit_kernels.pallas import gpu

ROWS, LENGTH, OUT = 8, 512, 256
GRID = StaticActivation(jnp.float32(0.02), jnp.int32(3))
CASES = {  # bits, group, activation, dtype of x
    "w8,a8": (8, LENGTH, GRID, "float32"),
    "w4/g64,a8/dynamic": (4, 64, "int8", "float32"),
    "w4,a8/dynamic": (4, LENGTH, "int8", "bfloat16"),
    "w4/g64": (4, 64, None, "bfloat16"),
}
SPLITS = {  # of codes (K, N), of x (M, K)
    "column": ((None, "model"), ("data", None)),
    "row": (("model", None), ("data", "model")),
    "both": (("data", "model"), (None, "data")),
}
random = np.random.default_rng(0)


def mesh_of(kind):
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))


def put(mesh, x, *spec):
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))


def gathers(text):
    """What a program gathers of a packed weight: bytes."""
    return [line.strip()[:80] for line in text.splitlines() if re.search(r"= \(?(u8|s8|s4)\[\S* all-gather", line)]


def gathered():
    """The program of a sharded weight that is asked for whole: what `gathers` has to find."""
    mesh = mesh_of(AxisType.Auto)
    codes = put(mesh, jnp.ones((256, 256), jnp.uint8), "model")
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda c: c ^ 1, out_shardings=whole).lower(codes).compile().as_text()


def told(name, got, want, text=""):
    error = float(np.abs(np.asarray(got, np.float64) - np.asarray(want, np.float64)).max())
    print(json.dumps({"case": name, "equal": bool((np.asarray(got) == np.asarray(want)).all()), "error": error,
                      "largest": float(np.abs(want).max()), "gathers": gathers(text)}), flush=True)  # fmt: skip


def matrix(bits, group):
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    scales = random.random((-(-LENGTH // group), OUT), dtype=np.float32) + np.float32(0.1)
    return pack_matrix(random.integers(low, high, (LENGTH, OUT)), scales, bits=bits, group=group)


def spread(mesh, weight, where):
    k, n = where
    codes = put(mesh, weight.codes, k, n)
    return dataclasses.replace(
        weight, codes=codes, scales=put(mesh, weight.scales, k if weight.groups > 1 else None, n)
    )


def kernels():
    for name, (bits, group, activation, dtype) in CASES.items():
        weight = matrix(bits, group)
        x = jnp.asarray(random.standard_normal((ROWS, LENGTH)), dtype)

        @jax.jit
        def run(x, weight, activation=activation):
            return quant_matmul(x, weight, activation=activation, platform="tpu-interpreter", out_dtype="float32")

        want = np.asarray(run(x, weight))
        for split in SPLITS if name == "w8,a8" else ("row",) if "," in name else ("column", "row"):
            of_codes, of_x = SPLITS[split]
            for kind in (AxisType.Auto, AxisType.Explicit) if "g64," in name or split == "both" else (AxisType.Auto,):
                mesh = mesh_of(kind)
                arguments = put(mesh, x, *of_x), spread(mesh, weight, of_codes)
                compiled = run.lower(*arguments).compile()
                told(f"{name} {split} {kind.name}", compiled(*arguments), want, compiled.as_text())


def in_the_order_of_hopper():
    """The parts that devices get of a K-minor weight, by what XLA makes of each: the kernel itself needs jax 0.11."""

    def part(x, weight, activation, out_dtype, config):
        return xla.run(x, canonical(weight), activation, out_dtype, config)

    mesh = mesh_of(AxisType.Auto)
    for name in ("w8,a8", "w4/g64,a8/dynamic"):
        bits, group, activation, dtype = CASES[name]
        weight, x = matrix(bits, group), jnp.asarray(random.standard_normal((ROWS, LENGTH)), dtype)
        want = quant_matmul(x, weight, activation=activation, implementation="reference")
        minor = gpu.prepare(weight)
        groups = "model" if minor.groups > 1 else None
        minor = dataclasses.replace(minor, codes=put(mesh, minor.codes, None, "model"),
                                    scales=put(mesh, minor.scales, groups), sums=put(mesh, minor.sums, groups))  # fmt: skip
        run = jax.jit(lambda x, w, a=activation: sharded.matmul(sharded.Run(part, None), x, w, a, "float32"))
        compiled = run.lower(put(mesh, x, None, "model"), minor).compile()
        told(f"{name} row, K-minor", compiled(put(mesh, x, None, "model"), minor), want, compiled.as_text())


def model(p, x):
    def layer(x, w):
        return jnp.tanh(jax.nn.relu(x @ w["up"]) @ w["down"]), None

    return jax.lax.scan(layer, x, p)[0]


def network():
    """Layers under a scan, `up` split by columns and `down` by rows, through `lowbit.execute`; and in a `shard_map`."""
    params = {
        "up": random.standard_normal((2, 64, 128), np.float32),
        "down": random.standard_normal((2, 128, 64), np.float32),
    }
    params, x = jax.tree.map(jnp.asarray, params), jnp.asarray(random.standard_normal((8, 64)), jnp.float32)
    plan = lb.bind(model, {"**": "w4,a8"}, params, x)
    qparams = lb.pack(plan, params, lb.calibrate(model, plan, params, [(x,)]))
    want = lb.execute(model, plan, implementation="reference")(qparams, x)
    mesh = mesh_of(AxisType.Auto)
    where = {"up": (None, None, "model"), "down": (None, "model", None)}

    def place(path, leaf):
        name = path[1].key if path[0].name == "params" else None
        if name is None:
            return put(mesh, leaf)
        return put(mesh, leaf, *(axis if n > 4 else None for axis, n in zip(where[name], leaf.shape, strict=True)))

    placed = jax.tree_util.tree_map_with_path(place, qparams)
    run = jax.jit(lb.execute(model, plan, platform="tpu-interpreter"))
    compiled = run.lower(placed, put(mesh, x, "data")).compile()
    told("network", compiled(placed, put(mesh, x, "data")), want, compiled.as_text())

    inside = jax.jit(
        jax.shard_map(
            lb.execute(model, plan, platform="tpu-interpreter"), mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec("data")),
            out_specs=PartitionSpec("data"), check_vma=False,
        )
    )  # fmt: skip
    told("network in a shard_map", inside(qparams, x), want)


if __name__ == "__main__":
    told("a weight that is gathered", 0.0, 0.0, gathered())
    kernels()
    in_the_order_of_hopper()
    network()
