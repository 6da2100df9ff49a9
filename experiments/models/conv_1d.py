"""Four convolutions with batch norm and a dense layer for signals of 40 samples: narrow, so that few bits cost something.

Batch norm stands between every quantized convolution and its ReLU, as in the networks of the papers compared on it:
DoReFa and PACT take the scale out of the weights, and DoReFa clips what comes out at 1.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import lowbit as lb
from lowbit.run import Model


class Conv1D(nn.Module):
    """Logits of signals.

    Attributes:
        widths: output channels of the convolutions.
        strides: theirs.
        classes: outputs.
        train: whether batch norm uses the batch's statistics.
    """

    widths: tuple[int, ...] = (16, 16, 16, 16)
    strides: tuple[int, ...] = (2, 2, 1, 2)
    classes: int = 10
    train: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch 40 1"]) -> Float[Array, "batch classes"]:
        for i, (width, stride) in enumerate(zip(self.widths, self.strides, strict=True)):
            x = nn.Conv(width, (5,) if i == 0 else (3,), strides=stride, use_bias=False, name=f"conv_{i}")(x)
            x = nn.relu(nn.BatchNorm(not self.train, momentum=0.9, name=f"norm_{i}")(x))
        return nn.Dense(self.classes, name="head")(x.reshape(x.shape[0], -1))


def build(seed: int) -> Model:
    """Returns the network with parameters drawn from ``seed``."""
    variables = Conv1D().init(jax.random.key(seed), jnp.zeros((1, 40, 1)))
    train_fn = lb.linen(Conv1D(train=True), variables, mutable=("batch_stats",))[0]
    return Model(*lb.linen(Conv1D(), variables), train_fn)
