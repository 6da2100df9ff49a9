"""The models of the edge tests: a CNN of 284 thousand weights, trained for seconds, and smaller ones of other shapes."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowbit as lb


class Model(NamedTuple):
    """A function, its parameters, arguments, and batches to calibrate with."""

    fn: Any
    params: Any
    args: tuple[Any, ...]
    batches: Any


class _CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.relu(nn.Conv(64, (3, 3), strides=2)(x))
        x = nn.relu(nn.Dense(256)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


def _digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten 8x8 patterns, shifted, scaled and noisy: as hard to tell apart as written digits, and no download."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(0).uniform(size=(10, 8, 8)) ** 2
    labels = rng.integers(0, 10, count)
    shifts = rng.integers(-1, 2, (count, 2))
    images = np.stack([np.roll(patterns[y], s, (0, 1)) for y, s in zip(labels, shifts, strict=True)])
    images = images * rng.uniform(0.6, 1.0, (count, 1, 1)) + 0.1 * rng.normal(size=images.shape)
    return np.clip(images, 0.0, 1.0).astype(np.float32)[..., None], labels


@functools.cache
def digits_cnn(batch: int = 64) -> Model:
    """conv3x3x32 - conv3x3x64/2 - dense 1024x256 - dense 256x10."""
    images, labels = _digits(2048, 1)
    module = _CNN()
    fn, params, state = lb.linen(module, module.init(jax.random.key(0), jnp.asarray(images[:1])))
    rate = optax.sgd(0.02, momentum=0.9)

    @jax.jit
    def step(params, opt, x, y):
        loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(fn(p, state, x), y).mean()  # noqa: E731
        updates, opt = rate.update(jax.grad(loss)(params), opt)
        return optax.apply_updates(params, updates), opt

    opt = rate.init(params)
    for i in range(64):
        rows = slice(128 * (i % 16), 128 * (i % 16) + 128)
        params, opt = step(params, opt, jnp.asarray(images[rows]), jnp.asarray(labels[rows], jnp.int32))
    held, _ = _digits(batch, 2)
    return Model(fn, params, (state, jnp.asarray(held)), [(state, jnp.asarray(images[:256]))])


def accuracy(model: Model, outputs: np.ndarray) -> float:
    """The share of held-out images that the outputs name."""
    _, labels = _digits(len(model.args[1]), 2)
    return float(np.mean(np.argmax(outputs, -1) == labels))


def packed(model: Model, rules: Any, **options: Any) -> tuple[Any, Any]:
    """The plan and the packed parameters."""
    plan = lb.bind(model.fn, rules, model.params, *model.args, **options)
    return plan, lb.pack(plan, model.params, lb.calibrate(model.fn, plan, model.params, model.batches))
