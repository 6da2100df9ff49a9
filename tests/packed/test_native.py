"""Packed weights on the native kernels, through `lowbit.execute`: formats, inputs, look-ups, and no float copy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.packed import native
from lowbit.packed.bits import unpack
from tests.kernels.cases import float_bound
from tests.values import heavy_tailed, normal

FORMATS = [
    "wnf4/g32",
    "wfp8_e4m3",
    "wmxfp4",
    "wnvfp4",
    "w3/g32/bfloat16",
    "w4/g32,afp8_e4m3/dynamic",
    "wnf4/g32,a8/dynamic",
]


def dense(rule, rows=3, length=128, out=40):
    params = {"w": heavy_tailed(0, length, out, freedom=3.0)}
    x = heavy_tailed(1, rows, length, freedom=3.0)
    return lambda p, x: x @ p["w"], rule, params, (x,)


def conv(rule):
    """Of more weights than a call widens to 16 bits, which is 256 KiB of them at most."""
    params = {"w": normal(0, 3, 3, 128, 256)}
    x = normal(1, 1, 3, 3, 128)

    def fn(p, x):
        return jax.lax.conv_general_dilated(x, p["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return fn, rule, params, (x,)


def packed(fn, rule, params, args):
    plan = lb.bind(fn, {"**": rule}, params, *args)
    return plan, lb.pack(plan, params, lb.calibrate(fn, plan, params, [args]))


@pytest.mark.parametrize("rule", FORMATS)
def test_levels_that_are_no_integers_run_natively(rule):
    fn, rule, params, args = dense(rule)
    plan, qparams = packed(fn, rule, params, args)
    assert lb.explain(fn, plan, qparams, *args).split()[1] == "cpu"
    got = lb.execute(fn, plan, implementation="cpu")(qparams, *args)
    want = lb.execute(fn, plan, implementation="reference")(qparams, *args)
    weights = unpack(qparams.params["w"]).dequantize()
    bound = 2 * float_bound(args[0], weights)  # either side is that far from the exact sum
    if "," in rule:
        bound *= 1 + 2.0**-4  # |x| rounded to e4m3 or to 8 bits
    assert (np.abs(np.asarray(got, np.float64) - np.asarray(want, np.float64)) <= bound).all()
    assert float(jnp.max(jnp.abs(want - fn(params, *args)))) > float(np.max(bound))


@pytest.mark.parametrize(
    "case",
    [
        dense("w4/g32,a8/dynamic/sym", 1, 512, 512),
        dense("w4/g32", 1, 512, 512),
        dense("wnf4/g64", 1, 512, 512),
        conv("w8/channel,a8"),
    ],
    ids=["w4a8", "w4a16", "nf4", "conv"],
)
def test_execute_never_holds_a_float_copy_of_a_packed_weight(case):
    fn, _, params, args = case
    plan, qparams = packed(*case)
    run = lb.execute(fn, plan, implementation="cpu")
    compiled = jax.jit(run).lower(lb.prepare(plan, qparams), *args).compile()
    size = params["w"].size
    assert compiled.memory_analysis().temp_size_in_bytes < size  # a quarter of a float32 copy
    shapes = re.findall(r"\b(?:f32|bf16|f16)\[([\d,]+)\]", compiled.as_text())
    assert shapes
    assert all(np.prod([int(n) for n in shape.split(",")]) < size for shape in shapes)


@pytest.mark.parametrize("rule", ["w4", "w4/affine", "wnf4/g8", "w2"])
def test_look_ups_gather_bytes_and_then_take_them_apart(rule):
    params, ids = {"table": normal(0, 50, 16)}, jnp.asarray([[3, 49], [0, 3]])

    def fn(p, ids):
        return jnp.take(p["table"], ids, axis=0)

    plan, qparams = packed(fn, rule, params, (ids,))
    got = lb.execute(fn, plan)(qparams, ids)
    np.testing.assert_array_equal(got, unpack(qparams.params["table"]).dequantize()[ids])
    text = jax.jit(lb.execute(fn, plan)).lower(qparams, ids).compile().as_text()
    assert not re.search(r"\[50,16\]", text)


def test_weights_alike_are_prepared_by_one_program(monkeypatch):
    traced = []
    matrix_of = native.matrix_of
    monkeypatch.setattr(native, "matrix_of", lambda *args: traced.append(args) or matrix_of(*args))
    params, x = {name: normal(i, 72, 72) for i, name in enumerate("abc")}, normal(3, 2, 72)
    fn = lambda p, x: x @ p["a"] @ p["b"] @ p["c"]  # noqa: E731
    plan = lb.bind(fn, {"**": "w4,a8"}, params, x)
    prepared = native.prepare(plan, lb.pack(plan, params, lb.init(fn, plan, params, x)))
    assert all(isinstance(q, native.NativeTensor) for q in prepared.params.values())
    assert len(traced) == 1


def test_jit_of_execute_says_what_runs_unprepared_and_prepares_what_it_closes_over():
    fn, rule, params, args = dense("w4/g32,a8/dynamic/sym")
    plan, qparams = packed(fn, rule, params, args)
    run, told = lb.execute(fn, plan), []
    assert re.match(r"w +cpu .*jax.jit.*lowbit.prepare", lb.explain(fn, plan, qparams, *args))
    want = run(qparams, *args)
    prepared = lb.prepare(plan, qparams)
    assert lb.explain(fn, plan, prepared, *args).split() == ["w", "cpu"]

    def traced(q, x):
        told.append(lb.explain(fn, plan, q, x))
        return run(q, x)

    with pytest.warns(UserWarning, match=r"w: packed weights are traced .*lowbit.prepare"):
        np.testing.assert_array_equal(jax.jit(traced)(qparams, *args), want)
    assert re.match(r"w +carried .*lowbit.prepare", told[-1])
    np.testing.assert_array_equal(jax.jit(traced)(prepared, *args), want)  # a warning would be an error
    assert told[-1].split() == ["w", "cpu"]
    fresh = lb.pack(plan, params, lb.calibrate(fn, plan, params, [args]))
    closed = jax.jit(lambda x: run(fresh, x))
    assert "lowbit_kernels.cpu.matmul" in closed.lower(*args).as_text()
    np.testing.assert_array_equal(closed(*args), want)
    np.testing.assert_array_equal(run(fresh, *args), want)  # what was prepared under the trace has values
    assert lb.execute(fn, plan, implementation="carried") is not run
    np.testing.assert_array_equal(jax.jit(lb.execute(fn, plan, implementation="carried"))(qparams, *args), want)


def test_a_weight_that_two_operations_contract_along_different_axes():
    """One of them has the kernel's order; the other says so and computes the same without."""
    params, x = {"w": normal(0, 16, 16)}, normal(1, 3, 16)

    def fn(p, x):
        return jnp.einsum("bf,fd->bd", jnp.einsum("bd,fd->bf", x, p["w"]), p["w"])

    plan, qparams = packed(fn, "w8/tensor,a8", params, (x,))
    told = lb.explain(fn, plan, qparams, x).splitlines()
    assert [line.split()[1] for line in told] == ["cpu", "carried"]
    assert "another operation that shares it" in told[1]
    got = lb.execute(fn, plan)(qparams, x)
    np.testing.assert_array_equal(got, lb.execute(fn, plan, implementation="reference")(qparams, x))
    np.testing.assert_allclose(got, fn(params, x), atol=1.0)


def _by_constants(params, x):
    for i in (2, -3, 1):  # in Python, from behind, and one of two axes that count layers
        x = jax.nn.relu(x @ params["w"][i, 1])
    return x @ params["w"][0][0]


def _by_a_loop(params, x):
    return jax.lax.fori_loop(0, 3, lambda i, x: jax.nn.relu(x @ params["w"][i, i % 2]), x)


@pytest.mark.parametrize("fn", [_by_constants, _by_a_loop])
@pytest.mark.parametrize("rule", ["w8,a8", "w4/g32,a8/dynamic", "w3/g32/int5,a8"])
def test_layers_that_an_index_takes_run_natively(fn, rule):
    """As those of a scan do: the integers of the reference, which takes them of the packed leaf."""
    params, x = {"w": normal(0, 3, 2, 64, 64) / 8}, normal(1, 5, 64)
    plan, qparams = packed(fn, rule, params, (x,))
    lines = lb.explain(fn, plan, qparams, x).splitlines()
    assert {line.split()[1] for line in lines} == {"cpu"}
    got = lb.execute(fn, plan)(qparams, x)
    np.testing.assert_array_equal(got, lb.execute(fn, plan, implementation="reference")(qparams, x))
    np.testing.assert_array_equal(jax.jit(lb.execute(fn, plan))(lb.prepare(plan, qparams), x), got)


def test_what_moves_more_than_layers_leaves_the_kernels_order():
    params, x = {"w": normal(0, 3, 64, 64) / 8}, normal(1, 5, 64)

    def fn(params, x):
        first = jnp.swapaxes(params["w"], 0, 2)[:, :, 0].T  # one layer, after its axes went apart
        return x @ first + x @ params["w"][1, ::-1] + x[:, :32] @ params["w"][2, :32]

    plan, qparams = packed(fn, "w8,a8", params, (x,))
    want = lb.execute(fn, plan, implementation="reference")(qparams, x)
    np.testing.assert_array_equal(lb.execute(fn, plan)(qparams, x), want)
