"""Packed weights on machines that are not here: chosen when lowering, interpreted, exported, explained, refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.packed import native
from lowbit_kernels.pallas import gpu
from lowbit_kernels.platforms import by_platform
from tests.interpret.zoo import CASES
from tests.values import heavy_tailed, normal

CPU_CALL = jax.export.DisabledSafetyCheck.custom_call("lowbit_kernels.cpu.matmul")


def two_layers(p, x):
    return jax.nn.relu(x @ p["a"]) @ p["b"].T


def one_convolution(p, x):
    return jax.lax.conv_general_dilated(x, p["a"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


PARAMS = {"a": heavy_tailed(0, 128, 64, freedom=3.0), "b": heavy_tailed(1, 32, 64, freedom=3.0)}
X = heavy_tailed(2, 5, 128, freedom=3.0)


def packed(rule, fn=two_layers, params=PARAMS, args=(X,)):
    plan = lb.bind(fn, {"**": rule}, params, *args)
    qstate = lb.calibrate(fn, plan, params, [args])
    return plan, qstate, lb.pack(plan, params, qstate)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("scanned_remat", "w8,a8"),
        ("decoding", "w4/g4,a8/dynamic"),
        ("linen_conv_eval", "w2/affine,a4"),
        ("ensemble", "w4,a8"),
        ("one_row", "w4/g4/int4,a8"),
    ],
)  # fmt: skip
def test_whole_networks_on_a_tpu_are_what_is_simulated_to_the_last_bit(name, rule):
    case = CASES[name]()
    plan, qstate, qparams = packed(rule, *case[:3])
    want = lb.simulate(case.fn, plan)(case.params, qstate, *case.args)
    got = lb.execute(case.fn, plan, platform="tpu-interpreter")(qparams, *case.args)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_array_equal(a, b)
    told = lb.explain(case.fn, plan, qparams, *case.args, platform="tpu")
    products = [row for row in plan.quantized if row.weight is not None and row.primitive == "dot_general"]
    assert len(re.findall(r" pallas_tpu", told)) == len(products) > 0


@pytest.mark.parametrize("rule", ["w8,a8", "w4/g32,a8/dynamic/sym", "w4/g32/affine,a8", "w4/g32", "w8"])
def test_one_export_for_two_platforms_calls_the_kernels_of_each(rule):
    plan, _, qparams = packed(rule)
    run, prepared = lb.execute(two_layers, plan), lb.prepare(plan, qparams, platform="cpu")
    exported = jax.export.export(jax.jit(run), platforms=["tpu", "cpu"], disabled_checks=[CPU_CALL])(prepared, X)
    text = exported.mlir_module()
    assert text.count("@tpu_custom_call") == 2
    assert text.count("@lowbit_kernels.cpu.matmul") == 2 * (native.status() is None)
    np.testing.assert_array_equal(exported.call(prepared, X), run(qparams, X))
    # The same, said instead of found out; nothing is prepared, and a TPU needs nothing to be.
    on_tpu = lb.execute(two_layers, plan, platform="tpu")
    text = jax.export.export(jax.jit(on_tpu), platforms=["tpu"])(qparams, X).mlir_module()
    assert text.count("@tpu_custom_call") == 2


def test_explain_says_what_runs_on_every_platform_and_why():
    plan, _, qparams = packed("w4/g32,a8")
    on = {
        name: lb.explain(two_layers, plan, qparams, X, platform=name).splitlines() for name in ("tpu", "cuda", "rocm")
    }
    assert [line.split()[1] for line in on["tpu"]] == ["pallas_tpu", "pallas_tpu"]
    assert [line.split()[1] for line in on["cuda"]] == ["xla", "xla"]
    assert ("needs jax 0.11" if jax.__version_info__ < gpu.FIRST_JAX else "no GPU is here") in on["cuda"][0]
    assert "no kernel of lowbit's own" in on["rocm"][0]
    plan, _, qparams = packed("wnf4/g32")
    assert re.match(r"a +xla +pallas_tpu .*codebook", lb.explain(two_layers, plan, qparams, X, platform="tpu"))


def told_while_traced(fn, plan, qparams, *args):
    """What explain says where packed weights have no values: nothing can be prepared."""
    told = []
    jax.eval_shape(lambda q: told.append(lb.explain(fn, plan, q, *args, platform="tpu")), qparams)
    return told[0]


def test_a_weight_is_prepared_for_a_platform_only_where_its_bytes_lie_otherwise():
    plan, _, qparams = packed("w4,a8")
    on_tpu = lb.prepare(plan, qparams, platform="tpu")
    assert not isinstance(on_tpu.params["a"], native.NativeTensor)  # (K, N), bytes along K: as the kernel reads it
    assert native.is_for(on_tpu.params["b"], "tpu")  # (N, K) is moved
    assert "moves the packed weight" in told_while_traced(two_layers, plan, qparams, X)
    on_gpu = lb.prepare(plan, qparams, platform="cuda")
    matrix = on_gpu.params["a"].matrix
    assert isinstance(matrix, gpu.KMinorMatrix)
    codes = np.asarray(qparams.params["a"].unpacked_codes(), np.int32)
    np.testing.assert_array_equal(matrix.weight.astype(jnp.int32), codes.T)
    np.testing.assert_array_equal(matrix.sums, codes.sum(0, keepdims=True))

    def odd(p, x):  # 9 codes of K: bytes run along N, which pads less
        return x @ p["w"]

    args = {"w": normal(0, 9, 64)}, (normal(1, 3, 9),)
    plan, _, qparams = packed("w4,a8", odd, *args)
    assert "another axis" in told_while_traced(odd, plan, qparams, *args[1])
    want = lb.execute(odd, plan, implementation="reference")(qparams, *args[1])
    np.testing.assert_array_equal(lb.execute(odd, plan, platform="tpu-interpreter")(qparams, *args[1]), want)


def test_what_cannot_run_raises_where_it_was_named():
    plan, _, qparams = packed("w4,a8")
    with pytest.raises(ValueError, match="platform must be one of cpu, tpu, cuda, rocm"):
        lb.execute(two_layers, plan, platform="npu")
    with pytest.raises(ValueError, match="platform is 'tpu', and the arrays are on cpu"):
        lb.execute(two_layers, plan, platform="tpu")(qparams, X)
    with pytest.raises(ValueError, match=r"'pallas_tpu' cannot run a: .*CPU"):
        lb.execute(two_layers, plan, implementation="pallas_tpu")(qparams, X)
    with pytest.raises(ValueError, match="'mosaic_gpu' cannot run a: runs on Hopper GPUs, not on tpu"):
        lb.explain(two_layers, plan, qparams, X, implementation="mosaic_gpu", platform="tpu")
    kernel = {"a": normal(3, 3, 3, 4, 8)}
    image = normal(4, 1, 6, 6, 4)
    for rule, how in (("w8", "XLA's own in floats"), ("w8,a8", "XLA's own on int8 codes")):
        plan, _, qparams = packed(rule, one_convolution, kernel, (image,))
        assert how in lb.explain(one_convolution, plan, qparams, image, platform="tpu")
    plan, _, qparams = packed("wnf4/g32")
    with pytest.raises(ValueError, match=r"'pallas_tpu' cannot run a: .*codebook"):
        lb.explain(two_layers, plan, qparams, X, implementation="pallas_tpu", platform="tpu")


def test_a_choice_made_when_lowering_is_traced_then_mapped_and_differentiated():
    traced = []

    def on(name, factor):
        return lambda x, w: traced.append(name) or (x @ w.astype(x.dtype)) * factor

    def f(x, w):
        like = jax.ShapeDtypeStruct((3, 5), jnp.float32)
        return by_platform({"tpu": on("tpu", 2), "cuda": on("cuda", 3)}, on("other", 1), like, x, w)

    x, w = normal(0, 3, 4), jnp.ones((4, 5), jnp.int8)
    np.testing.assert_array_equal(jax.jit(f)(x, w), x @ w.astype(jnp.float32))
    assert set(traced) == {"other"}
    many = jnp.stack([x, 2 * x])
    got = jax.jit(jax.vmap(f, (0, None)))
    np.testing.assert_allclose(got(many, w), many @ w.astype(jnp.float32), rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda x: f(x, w).sum())(x), np.full((3, 4), 5.0))
    del traced[:]
    exported = jax.export.export(jax.jit(jax.vmap(f, (0, None))), platforms=["cuda", "cpu"])(many, w)
    assert set(traced) == {"cuda", "other"}
    np.testing.assert_allclose(exported.call(many, w), many @ w.astype(jnp.float32), rtol=1e-6)


def test_a_full_integer_plan_multiplies_bytes_where_it_is_lowered_for_a_tpu():
    plan = lb.bind(two_layers, {"**": "w4,a8"}, PARAMS, X, integer=True)
    qparams = lb.pack(plan, PARAMS, lb.calibrate(two_layers, plan, PARAMS, [(X,)]))
    run = lb.execute(two_layers, plan)
    with pytest.warns(
        UserWarning, match="close over qparams"
    ):  # which platform it will be is not known when it is traced
        traced = jax.jit(run).trace(qparams, X)
    for platform, count in (("tpu", 2), ("cpu", 0)):  # of bytes on the one, carried in float32 on the other
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        dots = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
        assert [line.count("xi8>") for line in dots] == [count, count]
    want = run(qparams, X)
    np.testing.assert_array_equal(lb.execute(two_layers, plan, platform="tpu-interpreter")(qparams, X), want)
    assert "xla" in lb.explain(two_layers, plan, qparams, X, platform="tpu")
