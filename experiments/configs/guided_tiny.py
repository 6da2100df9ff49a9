"""Rows weighted by squared gradients, beside GPTQ, on a network of MLPerf Tiny.

Command::

    lowbit run experiments/configs/guided_tiny.py

The auto-encoder with 4-bit weights and 8-bit inputs; needs what ``post_training.py`` needs. Its minutes on 2 idle cores were
not measured: it was written beside other work.
"""

from experiments.post_training import run as run
from experiments.post_training_subjects import on_auto_encoder

config = on_auto_encoder("guided_tiny", "rtn", "gptq", "guided", calibration=256)
