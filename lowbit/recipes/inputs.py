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


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Moments of the inputs of a weight, float32, as matrices (`lowbit.core.matrix.MatrixView`).

    Attributes:
        moment: ``E[x_q x_q^T]``.
        cross: ``E[x_q x^T]``, quantized inputs along the first axis; None: as if both were one.
        mean: ``E[x_q]``; None where no bias takes it back.
        float_mean: ``E[x]``; None with ``mean``.
    """

    moment: Float[np.ndarray, "matrix in in"]
    cross: Float[np.ndarray, "matrix in in"] | None = None
    mean: Float[np.ndarray, "matrix in"] | None = None
    float_mean: Float[np.ndarray, "matrix in"] | None = None

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
