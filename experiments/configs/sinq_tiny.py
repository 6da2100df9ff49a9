"""A second scale for every input beside searched scales, neither with calibration data for weights, on a network of MLPerf Tiny.

Command::

    lowbit run experiments/configs/sinq_tiny.py

The auto-encoder with 4-bit weights and 8-bit inputs; needs what ``post_training.py`` needs. Its minutes on 2 idle cores were
not measured: it was written beside other work.
"""

from experiments.post_training_subjects import on_auto_encoder

config = on_auto_encoder("sinq_tiny", "rtn", "search", "sinq", calibration=64)
