"""A convolutional network for images of 8x8 pixels: two convolutions, two dense layers, 284 thousand weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import lowbit as lb
from experiments.data.digits import CLASSES, SIZE
from lowbit.run import Model


class DigitsConv(nn.Module):
    """Logits of 8x8 images in [0, 1]."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch 8 8 1"]) -> Float[Array, "batch classes"]:
        x = nn.relu(nn.Conv(32, (3, 3), name="conv_0")(x))
        x = nn.relu(nn.Conv(64, (3, 3), strides=2, name="conv_1")(x))
        x = nn.relu(nn.Dense(256, name="dense")(x.reshape(x.shape[0], -1)))
        return nn.Dense(CLASSES, name="head")(x)


def build(seed: int) -> Model:
    """Returns the network with parameters drawn from ``seed``."""
    module = DigitsConv()
    return Model(*lb.linen(module, module.init(jax.random.key(seed), jnp.zeros((1, SIZE, SIZE, 1)))))
