"""The whole network learned at once after GPTQ, beside GPTQ alone and learned blocks, on a network of MLPerf Tiny.

Command::

    lowbit run experiments/configs/nwq_tiny.py

The auto-encoder with 4-bit weights and 8-bit inputs; needs what ``post_training.py`` needs. Its minutes on 2 idle cores were
not measured: it was written beside other work.
"""

from experiments.post_training_subjects import on_auto_encoder

config = on_auto_encoder("nwq_tiny", "rtn", "gptq", "brecq", "nwq", calibration=512)
