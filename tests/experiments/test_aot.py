"""Networks compiled for accelerators: the golden reports are whole, what they must not hold is found, the page is current."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from experiments.aot import roofline
from experiments.aot.networks import CASES
from experiments.aot.programs import BACKENDS, unpacked, widened
from lowbit_kernels.aot import report

PAGE = Path(__file__).resolve().parents[2] / "papers/accelerators.md"


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_every_quantized_product_of_every_network_is_a_kernel(name):
    backend = BACKENDS[name]
    versions, golden = report.read_golden(backend)
    assert versions
    assert {target: set(cases) for target, cases in golden.items()} == {t: set(CASES) for t in backend.targets}
    assert not report.differences(golden, golden, backend.tolerance)
    for target, cases in golden.items():
        for case, one in cases.items():
            assert one.ok, (target, case, one.error)
            assert one.metrics["kernels"] == one.metrics["products"], (target, case)
            assert one.metrics["products"] == PRODUCTS[case.split()[0]], (target, case)
            most = 2 if case.startswith("convolutional") else 1  # whose activations are as large as its weights
            assert one.metrics["temp"] < most * one.metrics["packed"], (target, case)


PRODUCTS = {"dense": 2, "scanned": 4, "convolutional": 1, "decoding": 5}
"""Of activations and weights: convolutions are XLA's own, and so are products of two activations."""

SMALL = {
    "dense": {"rows": 3, "width": 32},
    "scanned": {"tokens": 3, "width": 32, "layers": 2, "heads": 2},
    "convolutional": {"size": 6, "width": 16},
    "decoding": {"sequences": 2, "length": 5, "width": 32, "layers": 2, "heads": 2},
}


def _values(shape, seed):
    rng = np.random.default_rng(seed)
    if shape.dtype == jnp.int32:
        return jnp.asarray(rng.integers(0, 5, shape.shape), jnp.int32)
    return jnp.asarray(rng.standard_normal(shape.shape) / np.sqrt(max(shape.shape[-2:-1], default=1)), shape.dtype)


@pytest.mark.parametrize("name", [name for name in CASES if ",a8" in name])
def test_networks_through_the_kernels_are_what_is_simulated_to_the_last_bit(name):
    """Those that are compiled, smaller: integer products by the TPU's kernels, in Pallas' interpreter."""
    make, rules = CASES[name]
    fn, shapes, arguments = make(**SMALL[name.split()[0]])
    leaves, tree = jax.tree.flatten((shapes, arguments))
    params, args = jax.tree.unflatten(tree, [_values(leaf, i) for i, leaf in enumerate(leaves)])
    plan = lb.bind(fn, rules, params, *args)
    qstate = lb.init(fn, plan, params, *args)
    qparams = lb.pack(plan, params, qstate)
    want = lb.simulate(fn, plan)(params, qstate, *args)
    got = lb.execute(fn, plan, platform="tpu-interpreter")(qparams, *args)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))
        assert bool(jnp.any(a != 0))
    told = lb.explain(fn, plan, qparams, *args, platform="tpu")
    dots = [row.path for row in plan.quantized if row.weight is not None and row.primitive == "dot_general"]
    assert [line.split()[0] for line in told.splitlines() if line.split()[1] == "pallas_tpu"] == dots


def test_an_unpacked_weight_and_a_wide_product_are_found_in_a_program():
    network, rules = CASES["dense w4/g128 bfloat16"]
    fn, params, args = network()
    weights = [row.weight for row in lb.bind(fn, rules, params, *args).quantized]
    packed = "%w = u8[512,4096]{1,0} parameter(0)"
    assert not unpacked(packed, weights)
    assert unpacked(packed + "\n%f = bf16[1024,4096]{1,0} convert(%w)", weights) == ["bf16[1024,4096]"]
    assert unpacked("%f = s8[1,4096,1024]{2,1,0} fusion(%w)", weights) == ["s8[1,4096,1024]"]
    fused = "%f.1 (p: u8[512,4096]) -> f32[] {\n  ROOT %g = bf16[1024,4096]{1,0:T(8,128)(2,1)} convert(%p)\n}\n"
    called = "ENTRY %main (w: u8[512,4096]) -> f32[] {\n  %y = f32[] fusion(%w), kind=kLoop, calls=%f.1\n}\n"
    assert not unpacked(fused + called, weights)  # in registers
    assert unpacked(fused + called.replace(" fusion(", " call("), weights) == ["bf16[1024,4096]"]
    assert not unpacked("%ones = f32[1024,4096]{1,0} fusion(), kind=kLoop, calls=%one", weights)
    tuples = "%t = (f32[8]{0:T(256)}, /*index=1*/s8[1024,4096]{1,0}) custom-call(%w), custom_call_target=x"
    assert unpacked(tuples, weights) == ["s8[1024,4096]"]
    prefetched = (
        "%b = s8[4194304]{0} bitcast(%w)\n%s = ((s8[4194304]{0}), s8[4194304]{0:S(1)}, s32[]) slice-start(%b), slice={}"
    )
    assert not unpacked(prefetched, weights)
    bytes_ = "%a = s8[8,64]{1,0} parameter(0)\n%b = s8[64,8]{1,0} parameter(1)\n%c = s32[8,8]{1,0} dot(%a, %b), x={}"
    assert not widened(bytes_)
    assert widened(bytes_.replace("%b = s8", "%b = s32")) == ["s8 x s32"]


def test_least_times_are_those_of_the_data_sheets():
    chip = roofline.CHIPS["sm_90a"]
    one = roofline.least_seconds(chip, 1, 4096, 4096, "W4A16 g128")
    moved = 4096 * 4096 // 2 + 4 * 32 * 4096 + 2 * 2 * 4096  # codes, float32 scales, activations and result
    assert one == pytest.approx(moved / 3.35e12)
    many = roofline.least_seconds(chip, 4096, 4096, 4096, "W8A8")
    assert many == pytest.approx(2 * 4096**3 / 1979e12)


def test_the_tables_of_the_page_are_current():
    assert roofline.text() in PAGE.read_text()
