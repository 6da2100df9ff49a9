"""Biases that take back means while weights are solved, beside GPTQ without, on a network of MLPerf Tiny.

Command::

    lowbit run experiments/configs/centered_tiny.py

The auto-encoder with 4-bit weights and 8-bit inputs; needs what ``post_training.py`` needs. Its minutes on 2 idle cores were
not measured: it was written beside other work.
"""

from experiments.post_training_subjects import on_auto_encoder

config = on_auto_encoder("centered_tiny", "rtn", "gptq", "centered", calibration=256)
