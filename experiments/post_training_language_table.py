"""The table of post-training methods on a language model for the README, written by this and by nothing else.

``python -m experiments.post_training_language_table README.md`` renders ``experiments/results/post_training_language.json`` between the marks, after it
has taken in the pieces of ``--merge runs/post_training_language/summary.json``.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.matrix_table import write_block
from experiments.post_training import taken_in

RESULT = Path(__file__).parent / "results" / "post_training_language.json"
MARKS = (
    "<!-- language: written by python -m experiments.post_training_language_table README.md -->",
    "<!-- end of language -->",
)
RECIPES = ("rtn", "gptq", "lqer", "qep")
NOTE = (
    "Perplexity of packed parameters on the first 256 tokens of the first 16 texts of the Brown corpus, lower is better; brackets: 95 % by a "
    "bootstrap over texts; then bits per quantized weight with scales, and of `lqer` with its thin products. Calibration: {batches} windows of other "
    "texts. Weights alone are quantized, inputs stay floats; below the first row the embedding, which is the last weight too, is "
    "kept. *: at most the bar. The file's weights are in 4-bit blocks of 32 as shipped, so groups of 32 are helped by blocks that are there."
)


def cell(found: Mapping[str, Any] | None, bar: float | None, *, is_asked: bool) -> str:
    """Returns a perplexity with its interval and bits, and a star where it is at most the bar.

    Args:
        found: the piece, or None.
        bar: what it should be at most, or None.
        is_asked: whether the config asks for it: what is asked for and not there was not measured.
    """
    if found is None:
        return "not measured" if is_asked else "-"
    numbers, star = found["numbers"], "*" if bar is not None and found["score"] <= bar else ""
    return (
        f"{found['score']:.1f} [{numbers['low']:.1f}, {numbers['high']:.1f}]{star}, {found['bits_per_weight']:.2f} bits"
    )


def markdown(found: Mapping[str, Any], windows: int = 64) -> str:
    """Returns the table and what its cells mean."""
    heads = ["plan", "nearest", *RECIPES[1:], "at most"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for network in found["networks"]:
        before = network["float"]
        said = f"{network['title']}, float" + ("" if before is None else f" {before['score']:.1f}")
        lines.append("| " + " | ".join([said, *[""] * (len(heads) - 1)]) + " |")
        for plan in network["plans"]:
            every = plan["recipes"]
            cells = [cell(every.get(name), plan["bar"], is_asked=name in plan["asked"]) for name in RECIPES]
            bar = "-" if plan["bar"] is None else f"{plan['bar']:g}"
            lines.append("| " + " | ".join([plan["name"], *cells, bar]) + " |")
    return "\n".join([*lines, "", NOTE.format(batches=windows)]) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Takes a summary in, where one is named, and writes the table into the documents named."""
    write_block(taken_in(RESULT, arguments), markdown(json.loads(RESULT.read_text())), MARKS)


if __name__ == "__main__":
    main(sys.argv[1:])
