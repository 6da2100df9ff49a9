"""Convolutions and the packed look-up: every instruction set against the reference, to the last bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit_kernels import (
    CpuConfig,
    StaticActivation,
    code_range,
    dequantize_conv,
    gather_rows,
    pack_conv,
    pack_table,
    prepare_conv,
    quant_conv,
    status,
)
from lowbit_kernels.shapes import SMALL_CONVS

ACTIVATIONS = [
    StaticActivation(jnp.float32(0.031), jnp.int32(-7)),
    StaticActivation(jnp.float32(0.02), jnp.int32(101), 0, 255),
]


def case(index: int, bits: int):
    shape = SMALL_CONVS[index]
    rng = np.random.default_rng(index + 10 * bits)
    low, high = code_range(bits, True)
    kernel = (shape.kernel, shape.kernel, shape.channels // shape.groups, shape.out)
    packed = pack_conv(rng.integers(low, high + 1, kernel), rng.standard_t(3, shape.out).astype(np.float32), bits=bits)
    x = jnp.asarray(rng.standard_t(3, (shape.batch, shape.height, shape.width, shape.channels)), jnp.float32)
    return shape, packed, x


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("index", range(len(SMALL_CONVS)))
def test_convolutions_are_equal_to_the_last_bit(index, bits):
    shape, packed, x = case(index, bits)
    options = {
        "strides": (shape.stride, shape.stride),
        "padding": "SAME" if index % 2 else ((2, 1), (0, 3)),
        "rhs_dilation": (1, 2) if index % 3 == 0 else (1, 1),
        "feature_group_count": shape.groups,
        "activation": ACTIVATIONS[index % 2],
    }

    @jax.jit
    def everything(x, packed):
        results = {"reference": quant_conv(x, packed, implementation="reference", **options)}
        prepared = prepare_conv(packed, feature_group_count=shape.groups)
        for isa in status().isas:
            results[isa] = quant_conv(x, prepared, implementation="cpu", config=CpuConfig(isa=isa), **options)
        return results

    results = everything(x, packed)
    for name, got in results.items():
        np.testing.assert_array_equal(got, results["reference"], err_msg=name)
    assert len(np.unique(results["reference"])) > results["reference"].size // 4


def test_a_named_convolution_runs_or_raises():
    _, packed, x = case(4, 8)
    options = {"padding": ((0, 0), (-1, 0)), "feature_group_count": 2, "implementation": "cpu"}
    with pytest.raises(NotImplementedError, match="negative padding"):
        quant_conv(x, packed, activation=ACTIVATIONS[0], **options)
    with pytest.raises(NotImplementedError, match="prepared for 2 feature groups"):
        quant_conv(x[..., :4], prepare_conv(packed, feature_group_count=2), activation=ACTIVATIONS[0])
    with pytest.raises(ValueError, match="channels for HWIO"):
        quant_conv(x, packed, activation=ACTIVATIONS[0])
    with pytest.raises(ValueError, match="the names are"):
        quant_conv(x, packed, activation=ACTIVATIONS[0], feature_group_count=2, implementation="gpu")


def test_convolution_of_codes_dtypes_and_vmap():
    _, packed, x = case(0, 8)
    codes = jnp.clip(jnp.round(x * 40), -128, 127).astype(jnp.int8)
    names = ("reference", "cpu")
    got = [quant_conv(codes, packed, activation=ACTIVATIONS[0], implementation=name) for name in names]
    np.testing.assert_array_equal(*got)
    half = [
        quant_conv(x.astype(jnp.bfloat16), packed, activation=ACTIVATIONS[0], implementation=name) for name in names
    ]
    assert half[0].dtype == half[1].dtype == jnp.bfloat16
    np.testing.assert_array_equal(*half)
    stacked = jnp.stack([x, x + 1])
    mapped = jax.vmap(lambda x: quant_conv(x, packed, activation=ACTIVATIONS[0]))(stacked)
    np.testing.assert_array_equal(mapped[1], quant_conv(x + 1, packed, activation=ACTIVATIONS[0]))


def test_gather_takes_rows_and_unpacks_them():
    rng = np.random.default_rng(0)
    codes, scales = rng.integers(-8, 8, (50, 21)), rng.random((50, 3)).astype(np.float32)
    zeros = rng.integers(-8, 8, (50, 3)).astype(np.int8)
    table = pack_table(codes, scales, bits=4, group=8, zeros=zeros)
    ids = jnp.asarray([[3, 49], [0, 3]])
    rows = np.asarray(ids)
    expand = lambda t: t.repeat(8, -1)[:, :21]  # noqa: E731
    expected = ((codes - expand(zeros)).astype(np.float32) * expand(scales))[rows]
    np.testing.assert_array_equal(jax.jit(gather_rows)(table, ids), expected)
    with pytest.raises(ValueError, match="ids must be integers"):
        gather_rows(table, jnp.ones(3))


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("index", range(len(SMALL_CONVS)))
def test_prepared_weights_come_back(index, bits):
    shape = SMALL_CONVS[index]
    rng = np.random.default_rng(index)
    low, high = code_range(bits, True)
    codes = rng.integers(low, high + 1, (shape.kernel, shape.kernel, shape.channels // shape.groups, shape.out))
    scales = rng.standard_t(3, shape.out).astype(np.float32)
    packed = pack_conv(codes, scales, bits=bits)
    for made in (packed, prepare_conv(packed, feature_group_count=shape.groups)):
        np.testing.assert_array_equal(dequantize_conv(made), codes.astype(np.float32) * scales)
