"""Random small networks: dots of every layout, look-ups, convolutions, pools, residuals, activations, odd shapes."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "none": lambda x: x,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
}


@dataclasses.dataclass(frozen=True)
class Layer:
    """One step of a network.

    Attributes:
        kind: ``dense``, ``left`` (the weight is the left operand), ``moved`` (it is transposed and reversed in a jitted call),
            ``batched`` (one for each of two parts of the features, or for the one there is), ``conv``, ``depthwise``,
            ``residual``, ``max``, ``average``.
        features: that it makes; those that come in for the kinds that keep them.
        window: of a convolution or pool.
        stride: likewise.
        padding: ``SAME`` or ``VALID``.
        dilation: of a convolution.
        activation: of `ACTIVATIONS`, after it.
    """

    kind: str
    features: int = 0
    window: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: str = "SAME"
    dilation: int = 1
    activation: str = "none"


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, and the shape of its input: (batch, features) or (batch, height, width, channels).

    Where ``rows`` is positive the input is integers below it, ``shape`` is that of what they pick from a table, and the second
    argument is one integer, which picks a row that is added: look-ups of many rows and of one.
    """

    shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    head: int
    rows: int = 0

    def args(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Returns arguments made of normal values in the network's shape."""
        if not self.rows:
            return (x,)
        tokens = (jnp.abs(x[:, 0]) * 1e4).astype(jnp.int32) % self.rows
        return tokens, tokens.sum() % self.rows if len(x) else jnp.int32(0)

    def params(self, seed: int) -> dict[str, Any]:
        """Returns random parameters."""
        rng = np.random.default_rng(seed)

        def normal(*shape: int) -> jax.Array:
            fan = max(1, math.prod(shape[:-1]))
            return jnp.asarray(rng.standard_normal(shape) * fan**-0.5, jnp.float32)

        params, width = {}, self.shape[-1]
        if self.rows:
            params["table"], params["row"] = normal(self.rows, width), normal(self.rows, width)
        for i, layer in enumerate(self.layers):
            if layer.kind in ("left", "moved"):
                params[f"{i}"] = {"w": normal(width, layer.features).T, "b": 0.1 * normal(layer.features)}
            elif layer.kind == "batched":
                parts = _parts(width)
                params[f"{i}"] = {"w": normal(parts, width // parts, layer.features), "b": 0.1 * normal(layer.features)}
                width = parts * layer.features
                continue
            elif layer.kind == "dense":
                params[f"{i}"] = {"w": normal(width, layer.features), "b": 0.1 * normal(layer.features)}
            elif layer.kind in ("conv", "residual"):
                params[f"{i}"] = {
                    "w": normal(*layer.window, width, layer.features),
                    "b": 0.1 * normal(layer.features),
                }
            elif layer.kind == "depthwise":
                params[f"{i}"] = {"w": normal(*layer.window, 1, width), "b": 0.1 * normal(width)}
            width = layer.features
        flat = jax.eval_shape(self.body, params, jax.ShapeDtypeStruct(self.shape, jnp.float32))
        params["head"] = {"w": normal(flat.shape[-1], self.head)}
        return params

    def body(self, params: Any, x: jax.Array) -> jax.Array:
        """Everything but the last dense layer, flattened."""
        for i, layer in enumerate(self.layers):
            p = params.get(f"{i}")
            x = ACTIVATIONS[layer.activation](_apply(layer, p, x))
        return x.reshape(len(x), math.prod(x.shape[1:]))

    def __call__(self, params: Any, x: jax.Array, row: jax.Array | None = None) -> jax.Array:
        x = params["table"][x] + params["row"][row] if self.rows else x
        return self.body(params, x) @ params["head"]["w"]


def _parts(width: int) -> int:
    return 2 - width % 2


@jax.jit
def _moved(w: jax.Array) -> jax.Array:
    return jnp.flip(w.T, 0)


def _apply(layer: Layer, p: Any, x: jax.Array) -> jax.Array:
    if layer.kind == "dense":
        return x @ p["w"] + p["b"]
    if layer.kind == "left":
        return (p["w"] @ x.T).T + p["b"]
    if layer.kind == "moved":
        return x @ _moved(p["w"]) + p["b"]
    if layer.kind == "batched":
        parts = _parts(x.shape[-1])
        y = jnp.einsum("bpi,pio->bpo", x.reshape(len(x), parts, x.shape[-1] // parts), p["w"]) + p["b"]
        return y.reshape(len(x), parts * layer.features)
    window, strides = (1, *layer.window, 1), (1, *layer.stride, 1)
    if layer.kind == "max":
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, layer.padding)
    if layer.kind == "average":
        return lax.reduce_window(x, 0.0, lax.add, window, strides, "VALID") / (layer.window[0] * layer.window[1])
    y = lax.conv_general_dilated(
        x, p["w"], layer.stride, layer.padding, rhs_dilation=(layer.dilation, layer.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1] if layer.kind == "depthwise" else 1,
    )  # fmt: skip
    return x + y + p["b"] if layer.kind == "residual" else y + p["b"]


@st.composite
def dense_graphs(draw) -> Network:
    """One to three dense layers of odd widths."""
    layers = draw(st.lists(st.tuples(st.integers(1, 19), st.sampled_from(sorted(ACTIVATIONS))), min_size=1, max_size=3))
    shape = (draw(st.integers(1, 5)), draw(st.integers(2, 33)))
    return Network(shape, tuple(Layer("dense", n, activation=a) for n, a in layers), draw(st.integers(1, 7)))


@st.composite
def turned_graphs(draw) -> Network:
    """One to three dots of every layout, some behind look-ups, axes of length 1 among them."""
    kinds = st.tuples(
        st.sampled_from(["left", "moved", "batched"]), st.integers(1, 9), st.sampled_from(sorted(ACTIVATIONS))
    )
    layers = draw(st.lists(kinds, min_size=1, max_size=3))
    shape = (draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 7, 12])))
    made = tuple(Layer(kind, n, activation=a) for kind, n, a in layers)
    return Network(shape, made, draw(st.integers(1, 5)), rows=draw(st.sampled_from([0, 5])))


@st.composite
def image_graphs(draw) -> Network:
    """One to three layers on small images: every window fits what is left of the image."""
    height, width, channels = draw(st.integers(3, 9)), draw(st.integers(3, 9)), draw(st.integers(1, 9))
    shape = (draw(st.integers(1, 3)), height, width, channels)
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        kinds = ["conv", "depthwise", "residual", "max", "average"]
        kind = draw(st.sampled_from(kinds if channels > 1 else ["conv", "residual", "max", "average"]))
        window = draw(st.integers(1, min(3, height))), draw(st.integers(1, min(3, width)))
        layer = Layer(kind, channels, window, activation=draw(st.sampled_from(sorted(ACTIVATIONS))))
        if kind == "conv":
            layer = dataclasses.replace(layer, features=draw(st.integers(1, 13)), dilation=draw(st.integers(1, 2)))
        if kind != "residual":
            padding = "SAME" if layer.dilation > 1 else draw(st.sampled_from(["SAME", "VALID"]))
            stride = draw(st.integers(1, 2)), draw(st.integers(1, 2))
            layer = dataclasses.replace(layer, stride=stride, padding="VALID" if kind == "average" else padding)
        layers.append(layer)
        x = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
        out = jax.eval_shape(lambda x, layer=layer: _apply(layer, _ones(layer, x.shape[-1]), x), x)
        height, width, channels = out.shape[1:]
    return Network(shape, tuple(layers), draw(st.integers(1, 5)))


def _ones(layer: Layer, channels: int) -> Any:
    shape = (*layer.window, 1, channels) if layer.kind == "depthwise" else (*layer.window, channels, layer.features)
    return {"w": jnp.ones(shape), "b": jnp.ones(layer.features)}
