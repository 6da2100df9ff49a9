"""Silero VAD's network behind its spectrum, with its real pretrained weights: four convolutions, an LSTM, one output.

Silero Team, Silero VAD: pre-trained enterprise-grade voice activity detector, 2021-2025 (MIT). The weights are read from
``silero_vad_16k.safetensors`` in the package ``silero-vad``, whose own code needs torch and is not imported. The spectrum
that the network begins with is made by `experiments.data.speech`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from safetensors.numpy import load as read

from experiments.data import speech
from experiments.data.dataset import DataError, package_file, sha256
from lowbit.run import Model

INSTALL = "pip install --no-deps silero-vad==6.2.3"
FILE = "data/silero_vad_16k.safetensors"
CONTENT = "c59271c284ae9c8335d795d60e0bfdb71aaaceec578d9bd9ffc1b8153c319ea1"
STRIDES = (1, 2, 2, 1)
WIDTH = 128


def detect(params: Any, state: Any, x: Float[Array, "batch frames 4 bands"]) -> Float[Array, "batch frames"]:
    """Returns per frame the logit of speech; every sample begins in silence.

    Args:
        params: from `load`.
        state: not used.
        x: magnitudes, each band divided by its constant.
    """
    del state
    batch, frames, windows, bands = x.shape
    h = x.reshape(batch * frames, windows, bands)
    for i, stride in enumerate(STRIDES):
        layer = params[f"conv_{i}"]
        h = lax.conv_general_dilated(h, layer["kernel"], (stride,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC"))
        h = jax.nn.relu(h + layer["bias"])
    lstm = params["lstm"]
    given = h.reshape(batch, frames, WIDTH) @ lstm["input"] + lstm["bias"]

    def step(carry, now):
        hidden, cell = carry
        gates = now + hidden @ lstm["hidden"]
        i, f, g, o = (gates[:, k * WIDTH : (k + 1) * WIDTH] for k in range(4))
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (hidden, cell), hidden

    zeros = jnp.zeros((batch, WIDTH), x.dtype)
    _, found = lax.scan(step, (zeros, zeros), given.transpose(1, 0, 2))
    logits = jax.nn.relu(found) @ params["head"]["kernel"] + params["head"]["bias"]
    return logits[..., 0].transpose(1, 0)


def load(seed: int = 0) -> Model:
    """Returns the pretrained network; ``seed`` is not used.

    Raises:
        DataError: if the weights or the recordings, which the bands' constants come from, are not installed.
    """
    path = package_file("silero_vad", FILE, install=INSTALL)
    content = path.read_bytes()
    if (found := sha256(content)) != CONTENT:
        raise DataError(f"{path} is another file (sha256 {found[:12]}, expected {CONTENT[:12]}): {INSTALL}")
    w = read(content)
    params: dict[str, Any] = {}
    for i in range(4):
        kernel = w[f"conv{i + 1}.weight"].transpose(2, 1, 0)
        kernel = kernel * speech.band_scale()[:, None] if i == 0 else kernel
        params[f"conv_{i}"] = {"kernel": kernel, "bias": w[f"conv{i + 1}.bias"]}
    params["lstm"] = {
        "input": w["lstm_cell.weight_ih"].T,
        "hidden": w["lstm_cell.weight_hh"].T,
        "bias": w["lstm_cell.bias_ih"] + w["lstm_cell.bias_hh"],
    }
    params["head"] = {"kernel": w["final_conv.weight"][:, :, 0].T, "bias": w["final_conv.bias"]}
    return Model(detect, jax.tree.map(jnp.asarray, params), {})


def frame_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of frames, in percent, where a probability above one half says what the label says."""
    return 100 * float(np.mean((logits > 0) == (labels > 0)))
