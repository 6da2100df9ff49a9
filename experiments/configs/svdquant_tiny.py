"""Large directions of weights in thin products, the rest in 4 bits with 4-bit inputs, beside GPTQ and `lqer`, on MiniLM.

Command::

    lowbit run experiments/configs/svdquant_tiny.py

Its minutes on 2 idle cores were not measured (an hour, not to the end, on a busy machine). Cosine to float's sentence vectors; products of two activations stay in float. Needs what ``post_training.py`` needs.
"""

from experiments.post_training import Network, Plan, suite
from experiments.post_training_subjects import sentences

_RULES = {"**/dot_*": "keep", "**": "w4,a4/dynamic"}
_PLANS = (Plan("W4A4", _RULES, None, ("rtn", "gptq", "lqer", "svdquant")),)

config = suite("svdquant_tiny", Network("minilm", "MiniLM", sentences(64, 100), "cosine", 4, _PLANS))
