"""What is known of the inputs of one weight, and the problem that its solver is given: which weight to aim at, in which norm.

With inputs ``x_q`` as what precedes leaves them, ``x`` of the float model, and a bias ``b`` behind the product, the error
``E |Q^T x_q + b' - W^T x - b|^2`` is least over ``b'`` where means agree, ``b' - b = W^T E[x] - Q^T E[x_q]``; what is left is
``tr((Q - W*)^T cov(x_q) (Q - W*))`` and a constant, with ``W*`` of `lowbit.solvers.target` for covariances. So where a
bias follows, second moments are taken about the mean, and the bias takes the mean back.

Reference: Nagel et al., 2019, https://arxiv.org/abs/1906.04721, section 4.2 (the bias); Zhang et al., Qronos, 2025,
https://arxiv.org/abs/2505.11695 (the target).
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from lowbit.core.moments import groups_of


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Moments of the inputs of a weight, float32, as matrices (`lowbit.core.matrix.MatrixView`).

    Attributes:
        moment: ``E[x_q x_q^T]``; of several groups of outputs as many for each matrix, one after the other.
        cross: ``E[x_q x^T]``, quantized inputs along the first axis; None: as if both were one.
        mean: ``E[x_q]``; None where no bias takes it back.
        float_mean: ``E[x]``; None with ``mean``.
        tokens: how many rows hold anything but zeros, by matrix; None: not counted.
    """

    moment: Float[np.ndarray, "matrix in in"]
    cross: Float[np.ndarray, "matrix in in"] | None = None
    mean: Float[np.ndarray, "matrix in"] | None = None
    float_mean: Float[np.ndarray, "matrix in"] | None = None
    tokens: Float[np.ndarray, " weight"] | None = None

    @property
    def few(self) -> float:
        """The share of directions of a matrix that no row can have had, of all inputs that are not dead; of the poorest that saw a row."""
        if self.tokens is None:
            return 0.0
        alive = np.sum(np.einsum("mkk->mk", self.moment) > 0, axis=1).reshape(len(self.tokens), -1).max(axis=1)
        return float(np.max(np.where(self.tokens > 0, 1.0 - self.tokens / np.maximum(alive, 1), 0.0), initial=0.0))

    def for_outputs(self, matrices: int, outputs: int) -> "Inputs":
        """Returns the same where groups of outputs are of one size, else with the mean moment of all outputs in place of theirs.

        Args:
            matrices: of the weight.
            outputs: of every one.
        """
        groups = len(self.moment) // matrices
        if outputs % groups == 0:
            return self
        share = np.bincount(groups_of(outputs, groups), minlength=groups) / outputs
        moment = np.einsum("mgkl,g->mkl", self.moment.reshape(matrices, groups, *self.moment.shape[1:]), share)
        return dataclasses.replace(self, moment=moment.astype(np.float32))

    def centered(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns ``cov(x_q)`` and ``cov(x_q, x)`` where a bias takes means back, else the moments as they are; float32."""
        if self.mean is None or self.float_mean is None:
            return self.moment, self.cross
        mean, other = self.mean.astype(np.float64), self.float_mean.astype(np.float64)
        moment = self.moment - mean[:, :, None] * mean[:, None, :]
        # A constant input has no variance: what is left of it is the rounding of float32 (eight eps of its mean square), which
        # is no direction to aim along.
        varies = np.einsum("mkk->mk", moment) > 1e-6 * np.einsum("mkk->mk", self.moment)
        moment = np.where(varies[:, :, None] & varies[:, None, :], moment, 0.0).astype(np.float32)
        if self.cross is None:
            return moment, None
        cross = self.cross - mean[:, :, None] * other[:, None, :]
        return moment, np.where(varies[:, :, None], cross, 0.0).astype(np.float32)

    def shift(self, weight: np.ndarray, rounded: np.ndarray) -> np.ndarray | None:
        """Returns what a bias must add so that means of results are the float model's, ``[matrix, out]``; None without means.

        Args:
            weight: float ``[matrix, in, out]``.
            rounded: the same on its grid.
        """
        if self.mean is None or self.float_mean is None:
            return None
        want, got = (
            (np.einsum("mkn,mk->mn", w.astype(np.float64), x))
            for w, x in ((weight, self.float_mean), (rounded, self.mean))
        )
        return (want - got).astype(np.float32)
