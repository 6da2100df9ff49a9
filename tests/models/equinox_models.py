"""Modules of Equinox, vmapped over examples as its users write them."""

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .case import Case, tokens, values

_KEY = jax.random.key(0)


def _case(module: Any, *args: Any, call: Callable[..., Any] | None = None) -> Case:
    params, static = eqx.partition(module, eqx.is_inexact_array)
    one = call or (lambda module, *args: module(*args))

    def fn(params: Any, *args: Any) -> Any:
        return jax.vmap(lambda *args: one(eqx.combine(params, static), *args))(*args)

    return Case(fn, params, args)


class _Net(eqx.Module):
    parts: list[Any]

    def __call__(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
        return x


class _Recurrent(eqx.Module):
    cell: Any
    out: eqx.nn.Linear

    def __call__(self, xs: Any) -> Any:
        h = jnp.zeros(self.cell.hidden_size)
        start = (h, h) if isinstance(self.cell, eqx.nn.LSTMCell) else h
        after, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), start, xs)
        return self.out(after[0] if isinstance(after, tuple) else after)


def _convolution(rank: int, cls: Any) -> _Net:
    return _Net([cls(rank, 3, 8, 3, key=_KEY), jax.nn.relu, eqx.nn.Conv(rank, 8, 4, 1, key=_KEY)])


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yields names, and what makes the models."""
    nn = eqx.nn
    x = values(1, 4, 8)
    image = values(2, 2, 3, 8, 8)
    yield "MLP", lambda: _case(nn.MLP(8, 4, 16, 2, key=_KEY), x)
    yield "MLP of a scalar", lambda: _case(nn.MLP("scalar", "scalar", 16, 2, key=_KEY), x[:, 0])
    yield "Linear", lambda: _case(nn.Linear(8, 4, key=_KEY), x)
    for rank in (1, 2, 3):
        shape = (2, 3, *[6] * rank)
        yield f"Conv{rank}d", lambda rank=rank, shape=shape: _case(_convolution(rank, nn.Conv), values(3, *shape))
        yield (
            f"ConvTranspose{rank}d",
            lambda rank=rank, shape=shape: _case(_convolution(rank, nn.ConvTranspose), values(3, *shape)),
        )
    yield "Embedding", lambda: _case(_Net([nn.Embedding(90, 8, key=_KEY), nn.Linear(8, 4, key=_KEY)]), tokens(5))
    yield "LayerNorm", lambda: _case(_Net([nn.Linear(8, 8, key=_KEY), nn.LayerNorm(8), nn.Linear(8, 4, key=_KEY)]), x)
    yield "RMSNorm", lambda: _case(_Net([nn.Linear(8, 8, key=_KEY), nn.RMSNorm(8), nn.Linear(8, 4, key=_KEY)]), x)
    yield (
        "GroupNorm",
        lambda: _case(_Net([nn.Conv2d(3, 8, 3, key=_KEY), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1, key=_KEY)]), image),
    )
    yield (
        "pools",
        lambda: _case(
            _Net(
                [nn.Conv2d(3, 8, 3, key=_KEY), nn.MaxPool2d(2), nn.AvgPool2d(2), jnp.ravel, nn.Linear(128, 4, key=_KEY)]
            ),
            image,
        ),
    )
    attention = lambda m, x: m(x, x, x)  # noqa: E731
    yield "MultiheadAttention", lambda: _case(nn.MultiheadAttention(2, 8, key=_KEY), values(4, 3, 5, 8), call=attention)
    yield (
        "RotaryPositionalEmbedding",
        lambda: _case(
            _Net(
                [
                    jax.vmap(nn.Linear(8, 8, key=_KEY)),
                    nn.RotaryPositionalEmbedding(8),
                    jax.vmap(nn.Linear(8, 4, key=_KEY)),
                ]
            ),
            values(4, 3, 5, 8),
        ),
    )
    yield (
        "GRUCell",
        lambda: _case(_Recurrent(nn.GRUCell(8, 6, key=_KEY), nn.Linear(6, 4, key=_KEY)), values(5, 2, 5, 8)),
    )
    yield (
        "LSTMCell",
        lambda: _case(_Recurrent(nn.LSTMCell(8, 6, key=_KEY), nn.Linear(6, 4, key=_KEY)), values(5, 2, 5, 8)),
    )
    yield "WeightNorm", lambda: _case(nn.WeightNorm(nn.Linear(8, 4, key=_KEY)), x)
