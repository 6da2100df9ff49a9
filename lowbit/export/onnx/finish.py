"""The last steps over a whole graph, when it is known what is used: biases into their operators, codes into constants."""

from collections.abc import Sequence

import numpy as np

from .blocks import join_blocks
from .graph import Graph, Node, Quantized, Users, Value, bits_of, compact, order, users_of
from .movement import is_dequantized, operand, reshape
from .quantized import Layout, dequantized, layout

_LARGEST = 2.0**30
"""An int32 bias beyond this leaves no room for the accumulator."""


def finish(g: Graph, outputs: Sequence[Value]) -> None:
    """Gives Conv and Gemm their biases and writes quantized constants as DequantizeLinear, in place."""
    for value in order(outputs):
        if value.op == "Add":
            join_blocks(g, value)
    users = users_of(outputs)
    for value in order(outputs):
        if value.op == "Add":
            _absorb(g, value, users)
    for value in order(outputs):
        if value.op == "MatMul" and _is_wide(value):
            assert value.node is not None
            value.node = Node("Gemm", [operand(value), _turned(g, operand(value, 1))], {"transB": 1})
    for value in order(outputs):
        assert value.node is not None
        if _is_integer(value):
            _write(g, operand(value, 1), is_wide=True)
        for x in value.node.inputs:
            if x is not None:
                _write(g, x)
    for x in outputs:
        _write(g, x)
    _write_unsigned(g, outputs)


def _write_unsigned(g: Graph, outputs: Sequence[Value]) -> None:
    """Writes signed bytes that several operations multiply by as unsigned ones, 128 higher, zero points too.

    On x86, "session.x64quantprecision" has ONNX Runtime 1.32 do that itself, product by product: it calls the new constant by
    the old one's name, and rejects the file where it is there already. Codes of less than 8 bits it leaves as they are.
    """
    users, readers = users_of(outputs), dict[int, list[Value]]()
    for value in order(outputs):
        if value.op == "DequantizeLinear" and operand(value).array is not None and operand(value).dtype == np.int8:
            readers.setdefault(id(operand(value)), []).append(value)
    for values in readers.values():
        if sum(len(users[id(value)]) for value in values) < 2:
            continue
        for value in values:
            assert value.node is not None
            codes, scale, zero = (operand(value, i) for i in range(3))
            assert codes.array is not None
            assert zero.array is not None
            higher = [g.constant((x.astype(np.int16) + 128).astype(np.uint8)) for x in (codes.array, zero.array)]
            value.node = Node("DequantizeLinear", [higher[0], scale, higher[1]], value.node.attributes)


def _write(g: Graph, x: Value, *, is_wide: bool = False) -> None:
    """Makes a quantized constant a DequantizeLinear; ``is_wide``: of bytes, whatever is stored.

    ONNX Runtime has no kernels for 4-bit weights and 8-bit inputs and dequantizes them at every call; a Cast of a constant
    it computes once, when it loads the file, and then fuses the product as one of bytes. A dense layer of 1024 x 1024 on one
    thread: 1870 us, and 29.
    """
    if x.quantized is None or x.node is not None:
        return
    q, how = x.quantized, layout(x.quantized)
    assert x.dtype == np.float32, x.dtype
    codes = g.constant(q.codes)
    bits = bits_of(codes.dtype)
    if is_wide and bits < 8 and how.block is None:
        wide = np.dtype(np.uint8 if str(codes.dtype).startswith("u") else np.int8)
        codes = g.node("Cast", [codes], codes.shape, wide, to=str(wide))
    x.node = dequantized(g, codes, how).node


def _is_integer(product: Value) -> bool:
    """Whether both operands of a product are codes: those of the left one computed, with one scale."""
    if product.op not in ("Conv", "MatMul", "Gemm"):
        return False
    q = operand(product, 1).quantized
    return is_dequantized(operand(product)) and q is not None and bits_of(q.codes.dtype) <= 8


def _is_wide(product: Value) -> bool:
    """Whether a matrix product is one of floats and 8-bit weights with a scale per column.

    ONNX Runtime 1.32 has a kernel for those that needs 41 ms for 8 million weights and one row. It does not look for it in a
    Gemm whose weight is turned round, which takes 3.6 ms: 2 of the product in floats, the rest to dequantize.
    """
    q = operand(product, 1).quantized
    if q is None or len(product.shape) != 2 or _is_integer(product):
        return False
    return bits_of(q.codes.dtype) == 8 and layout(q).block is None


def _turned(g: Graph, weight: Value) -> Value:
    q = weight.quantized
    assert q is not None
    return g.quantized(q.moved(np.transpose))


def _absorb(g: Graph, value: Value, users: Users) -> None:
    """An Add of a product and one number per channel becomes the product with a bias."""
    assert value.node is not None
    for product, other in (value.node.inputs, value.node.inputs[::-1]):
        if product is None or other is None or other.array is None or len(users[id(product)]) != 1:
            continue
        if product.op not in ("Conv", "MatMul") or product.shape != value.shape:
            continue
        channel = 1 if product.op == "Conv" else len(product.shape) - 1
        bias = _vector(other.array, len(product.shape), channel, product.shape[channel])
        if bias is None:
            continue
        value.node = _with_bias(g, value, product, bias, is_fused=_is_integer(product) and _is_rounded(value, users))
        return


def _with_bias(g: Graph, value: Value, product: Value, bias: np.ndarray, *, is_fused: bool) -> Node:
    """The product with its bias: in 32 bits where integer kernels add it before they round, else in float."""
    assert product.node is not None
    assert value.node is not None
    x, weight = operand(product), operand(product, 1)
    written = _integer_bias(g, bias, x, weight, 0 if product.op == "Conv" else 1) if is_fused else None
    if product.op == "Conv":
        return Node("Conv", [x, weight, g.constant(bias) if written is None else written], product.node.attributes)
    if len(product.shape) != 2 or weight.quantized is None:
        return value.node
    if _is_wide(product):
        return Node("Gemm", [x, _turned(g, weight), g.constant(bias)], {"transB": 1})
    return _apart(g, value, x, weight, bias) if written is None else Node("Gemm", [x, weight, written], {})


def _is_rounded(value: Value, users: Users) -> bool:
    """Whether all that becomes of a value is codes, relu and the like in between."""
    following = users[id(value)]
    while len(following) == 1 and (user := following[0]) is not None:
        if user.op == "QuantizeLinear":
            return True
        if user.op not in ("Relu", "Clip", "Reshape", "Transpose"):
            return False
        following = users[id(user)]
    return False


def _apart(g: Graph, value: Value, x: Value, weight: Value, bias: np.ndarray) -> Node:
    """A product and a float bias, with one more axis.

    Of two matrices, ONNX Runtime makes a Gemm of floats before it looks for its kernels of 4-bit weights and of bytes.
    """
    shape = (1, *value.shape)
    product = g.node("MatMul", [reshape(g, x, (1, *x.shape)), weight], shape, value.dtype)
    flat = reshape(g, g.node("Add", [product, g.constant(bias.reshape(1, 1, -1))], shape, value.dtype), value.shape)
    assert flat.node is not None
    return flat.node


def _vector(array: np.ndarray, rank: int, channel: int, size: int) -> np.ndarray | None:
    small = compact(array.reshape((1,) * (rank - array.ndim) + array.shape))
    if any(n > 1 for axis, n in enumerate(small.shape) if axis != channel):
        return None
    return np.ascontiguousarray(np.broadcast_to(small.reshape(-1), (size,)))


def _integer_bias(g: Graph, bias: np.ndarray, x: Value, weight: Value, channel: int) -> Value | None:
    """The bias in 32 bits, in units of input scale times weight scale: what an integer accumulator starts from."""
    step, q = operand(x, 1).array, weight.quantized
    assert q is not None
    order_of_codes = layout(q)
    if (
        step is None
        or bias.dtype != np.float32
        or order_of_codes.block is not None
        or order_of_codes.axis not in (None, channel)
    ):
        return None
    size = np.float32(step.reshape(()))
    codes, scale = _in_units(bias, size * np.broadcast_to(order_of_codes.scale, bias.shape))
    if (too_large := np.abs(codes) > _LARGEST).any():
        scales = _scales_of_dead_channels(q, weight, too_large, channel)
        if scales is None:
            return None
        codes, scale = _in_units(bias, size * scales)
        if (np.abs(codes) > _LARGEST).any():
            return None
    elif order_of_codes.axis is None:
        scale = scale[0]
    return dequantized(g, g.constant(codes.astype(np.int32)), Layout(scale, None, 0 if scale.ndim else None, None))


def _in_units(bias: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(divide="ignore", over="ignore"):
        codes = np.divide(bias.astype(np.float64), scale, out=np.zeros(bias.shape), where=bias != 0)
    return np.round(codes), scale.astype(np.float32)


def _scales_of_dead_channels(q: Quantized, weight: Value, too_large: np.ndarray, channel: int) -> np.ndarray | None:
    """Weight scales with those of all-zero channels enlarged, which changes no value; None if another channel is too large."""
    count = len(too_large)
    codes = np.moveaxis(q.codes, channel, 0).reshape(count, -1)
    zero = 0 if q.zero is None else np.moveaxis(q.zero, channel, 0).reshape(count, -1)
    if (too_large & ~(codes == zero).all(1)).any():
        return None
    scales = np.moveaxis(q.scale, channel, 0).reshape(count, -1)[:, 0].copy()
    alive = scales[~too_large]
    scales[too_large] = alive.max() if alive.size else 1.0
    shape = [1] * q.codes.ndim
    shape[channel] = -1
    weight.quantized = Quantized(q.codes, np.broadcast_to(scales.reshape(shape), q.codes.shape), q.zero)
    return scales
