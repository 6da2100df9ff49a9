"""The larger of two tensors' elements."""

import jax.numpy as jnp

from lowbit.interpret.integer.joined import Joined


class Max(Joined):
    """A maximum."""

    name = "max"
    primitives = ("max",)
    join = staticmethod(jnp.maximum)


KIND = Max()
