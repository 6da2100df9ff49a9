"""Models of every kind the interpreter must read, small enough to run in a moment. Found by name, not listed."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

import lowbit as lb
from tests.values import kernel_init, normal, variables

DROPOUT_KEY = jax.random.key(9, impl="rbg")
"""XLA compiles its draws in a tenth of the time that those of the default generator take."""


class Case(NamedTuple):
    """A model: ``fn(params, *args)`` and how many operations it has."""

    fn: Any
    params: Any
    args: tuple[Any, ...]
    operations: int


def mlp() -> Case:
    params = {"a": {"kernel": normal(0, 12, 12)}, "b": {"kernel": normal(1, 12, 12), "bias": normal(2, 12)}}

    def fn(p, x):
        return jax.nn.relu(x @ p["a"]["kernel"]) @ p["b"]["kernel"] + p["b"]["bias"]

    return Case(fn, params, (normal(3, 12, 12),), 2)


class _ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (3, 3), strides=2, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Conv(6, (3, 3), feature_group_count=6, name="depthwise")(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        x = nn.ConvTranspose(4, (2, 2), strides=(2, 2))(x)
        x = nn.Conv(5, (3, 3), kernel_dilation=2, padding="VALID")(x)
        return nn.Dense(3, name="head")(x.reshape(x.shape[0], -1))


def _conv_net(train):
    x = normal(4, 2, 8, 8, 3)
    module = _ConvNet()
    if train:
        fn, params, state = lb.linen(module, variables(module, x), mutable=("batch_stats",), train=True)
        return Case(functools.partial(_with_rngs, fn), params, (state, x, DROPOUT_KEY), 5)
    fn, params, state = lb.linen(module, variables(module, x))
    return Case(fn, params, (state, x), 5)


def _with_rngs(fn, params, state, x, key):
    return fn(params, state, x, rngs={"dropout": key})


def linen_conv_eval() -> Case:
    return _conv_net(False)


def linen_conv_train() -> Case:
    return _conv_net(True)


class _NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 6, (3, 3), kernel_init=kernel_init, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List(
            [
                nnx.Linear(96, 8, kernel_init=kernel_init, rngs=rngs),
                nnx.Linear(8, 3, kernel_init=kernel_init, rngs=rngs),
            ]
        )

    def __call__(self, x):
        x = self.drop(nnx.relu(self.norm(self.conv(x)))).reshape(x.shape[0], -1)
        return self.layers[1](nnx.relu(self.layers[0](x)))


def _nnx(train):
    module = _NnxNet(nnx.Rngs(DROPOUT_KEY))
    module.train() if train else module.eval()
    fn, params, state = lb.nnx(module, mutable=train)
    return Case(fn, params, (state, normal(5, 2, 4, 4, 3)), 3)


def nnx_eval() -> Case:
    return _nnx(False)


def nnx_train() -> Case:
    return _nnx(True)


def attention() -> Case:
    module = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8)
    x = normal(6, 2, 5, 8)
    fn, params, state = lb.linen(module, variables(module, x))
    return Case(fn, params, (state, x), 6)


def lstm() -> Case:
    module = nn.RNN(nn.OptimizedLSTMCell(8))
    x = normal(7, 2, 5, 4)
    fn, params, state = lb.linen(module, variables(module, x))
    return Case(fn, params, (state, x), 2)


def weight_norm() -> Case:
    module = nn.WeightNorm(nn.Dense(8))
    x = normal(8, 4, 6)
    fn, params, state = lb.linen(module, variables(module, x))
    return Case(fn, params, (state, x), 1)


def standardised_conv() -> Case:
    params = {"conv": {"kernel": normal(9, 3, 3, 4, 5)}}

    def fn(p, x):
        w = p["conv"]["kernel"]
        w = (w - w.mean((0, 1, 2))) / (w.std((0, 1, 2)) + 1e-5)
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return Case(fn, params, (normal(10, 2, 6, 6, 4),), 1)


def lora() -> Case:
    params = {"kernel": normal(11, 8, 8), "a": normal(12, 8, 2), "b": normal(13, 2, 8)}
    return Case(lambda p, x: x @ (p["kernel"] + p["a"] @ p["b"]), params, (normal(14, 3, 8),), 1)


def tied_embedding() -> Case:
    params = {"embedding": normal(15, 11, 8), "proj": {"kernel": normal(16, 8, 8)}}

    def fn(p, tokens):
        x = jnp.take(p["embedding"], tokens, axis=0) @ p["proj"]["kernel"]
        return x @ p["embedding"].T

    return Case(fn, params, (jnp.array([[1, 5, 10], [0, 2, 3]]),), 3)


class _Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        h = nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        x = x + h
        return x + nn.Dense(8, name="down")(nn.gelu(nn.Dense(16, name="up")(x))), None


class _Stack(nn.Module):
    remat: bool = True

    @nn.compact
    def __call__(self, x):
        block = nn.remat(_Block, prevent_cse=False) if self.remat else _Block
        scanned = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return nn.Dense(4, name="head")(scanned(name="layers")(x, None)[0])


def scanned_remat() -> Case:
    x = normal(17, 2, 5, 8)
    module = _Stack()
    fn, params, state = lb.linen(module, variables(module, x))
    return Case(fn, params, (state, x), 9)


def ensemble() -> Case:
    params = {"kernel": normal(18, 3, 6, 4)}
    return Case(lambda p, x: jax.vmap(lambda w: jnp.tanh(x @ w))(p["kernel"]), params, (normal(19, 5, 6),), 1)


@jax.custom_vjp
def _doubled(x, w):
    return x @ w


_doubled.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (2.0 * g @ r[1].T, 2.0 * r[0].T @ g))


def own_gradient() -> Case:
    params = {"kernel": normal(20, 6, 6)}
    return Case(lambda p, x: _doubled(x, p["kernel"]), params, (normal(21, 4, 6),), 1)


def sliced_in_loop() -> Case:
    params = {"stack": normal(22, 3, 6, 6)}

    def fn(p, x):
        return lax.fori_loop(0, 3, lambda i, c: jnp.tanh(c @ p["stack"][i]), x)

    return Case(fn, params, (normal(23, 4, 6),), 1)


def branches() -> Case:
    params = {"a": normal(24, 6, 6), "b": normal(25, 6, 6)}

    def fn(p, x):
        return lax.cond(x.sum() > 0, lambda x: x @ p["a"], lambda x: jnp.sin(x @ p["b"]), x)

    return Case(fn, params, (normal(26, 4, 6),), 2)


def fused_qkv() -> Case:
    params = {"qkv": normal(27, 8, 3, 2, 4), "out": normal(28, 2, 4, 8)}

    def fn(p, x):
        q, k, v = jnp.moveaxis(jnp.einsum("btd,dchk->btchk", x, p["qkv"]), 2, 0)
        scores = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
        return jnp.einsum("bthk,hkd->btd", jnp.einsum("bhts,bshk->bthk", scores, v), p["out"])

    return Case(fn, params, (normal(29, 2, 5, 8),), 4)


def nested_jit() -> Case:
    params = {"w": normal(30, 6, 6)}

    @jax.jit
    def helper(x, w):
        return jnp.matmul(x, w)

    return Case(lambda p, x: helper(helper(x, p["w"]), p["w"]), params, (normal(31, 4, 6),), 2)


def half_precision() -> Case:
    params = {"kernel": normal(32, 8, 8)}

    def fn(p, x):
        return (x.astype(jnp.bfloat16) @ p["kernel"].astype(jnp.bfloat16)).astype(jnp.float32)

    return Case(fn, params, (normal(33, 4, 8),), 1)


def half_precision_residual() -> Case:
    """XLA keeps sums in float32 where one program reads them, and rounds them where a kernel does."""
    params = {"a": normal(50, 8, 8), "b": normal(51, 8, 8)}

    def fn(p, x):
        x = x.astype(jnp.bfloat16)
        for name in "ab":
            x = x * jnp.bfloat16(1.37) + jnp.tanh(x) @ p[name].astype(jnp.bfloat16)
        return x.astype(jnp.float32)

    return Case(fn, params, (normal(52, 64, 8),), 2)


def one_row() -> Case:
    """One token at one place, against a cache."""
    params = {"tokens": normal(34, 11, 8), "places": normal(35, 7, 8), "query": normal(36, 8, 8)}

    def fn(p, token, place, cache):
        x = p["tokens"][token] + lax.dynamic_index_in_dim(p["places"], place, keepdims=False)
        return (x[None] @ p["query"]) @ cache.T

    return Case(fn, params, (jnp.int32(7), jnp.int32(2), normal(37, 5, 8)), 4)


def rows_one_by_one() -> Case:
    params = {"tokens": normal(38, 11, 8), "out": normal(39, 8, 8)}

    def fn(p, tokens):
        return jax.vmap(lambda t: jax.nn.gelu(p["tokens"][t]))(tokens) @ p["out"]

    return Case(fn, params, (jnp.array([1, 10, 4]),), 2)


def experts() -> Case:
    """The expert of every token, chosen by a router."""
    params = {"router": normal(40, 8, 3), "experts": normal(41, 3, 8, 6), "bias": normal(42, 3, 6)}

    def fn(p, x):
        chosen = jnp.argmax(x @ p["router"], -1)
        return jax.vmap(lambda i, x: x @ p["experts"][i] + p["bias"][i])(chosen, x)

    return Case(fn, params, (normal(43, 5, 8),), 3)


def decoding() -> Case:
    """Greedy decoding with a cache: every turn looks up what the last one found."""
    params = {"tokens": normal(44, 11, 8), "places": normal(45, 4, 8), "key": normal(46, 8, 8)}

    def fn(p, token, cache):
        def turn(i, carry):
            token, cache, scores = carry
            x = p["tokens"][token] + lax.dynamic_slice(p["places"], (i, 0), (1, 8))[0]
            cache = lax.dynamic_update_slice(cache, (x @ p["key"])[None], (i, 0))
            scores = jax.nn.softmax(cache @ x) @ cache @ p["tokens"].T
            return jnp.argmax(scores).astype(jnp.int32), cache, scores

        return lax.fori_loop(0, 4, turn, (token, cache, jnp.zeros(11)))[2]

    return Case(fn, params, (jnp.int32(3), jnp.zeros((4, 8))), 5)


def depthwise_of_two_axes() -> Case:
    """As Keras keeps it: channels and how many results each has are two axes."""
    params = {"kernel": normal(47, 3, 3, 6, 1), "wide": normal(48, 3, 3, 6, 2)}

    def fn(p, x):
        for name in ("kernel", "wide"):
            w = p[name].reshape(3, 3, 1, -1)
            numbers = {"feature_group_count": 6, "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
            x = lax.conv_general_dilated(x, w, (1, 1), "SAME", **numbers)
        return x

    return Case(fn, params, (normal(49, 2, 6, 6, 6),), 2)


def _cases() -> dict[str, Any]:
    return {
        name: functools.cache(function)  # building one takes longer than most tests
        for name, function in globals().items()
        if callable(function) and getattr(function, "__annotations__", {}).get("return") is Case
    }


CASES = _cases()
