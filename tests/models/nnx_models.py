"""Flax's own nnx modules."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import nnx

import lowbit as lb

from .case import Case, tokens, values


def _case(make: Callable[[nnx.Rngs], Any], *args: Any) -> Case:
    model = make(nnx.Rngs(0))
    model.eval()
    fn, params, state = lb.nnx(model)
    return Case(lambda params, *args: fn(params, state, *args), params, args)


class _Attention(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return x + self.attention(self.norm(x))


class _Embedding(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.table = nnx.Embed(90, 8, rngs=rngs)

    def __call__(self, ids: Any) -> Any:
        return self.table.attend(jax.nn.gelu(self.table(ids)))


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yields names, and what makes the models."""
    x, image = values(1, 3, 8), values(2, 2, 8, 8, 3)
    yield "Linear", lambda: _case(lambda r: nnx.Linear(8, 4, rngs=r), x)
    yield (
        "LinearGeneral",
        lambda: _case(lambda r: nnx.LinearGeneral((4, 8), (2, 3), axis=(-2, -1), rngs=r), values(3, 3, 4, 8)),
    )
    yield "Einsum", lambda: _case(lambda r: nnx.Einsum("btk,kn->btn", (8, 4), (4,), rngs=r), values(4, 2, 3, 8))
    yield (
        "Conv, BatchNorm",
        lambda: _case(
            lambda r: nnx.Sequential(
                nnx.Conv(3, 8, (3, 3), rngs=r), nnx.BatchNorm(8, rngs=r), nnx.relu, nnx.Conv(8, 4, (1, 1), rngs=r)
            ),
            image,
        ),
    )
    yield "ConvTranspose", lambda: _case(lambda r: nnx.ConvTranspose(3, 8, (3, 3), (2, 2), rngs=r), image)
    yield (
        "GroupNorm",
        lambda: _case(
            lambda r: nnx.Sequential(
                nnx.Conv(3, 8, (3, 3), rngs=r), nnx.GroupNorm(8, num_groups=2, rngs=r), nnx.Conv(8, 4, (1, 1), rngs=r)
            ),
            image,
        ),
    )
    yield "MultiHeadAttention", lambda: _case(_Attention, values(5, 2, 5, 8))
    yield "Embed, tied", lambda: _case(_Embedding, tokens(2, 5))
    yield "LoRALinear", lambda: _case(lambda r: nnx.LoRALinear(8, 4, lora_rank=2, rngs=r), x)
    yield (
        "RNN of LSTM",
        lambda: _case(lambda r: nnx.RNN(nnx.OptimizedLSTMCell(8, 6, rngs=r), rngs=r), values(6, 2, 5, 8)),
    )
    yield "RNN of GRU", lambda: _case(lambda r: nnx.RNN(nnx.GRUCell(8, 6, rngs=r), rngs=r), values(6, 2, 5, 8))
    yield (
        "Bidirectional",
        lambda: _case(
            lambda r: nnx.Bidirectional(
                nnx.RNN(nnx.LSTMCell(8, 6, rngs=r), rngs=r), nnx.RNN(nnx.LSTMCell(8, 6, rngs=r), rngs=r), rngs=r
            ),
            values(6, 2, 5, 8),
        ),
    )
