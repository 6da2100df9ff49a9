"""A sum or difference of two tensors."""

import jax.numpy as jnp

from lowbit.interpret.integer.joined import Joined


class Add(Joined):
    """A sum or difference."""

    name = "add"
    primitives = ("add", "add_any", "sub")
    join = staticmethod(jnp.add)
    is_linear = True


KIND = Add()
