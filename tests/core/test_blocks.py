"""Blocks, against a NumPy loop."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.core import blocks, extremes
from lowbit.core.ranges import Full
from lowbit.core.spec import Channel, Group, Operand, Tensor, Tile
from lowbit.quantizers.rtn import rtn


@st.composite
def shape_and_blocks(draw):
    shape = tuple(draw(st.lists(st.sampled_from((1, 2, 5, 7)), min_size=1, max_size=3)))
    return shape, tuple(draw(st.integers(1, n)) for n in shape)


def slices(shape, cut):
    """The slice of every block, in the order of the flattened scale."""
    per_axis = [[slice(i, min(i + b, n)) for i in range(0, n, b)] for n, b in zip(shape, cut, strict=True)]
    return list(itertools.product(*per_axis))


@settings(max_examples=25, deadline=None)
@given(shape_and_blocks(), st.integers(0, 2**31 - 1))
def test_against_a_loop(sizes, seed):
    shape, cut = sizes
    x = np.random.default_rng(seed).standard_t(2, shape).astype(np.float32)
    expected = np.asarray([np.abs(x[s]).max() for s in slices(shape, cut)]).reshape(blocks.scale_shape(shape, cut))
    np.testing.assert_array_equal(blocks.reduce_blocks(jnp.asarray(x), cut, extremes.largest_magnitude), expected)
    np.testing.assert_array_equal(blocks.join(blocks.split(jnp.asarray(x), cut), shape, cut), x)
    spread = blocks.join(
        blocks.split(jnp.zeros(shape), cut) + blocks.spread(jnp.asarray(expected), shape, cut), shape, cut
    )
    for s, value in zip(slices(shape, cut), expected.reshape(-1), strict=True):
        assert (np.asarray(spread)[s] == value).all()
    for s, row in zip(slices(shape, cut), np.asarray(blocks.rows(jnp.asarray(x), cut)), strict=True):
        assert sorted(row[~np.isnan(row)]) == sorted(x[s].reshape(-1))


@pytest.mark.parametrize("shape", [(), (7,), (4, 5), (1, 5)])
def test_a_block_of_one_element_has_its_magnitude(shape):
    """No axis is shared then; a signed "magnitude" gave every negative element the scale of a block of zeros."""
    x = np.random.default_rng(0).standard_t(2, shape).astype(np.float32)
    found = blocks.reduce_blocks(jnp.asarray(x), (1,) * len(shape), extremes.largest_magnitude)
    np.testing.assert_array_equal(found, np.abs(x))
    operand = Operand(shape, contract=())
    spec = rtn("w8").weight.spec
    scale, _ = Full().of_values(jnp.asarray(x), operand, spec)
    np.testing.assert_allclose(np.asarray(scale, np.float64), np.abs(x).astype(np.float64) / 127, rtol=1e-6)


def test_granularities():
    operand = Operand((3, 3, 16, 8), contract=(0, 1, 2))
    assert Tensor().blocks(operand) == (3, 3, 16, 8)
    assert Channel().blocks(operand) == (3, 3, 16, 1)
    assert Group(4).blocks(operand) == (1, 1, 4, 1)
    assert Group(64).blocks(operand) == (1, 1, 16, 1)
    assert Tile(4, 2).blocks(operand) == (1, 1, 4, 2)
    stacked = Operand((5, 16, 8), contract=(1,), stack=1)
    assert Tensor().blocks(stacked) == (1, 16, 8)
    assert Channel().blocks(stacked) == (1, 16, 1)


def test_bad_granularities():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        Group(1)
    with pytest.raises(ValueError, match="positive sides"):
        Tile(0, 2)
    with pytest.raises(ValueError, match="needs a contracted axis"):
        Group(4).blocks(Operand((8,)))
    with pytest.raises(ValueError, match="contracted and a free axis"):
        Tile(2, 2).blocks(Operand((8,), contract=(0,)))
    with pytest.raises(ValueError, match="one entry per axis"):
        blocks.scale_shape((3, 4), (2,))


def test_empty_axis():
    assert blocks.scale_shape((0, 4), (1, 4)) == (1, 1)
    assert math.prod(blocks.scale_shape((), ())) == 1
