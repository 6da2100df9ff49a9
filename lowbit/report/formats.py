"""The table of number formats: bits, levels, ranges and errors, all computed."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.core.metrics import sqnr_db
from lowbit.core.spec import Spec
from lowbit.formats.density import LAPLACE, NORMAL, rectified
from lowbit.formats.lookup import format_words, spec_from_text
from lowbit.formats.optimum import best_scale, levels_of
from lowbit.packed.arrays import quantize_array

from .tables import Table

GROUP = 128
"""Elements per float32 scale in the table, for formats that do not bring their own blocks."""


def format_table(words: Sequence[str] | None = None, *, samples: int = 2**18) -> list[dict[str, Any]]:
    """Returns a row per format: what a code costs, what it can say, and how well it says it.

    Columns: ``format``; ``text``, the spec measured; ``bits`` per element stored, scales included; ``levels``; ``largest``
    and ``smallest`` positive level; ``normal_db`` and ``laplace_db``, the signal to noise ratio of samples under the
    format's own scales (the largest magnitude of each block); ``best_normal_db`` and ``best_laplace_db``, that of the
    best single scale on the density, not sampled, None for 16 bits. Formats without negative levels are given
    magnitudes, in all four.

    Args:
        words: format words such as ``"int4"`` or ``"mxfp4"``, with options or without; None for all.
        samples: per density; the standard error of the ratio is about ``12 / sqrt(samples)`` dB.

    Raises:
        ValueError: for a word that is none; the nearest are named.

    Example:
        >>> (row,) = format_table(["nf4"], samples=2**14)
        >>> row["bits"], row["levels"], row["largest"]
        (4.25, 16, 1.0)
    """
    count = max(samples // 4096, 1)
    keys = jax.random.split(jax.random.key(0), 2)
    draws = jnp.stack([jax.random.normal(keys[0], (count, 4096)), jax.random.laplace(keys[1], (count, 4096))])
    measured = [(word, _measured(word)) for word in (format_words() if words is None else words)]
    return [_row(word, spec, draws) for word, spec in measured]


def as_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Returns the rows of `format_table` as a table of text."""
    columns = ["format", "spec", "bits", "levels", "largest", "smallest", "normal dB", "laplace dB"]
    columns += ["best normal", "best laplace"]
    lines = []
    for row in rows:
        dbs = [row[c] for c in ("normal_db", "laplace_db", "best_normal_db", "best_laplace_db")]
        numbers = [f"{row['bits']:.4g}", str(row["levels"]), f"{row['largest']:.6g}"]
        smallest = "-" if row["smallest"] is None else f"{row['smallest']:.3g}"
        lines.append([row["format"], row["text"], *numbers, smallest, *("-" if v is None else f"{v:.2f}" for v in dbs)])
    return Table("formats", columns, lines)


def _row(word: str, spec: Spec, draws: Float[Array, "density count length"]) -> dict[str, Any]:
    levels = levels_of(spec.format)
    is_unsigned = spec.format.low >= 0
    normal, laplace = (round(float(v), 2) for v in _ratios(jnp.abs(draws) if is_unsigned else draws, spec.text))
    row: dict[str, Any] = {
        "format": word,
        "text": spec.text,
        "bits": jax.eval_shape(lambda x: quantize_array(x, spec.text), draws[0]).bits_per_element,
        "levels": len(levels),
        "largest": float(spec.format.high),
        "smallest": float(levels[levels > 0].min()) if (levels > 0).any() else None,
        "normal_db": normal,
        "laplace_db": laplace,
    }
    for column, density in (("best_normal_db", NORMAL), ("best_laplace_db", LAPLACE)):
        seen = rectified(density) if is_unsigned else density
        is_small = spec.format.bits <= 8
        row[column] = round(10.0 * math.log10(seen.power / best_scale(spec.format, seen)[1]), 2) if is_small else None
    return row


@functools.partial(jax.jit, static_argnames="text")
def _ratios(draws: Float[Array, "density count length"], text: str) -> Float[Array, " density"]:
    return jax.lax.map(lambda x: sqnr_db(x, quantize_array(x, text, packed=False).dequantize()), draws)


def _measured(word: str) -> Spec:
    """The spec of a word: its own blocks, or groups of `GROUP`."""
    plain = spec_from_text(word, is_weight=True)
    has_own = plain.granularity.text != "channel" or "/" in word
    return plain if has_own else spec_from_text(f"{word}/g{GROUP}", is_weight=True)
