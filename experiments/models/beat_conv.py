"""A classifier of single heartbeats: three strided convolutions and two dense layers, without batch norm."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import lowbit as lb
from experiments.data.ecg5000 import CLASSES, SAMPLES
from lowbit.run import Model


class BeatConv(nn.Module):
    """Logits of beats of 140 samples."""

    widths: tuple[int, ...] = (12, 16, 24)
    kernels: tuple[int, ...] = (9, 7, 5)
    hidden: int = 32

    @nn.compact
    def __call__(self, x: Float[Array, "batch 140 1"]) -> Float[Array, "batch classes"]:
        for i, (width, kernel) in enumerate(zip(self.widths, self.kernels, strict=True)):
            x = nn.relu(nn.Conv(width, (kernel,), strides=3 if i == 0 else 2, name=f"conv_{i}")(x))
        x = nn.relu(nn.Dense(self.hidden, name="dense")(x.reshape(x.shape[0], -1)))
        return nn.Dense(CLASSES, name="head")(x)


def build(seed: int) -> Model:
    """Returns the network with parameters drawn from ``seed``."""
    module = BeatConv()
    return Model(*lb.linen(module, module.init(jax.random.key(seed), jnp.zeros((1, SAMPLES, 1)))))
