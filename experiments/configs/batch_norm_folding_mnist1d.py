"""Batch norms folded while training at W4A4 and W3A3 with LSQ: with correction, frozen late, never, or from the start.

Command::

    lowbit run experiments/configs/batch_norm_folding_mnist1d.py

Krishnamoorthi, Quantizing deep convolutional networks for efficient inference, 2018, section 3.2.2. The weights that are
quantized are those that are served, ``gamma W / sigma``. ``beside``: batch norms stay beside the quantized weights.
``frozen``: long-term statistics from the first step on. ``corrected``: the batch's statistics to the end.
``corrected_frozen``: frozen for the last quarter of the 1,600 steps, the paper's best.

Gives in %, mean ± standard deviation of 3 seeds, in 1.3 minutes on 2 CPU cores: float 93.67 ± 1.02, beside_w4a4
93.47 ± 0.49, frozen_w4a4 93.20 ± 1.30, corrected_w4a4 91.80 ± 2.62, corrected_frozen_w4a4 93.37 ± 0.25, beside_w3a3
91.77 ± 1.33, frozen_w3a3 92.13 ± 1.05, corrected_w3a3 90.17 ± 0.98, corrected_frozen_w3a3 91.67 ± 0.75.
"""

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d
from lowbit.run import Method

STEPS = 1_600

config = on_mnist1d(
    "batch_norm_folding_mnist1d",
    *(
        Method(f"{name}_{bits}", inner(lb.lsq(rule)), QAT, freeze_norms=freeze)
        for bits, rule in (("w4a4", "w4,a4"), ("w3a3", "w3,a3"))
        for name, freeze in (
            ("beside", None), ("frozen", 0), ("corrected", STEPS), ("corrected_frozen", 3 * STEPS // 4),
        )
    ),
)  # fmt: skip
