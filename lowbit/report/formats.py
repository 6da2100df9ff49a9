"""The table of number formats: bits, levels, ranges and errors, all computed."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.core.metrics import sqnr_db
from lowbit.core.spec import Spec
from lowbit.formats.lookup import format_words, spec_from_text
from lowbit.formats.optimum import LAPLACE, NORMAL, best_scale, levels_of
from lowbit.packed.arrays import quantize_array
from lowbit.packed.bits import unpack

GROUP = 128
"""Elements per float32 scale in the table, for formats that do not bring their own blocks."""


def format_table(words: Sequence[str] | None = None, *, samples: int = 2**18) -> list[dict[str, Any]]:
    """Returns a row per format: what a code costs, what it can say, and how well it says it.

    Columns: ``format``; ``text``, the spec measured; ``bits`` per element stored, scales included; ``levels``; ``largest``
    and ``smallest`` positive level; ``normal_db`` and ``laplace_db``, the signal to noise ratio of samples under the
    format's own scales (the largest magnitude of each block); ``best_normal_db`` and ``best_laplace_db``, that of the
    best single scale on the density, not sampled, None for 16 bits.

    Args:
        words: format words such as ``"int4"`` or ``"mxfp4"``; None for all.
        samples: per density; the standard error of the ratio is about ``12 / sqrt(samples)`` dB.

    Example:
        >>> (row,) = format_table(["nf4"], samples=2**14)
        >>> row["bits"], row["levels"], row["largest"]
        (4.25, 16, 1.0)
    """
    count = max(samples // 4096, 1)
    keys = jax.random.split(jax.random.key(0), 2)
    draws = {
        "normal_db": jax.random.normal(keys[0], (count, 4096)),
        "laplace_db": jax.random.laplace(keys[1], (count, 4096)),
    }
    return [_row(word, draws) for word in (format_words() if words is None else words)]


def _row(word: str, draws: dict[str, jax.Array]) -> dict[str, Any]:
    spec = _measured(word)
    levels = levels_of(spec.format)
    row: dict[str, Any] = {"format": word, "text": spec.text}
    measured: dict[str, float] = {}
    for column, x in draws.items():
        x = jnp.abs(x) if spec.format.low >= 0 else x
        q = quantize_array(x, spec.text, packed=True)
        row["bits"] = q.bits_per_element
        measured[column] = round(float(sqnr_db(x, unpack(q).dequantize())), 2)
    row |= {
        "levels": len(levels),
        "largest": float(spec.format.high),
        "smallest": float(levels[levels > 0].min()) if (levels > 0).any() else None,
        **measured,
    }
    for column, density in (("best_normal_db", NORMAL), ("best_laplace_db", LAPLACE)):
        is_small = spec.format.bits <= 8 and spec.format.low < 0
        row[column] = round(-10.0 * math.log10(best_scale(spec.format, density)[1]), 2) if is_small else None
    return row


def _measured(word: str) -> Spec:
    """The spec of a word: its own blocks, or groups of `GROUP`."""
    plain = spec_from_text(word, is_weight=True)
    return plain if plain.granularity.text != "channel" else spec_from_text(f"{word}/g{GROUP}", is_weight=True)
