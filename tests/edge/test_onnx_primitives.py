"""Every primitive that has an ONNX form, in ONNX Runtime, against jax.

Needs onnx and onnxruntime: fails without them.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lowbit.core.extremes import largest, largest_magnitude, nan_where, smallest
from lowbit.export.composites import Grid, dequantize, fake_quant, quantize
from lowbit.export.onnx import serialize, translate
from lowbit.export.onnx.run import session
from tests.export.onnx_graphs import graph_of


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_t(4.0, shape).astype(np.float32)


def written(function, *args):
    inputs, outputs = graph_of(function, *args)
    names = [f"y{i}" for i in range(len(outputs))]
    return serialize.serialize(inputs, outputs, names, name="m", text="", properties={})


def primitives(jaxpr, found):
    for eqn in jaxpr.eqns:
        found.add(eqn.primitive.name)
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                primitives(inner, found)
    return found


X = normal(0, 3, 5)
IMAGE = normal(1, 2, 9, 8, 6)
KERNEL = np.asarray(normal(2, 3, 2, 6, 4))
TOKENS = jnp.array([[0, 2, 1], [3, -1, 2]])
CODES = jnp.asarray(np.random.default_rng(0).integers(-8, 8, (16, 12)).astype(jnp.int4))
BYTES = jnp.asarray(np.random.default_rng(1).integers(-128, 128, (16, 12)).astype(np.int8))
NHWC = ("NHWC", "HWIO", "NHWC")


def _unary(*functions):
    return lambda x: [f(x) for f in functions]


def _pooled(x):
    sums = lax.reduce_window(x, 0.0, lax.add, (1, 3, 2, 1), (1, 2, 1, 1), "SAME")
    return [
        nn.max_pool(x, (2, 3), (2, 1), "SAME"),
        lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4.0,
        sums,
        sums / lax.reduce_window(jnp.ones(x.shape), 0.0, lax.add, (1, 3, 2, 1), (1, 2, 1, 1), "SAME"),
        lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 1, 1), (1, 1, 1, 1), "VALID", window_dilation=(1, 2, 1, 1)),
        jnp.mean(x, (1, 2)),
    ]


def _convolved(x):
    depthwise = np.asarray(normal(3, 3, 3, 1, 12))
    y = lax.conv_general_dilated(x, KERNEL, (2, 1), ((0, 2), (1, 0)), dimension_numbers=NHWC)
    z = lax.conv_general_dilated(x, depthwise, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=6)
    w = lax.conv_general_dilated(x, KERNEL, (1, 1), "VALID", rhs_dilation=(2, 2), dimension_numbers=NHWC)
    v = lax.conv_general_dilated(
        x.transpose(3, 0, 1, 2), KERNEL, (1, 1), "SAME", dimension_numbers=("CNHW", "HWIO", "NHWC")
    )
    u = lax.conv_general_dilated(x[:, 0], KERNEL[0], (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    return y + 1.0, jax.nn.relu(z), w, v, u


def _indexed(x, tokens):
    table = np.asarray(normal(4, 4, 6))
    start = tokens[0, 1]
    return [
        jnp.asarray(table)[tokens],
        jnp.take(table, tokens, axis=0),
        jnp.take(table, tokens + 3, axis=1, mode="fill"),
        jnp.take(table, tokens, axis=0, mode="clip"),
        x[1:, ::2],
        x[::-1],
        lax.dynamic_slice(x, (start, start + 7), (2, 3)),
        jnp.concatenate([x, x[:1] * 2.0]),
        jnp.concatenate([x.T, x.T], 1),
        jnp.pad(x, ((1, 0), (0, 2)), constant_values=3.0),
        lax.pad(x, 0.0, ((-1, 0, 0), (2, -1, 0))),
        jnp.broadcast_to(x[:, None], (3, 2, 5)),
        jnp.arange(5.0) + x,
        jnp.argmax(x, 1),
        jnp.argmin(x, 0),
        jnp.cumsum(x, 1),
        lax.cumsum(x, 0, reverse=True),
        x.reshape(5, 3).T,
        lax.reshape(x, (15,), (1, 0)),
        jnp.squeeze(x[:1], 0),
    ]


def _contracted(x, y):
    w = np.asarray(normal(5, 5, 2, 3))
    return [
        x @ w[:, 0],
        jnp.einsum("ab,bcd->dac", x, w),
        jnp.einsum("bqhd,bkhd->bhqk", y, y),
        jnp.einsum("bqhd,khd->bqk", y, y[0]),
        jnp.einsum("a,b->ab", x[0], x[1]),
        x[0] @ x[1],
    ]


def _quantized(x, codes):
    grids = [
        Grid("i8", (0.05,), (-20,)), Grid("i8", (0.05,), (0,), None, True), Grid("ui8", (0.1,), (3,)),
        Grid("i4", (0.5,), (-3,)), Grid("i8", (0.1, 0.2, 0.3, 0.4, 0.5), (0, 1, 2, 3, -4), 1), Grid("i16", (1e-3,), (5,)),
    ]  # fmt: skip
    scales = tuple(np.linspace(0.01, 0.2, 12).tolist())
    weight = dequantize(CODES, Grid("i4", scales, (0,) * 12, 1))
    return [
        *(fake_quant(x, grid) for grid in grids),
        *(fake_quant(jax.nn.relu(x), grid) for grid in grids[:4]),
        *(fake_quant(jax.nn.relu6(x), grid) for grid in grids[:4]),
        quantize(x, grids[0]),
        dequantize(codes, grids[0]),
        fake_quant(codes.astype(jnp.float32)[:3].T, grids[0]) @ x,
        dequantize(BYTES, Grid("i8", scales, tuple(range(12)), 1)).T[:5] @ weight,
    ]


def _looped(x):
    def step(carry, row):
        return jnp.tanh(carry + row), carry * row

    return lax.scan(step, jnp.zeros(5), x), lax.scan(step, jnp.ones(5), x, reverse=True)


def _called(x):
    activation = jax.custom_vjp(lambda x: x * 2.0)
    activation.defvjp(lambda x: (x, None), lambda _, g: (g,))
    branch = lax.cond(True, jnp.sin, jnp.cos, x)
    return jax.checkpoint(jax.nn.silu)(x), activation(x), jax.jit(jnp.abs)(x), branch


def _copied(x):
    return lax.optimization_barrier(lax.stop_gradient(jnp.copy(x)))


CASES = {
    "unary": (
        _unary(jnp.exp, jnp.tanh, jax.nn.sigmoid, lax.erf, jnp.abs, jnp.sign, jnp.floor, jnp.ceil, jnp.round, jnp.sin, jnp.cos,
               jnp.sinh, jnp.cosh, jnp.expm1, jnp.exp2, jnp.negative, jnp.isfinite, jnp.square, jnp.tan, jax.nn.gelu, jax.scipy.special.erfc,
               jax.nn.elu, jax.nn.softplus, lambda x: lax.round(x * 4.0), lambda x: x**3, lambda x: x**-2, lambda x: x**7),
        X,
    ),
    "positive": (_unary(jnp.log, jnp.log1p, jnp.sqrt, lax.rsqrt, lambda x: x**1.5, lambda x: jnp.power(x, x)), jnp.abs(X) + 0.1),
    "binary": (
        lambda x, y: [
            x + y, x - y, x * y, x / y, jnp.maximum(x, y), jnp.minimum(x, y), lax.rem(x, y), jnp.clip(x, -0.5, y), jnp.where(x > y, x, 0.0),
            x == y, x != y, x < y, x <= y, x >= y, (x > 0) & (y > 0), (x > 0) | (y > 0), (x > 0) ^ (y > 0), ~(x > 0), x + 1.0,
            2.0 / y, x * y[0], jnp.minimum(jnp.maximum(x, 0.0), 1.0), jnp.clip(x, -1.0, 1.0), jnp.astype(x, jnp.int32),
            (x > 0).astype(jnp.float32), lax.reduce_precision(x, 8, 23), lax.clamp(-0.5, x, 0.7), lax.clamp(-0.5, x, jnp.abs(y)),
        ],
        X, normal(9, 3, 5),
    ),
    "integers": (lambda i: [i // 2, i % 3, i & 1, i | 2, i ^ 3, ~i, jnp.maximum(i, 1), i.astype(jnp.float32)], TOKENS),
    "reductions": (
        lambda x: [x.sum(0), x.max(1), x.min(), x.prod(1), x.mean(0), (x > 0).all(1), (x > 0).any(0), jax.nn.softmax(x),
                   jax.nn.softmax(x.T, 0), nn.LayerNorm(use_bias=False, use_scale=False).apply({}, x)],
        X,
    ),
    "orders": (
        lambda x: [largest_magnitude(x, 0), largest(x, 1), smallest(x.T, keepdims=True), nan_where(x > 0, x)], X - 0.5,
    ),
    "pools": (_pooled, IMAGE),
    "convolutions": (_convolved, IMAGE),
    "products": (_contracted, X, normal(6, 2, 7, 2, 4)),
    "indices": (_indexed, X, TOKENS),
    "quantization": (_quantized, X, BYTES),
    "loops": (_looped, X),
    "calls": (_called, X),
    "nothing": (lambda x: [_copied(x), x, jnp.float32(2.0), jax.jvp(jnp.sin, (x,), (x,)), jax.grad(lambda x: (jnp.sin(x) * jnp.cos(x)).sum())(x)], X),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_primitives_agree_with_jax(name, tmp_path):
    function, *args = CASES[name]
    (tmp_path / "m.onnx").write_bytes(written(function, *args))
    ran = session(tmp_path / "m.onnx")
    fed = {entry.name: np.asarray(x) for entry, x in zip(ran.get_inputs(), args, strict=False)}
    wanted = jax.tree.leaves(jax.jit(function)(*args))
    for i, (got, want) in enumerate(zip(ran.run(None, fed), wanted, strict=True)):
        assert (got.shape, got.dtype) == (want.shape, want.dtype), i
        wide, want = got.astype(np.float64), np.asarray(want, np.float64)
        # Sums in another order, exp, tanh and erf by other polynomials: a few units in the last place of the largest value.
        np.testing.assert_allclose(
            wide, want, rtol=2e-5, atol=2e-6 * max(1.0, np.abs(want[np.isfinite(want)]).max()), err_msg=str(i)
        )


def test_every_primitive_is_in_a_case():
    seen = set()
    for function, *args in CASES.values():
        primitives(jax.make_jaxpr(function)(*args).jaxpr, seen)
    assert sorted(set(translate.handlers()) - seen) == []


@pytest.mark.parametrize("size", [8, 9])
def test_a_residual_of_the_input(size, tmp_path):
    def residual(x):
        kernel = np.asarray(normal(20, 3, 3, size, size))
        y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC)
        return x + y, y + y.swapaxes(1, 2)

    x = normal(21, 2, size, size, size)
    (tmp_path / "m.onnx").write_bytes(written(residual, x))
    for got, want in zip(session(tmp_path / "m.onnx").run(None, {"x0": x}), jax.jit(residual)(x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)  # 72 or 81 float32 products a sum
