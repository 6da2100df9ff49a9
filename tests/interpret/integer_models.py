"""Small models for full-integer plans: a residual CNN, a transformer block, recurrent nets."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import lowbit as lb
from tests.values import normal, variables


class Model(NamedTuple):
    """``fn(params, *args)``."""

    fn: Any
    params: Any
    args: tuple[Any, ...]


def _linen(module: nn.Module, x: jax.Array) -> Model:
    fn, params, state = lb.linen(module, variables(module, x))
    params = jax.tree.map(lambda p: p + 0.1 * normal(p.size, *p.shape), params)  # biases and gains that matter
    return Model(fn, params, (state, x))


class _ResidualCNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3))(x))
        y = nn.relu6(nn.Conv(6, (3, 3), feature_group_count=6)(x))
        y = nn.Conv(6, (1, 1), use_bias=False)(y)
        x = nn.max_pool(nn.relu(x + y), (2, 2), (2, 2))
        return nn.Dense(5)(x.reshape(x.shape[0], -1))


def residual_cnn() -> Model:
    return _linen(_ResidualCNN(), normal(1, 3, 6, 6, 3))


class _Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8)(nn.LayerNorm()(x))
        h = nn.Dense(8)(nn.gelu(nn.Dense(12)(nn.LayerNorm()(x))))
        return (x + h).mean(1)


def transformer_block() -> Model:
    return _linen(_Block(), normal(2, 2, 5, 8))


def lstm() -> Model:
    return _linen(nn.RNN(nn.OptimizedLSTMCell(6)), normal(3, 2, 4, 5))


def gru() -> Model:
    return _linen(nn.RNN(nn.GRUCell(6)), normal(4, 2, 4, 5))


class _AudioNet(nn.Module):
    """Keywords: dilated convolutions along time, each with a residual, gates and a mean; a temporal convolutional network."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3,), strides=(2,))(x))
        for dilation in (1, 2):
            y = nn.Conv(8, (3,), kernel_dilation=(dilation,), feature_group_count=8)(x)
            gate = nn.sigmoid(nn.Conv(8, (1,))(y))
            x = x + nn.tanh(nn.Conv(8, (1,))(y)) * gate
        return nn.Dense(4)(nn.relu(x).mean(1))


def audio_net() -> Model:
    return _linen(_AudioNet(), normal(5, 2, 16, 5))


class _TokenTransformer(nn.Module):
    """Embeddings, positions, a causal block, a class."""

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(13, 8)(ids) + self.param("positions", nn.initializers.normal(0.1), (ids.shape[1], 8))
        mask = nn.make_causal_mask(ids)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8)(nn.LayerNorm()(x), mask=mask)
        h = nn.Dense(8)(nn.relu(nn.Dense(12)(nn.LayerNorm()(x))))
        return nn.Dense(3)((x + h).mean(1))


def token_transformer() -> Model:
    return _linen(_TokenTransformer(), jnp.asarray(np.random.default_rng(6).integers(0, 13, (2, 5)), jnp.int32))


WHOLE = {
    "residual_cnn": residual_cnn,
    "transformer_block": transformer_block,
    "lstm": lstm,
    "gru": gru,
    "audio_net": audio_net,
}
