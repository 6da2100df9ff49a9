"""LQER: what rounding leaves of a weight, as far as a matrix of low rank holds it, is added by two thin products beside it.

Reference: Zhang, Cheng, Constantinides, Zhao, LQER: Low-Rank Quantization Error Reconstruction for LLMs, ICML 2024,
https://arxiv.org/abs/2402.02446, Eqs. (7) to (11): ``y = x Q + (x A) B`` with ``A B`` the best matrix of rank ``k`` for ``S (W - Q)``. With
``S^T S = H``, the second moment of the inputs (Zhang et al., QERA, ICLR 2025, https://arxiv.org/abs/2410.06040, Theorem 1), what is left of the
results' squared error is the sum of the squared singular values that are dropped, and no other matrix of that rank leaves less.

The function is rewritten to hold ``(x A) B`` beside ``x W``, with zeros, before it is bound; the solver rounds ``W``, and ``A`` and ``B`` take the
remainder. They stay floats whatever the plan does, in products of their own, and count in the report's bits per weight.

Differs from the papers: ``S`` is of the whole ``H``, damped as for the solver, not of its diagonal; ``Q`` is GPTQ's, not the nearest; rank is
what fits in a number of bits per weight; ``B`` is fitted to ``A`` as it is stored. Weights with any other use than products of data with
the whole matrix (convolutions, loops, look-ups) are left without, and the rewrite says so.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lowbit.core.ranges import MSE
from lowbit.interpret.bind import bind
from lowbit.program.evaluate import again
from lowbit.rewrites.products import Altered, Product, products, with_own
from lowbit.rewrites.scaling import first_batch
from lowbit.rewrites.traced import trace_model

from .gptq import GPTQ
from .recipe import Recipe, Remainder
from .thin import ThinProducts, damped, fitted

ROOT = "low_rank"


@dataclasses.dataclass(frozen=True)
class LowRank(ThinProducts):
    """The rewrite: ``(x A) B`` beside every product with a weight that will be quantized, ``A`` and ``B`` zeros."""

    def __call__(self, fn: Callable[..., Any], params: Any, state: Any) -> tuple[Altered, Any, Any]:
        if self.batches is None:
            raise ValueError("lqer has no batches: give LowRank(batches=[(x,)]), or lowbit.chain(..., batches=)")
        args = first_batch(self.batches, "lqer")
        rules = {"**": self.rules} if isinstance(self.rules, str) else self.rules
        quantized = bind(fn, rules, params, state, *args).leaf_sites()
        traced = trace_model(fn, params, state, args, {})
        matmuls, others = products(traced)
        matmuls = [product for product in matmuls if product.path in quantized]
        own, lines = {}, []
        for product in matmuls:
            if product.path in own:
                continue
            shape = traced.params[product.leaf].shape
            inner, outer = shape[product.inner], shape[1 - product.inner]
            rank, bits = self.rank_of(inner, outer)
            own[product.path] = {"a": jnp.zeros((inner, rank), self.dtype), "b": jnp.zeros((rank, outer), self.dtype)}
            lines.append(f"{product.path} -> low rank {rank}: {bits:.2f} bits per weight")
        left = {
            path: others.get(path, "it is read by no product with a matrix") for path in quantized if path not in own
        }
        lines += [f"{path}: left as it is: {why}" for path, why in left.items()]
        params = with_own(params, ROOT, own) if own else params
        return Altered(fn, "lqer", ROOT, tuple(matmuls), _beside, tuple(lines)), params, state


def _beside(product: Product, equation: Any, values: list[Any], own: Any) -> Any:
    whole = again(equation, values)[0]
    return whole + product.through(product.data(values), own["a"], own["b"]).astype(whole.dtype)


@dataclasses.dataclass(frozen=True)
class LowRankRemainder(Remainder):
    """``A`` and ``B`` of what rounding leaves.

    Attributes:
        damping: added to the diagonal of ``H``, as a share of its mean.
    """

    damping: float = 0.01

    root: ClassVar[str] = ROOT

    def taken(
        self,
        own: Mapping[str, Any],
        off: Float[np.ndarray, "matrix inner columns"],
        moment: Float[np.ndarray, "matrix inner inner"] | None,
    ) -> tuple[dict[str, Any], Float[np.ndarray, "matrix inner columns"]]:
        (a, b) = (next(path for path in own if path.endswith(f"/{end}")) for end in "ab")
        left = off[0].astype(np.float64)
        h = damped(moment, len(left), self.damping)
        values, vectors = np.linalg.eigh(h)
        root = np.sqrt(np.maximum(values, 1e-12 * values[-1]))
        turned, sizes, _ = np.linalg.svd((root[:, None] * vectors.T) @ left, full_matrices=False)
        rank = own[a].shape[1]
        share = np.sqrt(sizes[:rank])
        first = np.asarray(jnp.asarray((vectors / root) @ turned[:, :rank] * share, own[a].dtype))
        thin = first.astype(np.float64)  # as it is stored, rounded: B is fitted to it
        last = np.asarray(jnp.asarray(fitted(thin, left, h), own[b].dtype))
        back = thin @ last.astype(np.float64)
        return {a: first, b: last}, back[None].astype(np.float32)


def recipe() -> Recipe:
    """Returns the recipe ``lqer``."""
    return Recipe("lqer", GPTQ(), rewrite=LowRank(), inputs=MSE(), passes=4, remainder=LowRankRemainder())
