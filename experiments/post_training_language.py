"""SmolLM2-135M with what calibrates and scores it: perplexity on windows of the Brown corpus."""

import numpy as np

from experiments.data import brown_windows
from experiments.models import smollm2
from experiments.post_training import Subject, interval


def language(calibration: int = 64, together: int = 2) -> Subject:
    """Returns SmolLM2-135M: perplexity of the second to last token of 16 windows of 256, and a bootstrap over windows.

    Args:
        calibration: windows, of texts that are not scored.
        together: windows of a batch: each takes 50 MB of logits.
    """
    seen, asked = brown_windows.windows(smollm2.tokens, calibration)
    batches, inputs = ([(x[i : i + together],) for i in range(0, len(x), together)] for x in (seen, asked))

    def score(outputs: np.ndarray, before: np.ndarray) -> dict[str, float]:
        low, high = interval(outputs.mean(axis=1).astype(np.float64), np.arange(len(outputs)))
        return {
            "perplexity": float(np.exp(np.mean(outputs, dtype=np.float64))),
            "low": float(np.exp(low)),
            "high": float(np.exp(high)),
            "over float": float(np.exp(np.mean(outputs - before, dtype=np.float64))),
        }

    return Subject(smollm2.load(), batches, inputs, score)
