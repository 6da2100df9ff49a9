"""A decoder's step as the engine takes it: the token is the input, the keys and values of those before it are the state."""

from typing import Any

import jax
import numpy as np

from experiments.models import decoder
from lowbit.run import Dataset, Model, unlabelled

WEIGHTS = ("*/q", "*/k", "*/v", "*/out", "*/up", "*/down")
"""Of every layer; the other operations are attention between computed operands."""


def step(params: Any, state: Any, x: jax.Array) -> jax.Array:
    """Returns the last layer's output ``[1, width]`` for one token ``[1, width]``."""
    return decoder.decode(params, x, state["keys"], state["values"])


def model(sizes: decoder.Sizes, seed: int) -> Model:
    """Returns a decoder of random weights, with a random cache."""
    key = jax.random.key(seed)
    params = jax.jit(decoder.init, static_argnums=1)(key, sizes)
    cache = (sizes.layers, sizes.heads, sizes.context, sizes.width // sizes.heads)
    state = {name: jax.random.normal(jax.random.fold_in(key, i), cache) for i, name in ((1, "keys"), (2, "values"))}
    return Model(step, params, state)


def token(sizes: decoder.Sizes) -> Dataset:
    """Returns one random token."""
    x = jax.random.normal(jax.random.fold_in(jax.random.key(0), 0), (1, sizes.width))
    return unlabelled("a random token", np.asarray(x))
