"""A weight as matrices, against indices written out."""

import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.core import blocks as block_ops
from lowbit.core.matrix import MatrixView
from lowbit.core.spec import Channel, Group, Operand, Spec, Tensor, Tile
from lowbit.formats.integer import Integer

VIEWS = [
    MatrixView((6, 4), (0,)),
    MatrixView((4, 6), (1,)),
    MatrixView((3, 3, 5, 8), (0, 1, 2)),
    MatrixView((3, 3, 1, 8), (0, 1, 2), feature_groups=8),
    MatrixView((3, 3, 2, 8), (0, 1, 2), feature_groups=4),
    MatrixView((2, 3, 6, 4), (2,), batch=(0, 1)),
    MatrixView((5, 2, 3), (0, 2), batch=(1,)),
]


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_matrices_and_back(view):
    leaf = jnp.arange(np.prod(view.shape), dtype=jnp.float32).reshape(view.shape)
    matrices = np.asarray(view.matrices(leaf))
    assert matrices.shape == view.size
    np.testing.assert_array_equal(view.leaf(jnp.asarray(matrices)), leaf)
    for index in np.ndindex(*view.shape):
        m = n = k = 0
        for axis in view.batch:
            m = m * view.shape[axis] + index[axis]
        for axis in view.contract:
            k = k * view.shape[axis] + index[axis]
        for axis in view.free:
            n = n * view.shape[axis] + index[axis]
        part, n = divmod(n, view.size[2])
        assert matrices[m * view.feature_groups + part, k, n] == leaf[index]


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_the_contraction_cut_in_parts_is_the_same_numbers(view):
    leaf = np.arange(np.prod(view.shape)).reshape(view.shape)
    count, inner, columns = view.size
    part = next(n for n in (2, 3, 5) if inner % n == 0)
    want = view.matrices(leaf).reshape(count, inner // part, part, columns)
    np.testing.assert_array_equal(view.matrices(leaf, (-1, part)), want)


@pytest.mark.parametrize("view", VIEWS, ids=str)
@pytest.mark.parametrize("granularity", [Tensor(), Channel(), Group(2), Group(4), Tile(2, 2)], ids=lambda g: g.text)
def test_scales_follow_their_entries(view, granularity):
    """``scale[group[k], n]`` is the scale of the entry, whatever shares it."""
    spec = Spec(Integer(4), granularity)
    blocks = granularity.blocks(Operand(view.shape, contract=view.contract))
    shape = block_ops.scale_shape(view.shape, blocks)
    scale = jnp.arange(1, np.prod(shape) + 1, dtype=jnp.float32).reshape(shape)
    spread = np.asarray(scale)
    for axis, (n, block) in enumerate(zip(view.shape, blocks, strict=True)):
        spread = np.repeat(spread, block, axis=axis).take(range(n), axis=axis) if block > 1 else spread
    group, scales = view.groups(spec)
    assert scales.scale_shape == shape
    matrices = scales.matrices(scale)
    np.testing.assert_array_equal(np.asarray(matrices)[:, np.asarray(group)], view.matrices(jnp.asarray(spread)))
    np.testing.assert_array_equal(scales.scale(matrices), scale)


def test_wrong_axes_are_said():
    with pytest.raises(ValueError, match="must be different axes"):
        MatrixView((3, 4), (0,), batch=(0,))
    with pytest.raises(ValueError, match="are not 3 groups"):
        MatrixView((3, 4), (0,), feature_groups=3)
    with pytest.raises(ValueError, match="must have the shape"):
        MatrixView((3, 4), (0,)).matrices(jnp.zeros((4, 3)))
