"""Small networks in which channels go through all that networks do to them, in evaluation."""

import jax
import jax.numpy as jnp
from jax import lax

from tests.interpret.zoo import Case
from tests.values import normal


def _conv(x, w, stride=1, **options):
    return lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


def mobile(relu=jax.nn.relu) -> Case:
    """Expansion, depthwise, projection, a residual sum, a pool, a head."""
    shapes = {"stem": (3, 3, 3, 4), "up": (1, 1, 4, 12), "deep": (3, 3, 1, 12), "down": (1, 1, 12, 4), "head": (4, 5)}
    params = {k: {"w": normal(i, *s), "b": normal(20 + i, s[-1])} for i, (k, s) in enumerate(shapes.items())}

    def fn(p, x):
        x = relu(_conv(x, p["stem"]["w"], 2) + p["stem"]["b"])
        h = relu(_conv(x, p["up"]["w"]) + p["up"]["b"])
        h = relu(_conv(h, p["deep"]["w"], feature_group_count=12) + p["deep"]["b"])
        x = x + _conv(h, p["down"]["w"]) + p["down"]["b"]
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return x.mean((1, 2)) @ p["head"]["w"] + p["head"]["b"]

    return Case(fn, params, (normal(1, 2, 8, 8, 3),), 5)


def mobile6() -> Case:
    """The same with relu6."""
    return mobile(jax.nn.relu6)


def grouped() -> Case:
    """Two branches side by side, a shuffle of channels, a grouped convolution of two outputs a group and more."""
    params = {"a": normal(2, 5, 4), "b": normal(3, 5, 4), "g": normal(4, 3, 3, 2, 8), "out": normal(5, 8, 3)}

    def fn(p, x):
        h = jnp.concatenate([jax.nn.relu(x @ p["a"]), jnp.abs(x @ p["b"])], -1)
        h = h.reshape(*h.shape[:3], 2, 4).swapaxes(3, 4).reshape(h.shape)
        return jnp.maximum(_conv(h, p["g"], feature_group_count=4), 0.0).sum((1, 2)) @ p["out"]

    return Case(fn, params, (normal(6, 2, 4, 4, 5),), 4)


def gated() -> Case:
    """RMS norms with gains, two heads of queries to one of keys and values, a gated feed-forward; four layers in a scan."""
    d, hidden, layers = 8, 12, 4
    shapes = {
        "norm1": (d,), "q": (d, 4, 4), "k": (d, 2, 4), "v": (d, 2, 4), "o": (4, 4, d), "norm2": (d,), "gate": (d, hidden),
        "up": (d, hidden), "down": (hidden, d),
    }  # fmt: skip
    stacked = {k: 0.5 * normal(i, layers, *s) + float(len(s) == 1) for i, (k, s) in enumerate(shapes.items())}
    params = {
        "layers": stacked,
        "embed": normal(30, 11, d),
        "norm": 1.0 + 0.1 * normal(31, d),
        "head": normal(32, d, 11),
    }

    def rms(x, gain):
        return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * gain

    def layer(x, p):
        h = rms(x, p["norm1"])
        q, k, v = (jnp.einsum("btd,dhk->bthk", h, p[name]) for name in "qkv")
        k, v = (jnp.repeat(y, 2, 2) for y in (k, v))
        scores = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k) / 2.0)
        x = x + jnp.einsum("bthk,hkd->btd", jnp.einsum("bhts,bshk->bthk", scores, v), p["o"])
        h = rms(x, p["norm2"])
        return x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"], None

    def fn(p, tokens):
        x = lax.scan(layer, p["embed"][tokens], p["layers"])[0]
        return rms(x, p["norm"]) @ p["head"]

    return Case(fn, params, (jnp.asarray([[1, 5, 10, 3], [0, 2, 3, 7]]),), 12)


def carried() -> Case:
    """A stream that a scan of layers carries, without a norm: one set of channels for all layers."""
    params = {
        "in": normal(40, 5, 6),
        "up": 0.3 * normal(41, 3, 6, 7),
        "down": 0.3 * normal(42, 3, 7, 6),
        "out": normal(43, 6, 2),
    }

    def fn(p, x):
        def layer(x, w):
            return x + jax.nn.relu(x @ w[0]) @ w[1], None

        return lax.scan(layer, x @ p["in"], (p["up"], p["down"]))[0] @ p["out"]

    return Case(fn, params, (normal(44, 4, 5),), 4)


def repeated() -> Case:
    """Layers one after the other in a scan, each of which takes and makes the channels that it carries."""
    params = {"in": normal(70, 5, 6), "w": 0.5 * normal(71, 3, 6, 6), "out": normal(72, 6, 2)}

    def fn(p, x):
        return lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x @ p["in"], p["w"])[0] @ p["out"]

    return Case(fn, params, (normal(73, 4, 5),), 3)


def leaky() -> Case:
    """A leaky relu as a choice, padding, a part of the channels, a bias on one axis of two, a transposed weight."""
    params = {"a": normal(50, 6, 5), "b": normal(51, 6), "c": normal(52, 4, 8), "d": normal(53, 2, 3)}

    def fn(p, x):
        h = x @ p["a"].T + p["b"]
        h = jnp.where(h >= 0, h, 0.1 * h)
        first, second = h[:, :4], h[:, 4:]
        h = jnp.pad(first, ((0, 0), (2, 2)))
        return h @ p["c"].T + jnp.tanh(second @ p["d"])[:, :1]

    return Case(fn, params, (normal(54, 3, 5),), 3)


NETS = {f.__name__: f for f in (mobile, mobile6, grouped, gated, carried, repeated, leaky)}
