"""The TPU kernel in the Pallas interpreter against the reference, and its lowering for a TPU that is not there."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit_kernels import StaticActivation, dequantize_matrix, explain, pack_matrix, quant_matmul, quant_sums
from lowbit_kernels.api import matmul_spec
from lowbit_kernels.pallas import tpu
from lowbit_kernels.pallas.tpu import TpuConfig
from lowbit_kernels.pallas.tpu_kernel import split
from lowbit_kernels.shapes import SMALL, MatmulShape
from tests.kernels.cases import ACTIVATIONS, NF4, float_bound, inputs, matrix

INTERPRET = TpuConfig(interpret=True)
TILED = TpuConfig(interpret=True, block_m=8, block_n=128, block_k=256)  # several blocks each way, all with tails


class Case(NamedTuple):
    """An integer matmul: `group` from short to all of K, `block` of one step or several, tails in every axis."""

    shape: MatmulShape
    bits: int
    kind: str
    signed: bool
    affine: bool
    config: TpuConfig = INTERPRET


CASES = (
    Case(SMALL[0], 4, "dynamic", True, False),  # two groups share a product
    Case(SMALL[1], 8, "unsigned", False, True),  # one odd group: K, N and M below every tile
    Case(SMALL[2], 2, "signed", True, True),  # groups of 12 are padded to 16
    Case(SMALL[4], 4, "narrow", False, False),  # groups of 72 are padded to 128, the last one is short
    Case(MatmulShape(19, 700, 200, 64), 4, "signed", True, True, TILED),
    Case(MatmulShape(19, 700, 200, 700), 8, "dynamic", True, False, TILED),  # one group over three blocks of K
    Case(MatmulShape(9, 1100, 130, 512), 2, "unsigned", False, True, TILED),  # a group is two blocks, the last is short
    Case(MatmulShape(3, 800, 140, 256), 8, "signed", False, True, TILED),  # a group is a block
)


@functools.partial(jax.jit, static_argnames=("dynamic", "config", "out_dtype"))
def both(x, packed, grid, dynamic=False, config=INTERPRET, out_dtype=None):
    activation = "int8" if dynamic else grid
    call = functools.partial(quant_matmul, x, packed, activation=activation, out_dtype=out_dtype)
    return call(implementation="pallas_tpu", config=config), call(implementation="reference")


def check_bits(got, expected):
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(expected))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_integer_results_are_equal_to_the_last_bit(case):
    packed = matrix(1, case.shape, case.bits, signed=case.signed, affine=case.affine, bf16=case.bits == 2)
    activation = ACTIVATIONS[case.kind]
    dynamic = case.kind == "dynamic"
    check_bits(*both(inputs(1, case.shape), packed, None if dynamic else activation, dynamic, case.config))


def test_codes_in_and_one_scale_per_row():
    shape = SMALL[3]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 256, (shape.rows, shape.length)), jnp.uint8)
    grid = StaticActivation(jnp.asarray(rng.random(shape.rows), jnp.float32), jnp.int32(99), 0, 255)
    check_bits(*both(x, matrix(0, shape, 4, signed=True, affine=True), grid))


def test_special_values_are_those_of_the_reference():
    x = np.array(inputs(0, SMALL[0])).repeat(6, 0)
    x[0], x[1, 3], x[2, 3], x[3] = 0.0, np.nan, np.inf, 1e-41
    x[4, :] *= 1e-38
    x[5, :] *= 1e37
    packed = matrix(0, SMALL[0], 4, signed=True, affine=False)
    for dynamic in (True, False):
        got, expected = both(jnp.asarray(x), packed, None if dynamic else ACTIVATIONS["signed"], dynamic)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weight_only_is_within_the_derived_bound(dtype):
    bits, shape = {"float32": (4, SMALL[0]), "bfloat16": (8, SMALL[3]), "float16": (2, SMALL[1])}[dtype]
    packed = matrix(2, shape, bits, signed=dtype == "float32", affine=dtype != "bfloat16")
    x = inputs(2, shape, dtype)
    got, _ = both(x, packed, None, out_dtype="float32")
    weights = np.asarray(dequantize_matrix(packed))
    exact = np.asarray(x, np.float64) @ weights.astype(np.float64)
    assert (np.abs(got - exact) <= float_bound(x, weights)).all()


def test_levels_beyond_bfloat16_stay_exact():
    """Signed codes less an unsigned zero point reach -383, which bfloat16 rounds: the weight takes two terms."""
    packed = pack_matrix(jnp.full((64, 16), -128), jnp.ones((1, 16)), bits=8, zeros=jnp.full((1, 16), 255, jnp.uint8))
    x = jnp.zeros((1, 64)).at[0, 5].set(1.0)
    got, _ = both(x, packed, None)
    np.testing.assert_array_equal(got, np.full((1, 16), -383.0))


def test_scale_on_the_weight_adds_one_rounding_of_the_weight():
    shape = MatmulShape(9, 256, 48, 64)
    packed, x = matrix(0, shape, 4, signed=True, affine=True), inputs(0, shape, "bfloat16")
    weights = np.asarray(dequantize_matrix(packed))
    exact = np.asarray(x, np.float64) @ weights.astype(np.float64)
    magnitude = np.abs(np.asarray(x, np.float64)) @ np.abs(weights)
    results = {}
    for where in ("weight", "sums"):
        config = dataclasses.replace(INTERPRET, scale_on=where)
        results[where] = np.abs(both(x, packed, None, config=config, out_dtype="float32")[0] - exact)
    rounding = 2.0**-8  # half the spacing of bfloat16 numbers, relative
    assert (results["weight"] <= float_bound(x, weights) + rounding * magnitude).all()
    assert results["sums"].max() < results["weight"].max()


@pytest.mark.parametrize(("length", "bits", "dtype"), [(200, 4, jnp.int8), (4500, 8, jnp.uint8)])
def test_sums_are_those_of_numpy_over_one_block_and_several(length, bits, dtype):
    rng = np.random.default_rng(bits)
    weights = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (length, 70))
    low = int(jnp.iinfo(dtype).min)
    x = rng.integers(low, low + 256, (5, length))
    packed = pack_matrix(weights, np.ones((1, 70), np.float32), bits=bits)
    for platform in ("tpu-interpreter", "cpu"):  # the weight is an argument: XLA:CPU folds int4 constants wrongly
        got = jax.jit(lambda x, w, p=platform: quant_sums(x, w, zero=9, platform=p))(jnp.asarray(x, dtype), packed)
        np.testing.assert_array_equal(got, (x - 9) @ weights)
    with pytest.raises(NotImplementedError, match=r"'cpu' (gives no int32 sums|cannot run)"):
        quant_sums(jnp.asarray(x, dtype), packed, implementation="cpu")
    with pytest.raises(ValueError, match="a weight of one group"):
        quant_sums(jnp.ones((1, 64), jnp.int8), matrix(0, SMALL[0], 4, signed=True, affine=False))


def test_split_is_exact():
    x = jnp.concatenate([inputs(0, SMALL[3]).ravel(), jnp.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-38, 3e38])])
    parts = split(x, 3)
    total = functools.reduce(lambda a, b: a + b, [np.asarray(p.astype(jnp.bfloat16), np.float64) for p in parts])
    np.testing.assert_array_equal(total[:-2], np.asarray(x, np.float64)[:-2])
    np.testing.assert_array_equal(
        [np.asarray(p, np.float32) for p in parts], [p.astype(jnp.bfloat16).astype(jnp.float32) for p in parts]
    )


def test_vmap_and_gradients_go_through_the_kernel():
    shape = SMALL[0]
    packed = matrix(0, shape, 4, signed=True, affine=False)
    x = jnp.stack([inputs(seed, shape) for seed in range(3)])

    def loss(x, packed, implementation, config):
        call = functools.partial(
            quant_matmul, packed=packed, activation="int8", implementation=implementation, config=config
        )
        return jnp.sum(jnp.sin(jax.vmap(call)(x)))

    @jax.jit
    def gradients(x, packed):
        return [
            jax.value_and_grad(loss, argnums=(0, 1), allow_int=True)(x, packed, *how)
            for how in (("pallas_tpu", INTERPRET), ("reference", None))
        ]

    (value, (dx, dw)), (expected, (dx_expected, dw_expected)) = gradients(x, packed)
    np.testing.assert_allclose(value, expected, rtol=1e-6)  # one sum of 48 equal terms, order free
    np.testing.assert_array_equal(dx, dx_expected)
    np.testing.assert_allclose(dw.scales, dw_expected.scales, rtol=1e-5)  # the same, over three rows


@pytest.mark.parametrize("activation", ["float", "dynamic", "signed"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_lowers_for_a_tpu_without_one(bits, activation):
    """The block-shape rules and the primitives of Mosaic, checked by jax alone; `lowbit_kernels.aot` compiles."""
    grid = ACTIVATIONS["signed"] if activation == "signed" else None
    for shape in (SMALL[4], MatmulShape(300, 700, 300, 32)):
        packed = matrix(0, shape, bits, signed=bits != 4, affine=bits == 2)

        def call(x, packed, grid):
            return tpu.run(x, packed, "int8" if activation == "dynamic" else grid, "bfloat16", None)

        arguments = jax.eval_shape(lambda *a: a, inputs(0, shape, "bfloat16"), packed, grid)
        text = jax.jit(call).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
        assert text.count("tpu_custom_call") == 1


def test_a_named_kernel_runs_or_says_why_not():
    packed, x = matrix(0, SMALL[0], 4, signed=True, affine=False), inputs(0, SMALL[0])
    with pytest.raises(NotImplementedError, match="runs on TPUs, not on cpu"):
        quant_matmul(x, packed, implementation="pallas_tpu")
    odd = matrix(0, SMALL[0], 3, signed=True, affine=False)
    with pytest.raises(NotImplementedError, match="2, 4 or 8 bits, got 3"):
        quant_matmul(x, odd, implementation="pallas_tpu", config=INTERPRET)
    table = pack_matrix(jnp.zeros((64, 16), int), jnp.ones((1, 16)), bits=4, signed=False, codebook=jnp.asarray(NF4))
    with pytest.raises(NotImplementedError, match="codebook"):
        quant_matmul(x, table, implementation="pallas_tpu", config=INTERPRET)
    assert "pallas_tpu cannot run" in explain(x, packed)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (TpuConfig(interpret=True, block_m=12), "block_m must be a positive multiple of 8"),
        (TpuConfig(interpret=True, block_n=64), "block_n must be a positive multiple of 128"),
        (TpuConfig(interpret=True, block_k=0), "block_k must be a positive multiple of 128"),
        (TpuConfig(interpret=True, scale_on="both"), '"sums", "weight" or None'),
        (TpuConfig(interpret=True, scale_on="weight"), "for bfloat16 activations without codes, got float32"),
    ],
)
def test_bad_options_raise(config, match):
    packed, x = matrix(0, SMALL[0], 4, signed=True, affine=False), inputs(0, SMALL[0])
    with pytest.raises(ValueError, match=match):
        quant_matmul(x, packed, implementation="pallas_tpu", config=config)


def test_candidates_and_costs():
    x = jax.ShapeDtypeStruct((256, 200), jnp.bfloat16)
    shape = MatmulShape(256, 200, 70, 72)
    packed = matrix(0, shape, 4, signed=True, affine=False)
    spec = dataclasses.replace(matmul_spec(x, packed, None, None), platform="interpret")
    assert tpu.supports(spec) is None
    assert "groups of 72 to 128" in tpu.cost(spec)
    assert "rounds scaled weights to bfloat16" in tpu.cost(spec)
    assert len(set(tpu.candidates(spec))) == len(tpu.candidates(spec)) > 1
