"""Windows of tokens of the Brown corpus: what a language model is calibrated on and its perplexity is measured on.

Texts are as the corpus lays them out, lines and tabs too, with the tags taken off (`experiments.data.brown` says where they come from).
Scored are the first tokens of the first 16 texts; calibration sees texts behind them.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from experiments.data import brown

SCORED = 16


def _untagged(text: str) -> str:
    return re.sub(r"/\S+", "", text).strip()


def windows(
    tokens: Callable[[Sequence[str]], list[list[int]]], calibration: int, length: int = 256
) -> tuple[Int[np.ndarray, "window length"], Int[np.ndarray, "window length"]]:
    """Returns windows that calibrate, and windows that are scored; int32.

    Args:
        tokens: of texts.
        calibration: how many, each the first tokens of a text, evenly spaced behind the scored ones.
        length: tokens of a window.

    Raises:
        DataError: if the package is not there.
    """
    every = brown.texts(_untagged)
    chosen = np.linspace(SCORED, len(every) - 1, calibration).astype(int)
    cut = [[ids[:length] for ids in tokens(some)] for some in ([every[i] for i in chosen], every[:SCORED])]
    seen, asked = (np.array([ids for ids in each if len(ids) == length], np.int32) for each in cut)
    return seen, asked
