"""Dense layers with more than two axes, as every compiler has them: ``y[..., N] = x[..., K] @ w[K, N]``.

Not the view of `lowbit.core.matrix`: ``K`` is in the order in which the dot names its axes, not the leaf's, so that an input whose
contracted axes lie last already is not moved at run time.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from lowbit.core.qtensor import QTensor
from lowbit.interpret.matmul import Matmul


@dataclasses.dataclass(frozen=True)
class Dense:
    """A dot with a weight of several output or contracted axes (attention heads), flattened.

    Attributes:
        weight: of shape ``(K, N)``.
        order: the transposition of the input that puts contracted axes last.
        contracted: how many those are.
        free: the lengths of the weight's output axes.
    """

    weight: QTensor
    order: tuple[int, ...]
    contracted: int
    free: tuple[int, ...]

    @classmethod
    def of(cls, matmul: Matmul, rank: int, weight: QTensor) -> "Dense | None":
        """Returns the flattened form, or None where the dot is plain already, or has no such form.

        Args:
            matmul: the operation; the weight is its right operand.
            rank: of the input.
            weight: with one code per element.
        """
        if matmul.name != "dot_general" or weight.groups:
            return None
        (lc, rc), (lb, rb) = dict(matmul.params)["dimension_numbers"]
        if lb or rb or (weight.ndim == 2 and len(rc) == 1):
            return None
        free = [i for i in range(weight.ndim) if i not in rc]
        lengths = tuple(weight.shape[i] for i in free)

        def flat(x: Array) -> Array:
            return jnp.transpose(x, [*rc, *free]).reshape(math.prod(x.shape[i] for i in rc), -1)

        def spread(scale: Array) -> Array:
            full = [
                n if i in free and any(scale.shape[j] != 1 for j in free) else 1 for i, n in enumerate(weight.shape)
            ]
            return flat(jnp.broadcast_to(scale, full))

        zero = None if weight.zero is None else spread(weight.zero)
        moved = dataclasses.replace(weight, codes=flat(weight.codes), scale=spread(weight.scale_values), zero=zero)
        order = (*(i for i in range(rank) if i not in lc), *lc)
        return cls(moved, order, len(lc), lengths)

    def left(self, x: Array) -> Array:
        """Returns the input as ``(..., K)``."""
        if self.order != tuple(range(x.ndim)):
            x = jnp.transpose(x, self.order)
        lead = x.shape[: x.ndim - self.contracted]
        return x if self.contracted == 1 else x.reshape(*lead, -1)

    def product(self, x: Array, weight: Array) -> Array:
        """Returns ``x @ w``, in float32."""
        dims = (((x.ndim - 1,), (0,)), ((), ()))
        return lax.dot_general(x, weight, dims, preferred_element_type=jnp.float32)

    def flat(self, constant: np.ndarray, rank: int) -> np.ndarray | None:
        """Returns a constant that broadcasts to the result as one that does before `restore`; None where it differs elsewhere.

        Args:
            constant: broadcasts to the result.
            rank: of the result.
        """
        wide = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
        lead = rank - len(self.free)
        if any(n != 1 for n in wide.shape[:lead]):
            return None
        return np.broadcast_to(wide.reshape(wide.shape[lead:]), self.free).ravel() if wide.size > 1 else wide.ravel()

    def restore(self, y: Array) -> Array:
        """Returns the result with all its axes."""
        return y if len(self.free) == 1 else y.reshape(*y.shape[:-1], *self.free)
