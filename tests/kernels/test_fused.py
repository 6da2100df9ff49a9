"""Fused calls: steps and the next grid's codes, bit for bit what separate operations give, written out in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit_kernels import (
    CpuConfig,
    StaticActivation,
    fused_conv,
    fused_matmul,
    pack_conv,
    pack_matrix,
    prepare,
    prepare_conv,
    prepare_steps,
    quant_conv,
    quant_matmul,
    quantize_static,
    status,
)

F = np.float32
MOST = np.finfo(F).max
GRIDS = [
    StaticActivation(jnp.float32(0.07), jnp.int32(5)),
    StaticActivation(jnp.float32(0.05), jnp.int32(120), 0, 255),
    StaticActivation(jnp.float32(0.5), jnp.int32(-2), -8, 7),
]


def product(a, b) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.clip(F(a) * F(b), -MOST, MOST))  # NaN passes


def grid_codes(value, grid):
    """Codes of float32 values, from the equation."""
    with np.errstate(invalid="ignore", over="ignore"):
        steps = np.rint(value * (F(1) / F(grid.scale)))
    steps = np.where(np.isnan(steps), F(0), steps)
    codes = np.clip(steps + F(grid.zero), grid.lo, grid.hi)
    return codes.astype(np.uint8 if grid.hi > 127 else np.int8)


def matmul_value(steps, levels, group, scales, x_scale):
    """float32 result from exact integer sums, groups added in ascending order."""
    total = None
    for g in range(scales.shape[0]):
        part = slice(g * group, (g + 1) * group)
        term = product((steps[:, part].astype(np.int64) @ levels[part].astype(np.int64)).astype(F), scales[g])
        total = term if total is None else F(total + term)
    return product(total, x_scale)


def follow(value, steps, residual=None):
    for kind, operand in steps:
        with np.errstate(over="ignore", invalid="ignore"):
            if kind == "add":
                value = F(value + operand)
            elif kind == "mul":
                value = product(value, operand)
            elif kind == "residual":
                more = value.shape[-1] - residual.shape[-1]
                value = F(value + np.pad(residual, [(0, 0)] * (value.ndim - 1) + [(0, more)]))
            else:
                value = (np.maximum if kind == "max" else np.minimum)(value, operand)
    return value


def random_steps(rng, out):
    steps = [("add", rng.standard_t(3, out).astype(F)), ("mul", rng.standard_t(3, out).astype(F)), ("max", 0.0)]
    steps += [("min", 6.0), ("max", rng.standard_normal(out).astype(F))]
    return [steps[i] for i in rng.permutation(5)[: rng.integers(0, 5)]]


def with_residual(rng, steps, shape, channels_last):
    """Every second time an array that is added as well, every other time of fewer channels."""
    if len(steps) % 2 == 0:
        return steps, None
    fewer = int(rng.integers(1, shape[-1] + 1)) if channels_last else shape[-1]
    at = int(rng.integers(0, len(steps) + 1))
    residual = rng.standard_t(3, (*shape[:-1], fewer)).astype(F)
    return [*steps[:at], ("residual", None), *steps[at:]], residual


def marks_of(value, grid):
    return np.where(np.isnan(value).any(-1), F(np.nan), F(grid.scale))


def matmul_case(index):
    rng = np.random.default_rng(index)
    rows, length, out = int(rng.integers(1, 40)), int(rng.integers(1, 100)), int(rng.integers(1, 50))
    bits = [2, 3, 4, 8][index % 4]
    group = length if index % 3 else int(rng.integers(1, length + 1))
    levels = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (length, out))
    scales = (rng.standard_t(3, (-(-length // group), out)) * 0.1).astype(F)
    packed = prepare(pack_matrix(levels, scales, bits=bits, group=group))
    x = rng.standard_t(3, (rows, length)).astype(F)
    return rng, packed, x, levels, group, scales


@pytest.mark.parametrize("index", range(24))
def test_a_fused_matmul_is_its_operations(index):
    rng, packed, x, levels, group, scales = matmul_case(index)
    grid, emit = GRIDS[index % 3], GRIDS[index % 2]
    shape = len(x), levels.shape[1]
    steps, residual = with_residual(rng, random_steps(rng, shape[1]), shape, index % 5 != 1)
    integers = grid_codes(x, grid)
    value = matmul_value(integers.astype(np.int64) - int(grid.zero), levels, group, scales, grid.scale)
    value = follow(value, steps, residual).astype(F)
    prepared = prepare_steps(steps, levels.shape[1])
    isa = status().isas[index % len(status().isas)]
    operand = jnp.asarray(integers if index % 2 else x)
    columns = {"x_columns": index % 4 == 1, "y_columns": index % 5 == 1}
    operand = operand.T if columns["x_columns"] else operand
    added = jnp.asarray(residual.T if columns["y_columns"] else residual) if residual is not None else None

    def call(x, packed, steps, residual):
        options = {"activation": grid, "emit": emit, "implementation": "cpu", "config": CpuConfig(isa=isa), **columns}
        options["residual"] = residual
        return fused_matmul(x, packed, steps=steps, **options), fused_matmul(
            x, packed, steps=steps, keep=False, **options
        )

    both, codes_only = (jax.jit(call) if index % 6 else call)(operand, packed, prepared, added)
    turn = np.transpose if columns["y_columns"] else np.asarray
    np.testing.assert_array_equal(both.value, turn(value))
    np.testing.assert_array_equal(both.codes, turn(grid_codes(value, emit)))
    np.testing.assert_array_equal(both.marks, marks_of(value, emit))
    assert both.codes.dtype == codes_only.codes.dtype == (jnp.uint8 if emit.hi > 127 else jnp.int8)
    assert codes_only.value is None
    np.testing.assert_array_equal(codes_only.codes, both.codes)


@pytest.mark.parametrize("activation", [None, "int8"])
def test_fused_steps_after_float_and_dynamic_products(activation):
    rng, packed, x, levels, _, _ = matmul_case(3)
    steps = [("add", rng.standard_t(3, levels.shape[1]).astype(F)), ("max", 0.0)]
    for isa in status().isas:
        options = {"activation": activation, "implementation": "cpu", "config": CpuConfig(isa=isa)}
        plain = np.asarray(quant_matmul(jnp.asarray(x), packed, **options))
        got = fused_matmul(
            jnp.asarray(x), packed, steps=prepare_steps(steps, levels.shape[1]), emit=GRIDS[0], **options
        )
        np.testing.assert_array_equal(got.value, follow(plain, steps))
        np.testing.assert_array_equal(got.codes, grid_codes(follow(plain, steps), GRIDS[0]))


def test_the_native_call_is_the_unfused_chain_of_jax():
    """The operations as XLA compiles them, NaN, infinities and zeros of both signs included."""
    rng, packed, x, levels, _, _ = matmul_case(4)
    out = levels.shape[1]
    bias = rng.standard_t(3, out).astype(F)
    bias[: min(6, out)] = [np.nan, np.inf, -np.inf, -0.0, 0.0, 3e38][:out]
    steps = [
        ("mul", F(1e30)),
        ("max", -0.0),
        ("add", bias),
        ("min", 0.0),
        ("max", 0.0),
        ("mul", -1.0),
        ("max", 0.0),
        ("add", bias),
    ]
    steps = prepare_steps(steps, out)
    x = jnp.asarray(x).at[1].set(0.0)

    @jax.jit
    def call(x, packed, steps):
        options = {"activation": GRIDS[1], "steps": steps, "emit": GRIDS[0]}
        isas = {isa: {"implementation": "cpu", "config": CpuConfig(isa=isa)} for isa in status().isas}
        return {
            name: fused_matmul(x, packed, **options, **chosen)
            for name, chosen in {"one by one": {"implementation": "reference"}, **isas}.items()
        }

    results = call(x, packed, steps)
    expected = results["one by one"]
    for isa, got in results.items():
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=isa)
        # Zeros have a sign and NaN none: XLA turns a product with -1 into a change of sign, which NaN's follows.
        signs = [np.signbit(r.value) & ~np.isnan(r.value) for r in (got, expected)]
        np.testing.assert_array_equal(*signs, err_msg=isa)
    assert np.isnan(expected.marks).all()
    assert len(np.unique(expected.codes)) > 2


def test_marks_carry_nan_to_the_next_operation():
    rng, packed, x, levels, _, _ = matmul_case(6)
    bias = jnp.zeros(levels.shape[1], jnp.float32)
    first = fused_matmul(jnp.asarray(x).at[2, 0].set(jnp.nan), packed, activation="int8",
                         steps=prepare_steps([("add", bias)], levels.shape[1]), emit=GRIDS[0])  # fmt: skip
    assert np.flatnonzero(np.isnan(first.marks)).tolist() == [2]
    second = prepare(pack_matrix(rng.integers(-8, 8, (levels.shape[1], 9)), np.ones((1, 9), F), bits=4))
    grid = StaticActivation(first.marks, GRIDS[0].zero, GRIDS[0].lo, GRIDS[0].hi)
    y = quant_matmul(first.codes, second, activation=grid, implementation="cpu")
    assert np.flatnonzero(np.isnan(y).all(1)).tolist() == np.flatnonzero(np.isnan(y).any(1)).tolist() == [2]


def conv_truth(codes, zero, levels, groups, stride, pads, dilation):
    """Exact integer sums of a convolution NHWC by HWIO, by loops over taps."""
    batch, height, width, _ = codes.shape
    kh, kw, inputs, out = levels.shape
    padded = np.pad(codes.astype(np.int64) - zero, ((0, 0), *pads, (0, 0)))
    sizes = [
        (n + sum(p) - (k - 1) * d - 1) // s + 1
        for n, p, k, d, s in zip((height, width), pads, (kh, kw), dilation, stride, strict=True)
    ]
    acc = np.zeros((batch, *sizes, out), np.int64)
    for u in range(kh):
        for v in range(kw):
            part = padded[:, u * dilation[0] :: stride[0], v * dilation[1] :: stride[1]][:, : sizes[0], : sizes[1]]
            for g in range(groups):
                wanted = slice(g * (out // groups), (g + 1) * (out // groups))
                acc[..., wanted] += part[..., g * inputs : (g + 1) * inputs] @ levels[u, v, :, wanted]
    return acc


@pytest.mark.parametrize("index", range(18))
def test_a_fused_convolution_is_its_operations(index):
    rng = np.random.default_rng(100 + index)
    groups = [1, 2, 3, 6, 1, 5][index % 6]
    depthwise = index % 6 == 5
    inputs, bits = (1, 8) if depthwise else (int(rng.integers(1, 20)), [8, 4, 2, 3][index % 4])
    out = groups if depthwise else groups * int(rng.integers(1, 20))
    kernel = tuple(int(n) for n in rng.integers(1, 4, 2))
    stride, dilation = tuple(rng.integers(1, 3, 2).tolist()), tuple(rng.integers(1, 3, 2).tolist())
    pads = tuple((int(a), int(b)) for a, b in rng.integers(0, 3, (2, 2)))
    levels = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (*kernel, inputs, out))
    scales = (rng.standard_t(3, out) * 0.05).astype(F)
    x = rng.standard_t(3, (2, 7, 8, inputs * groups)).astype(F)
    grid, emit = GRIDS[index % 3], GRIDS[index % 2]
    codes = grid_codes(x, grid)
    acc = conv_truth(codes, int(grid.zero), levels, groups, stride, pads, dilation)
    first = index % 2 == 1
    steps, residual = with_residual(rng, random_steps(rng, out), acc.shape, not first)
    value = follow(product(product(acc.astype(F), scales), grid.scale), steps, residual).astype(F)
    weights = levels.transpose(3, 2, 0, 1) if index % 3 == 1 else levels
    packed = pack_conv(weights, scales, bits=bits, layout="OIHW" if index % 3 == 1 else "HWIO")
    operand = jnp.asarray(codes if index % 4 == 1 else x)
    isa = status().isas[index % len(status().isas)]
    prepared_steps = prepare_steps(steps, out, feature_group_count=1 if depthwise else groups)
    turn = (lambda a: jnp.transpose(a, (0, 3, 1, 2))) if first else jnp.asarray
    got = jax.jit(
        lambda x, packed, steps, residual: fused_conv(
            x, packed, activation=grid, steps=steps, residual=residual, emit=emit, strides=stride, padding=pads, rhs_dilation=dilation,
            feature_group_count=groups, layout="NCHW" if first else "NHWC", implementation="cpu", config=CpuConfig(isa=isa),
        )
    )(turn(operand), prepare_conv(packed, feature_group_count=groups), prepared_steps, None if residual is None else turn(residual))  # fmt: skip
    np.testing.assert_array_equal(got.value, turn(value))
    np.testing.assert_array_equal(got.codes, turn(grid_codes(value, emit)))
    np.testing.assert_array_equal(got.marks, marks_of(value, emit))


def test_convolutions_in_one_dimension_and_marks():
    rng = np.random.default_rng(5)
    levels, scales = rng.integers(-8, 8, (5, 3, 4)), np.ones(4, F)
    x = rng.integers(-100, 100, (2, 3, 11)).astype(np.int8)
    grid = GRIDS[0]
    acc = conv_truth(x.transpose(0, 2, 1)[:, None], int(grid.zero), levels[None], 1, (1, 2), ((0, 0), (1, 2)), (1, 1))
    marks = np.full((2, 11), F(grid.scale))
    marks[1, 4] = np.nan
    value = product(acc.astype(F), grid.scale)[:, 0]
    # Window j sums over positions 2 j - 1 .. 2 j + 3.
    value[1, [j for j in range(value.shape[1]) if 2 * j - 1 <= 4 <= 2 * j + 3]] = np.nan
    packed = pack_conv(levels.transpose(2, 1, 0), scales, bits=4, layout="OIW")
    marked = StaticActivation(jnp.asarray(marks), grid.zero, grid.lo, grid.hi)
    for name in ("cpu", "reference"):
        got = quant_conv(jnp.asarray(x), packed, activation=marked, strides=(2,), padding=((1, 2),), layout="NCW",
                         implementation=name)  # fmt: skip
        np.testing.assert_array_equal(got, value.transpose(0, 2, 1), err_msg=name)


@pytest.mark.parametrize("groups", [1, 3, 36])
@pytest.mark.parametrize("is_everywhere", [False, True])
def test_marks_of_channels_keep_nan_in_the_groups_that_hold_it(groups, is_everywhere):
    """A product in 12 groups of 36 channels with NaN in some of them, then one of other groups, of its codes."""
    rng = np.random.default_rng(groups)
    grid, emit, ones = GRIDS[0], GRIDS[1], ((1, 1), (1, 1))
    x = rng.standard_t(3, (2, 6, 7, 24)).astype(F)
    x[1, 2, 3, 5] = np.nan
    levels, after = rng.integers(-8, 8, (1, 1, 2, 36)), rng.integers(-128, 128, (3, 3, 36 // groups, 36))
    bias = np.zeros(36, F)
    bias[33] = np.nan if is_everywhere else 1.0  # no mark is a number then
    acc = conv_truth(grid_codes(x, grid), int(grid.zero), levels, 12, (1, 1), ((0, 0), (0, 0)), (1, 1))
    value = product(acc.astype(F), grid.scale)
    value = (
        np.where(
            conv_truth(np.isnan(x), 0, np.ones_like(levels), 12, (1, 1), ((0, 0),) * 2, (1, 1)) > 0, F(np.nan), value
        )
        + bias
    )
    acc = conv_truth(grid_codes(value, emit), int(emit.zero), after, groups, (2, 1), ones, (1, 1))
    spread = conv_truth(np.isnan(value), 0, np.ones_like(after), groups, (2, 1), ones, (1, 1)) > 0
    wanted = np.where(spread, F(np.nan), product(acc.astype(F), emit.scale))
    assert is_everywhere or groups == 1 or 0 < spread.sum() < spread[..., 0].size * 9
    first = pack_conv(levels, np.ones(36, F), bits=4)
    second = pack_conv(after, np.ones(36, F), bits=8)
    steps = prepare_steps([("add", bias)], 36, feature_group_count=12)

    def chain(x, first, second, name, config=None):
        run = functools.partial(fused_conv, implementation=name, config=config)
        made = run(x, first, activation=grid, steps=steps, emit=emit, keep=False, by_channel=True, keeps_nan=True,
                   feature_group_count=12, padding="VALID")  # fmt: skip
        marked = StaticActivation(made.marks, emit.zero, emit.lo, emit.hi)
        return run(
            made.codes, second, activation=marked, strides=(2, 1), padding=ones, feature_group_count=groups
        ).value

    np.testing.assert_array_equal(chain(jnp.asarray(x), first, second, "reference"), wanted)
    prepared = prepare_conv(first, feature_group_count=12), prepare_conv(second, feature_group_count=groups)
    for isa in status().isas:
        got = jax.jit(functools.partial(chain, name="cpu", config=CpuConfig(isa=isa)))(jnp.asarray(x), *prepared)
        np.testing.assert_array_equal(got, wanted, err_msg=isa)


def test_fused_calls_map_over_stacked_weights():
    """Experts, heads, members: every operand with a batch axis, in one call."""
    rng = np.random.default_rng(7)
    packs = [prepare(pack_matrix(rng.integers(-8, 8, (20, 18)), np.ones((1, 18), F), bits=4)) for _ in range(3)]
    steps = [prepare_steps([("add", rng.standard_normal(18).astype(F))], 18) for _ in range(3)]
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)  # noqa: E731
    x = jnp.asarray(rng.standard_t(3, (3, 4, 20)), jnp.float32)

    def call(x, packed, steps):
        return fused_matmul(x, packed, activation=GRIDS[0], steps=steps, emit=GRIDS[1], implementation="cpu")

    for axes in ((0, 0, 0), (None, 0, 0), (0, None, 0), (0, None, None)):
        packed, each = (stack(packs) if axes[1] == 0 else packs[0]), (stack(steps) if axes[2] == 0 else steps[0])
        mapped = jax.jit(jax.vmap(call, axes))(x if axes[0] == 0 else x[0], packed, each)
        for i in range(3):
            one = call(x[i if axes[0] == 0 else 0], packs[i if axes[1] == 0 else 0], steps[i if axes[2] == 0 else 0])
            for a, b in zip(mapped, one, strict=True):
                np.testing.assert_array_equal(a[i], b)


def test_wrong_fused_calls_say_so():
    _, packed, x, levels, _, _ = matmul_case(4)
    x, out = jnp.asarray(x), levels.shape[1]
    with pytest.raises(ValueError, match="the steps are"):
        prepare_steps([("pow", 2.0)], out)
    with pytest.raises(ValueError, match=r"must be float32 \(\) or"):
        prepare_steps([("add", np.ones(out + 1, F))], out)
    with pytest.raises(ValueError, match="keep=False leaves no result"):
        fused_matmul(x, packed, activation=GRIDS[0], keep=False)
    with pytest.raises(ValueError, match=f"the result has {out}"):
        fused_matmul(x, packed, activation=GRIDS[0], steps=prepare_steps([("max", 0.0)], out + 1))
    with pytest.raises(ValueError, match="one scale"):
        fused_matmul(x, packed, activation=GRIDS[0], emit=StaticActivation(jnp.ones(3, jnp.float32)))
    assert quantize_static(x, GRIDS[1]).dtype == jnp.uint8
