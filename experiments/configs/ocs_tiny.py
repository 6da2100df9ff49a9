"""Outlier channel splitting, beside GPTQ alone, on MiniLM: 8-bit weights with one scale each.

Command::

    lowbit run experiments/configs/ocs_tiny.py

Cosine to float's sentence vectors; products of two activations stay in float. Needs what ``post_training.py`` needs. Its minutes on 2
idle cores were not measured: it was written beside other work.
"""

from experiments.post_training import Network, Plan, suite
from experiments.post_training_subjects import sentences

_PLANS = tuple(
    Plan(name, {"**/dot_*": "keep", "**": rule}, None, ("rtn", "gptq", "ocs"))
    for name, rule in {"W8 per tensor": "w8/tensor", "W8A8 per tensor": "w8/tensor,a8"}.items()
)

config = suite("ocs_tiny", Network("minilm", "MiniLM", sentences(64, 100), "cosine", 4, _PLANS))
