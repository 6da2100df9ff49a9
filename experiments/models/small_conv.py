"""Three strided 3x3 convolutions and two dense layers for 28x28 images: five operations, every one quantized.

Kept narrow on purpose: a wide network absorbs 4-bit rounding (with 16-32-64 channels round-to-nearest W4A4 loses
about a point), a narrow one shows what the method is worth.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import lowbit as lb
from lowbit.run import Model


class SmallConv(nn.Module):
    """Logits of 28x28 images in [0, 1]."""

    widths: tuple[int, ...] = (8, 16, 16)
    hidden: int = 24
    classes: int = 10

    @nn.compact
    def __call__(self, x: Float[Array, "batch 28 28 1"]) -> Float[Array, "batch classes"]:
        for i, width in enumerate(self.widths):
            x = nn.relu(nn.Conv(width, (3, 3), strides=2, name=f"conv_{i}")(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.hidden, name="dense")(x))
        return nn.Dense(self.classes, name="head")(x)


def build(seed: int) -> Model:
    """Returns the network with parameters drawn from ``seed``."""
    module = SmallConv()
    variables = module.init(jax.random.key(seed), jnp.zeros((1, 28, 28, 1)))
    return Model(*lb.linen(module, variables))


def predict(logits: np.ndarray) -> np.ndarray:
    """Returns the most likely class of every image."""
    return logits.argmax(axis=-1)
