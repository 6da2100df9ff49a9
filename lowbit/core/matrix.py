"""A weight as matrices ``[K, N]``, and back: what a solver, a packer and an exporter mean by "a column".

``K`` runs over the contracted axes in leaf order, ``N`` over the others. What has inputs of its own is a matrix of its
own: a layer of a scanned stack, an expert, a group of a grouped convolution (a channel of a depthwise one). How the
input of an operation is read as rows of such a matrix is `lowbit.core.rows`.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from . import blocks as block_ops
from .blocks import is_split
from .spec import Operand, Spec

AnyArray = Array | np.ndarray
"""On a device or on the host: what comes out is where what comes in is."""


@dataclasses.dataclass(frozen=True)
class MatrixView:
    """How a weight is read as ``[matrix, K, N]``.

    Attributes:
        shape: of the leaf.
        contract: the contracted axes, in leaf order.
        batch: axes along which inputs differ: layers of a scan, experts. In leaf order.
        feature_groups: of a grouped convolution: the last free axis is cut in as many parts, each with its own inputs.

    Example:
        >>> view = MatrixView((3, 3, 1, 8), contract=(0, 1, 2), feature_groups=8)  # a depthwise convolution
        >>> view.matrices(jnp.zeros((3, 3, 1, 8))).shape
        (8, 9, 1)
    """

    shape: tuple[int, ...]
    contract: tuple[int, ...]
    batch: tuple[int, ...] = ()
    feature_groups: int = 1

    def __post_init__(self):
        axes = (*self.contract, *self.batch)
        if len(set(axes)) != len(axes) or not set(axes) <= set(range(len(self.shape))):
            raise ValueError(
                f"contract {self.contract} and batch {self.batch} must be different axes of a weight of {self.shape}"
            )
        columns = math.prod(self.shape[i] for i in self.free)
        if self.feature_groups < 1 or columns % self.feature_groups:
            raise ValueError(f"{columns} outputs of {self.shape} are not {self.feature_groups} groups of equal size")

    @classmethod
    def of(cls, operand: Operand, *, batch: tuple[int, ...] = (), feature_groups: int = 1) -> "MatrixView":
        """Returns the view of a plan's operand: its stacked layers are matrices of their own."""
        layers = tuple(range(operand.stack))
        return cls(tuple(operand.shape), tuple(operand.contract), (*layers, *batch), feature_groups)

    @property
    def free(self) -> tuple[int, ...]:
        """The axes that are outputs, in leaf order."""
        return tuple(i for i in range(len(self.shape)) if i not in self.contract and i not in self.batch)

    @property
    def size(self) -> tuple[int, int, int]:
        """``(matrices, K, N)``."""
        batch, inner, free = (math.prod(self.shape[i] for i in axes) for axes in (self.batch, self.contract, self.free))
        return batch * self.feature_groups, inner, free // self.feature_groups

    def matrices(self, leaf: Shaped[AnyArray, "..."], inner: Sequence[int] | None = None) -> Shaped[AnyArray, "..."]:
        """Returns an array of the leaf's shape as ``[matrix, K, N]``.

        Args:
            leaf: the array.
            inner: lengths that ``K`` is cut in, one of them -1 perhaps: ``[matrix, *inner, N]``.
        """
        if tuple(leaf.shape) != self.shape:
            raise ValueError(f"leaf must have the shape {self.shape}, got {tuple(leaf.shape)}")
        count, length, columns = self.size
        lengths = (length,) if inner is None else tuple(inner)
        moved = leaf.transpose((*self.batch, *self.contract, *self.free))
        if self.feature_groups == 1:
            return moved.reshape(count, *lengths, columns)
        cut = moved.reshape(count // self.feature_groups, length, self.feature_groups, columns)
        return cut.swapaxes(1, 2).reshape(count, *lengths, columns)

    def leaf(self, matrices: Shaped[AnyArray, "matrix inner columns"]) -> Shaped[AnyArray, "..."]:
        """Returns ``[matrix, K, N]`` as an array of the leaf's shape: the inverse of `matrices`."""
        if tuple(matrices.shape) != self.size:
            raise ValueError(f"matrices must have the shape {self.size}, got {tuple(matrices.shape)}")
        count, inner, columns = self.size
        cut = matrices.reshape(count // self.feature_groups, self.feature_groups, inner, columns)
        order = (*self.batch, *self.contract, *self.free)
        moved = cut.swapaxes(1, 2).reshape([self.shape[i] for i in order])
        return moved.transpose(tuple(int(i) for i in np.argsort(order)))

    def groups(self, spec: Spec, stack: int = 0) -> tuple[Int[Array, " in"], "ScaleView"]:
        """Returns the group of every row of ``K``, and how scales of the leaf's granularity are read by group.

        Args:
            spec: its granularity says which entries share a scale.
            stack: leading axes that never share a scale.
        """
        blocks = spec.granularity.blocks(Operand(self.shape, contract=self.contract, stack=stack))
        index = np.zeros(1, np.int32)
        for axis in self.contract:
            n, block = self.shape[axis], blocks[axis]
            along = np.arange(n) // block if is_split(n, block) else np.arange(n) if block == 1 else np.zeros(n, int)
            parts = int(along.max(initial=0)) + 1
            index = (index[:, None] * parts + along[None, :]).reshape(-1).astype(np.int32)
        return jnp.asarray(index), ScaleView(self, tuple(int(b) for b in blocks))


@dataclasses.dataclass(frozen=True)
class ScaleView:
    """How an array of the scale's shape is read as ``[matrix, group, N]``, and back.

    Attributes:
        view: of the weight.
        blocks: elements per scale along every axis of the leaf.
    """

    view: MatrixView
    blocks: tuple[int, ...]

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """The shape of the scale of the leaf."""
        return block_ops.scale_shape(self.view.shape, self.blocks)

    @property
    def is_tied(self) -> bool:
        """Whether outputs or matrices share a scale, so that no column can choose its own."""
        return any(self.blocks[i] > 1 and self.view.shape[i] > 1 for i in (*self.view.batch, *self.view.free))

    def _spread(self) -> MatrixView:
        """The view of the scale once it has an entry per output and matrix."""
        shape = tuple(self.scale_shape[i] if i in self.view.contract else n for i, n in enumerate(self.view.shape))
        return dataclasses.replace(self.view, shape=shape)

    def matrices(self, scale: Shaped[AnyArray, "..."]) -> Shaped[AnyArray, "matrix group columns"]:
        """Returns a scale of the leaf's granularity as ``[matrix, group, N]``, shared ones repeated."""
        for axis in (*self.view.batch, *self.view.free):
            n, block = self.view.shape[axis], self.blocks[axis]
            if block > 1 and n > 1:
                index = np.arange(n) // block if is_split(n, block) else np.zeros(n, np.int32)
                scale = scale[(slice(None),) * axis + (index,)]
        return self._spread().matrices(scale)

    def scale(self, matrices: Shaped[AnyArray, "matrix group columns"]) -> Shaped[AnyArray, "..."]:
        """Returns ``[matrix, group, N]`` in the scale's shape; of entries that share a scale, the first."""
        full = self._spread().leaf(matrices)
        for axis in (*self.view.batch, *self.view.free):
            n, block = self.view.shape[axis], self.blocks[axis]
            if block > 1 and n > 1:
                step = block if is_split(n, block) else n
                full = full[(slice(None),) * axis + (slice(None, None, step),)]
        return full
