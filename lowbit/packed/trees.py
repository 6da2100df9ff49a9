"""`QParams`: a packed model's parameters."""

import dataclasses
import math
from typing import Any

import jax

from lowbit.core import paths
from lowbit.core.qtensor import QTensor


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dropped:
    """The place of a parameter that a packed model does not need. No arrays.

    Attributes:
        shape: of the parameter.
        dtype: its dtype's name.
    """

    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QParams:
    """Packed parameters, and what the inputs need.

    Attributes:
        params: the tree of the float parameters, quantized leaves packed as `QTensor`.
        sites: by operation path, by role: the state of static inputs and the packed derived weights.
        fingerprint: of the plan they were packed with (`lowbit.plan.fingerprint`), or "" where it is not known.
    """

    params: Any
    sites: dict[str, dict[str, Any]]
    fingerprint: str = dataclasses.field(default="", metadata={"static": True})

    def weights(self) -> dict[str, QTensor]:
        """Returns the packed weights by path: leaves, then derived weights."""
        weights = {
            path: leaf for path, leaf in zip(*flatten(self.params)[:2], strict=True) if isinstance(leaf, QTensor)
        }
        for path, roles in self.sites.items():
            if isinstance(derived := roles.get("weight"), QTensor):
                weights[path] = derived
        return weights

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays: codes, scales, zero points, and the parameters left in float."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self))

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per quantized weight, scales and zero points included."""
        weights = self.weights().values()
        return 8 * sum(q.nbytes for q in weights) / max(sum(math.prod(q.shape) for q in weights), 1)


def flatten(params: Any) -> tuple[list[str], list[Any], Any]:
    """Returns paths, leaves and structure of packed parameters; a `QTensor` and a `Dropped` count as one leaf each."""
    return paths.flatten(params, is_leaf=lambda x: isinstance(x, Dropped))


def nbytes(tree: Any) -> int:
    """Returns the bytes of all arrays of a tree; a packed code counts its bits, not its dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> nbytes({"a": jnp.zeros((2, 3))})
        24
    """
    leaves = jax.tree.leaves(tree)
    odd = [leaf for leaf in leaves if not (hasattr(leaf, "size") and hasattr(leaf, "dtype"))]
    if odd or tree is None:
        got = odd[0] if odd else tree
        raise TypeError(f"tree must be a tree of arrays, got {got!r:.40} ({type(got).__name__})")
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
