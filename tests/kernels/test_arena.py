"""Operands of native calls that lie in one arena: read where they lie, and sliced out by everything else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit_kernels import StaticActivation, fused_conv, fused_matmul, pack_conv, pack_matrix, prepare, prepare_conv
from lowbit_kernels.cpu.arena import TYPES, Placed, is_placeable, place

R = np.random.default_rng(5)
GRID = StaticActivation(jnp.float32(0.07), jnp.int32(-3))


def in_arena(tree):
    """The same tree, every array placed in one arena, under jit: ``(arena, of)``, ``of(arena)`` is the tree."""
    leaves, structure = jax.tree.flatten(tree)
    data, offsets = place(leaves)

    def of(arena):
        pieces = zip(leaves, offsets, strict=True)
        return jax.tree.unflatten(structure, [Placed(arena, at, tuple(x.shape), x.dtype) for x, at in pieces])

    return jnp.asarray(data), of


@pytest.mark.parametrize("dtype", TYPES)
def test_a_slice_of_the_arena_is_the_array(dtype):
    arrays = [jnp.asarray(R.integers(0, 100, shape), dtype) for shape in ((), (3, 5), (1,), (2, 33))]
    arena, of = in_arena(arrays)
    for placed, array in zip(of(arena), arrays, strict=True):
        assert placed.offset % 64 == 0
        assert (placed.ndim, placed.size) == (array.ndim, array.size)
        np.testing.assert_array_equal(placed.array(), array)
        np.testing.assert_array_equal(jnp.asarray(placed.reshape(-1)), array.reshape(-1))
        assert placed.reshape((1, *array.shape)).shape == (1, *array.shape)
    with pytest.raises(ValueError, match="reshape"):
        of(arena)[1].reshape(4, 4)


def test_what_may_be_placed():
    assert is_placeable(jnp.zeros(16, jnp.int8), 16)
    assert not is_placeable(jnp.zeros(17, jnp.int8), 16)  # too large
    assert not is_placeable(jnp.zeros(0), 16)
    assert not is_placeable(np.zeros(2, np.float32), 16)  # may change in place
    assert not is_placeable(jnp.zeros(2, jnp.uint32), 16)  # of no type that a native call reads


def _steps(x, grid):
    """float64: the codes of x less the zero point, by the grid's definition."""
    step = np.round(np.asarray(x, np.float32) * np.float32(1 / np.float32(grid.scale))).astype(np.float64)
    zero = float(grid.zero)
    return np.clip(step + zero, -128, 127) - zero


@pytest.mark.parametrize(("bits", "group"), [(8, 40), (4, 8)])
def test_a_matmul_reads_its_weight_and_grids_where_they_lie(bits, group):
    codes = R.integers(-(1 << (bits - 1)), 1 << (bits - 1), (40, 24))
    scales = np.ldexp(1.0, R.integers(-8, -4, (40 // group, 24))).astype(np.float32)  # products and sums are exact
    x = R.normal(size=(5, 40)).astype(np.float32)
    weight, grid = (
        prepare(pack_matrix(codes, scales, bits=bits, group=group)),
        dataclasses.replace(GRID, scale=jnp.float32(0.25)),
    )
    emit = StaticActivation(jnp.float32(0.5), jnp.int32(7))
    arena, of = in_arena((weight, grid, emit))

    def call(arena, x):
        weight, grid, emit = of(arena)
        return fused_matmul(x, weight, activation=grid, emit=emit, implementation="cpu")

    expected = _steps(x, grid) @ (codes * np.repeat(scales, group, 0).astype(np.float64)) * 0.25
    lowered = str(jax.jit(call).lower(arena, x).compile().as_text())
    for found in (jax.jit(call)(arena, x), jax.vmap(call, (None, 0))(arena, x[:, None])):
        np.testing.assert_array_equal(np.asarray(found.value).reshape(5, 24), expected)
        np.testing.assert_array_equal(
            np.asarray(found.codes).reshape(5, 24), np.clip(np.round(expected / 0.5) + 7, -128, 127)
        )
    assert "fusion" not in lowered  # nothing is cut out
    assert "slice" not in lowered


@pytest.mark.parametrize("groups", [1, 6])
def test_a_convolution_reads_its_weight_where_it_lies(groups):
    codes, x = R.integers(-128, 128, (3, 3, 6 // groups, 6)), R.integers(-128, 128, (2, 5, 5, 6)).astype(np.int8)
    weight = prepare_conv(pack_conv(codes, np.full(6, 0.5, np.float32), bits=8), feature_group_count=groups)
    grid = StaticActivation(jnp.float32(2.0), jnp.int32(0))
    arena, of = in_arena((weight, grid))

    def call(arena, x):
        weight, grid = of(arena)
        return fused_conv(
            x, weight, activation=grid, padding=((0, 0), (0, 0)), feature_group_count=groups, implementation="cpu"
        )

    expected = np.zeros((2, 3, 3, 6))
    for u in range(3):
        for v in range(3):
            window, tap = x[:, u : u + 3, v : v + 3].astype(np.float64), codes[u, v].astype(np.float64)
            expected += window * tap[0] if groups == 6 else window @ tap
    np.testing.assert_array_equal(jax.jit(call)(arena, x).value, expected)
