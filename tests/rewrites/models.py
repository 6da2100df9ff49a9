"""Networks with batch norm and dropout, in linen and nnx, for evaluation and training."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lowbit as lb
from tests.values import heavy_tailed, kernel_init, variables

NARROW = 6


class Model(NamedTuple):
    """The two functions of one network. ``weights``: parameters that a norm follows, by path."""

    fn: Any
    train_fn: Any
    params: Any
    state: Any
    x: Any
    kwargs: dict[str, Any]
    weights: tuple[str, ...]
    momentum: float = 0.9


class _Linen(nn.Module):
    """Conv (with a bias), depthwise conv, dense, each with a norm; dropout; a head without one."""

    @nn.compact
    def __call__(self, x, train=False):
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = nn.relu(norm()(nn.Conv(NARROW, (3, 3), strides=2, name="conv")(x)))
        x = nn.Conv(NARROW, (3, 3), feature_group_count=NARROW, use_bias=False, name="depthwise")(x)
        x = nn.relu(norm(use_scale=False)(x)).reshape(x.shape[0], -1)
        x = nn.relu(norm(use_bias=False)(nn.Dense(8, name="dense")(x)))
        x = nn.Dropout(0.25, deterministic=not train)(x)
        return nn.Dense(3, name="head")(x)


class _Nnx(nnx.Module):
    """The same network."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, NARROW, (3, 3), strides=2, kernel_init=kernel_init, rngs=rngs)
        self.norm_0 = nnx.BatchNorm(NARROW, momentum=0.9, rngs=rngs)
        self.depthwise = nnx.Conv(
            NARROW, NARROW, (3, 3), feature_group_count=NARROW, use_bias=False, kernel_init=kernel_init, rngs=rngs
        )
        self.norm_1 = nnx.BatchNorm(NARROW, momentum=0.9, use_scale=False, rngs=rngs)
        self.dense = nnx.Linear(16 * NARROW, 8, kernel_init=kernel_init, rngs=rngs)
        self.norm_2 = nnx.BatchNorm(8, momentum=0.9, use_bias=False, rngs=rngs)
        self.drop = nnx.Dropout(0.25, rngs=rngs)
        self.head = nnx.Linear(8, 3, kernel_init=kernel_init, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm_0(self.conv(x)))
        x = nnx.relu(self.norm_1(self.depthwise(x))).reshape(x.shape[0], -1)
        return self.head(self.drop(nnx.relu(self.norm_2(self.dense(x)))))


WEIGHTS = ("conv/kernel", "depthwise/kernel", "dense/kernel")


def _varied(tree, seed):
    """Every float vector moved by its own positive amounts, so that no statistic, scale or bias is 0 or 1."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: (
            jnp.asarray(np.asarray(x) + draw.uniform(0.2, 0.8, x.shape).astype(np.float32)) if _is_vector(x) else x
        ),
        tree,
    )


def _is_vector(x):
    return jnp.issubdtype(x.dtype, jnp.floating) and x.ndim == 1


@functools.cache
def linen_net() -> Model:
    module, x = _Linen(), heavy_tailed(4, 12, 8, 8, 3)
    values = variables(module, x)
    fn, params, state = lb.linen(module, values)
    train_fn, _, _ = lb.linen(module, values, mutable=("batch_stats",), train=True)
    kwargs = {"rngs": {"dropout": jax.random.key(9, impl="rbg")}}  # quick to compile
    return Model(fn, train_fn, _varied(params, 10), _varied(state, 50), x, kwargs, WEIGHTS)


@functools.cache
def nnx_net() -> Model:
    module = _Nnx(nnx.Rngs(jax.random.key(0, impl="rbg")))
    module.eval()
    fn, params, state = lb.nnx(module)
    module.train()
    train_fn, _, _ = lb.nnx(module, mutable=True)
    return Model(fn, train_fn, _varied(params, 10), _varied(state, 50), heavy_tailed(4, 12, 8, 8, 3), {}, WEIGHTS)
