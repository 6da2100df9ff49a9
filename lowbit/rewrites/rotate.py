"""Rotation: outliers of single channels are spread over all of them, by orthogonal matrices that the weights hold.

Reference: Ashkboos, Mohtashami, Croci, Li, Cameron, Jaggi, Alistarh, Hoefler, Hensman, QuaRot: Outlier-Free 4-Bit Inference in Rotated
LLMs, NeurIPS 2024, https://arxiv.org/abs/2404.00456, sections 3 and 4: with ``Q`` orthogonal, weights that write to the residual stream
become ``W Q``, those that read it ``Q^T W``; heads of values are rotated between value and output projection. A norm without a
gain commutes with ``Q``.

Differs from the paper: where ``Q`` can go is found by data flow. Norms that subtract a mean keep doing so: ``Q`` then is drawn among
the matrices that keep the vector of ones, and no network is made another. Only what fuses into weights is rotated: nothing is added to the
graph, so the inputs of the second feed-forward weight, after its activation, are not.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lowbit.program.flow import INLINED
from lowbit.program.spaces import Space, spaces
from lowbit.program.turns import Side

from .given import Given
from .scaling import Scaled, first_batch
from .traced import trace_model


@dataclasses.dataclass(frozen=True)
class Rotate(Given):
    """The rewrite.

    Attributes:
        seed: of the signs and of the matrices that are no Hadamard matrices.
    """

    seed: int = 0

    def __call__(self, fn: Callable[..., Any], params: Any, state: Any) -> tuple[Scaled, Any, Any]:
        if self.batches is None:
            raise ValueError("rotate has no batches: give rotate(batches=[(x,)]), or lowbit.chain(..., batches=)")
        args = first_batch(self.batches, "rotate")
        traced = trace_model(fn, params, state, args, {}, inlined=INLINED)
        leaves, tree = jax.tree.flatten((params, state))
        paths = [*traced.paths, *(f"state/{path}" for path in traced.state_paths)]
        ones = [i for i, leaf in enumerate(leaves) if _is_ones(leaf)]
        rotated, fixed = spaces(traced.program, ones)
        lines = []
        for number, space in enumerate(rotated):
            q = rotation(space.size, keeps_ones=space.keeps_ones, seed=self.seed + number)
            for side in space.sides:
                leaves[side.leaf] = _turned(leaves[side.leaf], side, q)
            lines.append(_line(space, paths))
        lines += [f"{paths[f.side.leaf]}, axis {f.side.axis}: left as it is: {f.reason}" for f in fixed]
        params, state = jax.tree.unflatten(tree, leaves)
        return (
            Scaled(fn, "rotate", tuple(lines) or ("nothing here can be rotated, so all is left as it is",)),
            params,
            state,
        )


def _is_ones(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim > 0 and bool(np.all(np.asarray(leaf) == 1))


def _line(space: Space, paths: list[str]) -> str:
    kinds = {kind: [paths[s.leaf] for s in space.sides if s.kind == kind] for kind in ("maker", "taker", "bias")}
    ones = ", keeping the mean" if space.keeps_ones else ""
    return f"{', '.join(kinds['maker'])} -> {', '.join(kinds['taker'])}: {space.size} x {space.size}{ones}"


def _turned(leaf: Any, side: Side, q: np.ndarray) -> Any:
    """A leaf with one axis rotated, in blocks; float64, one cast at the end."""
    wide = np.moveaxis(np.asarray(leaf).astype(np.float64), side.axis, -1)
    blocks = wide.reshape(*wide.shape[:-1], -1, q.shape[0]) @ q
    return jnp.asarray(np.moveaxis(blocks.reshape(wide.shape), -1, side.axis).astype(np.float32)).astype(leaf.dtype)


def hadamard(size: int) -> Float[np.ndarray, "size size"]:
    """Returns the orthogonal Hadamard matrix of Sylvester, entries ``+- 1 / sqrt(size)``; float64.

    Args:
        size: a power of two.

    Example:
        >>> (hadamard(2) * 2**0.5).round(6).tolist()
        [[1.0, 1.0], [1.0, -1.0]]
    """
    if size < 1 or size & (size - 1):
        raise ValueError(f"size must be a power of two, got {size}")
    matrix = np.ones((1, 1))
    while matrix.shape[0] < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(size)


def rotation(size: int, *, keeps_ones: bool = False, seed: int = 0) -> Float[np.ndarray, "size size"]:
    """Returns an orthogonal matrix that spreads every channel over all; float64.

    A Hadamard matrix with random signs; times a random orthogonal matrix for the odd part of ``size``; where it must keep the
    vector of ones, a random orthogonal matrix of what is orthogonal to it.

    Args:
        size: of the matrix.
        keeps_ones: whether ``Q 1 = 1``.
        seed: of what is random.

    Example:
        >>> q = rotation(6, keeps_ones=True)
        >>> bool(np.allclose(q @ q.T, np.eye(6))), bool(np.allclose(q @ np.ones(6), 1.0))
        (True, True)
    """
    rng = np.random.default_rng(seed)
    if keeps_ones:
        if size == 1:
            return np.ones((1, 1))
        inner = np.eye(size)
        inner[1:, 1:] = _random(size - 1, rng)
        axis = np.eye(size)[0] - 1.0 / np.sqrt(size)
        mirror = np.eye(size) - 2.0 * np.outer(axis, axis) / (axis @ axis)  # takes the first axis to that of the ones
        return mirror @ inner @ mirror
    even = size & -size
    return np.kron(_random(size // even, rng), hadamard(even)) * rng.choice([-1.0, 1.0], size)[:, None]


def _random(size: int, rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return q * np.sign(np.diag(r))


def rotate(*, seed: int = 0, batches: Any = None) -> Rotate:
    """Returns the rewrite that rotates the residual stream and the heads of values, where weights can hold the matrices.

    Fold the gains of norms before: ``lowbit.chain(fold_gains(), rotate(), batches=...)``.

    Args:
        seed: of signs and random matrices.
        batches: one tuple of example arguments in a list is enough. None: those of `lowbit.chain`.

    Example:
        >>> params = {"a": jnp.eye(2), "b": jnp.eye(2)}
        >>> same, new, _ = rotate(batches=[(jnp.ones((1, 2)),)])(lambda p, s, x: x @ p["a"] @ p["b"], params, {})
        >>> print(same)
        rotate:
          a -> b: 2 x 2
          b, axis 1: left as it is: result is a result of the model
    """
    return Rotate(seed, batches=batches)
