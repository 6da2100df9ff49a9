"""C of every primitive that has a rule, against JAX: odd shapes, negative numbers, numbers that wrap, wide shifts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lowbit.export.c.source import RULES
from lowbit.interpret.integer.fixed import fixed_point, rounding_named

from . import c_programs
from .c_programs import ints


def _edges(dtype):
    limits = jnp.iinfo(dtype)
    numbers = {limits.min, limits.min + 1, limits.max, 0, 1, 2, 3, 7, 8, 31, 32, 33, 100, limits.max // 3}
    if limits.min < 0:
        numbers |= {-1, -2, -7, -31, -100, limits.min // 3}
    row = np.array(sorted(numbers)).astype(dtype)
    return jnp.asarray(np.repeat(row, len(row))), jnp.asarray(np.tile(row, len(row)))


def _elementwise(x, y):
    pairs = [lax.add, lax.sub, lax.mul, lax.max, lax.min, lax.div, lax.rem, lax.shift_left, lax.shift_right_logical,
             lax.shift_right_arithmetic, lax.bitwise_and, lax.bitwise_or, lax.bitwise_xor, lax.eq, lax.ne, lax.lt, lax.le,
             lax.gt, lax.ge]  # fmt: skip
    singles = [lax.sign, lax.clz, lax.population_count, lax.bitwise_not, lax.square]
    singles += [lax.neg, lax.abs] if x.dtype in (jnp.int8, jnp.int16, jnp.int32, jnp.int64) else []
    found = [op(x, y) for op in pairs] + [op(x) for op in singles]
    found += [lax.integer_pow(x, 3), lax.clamp(jnp.zeros((), x.dtype), x, y), lax.select(x < y, y, x)]
    found += [x.astype(jnp.bool_), (x < y).astype(x.dtype) + x, lax.bitwise_not(x < y), (x < y) & (y > 3)]
    found += [
        lax.select_n((y & 1).astype(jnp.int32), x, y),
        x >> 3,
        x << 2,
        lax.shift_right_logical(x, jnp.full_like(x, 5)),
    ]
    zero, is_less = jnp.zeros_like(x), (x < y).astype(x.dtype)
    found += [lax.eq(x, x), lax.lt(x, x), lax.gt(zero, is_less), lax.le(is_less, zero + 1), lax.ne(is_less, zero + 2)]
    kinds = [jnp.int8, jnp.uint8, jnp.int16, jnp.uint16, jnp.int32, jnp.uint32, jnp.int4, jnp.uint4, jnp.int2]
    return found + [x.astype(kind).astype(jnp.int32) for kind in kinds]


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.int8, jnp.uint32, jnp.uint8])
def test_arithmetic_is_that_of_xla(dtype):
    c_programs.check(_elementwise, *_edges(dtype))


def test_64_bits():
    with jax.enable_x64(True):
        x, y = _edges(jnp.int64)
        c_programs.check(lambda x, y: [x + y, x * y, x >> 40, lax.div(x, y), x.astype(jnp.int32), lax.max(x, y)], x, y)
        acc, q = ints(0, 9, 4), ints(1, 4)
        c_programs.check(lambda a: ((a.astype(jnp.int64) * q.astype(jnp.int64)) >> 31).astype(jnp.int32), acc)


def test_a_long_chain():
    def fn(x):
        for i in range(300):
            x = (x * 3) ^ (x >> (i % 5))
        return x

    c_programs.check(fn, ints(17, 8))


def _moves(x, i):
    table = jnp.arange(40, dtype=jnp.int8)[::-1] * 3
    y = x.reshape(5, 2, 3, 7)
    at = i % 9
    return [
        lax.pad(x, jnp.int8(-5), [(2, 1, 0), (-1, 3, 2), (0, -2, 1)]),
        lax.pad(y, jnp.int8(9), [(0, 0, 1), (1, 0, 0), (0, 0, 3), (0, 1, 0)]),
        jnp.pad(x, ((1, 0), (0, 2), (0, 0))),  # numpy integers in its parameters
        jnp.concatenate([x, x[:, :1] + 1, x[:, 1:] * 2], 1),
        lax.rev(x, (0, 2)),
        lax.slice(x, (1, 0, 2), (5, 5, 7), (2, 3, 2)),
        jnp.transpose(y, (2, 0, 3, 1)).reshape(3, 70),
        jnp.transpose(x, (1, 2, 0)).reshape(7, 30)[:, ::-1],
        (y + 1).reshape(2, 3, 35).reshape(210),
        jnp.broadcast_to(x[:, None, :1], (5, 2, 1, 7)).squeeze(2),
        jnp.take(table, i, mode="clip"),
        x.at[:, at, 2].get(mode="clip"),
        jnp.take_along_axis(x.astype(jnp.int32), jnp.full((5, 1, 7), 3), 1, mode="clip"),
        lax.dynamic_slice(x, (i[0], i[1], i[2]), (2, 3, 4)),
        lax.dynamic_update_slice(x, x[1:3, 2:4, 1:3] + 7, (i[3], i[4], i[5])),
        lax.broadcasted_iota(jnp.int32, (3, 4), 1) * i[:4],
        jnp.stack(jnp.split(x, 3, axis=1)),
        lax.expand_dims(x, (0, 2)) + jnp.arange(7, dtype=jnp.int8),
        x,
        jnp.full((2, 3), 4, jnp.int8),
        table[3:9],
    ]  # fmt: skip


def test_movement():
    x = ints(2, 5, 6, 7, dtype=jnp.int8)
    c_programs.check(_moves, x, jnp.array([3, -4, 2, 50, 1, 2**31 - 1, -(2**31), 8], jnp.int32))


def _sums(x, y, a, b):
    window = {"window_dimensions": (1, 3, 2), "padding": ((0, 0), (2, 1), (0, 1))}
    dilated = {"base_dilation": (1, 2, 1), "window_dilation": (1, 1, 2), "window_strides": (1, 2, 1)}
    wide = {"preferred_element_type": jnp.int32}
    return [
        lax.dot_general(x, y, (((2,), (1,)), ((0,), (0,))), **wide),
        lax.dot_general(x, y, (((0, 2), (0, 1)), ((), ())), **wide),
        lax.dot_general(a, b, (((1,), (0,)), ((), ()))),
        a.sum(0), a.max(1), a.min(), a.prod(1), (a > 0).any(1), (a > 0).all(), lax.reduce_and(a, (0,)), lax.reduce_or(a, (0,)),
        x.max((0, 2)), x.astype(jnp.int32).sum((0, 1)),
        lax.reduce_window(x, np.int8(-128), lax.max, **window, **dilated),
        lax.reduce_window(x, np.int8(127), lax.min, window_strides=(1, 1, 2), **window),
        lax.reduce_window(x.astype(jnp.int32), np.int32(0), lax.add, **window, **dilated),
        lax.dot_general(x * 2, (y + 1).swapaxes(1, 2), (((2,), (2,)), ((0,), (0,))), **wide) * 3 + 1,
    ]  # fmt: skip


def test_sums():
    x, y = ints(3, 3, 5, 4, dtype=jnp.int8), ints(4, 3, 4, 7, dtype=jnp.int8)
    c_programs.check(_sums, x, y, ints(5, 3, 9), ints(6, 9, 2))


CONVOLUTIONS = {
    "strided": ((2, 9, 7, 3), (3, 2, 3, 5), {"window_strides": (2, 3), "padding": "SAME"}),
    "valid": ((1, 6, 5, 4), (3, 3, 4, 6), {"window_strides": (1, 1), "padding": "VALID"}),
    "dilated": ((1, 9, 9, 2), (3, 2, 2, 3), {"window_strides": (1, 2), "padding": ((1, 2), (0, 3)), "rhs_dilation": (2, 3)}),
    "transposed": ((1, 4, 5, 3), (3, 3, 3, 2), {"window_strides": (1, 2), "padding": ((2, 1), (1, 3)), "lhs_dilation": (2, 3)}),
    "grouped": ((2, 5, 5, 6), (3, 3, 2, 9), {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 3}),
    "depthwise": ((1, 7, 6, 5), (3, 3, 1, 5), {"window_strides": (2, 1), "padding": "SAME", "feature_group_count": 5}),
    "multiplied": ((1, 4, 4, 3), (2, 2, 1, 6), {"window_strides": (1, 1), "padding": "VALID", "feature_group_count": 3}),
    "cropped": ((1, 8, 8, 2), (3, 3, 2, 2), {"window_strides": (1, 1), "padding": ((-2, 1), (1, -3))}),
}  # fmt: skip


def test_convolutions():
    kernels = [ints(i, *shape, dtype=jnp.int8) for i, (_, shape, _) in enumerate(CONVOLUTIONS.values())]
    images = [ints(20 + i, *shape, dtype=jnp.int8) for i, (shape, _, _) in enumerate(CONVOLUTIONS.values())]
    line, cube = ints(40, 2, 3, 11, dtype=jnp.int8), ints(41, 1, 4, 3, 5, 2, dtype=jnp.int8)

    def fn(*images):
        *images, line, cube = images
        found = [
            lax.conv_general_dilated(
                x, k, dimension_numbers=("NHWC", "HWIO", "NHWC"), preferred_element_type=jnp.int32, **params
            )
            for x, k, (_, _, params) in zip(images, kernels, CONVOLUTIONS.values(), strict=True)
        ]
        one, three = ints(42, 4, 3, 3, dtype=jnp.int8), ints(43, 2, 2, 2, 2, 3, dtype=jnp.int8)
        found.append(lax.conv(line, one, (2,), "SAME", preferred_element_type=jnp.int32))
        numbers = ("NDHWC", "DHWIO", "NCDHW")
        found.append(
            lax.conv_general_dilated(
                cube, three, (1, 2, 1), "SAME", dimension_numbers=numbers, preferred_element_type=jnp.int32
            )
        )
        return found

    c_programs.check(fn, *images, line, cube)


@jax.custom_jvp
def _custom(x):
    return x * 3


_custom.defjvp(lambda primals, tangents: (_custom(*primals), tangents[0]))


def test_loops_and_calls():
    weights = ints(7, 4, 4, dtype=jnp.int8, low=-8, high=8)

    def turn(carry, x):
        a, b, n = carry
        s = lax.dot_general(a, weights, (((0,), (0,)), ((), ())), preferred_element_type=jnp.int32)
        new = ((s + x.astype(jnp.int32)) >> 4).astype(jnp.int8)
        inner, rows = lax.scan(lambda c, r: (c + r, c * r), n, jnp.stack([s, s * 2, x.astype(jnp.int32)]))
        return (b, new, inner), (rows.sum(0), x, jax.jit(_custom)(n))

    def fn(xs, a, n):
        forward, ys = lax.scan(turn, (a, a + 1, n), xs)
        backward, _ = lax.scan(lambda c, x: (c * 3 + x.astype(jnp.int32), None), n, xs, reverse=True)
        return forward, ys, backward, jax.jit(lambda x: lax.stop_gradient(x) + 1)(a)

    c_programs.check(fn, ints(8, 5, 4, dtype=jnp.int8), ints(9, 4, dtype=jnp.int8), ints(10, 4))


def test_primitives_with_a_simpler_spelling_are_spelled():
    def fn(x, n):
        a, b, c = jnp.unstack(x, axis=1)[:3]
        left, right = jnp.split(n, [2], 1)
        sums = [jnp.cumsum(n, 1), lax.cumsum(n, 0, reverse=True)]
        return jnp.stack([a, b, c], 1), jnp.tile(a, (2, 3)), left + 1, right, *sums

    c_programs.check(fn, ints(8, 5, 4, dtype=jnp.int8), ints(9, 4, 5))


def test_high_products_are_found_and_exact():
    acc = jnp.concatenate([_edges(jnp.int32)[0], ints(11, 200)])[:, None]
    numbers = [fixed_point(m) for m in (0.3, 0.0123, -0.75, 1.9, 2.0**-31, 0.99999)]
    q, right = (jnp.array([pair[i] for pair in numbers], jnp.int32) for i in (0, 1))
    roundings = [rounding_named(name) for name in ("exact", "tflite_single", "gemmlowp_double")]
    program = c_programs.check(lambda a: [r.multiply(a, q[None], right[None]) for r in roundings], acc)
    assert program.source.count("= mulhi_i32(") == 3


def test_every_rule_is_tried():
    """The functions above hold every primitive that has a rule."""
    found = set()

    def names(jaxpr):
        for eqn in jaxpr.eqns:
            found.add(eqn.primitive.name)
            for value in eqn.params.values():
                for inner in value if isinstance(value, tuple | list) else [value]:
                    if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                        names(getattr(inner, "jaxpr", inner))

    x = ints(2, 5, 6, 7, dtype=jnp.int8)
    for fn, args in (
        (_elementwise, _edges(jnp.int32)),
        (_moves, (x, jnp.zeros(8, jnp.int32))),
        (_sums, (x[:3, :5, :4], x[:3, :4, :7], ints(5, 3, 9), ints(6, 9, 2))),
    ):
        names(jax.make_jaxpr(fn)(*args).jaxpr)
    made_here = {"turn", "mul_high", "add_any", "copy", "stop_gradient", "conv_general_dilated"}
    assert set(RULES) - found <= made_here
