"""Models spread over eight devices, automatic and explicit meshes, against one device: integers to the bit."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lowbit as lb
from lowbit.core.spec import Tensor
from lowbit.core.statistics import MinMax

KINDS = (AxisType.Auto, AxisType.Explicit)
RULES = {
    "groups": "w4/g16,a8/dynamic",
    "groups over parts": "w4/g64,a8",
    "integer groups": "w4/g32/int5,a8",
    "learned": lb.lsq("w4,a4"),
}
random = np.random.default_rng(0)


def mesh_of(kind):
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))


def put(mesh, x, *spec):
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))


def normal(*shape):
    return jnp.asarray(random.standard_normal(shape), jnp.float32)


def perceptron(p, x):
    """Split by columns, then by rows: on an explicit mesh the second product has to say how its sums are spread."""
    mesh = jax.typeof(x).sharding.mesh
    spread = NamedSharding(mesh, PartitionSpec("data")) if AxisType.Explicit in mesh.axis_types else None
    hidden = jax.nn.relu(x @ p["up"] + p["bias"])
    return jax.lax.dot_general(hidden, p["down"], (((1,), (0,)), ((), ())), out_sharding=spread)


PARAMS = {"up": normal(64, 128), "bias": normal(128), "down": normal(128, 64)}
X = normal(16, 64)
WHERE = {"up": (None, "model"), "bias": ("model",), "down": ("model", None)}


def spread(mesh):
    return {name: put(mesh, leaf, *WHERE[name]) for name, leaf in PARAMS.items()}, put(mesh, X, "data", None)


def equal(got, want):
    """Whether two trees have the same values, wherever they lie."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


@pytest.mark.parametrize("rule", RULES)
def test_tensor_parallel_equals_one_device(rule):
    rules = {"**": RULES[rule]}
    plan = lb.bind(perceptron, rules, PARAMS, X)
    qstate = lb.calibrate(perceptron, plan, PARAMS, [(X,)])
    want = lb.simulate(perceptron, plan)(PARAMS, qstate, X)
    qparams = lb.pack(plan, PARAMS, qstate)
    for kind in KINDS if rule == "groups" else KINDS[1:]:
        mesh = mesh_of(kind)
        params, x = spread(mesh)
        assert lb.bind(perceptron, rules, params, x) == plan
        state = lb.calibrate(perceptron, plan, params, [(x,)])
        assert equal(state, qstate)
        y = lb.simulate(perceptron, plan)(params, state, x)
        assert equal(y, want)
        if kind == AxisType.Explicit:
            assert jax.typeof(y).sharding.spec == PartitionSpec("data", None)
        packed = lb.pack(plan, params, state)
        assert equal(packed.params, qparams.params)
        assert packed.params["up"].codes.sharding.spec == PartitionSpec(None, "model")
        assert equal(lb.execute(perceptron, plan)(packed, x), want)


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_integer_plan(kind):
    plan = lb.bind(perceptron, {"**": "w8,a8"}, PARAMS, X, integer=True)
    qstate = lb.calibrate(perceptron, plan, PARAMS, [(X,)])
    want = lb.simulate(perceptron, plan)(PARAMS, qstate, X)
    mesh = mesh_of(kind)
    params, x = spread(mesh)
    state = lb.calibrate(perceptron, plan, params, [(x,)])
    assert equal(state, qstate)
    assert equal(lb.simulate(perceptron, plan)(params, state, x), want)
    assert equal(lb.execute(perceptron, plan)(lb.pack(plan, params, state), x), want)
    wanted = {"down": {"output": (MinMax(Tensor()),)}}
    seen = lb.observe(perceptron, plan, params, [(x,)], wanted, qstate=state)["down"]["output"]["minmax"]
    assert [float(end.squeeze()) for end in seen] == [float(want.min()), float(want.max())]
    alone = lb.diagnose(perceptron, plan, PARAMS, qstate, [(X,)])["down"]
    spread_out = lb.diagnose(perceptron, plan, params, state, [(x,)])["down"]
    assert spread_out.output == pytest.approx(alone.output, rel=1e-4)  # decibels of sums in float32, in another order


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_stays_within_the_order_of_float_sums(kind):
    """Integers are equal; a gradient sums 16 rows in another order: a step may differ by that many roundings."""
    plan = lb.bind(perceptron, {"**": lb.lsq("w4/g32,a8")}, PARAMS, X)
    start = lb.init(perceptron, plan, PARAMS, X)
    run = lb.simulate(perceptron, plan, train=True)

    @jax.jit
    def step(params, qstate, x, i):
        def loss(params, learn):
            y, after = run(params, {**qstate, "learn": learn}, x, key=jax.random.key(0), step=i)
            return jnp.mean(y**2), after

        (value, after), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, qstate["learn"])
        moved = jax.tree.map(lambda a, g: a - 1e-3 * g, (params, qstate["learn"]), gradients)
        return value, moved[0], {**after, "learn": moved[1]}

    want = step(PARAMS, start, X, 0)
    mesh = mesh_of(kind)
    params, x = spread(mesh)
    value, params, qstate = step(params, start, x, 0)
    np.testing.assert_allclose(value, want[0], rtol=1e-5)
    for name in PARAMS:
        assert params[name].sharding.is_equivalent_to(put(mesh, PARAMS[name], *WHERE[name]).sharding, PARAMS[name].ndim)
        np.testing.assert_allclose(np.asarray(params[name]), np.asarray(want[1][name]), rtol=1e-5, atol=1e-6)
    for a, b in zip(jax.tree.leaves(qstate), jax.tree.leaves(want[2]), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)


def test_sequential_calibration_puts_spread_weights_on_their_grids():
    plan = lb.bind(perceptron, {"**": RULES["groups over parts"]}, PARAMS, X)
    want = lb.calibrate(perceptron, plan, PARAMS, [(X,)], sequential=True)
    assert not equal(want, lb.calibrate(perceptron, plan, PARAMS, [(X,)]))
    params, x = spread(mesh_of(AxisType.Explicit))
    assert equal(lb.calibrate(perceptron, plan, params, [(x,)], sequential=True), want)


def test_keys_and_steps_made_inside_a_mesh():
    """They are on it as everything is: of the parameters, whose keys are folded in beside the walk, and of inputs, in it."""
    plan = lb.bind(perceptron, {"**": lb.lsq("w4/g32,a8")}, PARAMS, X)
    qstate = lb.init(perceptron, plan, PARAMS, X)
    run = lb.simulate(perceptron, plan, train=True)
    want = run(PARAMS, qstate, X, key=jax.random.key(0), step=jnp.int32(3))
    mesh = mesh_of(AxisType.Explicit)
    params, x = spread(mesh)
    with jax.set_mesh(mesh):
        key, step = jax.random.key(0), jnp.int32(3)
        assert jax.typeof(step).sharding.mesh == mesh.abstract_mesh
        assert equal(run(params, qstate, x, key=key, step=step), want)


def images(p, x):
    y = jax.lax.conv_general_dilated(x, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(y).mean((1, 2)) @ p["head"]


def layers(p, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0]


def attention(p, x):
    q, k, v = (jnp.einsum("btd,dhk->bthk", x, p[name]) for name in "qkv")
    scores = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k) / 4.0)
    return jnp.einsum("bhts,bshk->bthk", scores, v)


OTHERS = {
    "images": (images, {"kernel": normal(3, 3, 4, 8), "head": normal(8, 8)}, normal(8, 6, 6, 4), {"head": (None, "model")}),
    "layers": (layers, {"w": normal(3, 32, 32)}, normal(8, 32), {"w": (None, None, "model")}),
    "attention": (attention, {n: normal(16, 4, 8) for n in "qkv"}, normal(4, 6, 16), dict.fromkeys("qkv", (None, "model"))),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("kind", KINDS)
def test_other_networks(name, kind):
    fn, params, x, where = OTHERS[name]
    if kind == AxisType.Explicit and name == "layers":
        where = {}  # jax itself refuses a carry that comes back spread otherwise
    plan = lb.bind(fn, {"**": "w8,a8"}, params, x)
    qstate = lb.calibrate(fn, plan, params, [(x,)])
    want = lb.simulate(fn, plan)(params, qstate, x)
    mesh = mesh_of(kind)
    params, x = {n: put(mesh, leaf, *where.get(n, ())) for n, leaf in params.items()}, put(mesh, x, "data")
    for a, b in zip(jax.tree.leaves(lb.calibrate(fn, plan, params, [(x,)])), jax.tree.leaves(qstate), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6)  # of a softmax and a mean, which sum floats
    y = lb.simulate(fn, plan)(params, qstate, x)
    np.testing.assert_allclose(np.asarray(y), np.asarray(want), rtol=1e-5, atol=1e-6)
    assert equal(lb.execute(fn, plan)(lb.pack(plan, params, qstate), x), y)


@pytest.mark.slow
def test_two_processes_that_hold_no_array_whole():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = pathlib.Path(__file__).parent / "two_processes.py"
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    runs = [
        subprocess.Popen(
            [sys.executable, here, str(rank), port], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for rank in (0, 1)
    ]
    for run in runs:
        out, err = run.communicate(timeout=300)
        assert run.returncode == 0, err.decode()[-2000:]
        steps = [json.loads(line) for line in out.decode().splitlines() if line.startswith("{")]
        assert [s["step"] for s in steps] == ["bind", "calibrate", "simulate", "gradient", "pack", "execute"]
        assert all(s["is_equal"] for s in steps), steps
        assert steps[0]["addressable"] is False
