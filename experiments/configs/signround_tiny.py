"""Signs of gradients beside GPTQ, layer by layer, on a network of MLPerf Tiny.

Command::

    lowbit run experiments/configs/signround_tiny.py

The auto-encoder with 4-bit weights and 8-bit inputs; needs what ``post_training.py`` needs. Its minutes on 2 idle cores were
not measured: it was written beside other work.
"""

import functools

from experiments.post_training import Network, Plan, PostTraining
from experiments.post_training import run as run
from experiments.post_training_subjects import tiny

config = PostTraining(
    name="signround_tiny",
    networks=(
        Network(
            "anomaly_detection", "auto-encoder", functools.partial(tiny, "anomaly_detection", 256), "correlation", 4,
            (Plan("W4A8", {"**": "w4,a8"}, None, ("rtn", "gptq", "signround")),),
        ),
    ),
)  # fmt: skip
