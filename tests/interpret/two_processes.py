"""One of two processes with two devices each, run by `test_meshes.py`: prints a line of JSON a step.

No process holds the whole of any array; what it compares with is computed on its own device from the same numbers.
"""

import json
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lowbit as lb


def model(p, x):
    mesh = jax.typeof(x).sharding.mesh
    spread = NamedSharding(mesh, PartitionSpec("data")) if AxisType.Explicit in mesh.axis_types else None
    hidden = jax.nn.relu(x @ p["up"])
    return jax.lax.dot_general(hidden, p["down"], (((1,), (0,)), ((), ())), out_sharding=spread)


def main(rank, port):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
    random = np.random.default_rng(0)
    held = {"up": random.standard_normal((32, 64), np.float32), "down": random.standard_normal((64, 32), np.float32)}
    x_held = random.standard_normal((8, 32), np.float32)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)

    def put(array, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.make_array_from_callback(array.shape, sharding, lambda where: array[where])

    def is_equal(got, want):
        pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
        return all(np.array_equal(multihost_utils.process_allgather(a, tiled=True), np.asarray(b)) for a, b in pairs)

    def told(step, is_so, **more):
        print(json.dumps({"step": step, "is_equal": bool(is_so), **more}), flush=True)

    params, x = (
        {"up": put(held["up"], "data", "model"), "down": put(held["down"], "model", None)},
        put(x_held, "data", None),
    )
    plan = lb.bind(model, {"**": lb.lsq("w4/g16,a8")}, params, x)
    told("bind", plan == lb.bind(model, {"**": lb.lsq("w4/g16,a8")}, held, x_held), addressable=x.is_fully_addressable)
    qstate, own = lb.calibrate(model, plan, params, [(x,)]), lb.calibrate(model, plan, held, [(x_held,)])
    told("calibrate", is_equal(qstate, own))
    want = lb.simulate(model, plan)(held, own, x_held)
    told("simulate", is_equal(lb.simulate(model, plan)(params, qstate, x), want))

    @jax.jit
    def gradient(params, qstate, x):
        run = lb.simulate(model, plan, train=True)
        return jax.grad(lambda p: (run(p, qstate, x, key=jax.random.key(0), step=0)[0] ** 2).mean())(params)

    made = jax.tree.map(lambda g: multihost_utils.process_allgather(g, tiled=True), gradient(params, qstate, x))
    own_made = gradient(held, own, x_held)
    # Sums of up to 64 products, added in another order by two processes: each within 64 roundings of the largest entry.
    bound = {k: 64 * np.finfo(np.float32).eps * np.abs(own_made[k]).max() for k in held}
    off = {k: float(np.abs(made[k] - own_made[k]).max()) for k in held}
    told("gradient", all(off[k] <= bound[k] for k in held), off=off)
    qparams = lb.pack(plan, params, qstate)
    told("pack", not qparams.params["up"].codes.is_fully_addressable)
    told("execute", is_equal(lb.execute(model, plan)(qparams, x), want))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
