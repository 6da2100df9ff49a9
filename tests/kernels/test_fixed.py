"""Codes to codes in fixed point, bit for bit what 64-bit integers give, written out in numpy, on every instruction set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit_kernels import CpuConfig, pack_conv, pack_matrix, status
from lowbit_kernels.cpu.fixed import (
    ROUNDINGS,
    FloatGrid,
    Join,
    Rescale,
    fixed_conv,
    fixed_matmul,
    prepare_fixed,
    prepare_fixed_conv,
)

ISAS = status().isas


def back(total: np.ndarray, r: Rescale, rounding: str) -> np.ndarray:
    """Codes of sums `(..., out)` in Python's integers, which have no end."""
    # sums and biases wrap, as 32-bit integers do
    v = (total.astype(np.int64) + np.asarray(r.bias, np.int64) + 2**31) % 2**32 - 2**31
    q, shift = (np.broadcast_to(np.asarray(a, np.int64), v.shape) for a in (r.multiplier, r.shift))
    product = v * q  # 62 bits
    if rounding == "gemmlowp_double":
        left, right = np.maximum(-shift, 0), np.maximum(shift, 0)
        most = np.int64(2**31 - 1) >> left
        product = np.clip(v, -most, most) * (np.int64(1) << left) * q
        high = np.floor_divide(product + 2**30, 2**31)
        magnitude = np.abs(high)
        rounded = np.sign(high) * ((magnitude + np.where(right > 0, (np.int64(1) << right) >> 1, 0)) >> right)
    else:
        s = shift + 31
        floor = product >> s
        twice = (product - (floor << s)) * 2 - (np.int64(1) << s) if s.max() < 62 else None
        if twice is None:  # in integers without an end
            wide = [int(p) - (int(f) << int(n)) for p, f, n in zip(product.flat, floor.flat, s.flat, strict=True)]
            signs = [(2 * w > 1 << int(n)) - (2 * w < 1 << int(n)) for w, n in zip(wide, s.flat, strict=True)]
            twice = np.reshape(signs, v.shape)
        half_goes_up = floor % 2 == 1 if rounding == "exact" else True
        rounded = floor + ((twice > 0) | ((twice == 0) & half_goes_up))
    code = np.clip(rounded, -(2**30), 2**30) + np.asarray(r.offset, np.int64)
    return np.minimum(np.maximum(code, r.low), r.high).astype(np.int8)


def rescale(rng: np.random.Generator, out: int, magnitude: float) -> Rescale:
    """Multipliers that bring sums of a magnitude to codes, some far from it, ties among them: a half, and no multiplier."""
    real = rng.uniform(10, 200, out) / magnitude * rng.choice([1, 1, 1, -1, 1e3, 1e-4], out)
    fraction, exponent = np.frexp(real)
    q = np.rint(fraction * 2**24).astype(np.int64) << 7
    q, right = np.clip(q, -(2**31 - 1), 2**31 - 1), -exponent
    q[::5], right[::5] = 2**30, rng.integers(-2, 8)
    q[3::11], right[3::11] = rng.choice([2**31 - 1, 0]), rng.choice([-30, 31])
    bias = rng.integers(-(10**5), 10**5, out)
    bias[2::7] = rng.choice([2**31 - 1, -(2**31)])
    low, high = (-128, 127) if out % 2 else (rng.integers(-100, 0, out), rng.integers(0, 100, out))
    i32 = lambda a: np.asarray(a, np.int32)  # noqa: E731
    offset = rng.integers(-40, 40, out)
    return Rescale(i32(bias), i32(q), i32(right), i32(offset), i32(low), i32(high), np.int32(rng.integers(-128, 128)))


MATMULS = [
    (1, 16, 16, 8, True),
    (19, 100, 37, 4, True),
    (40, 333, 90, 8, False),
    (9, 70, 33, 2, True),
    (70, 1040, 64, 8, True),
]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(("rows", "length", "out", "bits", "signed"), MATMULS)
def test_matmul(rows, length, out, bits, signed, rounding) -> None:
    rng = np.random.default_rng(rows + length)
    low = -(1 << (bits - 1)) if signed else 0
    w = rng.integers(low, low + (1 << bits), (length, out))
    x = rng.integers(-128, 128, (rows, length)).astype(np.int8)
    zeros = rng.integers(low, low + (1 << bits), (1, out)) if rows % 2 else None
    r = rescale(rng, out, 60.0 * (1 << (bits - 1)) * length**0.5)
    packed = pack_matrix(
        w.astype(np.int8 if signed else np.uint8), jnp.ones((1, out), jnp.float32), bits=bits, signed=signed,
        zeros=None if zeros is None else zeros.astype(np.int8 if signed else np.uint8),
    )  # fmt: skip
    prepared = prepare_fixed(packed, r, rounding)
    total = (x.astype(np.int64) - int(r.zero)) @ (w - (0 if zeros is None else zeros))
    expected = back(total, r, rounding)
    assert len(np.unique(expected)) > 8
    for isa in ISAS:
        for threads in (1, 2):
            run = jax.jit(lambda x, p, c=CpuConfig(isa=isa, threads=threads): fixed_matmul(x, p, config=c))
            np.testing.assert_array_equal(np.asarray(run(x, prepared)), expected, err_msg=isa)


@pytest.mark.parametrize("length", [40, 300, 1040])
def test_products_on_halves_and_just_beside_them(length) -> None:
    """Multipliers of 24 bits that bring one sum of a channel next to a half, where rounding the product to float32 first puts it.

    Every fourth is a power of two, with halves that are some. Sums are below 2^23 for every x, below 2^24 for these, or beyond.
    """
    rng = np.random.default_rng(length)
    rows, out = 24, 160
    w, x = rng.integers(-128, 128, (length, out)), rng.integers(-128, 128, (rows, length))
    x[0], x[1::2] = 127, rng.integers(-2, 3, (rows // 2, length))
    total, bias = x @ w, rng.integers(-99, 99, out)
    near = total[2, :] + bias
    fraction, exponent = np.frexp((rng.integers(-90, 90, out) + 0.5) / near)
    q, right = np.rint(fraction * 2**24).astype(np.int64) << 7, -exponent
    q[::4], right[::4] = 2**30, 4
    i32 = lambda a: np.asarray(a, np.int32)  # noqa: E731
    r = Rescale(i32(bias), i32(q), i32(right), i32(3), i32(-120), i32(125), np.int32(0))
    expected = back(total, r, "exact")
    rounded = (total + bias).astype(np.float32) * (q * 2.0 ** -(31.0 + right)).astype(np.float32)
    assert (np.clip(np.rint(rounded) + 3, -120, 125) != expected).sum() > 10
    x, w = jnp.asarray(x, jnp.int8), w.astype(np.int8)
    ones = jnp.ones((1, out), jnp.float32)
    matrix = prepare_fixed(pack_matrix(w, ones, bits=8), r, "exact")
    conv = prepare_fixed_conv(pack_conv(w.reshape(1, 1, length, out), ones[0], bits=8), r, "exact")
    for isa in ISAS:
        config = CpuConfig(isa=isa)
        np.testing.assert_array_equal(fixed_matmul(x, matrix, config=config), expected, err_msg=isa)
        image = fixed_conv(x.reshape(2, 3, 4, length), conv, config=config)
        np.testing.assert_array_equal(image.reshape(rows, out), expected, err_msg=isa)


# batch, height, width, channels, out, groups, kernel, strides, padding, dilation, bits
CONVS = [
    (2, 9, 8, 3, 20, 1, (3, 3), (2, 1), "SAME", (1, 1), 8),
    (1, 7, 7, 24, 40, 1, (1, 1), (1, 1), "VALID", (1, 1), 8),
    (9, 5, 6, 12, 18, 3, (3, 2), (1, 2), ((1, 2), (0, 1)), (1, 2), 4),
    (2, 8, 9, 21, 21, 21, (3, 3), (2, 2), "SAME", (1, 1), 8),
    (1, 5, 5, 80, 48, 1, (3, 3), (1, 1), "SAME", (1, 1), 2),
    (3, 6, 6, 16, 16, 16, (5, 5), (1, 1), "SAME", (1, 1), 4),
]


def convolved(x, w, zero, strides, pads, dilation, groups) -> np.ndarray:
    """Sums of `(q_x - z_x) q_w` over windows, in 64 bits."""
    x = np.pad(x.astype(np.int64) - zero, ((0, 0), *pads, (0, 0)))
    kh, kw, inputs, out = w.shape
    sizes = [(x.shape[1 + i] - (w.shape[i] - 1) * dilation[i] - 1) // strides[i] + 1 for i in range(2)]
    y = np.zeros((x.shape[0], *sizes, out), np.int64)
    many = out // groups
    for u in range(kh):
        for v in range(kw):
            top, left = u * dilation[0], v * dilation[1]
            part = x[
                :,
                top : top + (sizes[0] - 1) * strides[0] + 1 : strides[0],
                left : left + (sizes[1] - 1) * strides[1] + 1 : strides[1],
            ]
            for g in range(groups):
                own = part[..., g * inputs : (g + 1) * inputs]
                y[..., g * many : (g + 1) * many] += own @ w[u, v, :, g * many : (g + 1) * many].astype(np.int64)
    return y


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("case", CONVS)
def test_conv(case, rounding) -> None:
    batch, height, width, channels, out, groups, kernel, strides, padding, dilation, bits = case
    rng = np.random.default_rng(channels + out)
    w = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (*kernel, channels // groups, out))
    x = rng.integers(-128, 128, (batch, height, width, channels)).astype(np.int8)
    r = rescale(rng, out, 60.0 * (1 << (bits - 1)) * np.prod(w.shape[:3]) ** 0.5)
    packed = pack_conv(w.astype(np.int8), jnp.ones(out, jnp.float32), bits=bits)
    prepared = prepare_fixed_conv(packed, r, rounding, feature_group_count=groups)
    window = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    pads = jax.lax.padtype_to_pads((height, width), window, strides, padding) if isinstance(padding, str) else padding
    expected = back(convolved(x, w, int(r.zero), strides, pads, dilation, groups), r, rounding)
    assert len(np.unique(expected)) > 8
    for isa in ISAS:
        for layout in ("NHWC", "NCHW"):
            given = x if layout == "NHWC" else np.moveaxis(x, -1, 1)
            run = jax.jit(
                lambda x, p, c=CpuConfig(isa=isa), layout=layout: fixed_conv(
                    x, p, strides=strides, padding=padding, rhs_dilation=dilation, layout=layout, config=c
                )
            )
            found = np.asarray(run(given, prepared))
            np.testing.assert_array_equal(
                found if layout == "NHWC" else np.moveaxis(found, 1, -1), expected, err_msg=isa
            )


def joined(codes: np.ndarray, other: np.ndarray, n: np.ndarray, kind: str, rounding: str) -> np.ndarray:
    """The sum, larger or smaller of two arrays of codes, in 64 bits: it fits in 31."""
    own, by, shift, offset, low, high, own_zero, other_zero = (int(v) for v in n)
    left, right = (codes.astype(np.int64) - own_zero) * own, (other.astype(np.int64) - other_zero) * by
    v = {"add": np.add, "max": np.maximum, "min": np.minimum}[kind](left, right)
    assert np.abs(v).max() < 2**31
    twice, floor = 2 * (v - (v >> shift << shift)) - (1 << shift), v >> shift
    goes_up = {"exact": floor % 2 == 1, "tflite_single": True, "gemmlowp_double": v >= 0}[rounding]
    return np.clip(floor + ((twice > 0) | ((twice == 0) & goes_up)) + offset, low, high).astype(np.int8)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(("kind", "shift"), [("add", 20), ("max", 17), ("min", 1), ("add", 2), ("add", 0)])
def test_codes_are_joined_in_the_same_call(kind, shift, rounding) -> None:
    rng = np.random.default_rng(shift)
    scale = 1 << shift
    numbers = np.array([scale * 3 // 4, -(scale * 5) // 8 or -1, shift, 3, -100, 90, -7, 30], np.int32)
    w, x = rng.integers(-128, 128, (25, 21)), rng.integers(-128, 128, (13, 25)).astype(np.int8)
    r = rescale(rng, 21, 60 * 128 * 5)
    other = rng.integers(-128, 128, (13, 21)).astype(np.int8)
    matrix = prepare_fixed(pack_matrix(w.astype(np.int8), jnp.ones((1, 21), jnp.float32), bits=8), r, rounding)
    want = joined(back((x.astype(np.int64) - int(r.zero)) @ w, r, rounding), other, numbers, kind, rounding)
    assert len(np.unique(want)) > 5
    kernel, image = rng.integers(-128, 128, (3, 3, 1, 37)), rng.integers(-128, 128, (2, 4, 5, 37)).astype(np.int8)
    s = rescale(rng, 37, 60 * 128 * 3)
    beside = rng.integers(-128, 128, image.shape).astype(np.int8)
    conv = prepare_fixed_conv(
        pack_conv(kernel.astype(np.int8), jnp.ones(37), bits=8), s, rounding, feature_group_count=37
    )
    pads = ((1, 1), (1, 1))
    codes = back(convolved(image, kernel, int(s.zero), (1, 1), pads, (1, 1), 37), s, rounding)
    want_conv = joined(codes, beside, numbers, kind, rounding)
    for isa in ISAS:
        config = CpuConfig(isa=isa)
        found = fixed_matmul(
            jnp.asarray(x), matrix, join=Join(jnp.asarray(other), jnp.asarray(numbers), kind), config=config
        )
        np.testing.assert_array_equal(np.asarray(found), want, err_msg=isa)
        for layout, axis in (("NHWC", -1), ("NCHW", 1)):
            a, b = (jnp.asarray(np.moveaxis(v, -1, axis)) for v in (image, beside))
            found = fixed_conv(a, conv, layout=layout, join=Join(b, jnp.asarray(numbers), kind), config=config)
            np.testing.assert_array_equal(np.moveaxis(np.asarray(found), axis, -1), want_conv, err_msg=isa)


def test_floats_are_put_on_their_grid_in_the_same_call() -> None:
    rng = np.random.default_rng(9)
    x = (rng.standard_t(2, (7, 5, 6, 9)) * 0.3).astype(np.float32)
    x[0, 0, 0, :3] = np.nan, np.inf, -np.inf
    scale, low, high, zero = np.float32(0.011), -100, 120, 17
    steps = np.rint(x * (np.float32(1) / scale))
    codes = np.clip(np.where(np.isnan(steps), np.float32(0), steps) + zero, low, high).astype(np.int8)
    grid = FloatGrid(jnp.asarray([scale]), low, high)
    w = rng.integers(-128, 128, (3, 3, 9, 20))
    r = rescale(rng, 20, 60 * 128 * 9)._replace(zero=np.int32(zero))
    conv = prepare_fixed_conv(pack_conv(w.astype(np.int8), jnp.ones(20), bits=8), r, "exact")
    want = back(convolved(codes, w, zero, (1, 1), ((1, 1), (1, 1)), (1, 1), 1), r, "exact")
    matrix = prepare_fixed(pack_matrix(w[0, 0].astype(np.int8), jnp.ones((1, 20), jnp.float32), bits=8), r, "exact")
    total = back((codes.astype(np.int64) - zero) @ w[0, 0], r, "exact")
    for isa in ISAS:
        config = CpuConfig(isa=isa)
        found = fixed_conv(jnp.asarray(x), conv, grid=grid, config=config)
        np.testing.assert_array_equal(np.asarray(found), want, err_msg=isa)
        found = fixed_matmul(jnp.asarray(x), matrix, grid=grid, config=config)
        np.testing.assert_array_equal(np.asarray(found), total, err_msg=isa)


def test_one_dimension_is_a_height_of_one() -> None:
    rng = np.random.default_rng(3)
    w, x = rng.integers(-128, 128, (3, 5, 18)), rng.integers(-128, 128, (2, 11, 5)).astype(np.int8)
    r = rescale(rng, 18, 60 * 128 * 15**0.5)
    packed = pack_conv(w.astype(np.int8), jnp.ones(18, jnp.float32), bits=8, layout="WIO")
    expected = back(convolved(x[:, None], w[None], int(r.zero), (1, 2), ((0, 0), (1, 1)), (1, 1), 1), r, "exact")[:, 0]
    found = fixed_conv(jnp.asarray(x), prepare_fixed_conv(packed, r, "exact"), strides=(2,), padding=((1, 1),))
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_vmap_is_a_loop() -> None:
    rng = np.random.default_rng(4)
    x = jnp.asarray(rng.integers(-128, 128, (3, 4, 30)), jnp.int8)
    made = []
    for i in range(3):
        w = rng.integers(-128, 128, (30, 17)).astype(np.int8)
        packed = pack_matrix(w, jnp.ones((1, 17), jnp.float32), bits=8)
        made.append(prepare_fixed(packed, rescale(rng, 17, 60 * 128 * 5 + i), "exact"))
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *made)
    np.testing.assert_array_equal(
        np.asarray(jax.vmap(fixed_matmul)(x, stacked)),
        np.stack([fixed_matmul(a, m) for a, m in zip(x, made, strict=True)]),
    )
    np.testing.assert_array_equal(
        np.asarray(jax.vmap(lambda a: fixed_matmul(a, made[1]))(x)), np.stack([fixed_matmul(a, made[1]) for a in x])
    )


def test_nothing_in_nothing_out() -> None:
    packed = pack_matrix(jnp.ones((5, 3), jnp.int8), jnp.ones((1, 3), jnp.float32), bits=8)
    prepared = prepare_fixed(packed, Rescale(0, 2**30, 0, 0, -128, 127, 0), "exact")
    assert fixed_matmul(jnp.zeros((0, 5), jnp.int8), prepared).shape == (0, 3)
    # 5 ones by 1 is 5, half of it 2.5: to the even 2
    assert np.all(np.asarray(fixed_matmul(jnp.ones((2, 5), jnp.int8), prepared)) == 2)


def test_what_does_not_fit_is_refused() -> None:
    packed = pack_matrix(jnp.ones((6, 3), jnp.int8), jnp.ones((2, 3), jnp.float32), bits=8, group=3)
    fits = Rescale(0, 2**30, 0, 0, -128, 127, 0)
    with pytest.raises(ValueError, match="one group"):
        prepare_fixed(packed, fits, "exact")
    whole = pack_matrix(jnp.ones((6, 3), jnp.int8), jnp.ones((1, 3), jnp.float32), bits=8)
    with pytest.raises(ValueError, match="rounding"):
        prepare_fixed(whole, fits, "nearest")
    with pytest.raises(ValueError, match="bias must be int32"):
        prepare_fixed(whole, fits._replace(bias=jnp.zeros(4, jnp.int32)), "exact")
    made = prepare_fixed(whole, fits, "exact")
    with pytest.raises(TypeError, match="int8"):
        fixed_matmul(jnp.zeros((2, 6), jnp.float32), made)
    with pytest.raises(ValueError, match=r"\(\.\.\., 6\)"):
        fixed_matmul(jnp.zeros((2, 5), jnp.int8), made)
    conv = prepare_fixed_conv(pack_conv(jnp.ones((3, 3, 2, 4), jnp.int8), jnp.ones(4), bits=8), fits, "exact")
    with pytest.raises(ValueError, match="channels"):
        fixed_conv(jnp.zeros((1, 4, 4, 3), jnp.int8), conv)


@pytest.mark.parametrize("position", range(12))
@pytest.mark.parametrize("value", [-(2**62), -1, 3, 2**40])
def test_an_attacked_call_is_answered(position: int, value: int) -> None:
    """Numbers of the call that nobody wrote: an error, or a result that was asked for, and never anything outside it."""
    whole = pack_matrix(jnp.ones((6, 3), jnp.int8), jnp.ones((1, 3), jnp.float32), bits=8)
    made = prepare_fixed(whole, Rescale(0, 2**30, 0, 0, -128, 127, 0), "exact")
    numbers = [0, 8, 128, 6, 0, 0, -128, 127, -1, 0]
    if position < len(numbers):
        numbers[position] = value
    shapes = [jax.ShapeDtypeStruct((2, 3), jnp.int8), jax.ShapeDtypeStruct((4096,), jnp.uint8)]
    if position == 10:
        shapes[1] = jax.ShapeDtypeStruct((3,), jnp.uint8)  # too little scratch
    if position == 11:
        shapes[0] = jax.ShapeDtypeStruct((2, 300), jnp.int8)  # other channels than the table's
    call = jax.ffi.ffi_call("lowbit_kernels.cpu.fixed_matmul", shapes)
    x = jnp.ones((2, 6), jnp.int8)
    try:
        codes, _ = call(x, made.blocks, made.column_sums, made.table, config=np.asarray(numbers, np.int64))
    except jax.errors.JaxRuntimeError as error:
        assert "lowbit_kernels" in str(error)  # noqa: PT017 (either answer is right)
        return
    assert position < 10
    assert codes.shape == (2, 3)
