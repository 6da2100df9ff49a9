"""The graph behind an ONNX file, without the packages that write and run it."""

import collections
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lowbit.core.extremes import largest, largest_magnitude, nan_where, smallest
from lowbit.export.composites import Grid, dequantize, fake_quant
from lowbit.export.onnx import serialize
from lowbit.export.onnx.graph import Quantized, order
from lowbit.export.onnx.quantized import layout

from .onnx_graphs import graph_of

GRID = Grid("i8", (0.05,), (-128,))
CODES = np.random.default_rng(0).integers(-8, 8, (3, 3, 4, 4)).astype(jnp.int4)


def operators(function, *args):
    _, outputs = graph_of(function, *args)
    return [value.node for value in order(outputs)]


def convolved(x):
    kernel = dequantize(jnp.asarray(CODES), Grid("i4", (0.1, 0.2, 0.3, 0.4), (0,) * 4, 3))
    y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return fake_quant(jax.nn.relu(y + jnp.arange(4.0)), GRID)


def test_transposes_meet_and_quantization_stays_next_to_operators():
    nodes = operators(lambda x: convolved(convolved(fake_quant(x, GRID))), jnp.ones((2, 6, 5, 4)))
    counts = collections.Counter(node.op for node in nodes)
    assert counts["Transpose"] == 2  # of the codes at the entry and at the exit
    assert all(node.inputs[0].dtype == np.uint8 for node in nodes if node.op == "Transpose")
    for node in nodes:
        if node.op == "Conv":
            x, weight, bias = node.inputs
            assert (x.op, weight.op, bias.op) == ("DequantizeLinear",) * 3
            assert bias.node.inputs[0].array.dtype == np.int32
            stored = weight.node.inputs[0].node  # 4 bits in the file, cast to bytes once
            assert (stored.op, str(stored.inputs[0].array.dtype)) == ("Cast", "int4")
            assert weight.node.attributes["axis"] == 0  # output channels come first


def test_bit_patterns_are_the_floats_they_are_of():
    """What is dynamic computes with them, and ONNX has none: an order is one of floats, wherever it was moved to."""
    x = jnp.ones((4, 3, 8))

    def named(function):
        return [node.op for node in operators(function, x) if node.op not in ("Transpose", "Reshape")]

    assert named(lambda x: largest_magnitude(x.swapaxes(0, 1).reshape(3, -1), 1)) == ["Abs", "ReduceMax"]
    assert named(lambda x: largest(x, 1, keepdims=True)) == ["ReduceMax"]
    assert named(lambda x: smallest(x, 2)) == ["Neg", "ReduceMax", "Neg"]
    assert named(lambda x: nan_where(x > 0, x)) == ["Greater", "Where"]
    for function in (
        lambda x: lax.bitcast_convert_type(x, jnp.int32) + 1,
        lambda x: lax.bitcast_convert_type(x, jnp.int32),
    ):
        with pytest.raises(ValueError, match="bitcast_convert_type has no ONNX form"):
            operators(function, x)


def test_a_weight_of_several_products_is_unsigned():
    """ONNX Runtime rejects signed ones; and each signed weight has zero points of its own."""
    codes = np.random.default_rng(0).integers(-128, 128, (3, 8, 8)).astype(np.int8)
    grid = Grid("i8", (0.1,), (0,))

    def product(x, codes):
        return fake_quant(x, GRID) @ dequantize(jnp.asarray(codes), grid)

    nodes = operators(
        lambda x: product(product(product(product(x, codes[0]), codes[1]), codes[0]), codes[2]), jnp.ones((2, 8))
    )
    weights = [node.inputs[1].node for node in nodes if node.op == "MatMul"]
    stored = [(weight.inputs[0].array, weight.inputs[2].array) for weight in weights]
    assert [str(c.dtype) for c, _ in stored] == ["uint8", "int8", "uint8", "int8"]
    assert weights[1].inputs[2] is not weights[3].inputs[2]
    for (c, zero), wanted in zip(stored, (codes[0], codes[1], codes[0], codes[2]), strict=True):
        np.testing.assert_array_equal(c.astype(int) - zero.astype(int), wanted)


def test_a_bias_is_the_sum_of_its_steps():
    nodes = operators(lambda x: convolved(fake_quant(x, GRID)), jnp.ones((2, 6, 5, 4)))
    (conv,) = (node for node in nodes if node.op == "Conv")
    codes, scale = (x.array for x in conv.inputs[2].node.inputs[:2])
    np.testing.assert_allclose(scale, np.float32(0.05) * np.array([0.1, 0.2, 0.3, 0.4], np.float32), rtol=1e-6)
    np.testing.assert_allclose(codes * scale, np.arange(4.0), atol=0.5 * scale.max())


def test_blocks_become_one_product():
    codes = jnp.asarray(np.random.default_rng(1).integers(-8, 8, (4, 1, 16, 8)).astype(np.int8))
    scales = jnp.asarray(np.random.default_rng(2).random((4, 1, 1, 8), np.float32))

    def blockwise(x):
        parts = x.reshape(1, 3, 4, 16).transpose(2, 0, 1, 3)
        dims = (((3,), (2,)), ((0, 1), (0, 1)))
        products = lax.dot_general(parts, codes.astype(jnp.float32), dims) * scales
        return (products[0] + products[1] + products[2] + products[3]).reshape(3, 8)

    nodes = operators(blockwise, jnp.ones((3, 64)))
    (weight,) = (node for node in nodes if node.op == "DequantizeLinear")
    assert weight.attributes == {"axis": 0, "block_size": 16}
    assert str(weight.inputs[0].dtype) == "int4"
    assert (weight.inputs[0].shape, weight.inputs[1].shape) == ((64, 8), (4, 8))
    assert [node.op for node in nodes if node.op in ("MatMul", "Add", "Slice")] == ["MatMul"]


def test_scales_take_their_shortest_form():
    codes = np.zeros((6, 4), np.int8)
    by_column = np.broadcast_to(np.arange(4, dtype=np.float32), (6, 4))
    assert layout(Quantized(codes, by_column, None))[2:] == (1, None)
    assert layout(Quantized(codes, np.ones((6, 4), np.float32), None)).scale.shape == ()
    uneven = np.repeat(np.arange(8, dtype=np.float32).reshape(2, 4), 4, 0)[:6]
    assert layout(Quantized(codes, uneven, None))[2:] == (0, 4)
    full = np.arange(24, dtype=np.float32).reshape(6, 4)
    assert layout(Quantized(codes, full, None))[2:] == (0, 1)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x: lax.while_loop(lambda v: v.sum() < 9.0, lambda v: v * 2.0, x),
            "primitive while has no ONNX form.*known",
        ),
        (jnp.linalg.cholesky, "primitive cholesky has no ONNX form"),
        (lambda x: x.astype(jnp.bfloat16), "bfloat16.*compute in float32"),
        (lambda x: lax.scan(lambda c, _: (jnp.sin(c), None), x, length=9999)[0], "9999 steps"),
        (lambda x: lax.pad(x, 0.0, ((0, 0, 1), (0, 0, 0))), "padding between elements"),
        (
            lambda x: lax.conv_transpose(x[None, ..., None], jnp.ones((2, 2, 1, 1)), (2, 2), "SAME"),
            "transposed convolution",
        ),
    ],
)
def test_what_has_no_form_is_named(function, message):
    with pytest.raises(ValueError, match=message):
        operators(function, jnp.eye(4))


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"needs the onnx package: pip install"):
        serialize.library()
