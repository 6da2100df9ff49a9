"""Every implementation and every instruction set against the reference: integers to the last bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit_kernels import (
    CpuConfig,
    StaticActivation,
    dequantize_matrix,
    explain,
    pack_matrix,
    prepare,
    quant_matmul,
    status,
)
from lowbit_kernels.api import matmul_spec
from lowbit_kernels.implementations import IMPLEMENTATIONS
from lowbit_kernels.matrix import levels_matrix
from lowbit_kernels.shapes import SMALL, MatmulShape
from tests.kernels.cases import ACTIVATIONS, NF4, float_bound, inputs, matrix

FP8 = ((),)  # jit takes no strings: an empty tuple, and one that holds it, stand for "int8" and "fp8"


def native_isas() -> tuple[str, ...]:
    return status().isas


@functools.partial(jax.jit, static_argnames="out_dtype")
def everything(x, packed, activation, out_dtype=None):
    """name -> result, for each implementation on canonical bytes and each instruction set on prepared ones."""
    activation = "int8" if activation == () else "fp8" if activation == FP8 else activation
    call = functools.partial(quant_matmul, activation=activation, out_dtype=out_dtype)
    spec = matmul_spec(x, packed, activation, out_dtype)
    usable = [each.name for each in IMPLEMENTATIONS if each.supports(spec) is None]
    results = {name: call(x, packed, implementation=name) for name in usable}
    prepared = prepare(packed)
    for isa in native_isas():
        results[isa] = call(x, prepared, implementation="cpu", config=CpuConfig(isa=isa))
    return results


@pytest.mark.parametrize("kind", sorted(ACTIVATIONS))
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_integer_results_are_equal_to_the_last_bit(bits, kind):
    activation = () if kind == "dynamic" else ACTIVATIONS[kind]
    seen = []
    for seed, shape in enumerate(SMALL[bits % 2 :: 2]):
        signed, affine = (seed + bits) % 2 == 0, (seed + len(kind)) % 2 == 0
        packed = matrix(seed, shape, bits, signed=signed, affine=affine, bf16=seed % 2 == 1)
        results = everything(inputs(seed, shape), packed, activation)
        for name, got in results.items():
            np.testing.assert_array_equal(got, results["reference"], err_msg=f"{name} {shape}")
        seen.append(float(results["reference"][0, 0]))
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(("signed", "affine"), [(True, True), (False, False), (False, True), (True, False)])
def test_signs_and_zero_points(signed, affine):
    shape = MatmulShape(19, 100, 21, 44)
    for bits in (4, 8):
        packed = matrix(bits, shape, bits, signed=signed, affine=affine)
        results = everything(inputs(3, shape), packed, ACTIVATIONS["unsigned"])
        for name, got in results.items():
            np.testing.assert_array_equal(got, results["reference"], err_msg=name)


def test_the_reference_is_the_formula():
    shape = MatmulShape(4, 24, 6, 8)
    packed = matrix(0, shape, 4, signed=True, affine=True)
    x = inputs(0, shape)
    act = ACTIVATIONS["signed"]
    inverse = np.float32(1) / np.float32(0.031)
    codes = np.clip(np.rint(np.asarray(x) * inverse) - 7, -128, 127).astype(np.int64)
    w = np.asarray(levels_matrix(packed), np.int64)
    total = None
    for g in range(3):
        part = slice(8 * g, 8 * g + 8)
        product = ((codes[:, part] + 7) @ w[part]).astype(np.float32) * np.asarray(packed.scales)[g]
        total = product if total is None else total + product
    np.testing.assert_array_equal(
        quant_matmul(x, packed, activation=act, implementation="reference"), total * np.float32(0.031)
    )


@pytest.mark.parametrize(
    ("dtype", "others"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "float16")]
)
def test_input_and_output_dtypes(dtype, others):
    shape = SMALL[2]
    packed = matrix(0, shape, 4, signed=True, affine=False)
    x = inputs(0, shape, dtype)
    for out_dtype in (others,):
        results = everything(x, packed, (), out_dtype)
        for name, got in results.items():
            assert got.dtype == out_dtype, name
            np.testing.assert_array_equal(got, results["reference"], err_msg=name)
    assert quant_matmul(x, packed, activation="int8").dtype == dtype


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_codes_in_with_one_scale_per_row(dtype):
    shape = SMALL[2]
    packed = matrix(1, shape, 4, signed=True, affine=True)
    rng = np.random.default_rng(5)
    low, high = (-128, 127) if dtype == "int8" else (0, 255)
    x = jnp.asarray(rng.integers(low, high + 1, (shape.rows, shape.length)), dtype)
    scale = jnp.asarray(rng.random(shape.rows), jnp.float32)
    results = everything(x, packed, StaticActivation(scale, jnp.int32(5), low, high))
    for name, got in results.items():
        np.testing.assert_array_equal(got, results["reference"], err_msg=name)


def test_extreme_codes_do_not_saturate():
    """255 * 128 * 2 overflows 16 bits: the case that `vpmaddubsw` would saturate in silence."""
    packed = pack_matrix(jnp.full((64, 16), 127), jnp.ones((1, 16), jnp.float32), bits=8)
    for value in (-128, 127):
        x = jnp.full((18, 64), value, jnp.int8)
        results = everything(x, packed, StaticActivation(jnp.float32(1), jnp.int32(0)))
        for name, got in results.items():
            np.testing.assert_array_equal(got, np.full((18, 16), value * 127 * 64, np.float32), err_msg=name)


def test_special_values_are_decided():
    x = np.array(inputs(0, SMALL[0])).repeat(6, 0)
    x[0] = 0.0
    x[1, 3], x[2, 3], x[3] = np.nan, np.inf, 1e-41
    x[4, :] *= 1e-38
    x[5, :] *= 1e37
    packed = matrix(0, SMALL[0], 4, signed=True, affine=False)
    for activation in ((), ACTIVATIONS["signed"]):
        results = everything(jnp.asarray(x), packed, activation)
        for name, got in results.items():
            np.testing.assert_array_equal(got, results["reference"], err_msg=name)
    dynamic = np.asarray(everything(jnp.asarray(x), packed, ())["reference"])
    assert (dynamic[0] == 0).all()
    assert np.isnan(dynamic[1:3]).all()
    assert np.isfinite(dynamic[4:]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fp8_activations_are_rounded_once_a_row(dtype):
    shape = SMALL[2]
    packed, x = matrix(0, shape, 4, signed=True, affine=True), inputs(0, shape, dtype)
    rows = np.asarray(x, np.float32)
    scale = np.abs(rows).max(1, keepdims=True) * np.float32(1 / 448)
    codes = np.clip(rows * (np.float32(1) / scale), -448, 448).astype(jnp.float8_e4m3fn).astype(np.float64)
    weights = np.asarray(dequantize_matrix(packed))
    exact = codes @ weights.astype(np.float64) * scale
    bound = float_bound(jnp.asarray(codes * scale), weights)
    for name, got in everything(x, packed, FP8, "float32").items():
        assert (np.abs(got - exact) <= bound).all(), name
    assert (np.abs(exact - rows.astype(np.float64) @ weights) > bound).any()  # the rounding shows
    broken = everything(x.at[0, 0].set(jnp.nan), packed, FP8, "float32")
    for name, got in broken.items():
        assert np.isnan(got[0]).all(), name
        assert np.isfinite(got[1:]).all(), name


@pytest.mark.parametrize("bits", [4, 8])
def test_weight_only_with_bfloat16_activations(bits):
    shape = SMALL[4]
    packed, x = matrix(0, shape, bits, signed=True, affine=True, bf16=True), inputs(0, shape, "bfloat16")
    weights = np.asarray(dequantize_matrix(packed))
    exact = np.asarray(x, np.float64) @ weights.astype(np.float64)
    for name, got in everything(x, packed, None).items():
        assert got.dtype == jnp.bfloat16
        bound = float_bound(x, weights) + np.abs(exact) * 2.0**-8  # one cast to 8 bits of mantissa
        assert (np.abs(np.asarray(got, np.float64) - exact) <= bound).all(), name


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weight_only_is_within_the_derived_bound(bits):
    for seed, shape in enumerate(SMALL[1::2]):
        packed = matrix(seed, shape, bits, signed=seed % 2 == 0, affine=seed % 2 == 1)
        x = inputs(seed, shape)
        weights = np.asarray(dequantize_matrix(packed))
        exact = np.asarray(x, np.float64) @ weights.astype(np.float64)
        for name, got in everything(x, packed, None).items():
            assert (np.abs(got - exact) <= float_bound(x, weights)).all(), name


@pytest.mark.parametrize("bits", [4, 8])
def test_codebook(bits):
    shape = SMALL[2]
    rng = np.random.default_rng(0)
    table = NF4 if bits == 4 else np.sort(rng.standard_t(3, 256)).astype(np.float32)
    packed = pack_matrix(
        jnp.asarray(rng.integers(0, 1 << bits, (shape.length, shape.out))),
        jnp.asarray(rng.random((5, shape.out)), jnp.float32),
        bits=bits,
        group=shape.group,
        signed=False,
        codebook=jnp.asarray(table),
    )
    x = inputs(0, shape)
    weights = np.asarray(dequantize_matrix(packed))
    exact = np.asarray(x, np.float64) @ weights.astype(np.float64)
    for name, got in everything(x, packed, None).items():
        assert (np.abs(got - exact) <= float_bound(x, weights)).all(), name


def test_batches_and_a_named_implementation():
    packed = matrix(0, SMALL[2], 4, signed=True, affine=False)
    x = jnp.stack([inputs(s, SMALL[2]) for s in range(3)])
    got = quant_matmul(x, packed, activation="int8", implementation="xla")
    assert got.shape == (3, SMALL[2].rows, SMALL[2].out)
    np.testing.assert_array_equal(got[1], quant_matmul(x[1], packed, activation="int8", implementation="reference"))
    with pytest.raises(ValueError, match=r"'cpu', .* 'xla', 'reference'"):
        quant_matmul(x, packed, implementation="cuda")


def test_a_fused_consumer_does_not_change_the_last_bit():
    """XLA contracts a product and a following sum into one rounding wherever it fuses them; `rounded_product` prevents it."""
    shape = SMALL[4]
    packed, x = matrix(0, shape, 8, signed=True, affine=False), inputs(0, shape)
    bias = inputs(7, MatmulShape(1, shape.out, 1, 1))[0]
    fused = jax.jit(lambda x, p, b: quant_matmul(x, p, activation="int8", implementation="reference") + b)(
        x, packed, bias
    )
    separate = np.asarray(quant_matmul(x, packed, activation="int8", implementation="reference")) + np.asarray(bias)
    np.testing.assert_array_equal(fused, separate)


@pytest.mark.parametrize("change", ["x", "activation", "codes", "out_dtype", "codebook", "config", "scale", "long"])
def test_bad_input_raises_at_the_call(change):
    shape = SMALL[0]
    packed, x = matrix(0, shape, 4, signed=True, affine=False), inputs(0, shape)
    calls = {
        "x": (lambda: quant_matmul(x[:, :5], packed), "K = 64"),
        "activation": (lambda: quant_matmul(x, packed, activation="int4"), '"int8", "fp8" or a StaticActivation'),
        "codes": (lambda: quant_matmul(x.astype(jnp.int8), packed), "pass their grid"),
        "out_dtype": (lambda: quant_matmul(x, packed, out_dtype="int32"), "out_dtype must be one of"),
        "codebook": (
            lambda: pack_matrix(jnp.zeros((4, 4), int), jnp.ones((1, 4)), bits=4, codebook=jnp.ones(3)),
            "codebook must be",
        ),
        "config": (lambda: quant_matmul(x, packed, config=CpuConfig()), "pass its name"),
        "long": (
            lambda: quant_matmul(
                jnp.ones((1, 70_000)),
                pack_matrix(jnp.ones((70_000, 1), jnp.int8), jnp.ones((1, 1)), bits=8),
                activation="int8",
            ),
            "above int32; at most 65793 codes",
        ),
        "scale": (lambda: quant_matmul(x, packed, activation=StaticActivation(jnp.ones((7,)), 0)), "must be a scalar"),
    }
    call, match = calls[change]
    with pytest.raises(ValueError, match=match):
        call()


def test_explain_names_what_runs_and_why_not():
    packed, x = matrix(0, SMALL[0], 4, signed=True, affine=False), inputs(0, SMALL[0])
    text = explain(x, packed, activation="int8", implementation="xla")
    assert "xla        runs" in text
    assert all(each.name in text for each in IMPLEMENTATIONS)
