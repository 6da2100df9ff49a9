"""The smaller of two tensors' elements."""

import jax.numpy as jnp

from lowbit.interpret.integer.joined import Joined


class Min(Joined):
    """A minimum."""

    name = "min"
    primitives = ("min",)
    join = staticmethod(jnp.minimum)


KIND = Min()
