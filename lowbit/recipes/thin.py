"""Two thin products beside a weight: how many directions they have, and what they are fitted to. Recipes that add them say of what."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lowbit.rewrites.given import Given


@dataclasses.dataclass(frozen=True)
class ThinProducts(Given):
    """A rewrite that puts ``(x A) B`` beside products with weights that will be quantized. Subclasses are final.

    Attributes:
        rank: at most.
        bits: that ``A`` and ``B`` may take per weight; one of rank 1 is always there.
        dtype: of both.
        rules: of what will be quantized, as `lowbit.bind` takes them; `lowbit.quantize` gives its own.
    """

    rank: int = 32
    bits: float = 0.5
    dtype: str = "bfloat16"
    rules: Any = dataclasses.field(default="w4", repr=False)

    def __post_init__(self):
        if self.rank < 1 or not self.bits > 0:
            raise ValueError(f"rank must be at least 1 and bits positive, got {self.rank} and {self.bits}")
        if not jnp.issubdtype(jnp.dtype(self.dtype), jnp.floating):
            raise ValueError(f"dtype must be one of floats, got {self.dtype!r}")

    def ruled(self, rules: Any) -> "ThinProducts":
        """Returns the same rewrite with rules."""
        return dataclasses.replace(self, rules=rules)

    def rank_of(self, inner: int, outer: int) -> tuple[int, float]:
        """Returns the rank beside a weight ``[inner, outer]``, and the bits per weight that it takes."""
        each = 8.0 * jnp.dtype(self.dtype).itemsize * (inner + outer) / (inner * outer)
        rank = max(1, min(self.rank, int(self.bits / each), inner, outer))
        return rank, rank * each


def damped(
    moment: Float[np.ndarray, "matrix inner inner"] | None, inner: int, damping: float
) -> Float[np.ndarray, "inner inner"]:
    """Returns ``H`` of the one matrix with a share of its mean added to the diagonal, float64; the identity where it says nothing."""
    h = np.eye(inner) if moment is None else moment[0].astype(np.float64)
    mean = np.mean(np.diag(h))
    return h + damping * mean * np.eye(inner) if mean > 0 else np.eye(inner)


def fitted(
    a: Float[np.ndarray, "inner rank"], left: Float[np.ndarray, "inner columns"], h: Float[np.ndarray, "inner inner"]
) -> Float[np.ndarray, "rank columns"]:
    """Returns the ``B`` for which ``A B`` is nearest to what is left, in the norm of ``H``: least squares, float64."""
    return np.linalg.lstsq(a.T @ h @ a, a.T @ h @ left, rcond=1e-12)[0]
