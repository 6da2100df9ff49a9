"""A small transformer for images of 8x8 pixels: the rows are its tokens. Two blocks, 18 thousand weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import lowbit as lb
from experiments.data.digits import CLASSES, SIZE
from lowbit.run import Model


class DigitsTransformer(nn.Module):
    """Logits of 8x8 images in [0, 1]: norms before attention and before the feed-forward part, the mean of all rows."""

    width: int = 32
    hidden: int = 64
    heads: int = 4
    blocks: int = 2

    @nn.compact
    def __call__(self, x: Float[Array, "batch 8 8 1"]) -> Float[Array, "batch classes"]:
        place = self.param("place", nn.initializers.normal(0.1), (SIZE, self.width))
        x = nn.Dense(self.width, name="embed")(x[..., 0]) + place
        for i in range(self.blocks):
            given = nn.LayerNorm(name=f"norm_{i}a")(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=self.heads, name=f"attention_{i}")(given)
            given = nn.LayerNorm(name=f"norm_{i}b")(x)
            h = nn.gelu(nn.Dense(self.hidden, name=f"wide_{i}")(given))
            x = x + nn.Dense(self.width, name=f"narrow_{i}")(h)
        return nn.Dense(CLASSES, name="head")(x.mean(1))


def build(seed: int) -> Model:
    """Returns the network with parameters drawn from ``seed``."""
    module = DigitsTransformer()
    return Model(*lb.linen(module, module.init(jax.random.key(seed), jnp.zeros((1, SIZE, SIZE, 1)))))
