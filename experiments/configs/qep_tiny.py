"""Half of the target of `qronos` beside all of it, on a network of MLPerf Tiny with few calibration inputs.

Command::

    lowbit run experiments/configs/qep_tiny.py

The auto-encoder with 4-bit weights and 8-bit inputs; needs what ``post_training.py`` needs. Its minutes on 2 idle cores were
not measured: it was written beside other work.
"""

from experiments.post_training_subjects import on_auto_encoder

config = on_auto_encoder("qep_tiny", "rtn", "qronos", "qep", calibration=64)
