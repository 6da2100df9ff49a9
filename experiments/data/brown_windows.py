"""Windows of tokens of the Brown corpus: what a language model is calibrated on and its perplexity is measured on.

Texts are as the corpus lays them out, lines and tabs too, with the tags taken off (`experiments.data.brown` says where they come from).
Scored are the first tokens of the first 16 texts; calibration sees texts behind them.
"""

import re
import tarfile
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from experiments.data.brown import FILE, INSTALL
from experiments.data.dataset import DataError, cache_folder

SCORED = 16


def texts() -> list[str]:
    """Returns the 500 texts in the order of their names.

    Raises:
        DataError: if the package is not there.
    """
    path = cache_folder() / FILE
    if not path.is_file():
        raise DataError(f"{path} does not exist: {INSTALL}, and put the file there")
    found: dict[str, str] = {}
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            name = member.name.removeprefix("package/")
            if re.fullmatch(r"c[a-r]\d\d", name) and (stream := archive.extractfile(member)) is not None:
                found[name] = re.sub(r"/\S+", "", stream.read().decode("utf-8", "replace")).strip()
    if len(found) != 500:
        raise DataError(f"{path} should hold 500 texts, it holds {len(found)}: {INSTALL}")
    return [found[name] for name in sorted(found)]


def windows(
    tokens: Callable[[Sequence[str]], list[list[int]]], calibration: int, length: int = 256
) -> tuple[Int[np.ndarray, "window length"], Int[np.ndarray, "window length"]]:
    """Returns windows that calibrate, and windows that are scored; int32.

    Args:
        tokens: of texts.
        calibration: how many, each the first tokens of a text, evenly spaced behind the scored ones.
        length: tokens of a window.
    """
    every = texts()
    chosen = np.linspace(SCORED, len(every) - 1, calibration).astype(int)
    cut = [[ids[:length] for ids in tokens(some)] for some in ([every[i] for i in chosen], every[:SCORED])]
    seen, asked = (np.array([ids for ids in each if len(ids) == length], np.int32) for each in cut)
    return seen, asked
